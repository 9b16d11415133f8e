"""MViTv2 as a Detectron2 backbone: patches, blocks, one feature map per stage (Fig. 3).

Axes: B images, H × W pixels or tokens, C channels.
"""

from collections.abc import Callable, Sequence

import torch
from detectron2.modeling.backbone import Backbone
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..attention.backends import AUTO
from ..attention.position import absolute_embedding
from .block import MultiScaleBlock
from .schedule import FEATURE_NAMES, FIRST_STAGE, build_schedule

# Positions: like norms, the detection recipe does not decay them.
NO_WEIGHT_DECAY = ("pos_embed", "rel_pos_h", "rel_pos_w")


class PatchEmbed(nn.Module):
    """Overlapping patches: a strided convolution, (B, C, H, W) to (B, H', W', C')."""

    def __init__(
        self,
        in_chans: int,
        embed_dim: int,
        kernel: tuple[int, int],
        stride: tuple[int, int],
        padding: tuple[int, int],
    ) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, embed_dim, kernel, stride=stride, padding=padding)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) images to (B, H / stride, W / stride, C') tokens."""
        return self.proj(images).permute(0, 2, 3, 1)


class MViT(Backbone):
    """Multiscale vision transformer with Hybrid window attention (Hwin, section 4.2).

    Takes every keyword of ``detectron2.modeling.MViT`` with the same meaning and default, has the
    same ``state_dict``, and gives the same outputs on the same weights.

    Args:
        img_size: side of the images that the relative position tables are made for.
        patch_kernel, patch_stride, patch_padding: the patch embedding's convolution.
        in_chans: channels of the images.
        embed_dim, depth, num_heads, last_block_indexes: the size; see
            :data:`mvitv2_det.VARIANTS`.
        qkv_pool_kernel: kernel of the pooling convolutions.
        adaptive_kv_stride: K/V stride in scale2, halved from stage to stage.
        adaptive_window_size: window in scale2, halved from stage to stage; the last blocks of
            scale3, scale4 and scale5 are global. 0: every block is global.
        residual_pooling: adds the pooled query to the attention's output (Eq. 5).
        mlp_ratio: hidden channels of the MLPs over their input channels.
        qkv_bias: whether the q, k, v projections have a bias.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0.
        norm_layer: makes a normalisation from its channels. The published models use
            ``partial(nn.LayerNorm, eps=1e-6)``.
        act_layer: makes the activation of the MLPs (Detectron2's MViT ignores it).
        use_abs_pos: absolute positions, resized bicubically to the image.
        use_rel_pos: decomposed relative positions (Eq. 4).
        rel_pos_zero_init: whether their tables start at zero.
        use_act_checkpoint: recompute each block in backward instead of keeping its activations.
        pretrain_img_size: side of the images that the absolute positions are made for.
        pretrain_use_cls_token: whether the absolute positions have one for a class token in
            front, as the checkpoints pre-trained on ImageNet-21K have.
        out_features: names of the feature maps to return, of ``scale2`` to ``scale5``.
        expand_in_attention: channels double in a stage's first attention (appendix B.1).
            ``False`` doubles them in the MLP that ends the stage before, which is the L of the
            paper's tables and of the ImageNet-1K weights.
        global_kv_stride_factor: the global blocks that end scale3 and scale4 multiply their K/V
            stride by this. The classification networks have 1.
        freeze_at: number of stages to freeze: 0 nothing, 1 patch embedding and absolute
            positions, 2 also the blocks of scale2, … 5 also those of scale5. Frozen blocks drop
            no paths. The output norms always train: they are new in detection.
        attention_backend: what computes attention: ``auto``, the fastest exact one on the device,
            or a name in :mod:`mvitv2_det.attention.backends`. Weights do not depend on it.

    Raises:
        ValueError: a size does not fit another; the message has both numbers.
    """

    def __init__(
        self,
        img_size: int = 224,
        patch_kernel: tuple[int, int] = (7, 7),
        patch_stride: tuple[int, int] = (4, 4),
        patch_padding: tuple[int, int] = (3, 3),
        in_chans: int = 3,
        embed_dim: int = 96,
        depth: int = 16,
        num_heads: int = 1,
        last_block_indexes: Sequence[int] = (0, 2, 11, 15),
        qkv_pool_kernel: tuple[int, int] = (3, 3),
        adaptive_kv_stride: int = 4,
        adaptive_window_size: int = 56,
        residual_pooling: bool = True,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_path_rate: float = 0.0,
        norm_layer: Callable[[int], nn.Module] = nn.LayerNorm,
        act_layer: Callable[[], nn.Module] = nn.GELU,
        use_abs_pos: bool = False,
        use_rel_pos: bool = True,
        rel_pos_zero_init: bool = True,
        use_act_checkpoint: bool = False,
        pretrain_img_size: int = 224,
        pretrain_use_cls_token: bool = True,
        out_features: Sequence[str] = FEATURE_NAMES,
        expand_in_attention: bool = True,
        global_kv_stride_factor: int = 2,
        freeze_at: int = 0,
        attention_backend: str = AUTO,
    ) -> None:
        super().__init__()
        _check_patches(patch_stride, img_size, pretrain_img_size)
        _check_features(out_features, freeze_at)
        stride = patch_stride[0]
        schedule = build_schedule(
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            last_block_indexes=last_block_indexes,
            adaptive_kv_stride=adaptive_kv_stride,
            adaptive_window_size=adaptive_window_size,
            table_size=img_size // stride,
            drop_path_rate=drop_path_rate,
            expand_in_attention=expand_in_attention,
            global_kv_stride_factor=global_kv_stride_factor,
        )
        self.pretrain_use_cls_token = pretrain_use_cls_token
        self.use_act_checkpoint = use_act_checkpoint
        self.freeze_at = freeze_at

        self.patch_embed = PatchEmbed(
            in_chans, embed_dim, tuple(patch_kernel), tuple(patch_stride), tuple(patch_padding)
        )
        self.pos_embed = None
        if use_abs_pos:
            positions = (pretrain_img_size // stride) ** 2 + int(pretrain_use_cls_token)
            self.pos_embed = nn.Parameter(torch.zeros(1, positions, embed_dim))
            nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.blocks = nn.ModuleList(
            MultiScaleBlock(
                spec,
                mlp_ratio=mlp_ratio,
                norm_layer=norm_layer,
                act_layer=act_layer,
                qkv_bias=qkv_bias,
                pool_kernel=tuple(qkv_pool_kernel),
                residual_pooling=residual_pooling,
                use_rel_pos=use_rel_pos,
                rel_pos_zero_init=rel_pos_zero_init,
                attention_backend=attention_backend,
            )
            for spec in schedule
        )
        self._out_features = tuple(out_features)
        self._out_feature_channels, self._out_feature_strides = {}, {}
        self._feature_after_block = {}
        for index, spec in enumerate(schedule):
            name = f"scale{spec.stage}"
            if spec.ends_stage and name in self._out_features:
                self._feature_after_block[index] = name
                self._out_feature_channels[name] = spec.dim_out
                self._out_feature_strides[name] = stride * 2 ** (spec.stage - FIRST_STAGE)
                self.add_module(f"{name}_norm", norm_layer(spec.dim_out))
        self.apply(_init_weights)
        self._freeze(num_blocks=sum(spec.stage <= freeze_at for spec in schedule))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Feature maps of images.

        Args:
            images: (B, C, H, W), any size; sizes that are no multiple of 32 are rounded up in
                each stage.

        Returns:
            for each name s of ``out_features``, first to last stage,
            (B, C_s, H / stride_s, W / stride_s).

        Raises:
            ValueError: ``images`` has another number of dimensions or channels.
        """
        self._check_images(images)
        x = self.patch_embed(images)
        if self.pos_embed is not None:
            x = x + absolute_embedding(self.pos_embed, self.pretrain_use_cls_token, x.shape[1:3])
        features = {}
        for index in range(max(self._feature_after_block) + 1):
            x = self._run_block(self.blocks[index], x)
            if name := self._feature_after_block.get(index):
                features[name] = getattr(self, f"{name}_norm")(x).permute(0, 3, 1, 2)
        return features

    def train(self, mode: bool = True) -> "MViT":
        """Sets training mode; frozen blocks stay in evaluation mode, so that they drop no paths."""
        super().train(mode)
        self.blocks[: self._num_frozen_blocks].eval()
        return self

    def _run_block(self, block: nn.Module, x: Tensor) -> Tensor:
        if self.use_act_checkpoint and self.training and torch.is_grad_enabled():
            return checkpoint(block, x, use_reentrant=False)
        return block(x)

    def _freeze(self, num_blocks: int) -> None:
        """Freezes the first blocks, and what comes before them where ``freeze_at`` is not 0."""
        self._num_frozen_blocks = num_blocks
        if self.freeze_at > 0:
            self.patch_embed.requires_grad_(False)
            if self.pos_embed is not None:
                self.pos_embed.requires_grad_(False)
        self.blocks[:num_blocks].requires_grad_(False).eval()

    def _check_images(self, images: Tensor) -> None:
        channels = self.patch_embed.proj.in_channels
        if images.dim() != 4 or images.shape[1] != channels:
            raise ValueError(
                f"MViT expects images of shape (B, {channels}, H, W), got {tuple(images.shape)}"
            )


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _check_patches(patch_stride: Sequence[int], img_size: int, pretrain_img_size: int) -> None:
    if patch_stride[0] != patch_stride[1]:
        raise ValueError(
            f"patch_stride must be the same for both axes, got {patch_stride[0]} and "
            f"{patch_stride[1]}"
        )
    for name, size in (("img_size", img_size), ("pretrain_img_size", pretrain_img_size)):
        if size < 8 * patch_stride[0]:
            raise ValueError(
                f"{name} must be at least 8 patch strides = {8 * patch_stride[0]}, got {size}"
            )


def _check_features(out_features: Sequence[str], freeze_at: int) -> None:
    unknown = [name for name in out_features if name not in FEATURE_NAMES]
    if unknown or not out_features:
        raise ValueError(
            f"out_features must be some of {', '.join(FEATURE_NAMES)}, got "
            f"{', '.join(map(repr, unknown)) or 'none'}"
        )
    last_stage = FIRST_STAGE + len(FEATURE_NAMES) - 1
    if not 0 <= freeze_at <= last_stage:
        raise ValueError(f"freeze_at must be between 0 and {last_stage}, got {freeze_at}")
