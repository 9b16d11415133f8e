"""The trunk that all backbones share: patches, blocks, a feature map where a stage ends (Fig. 3).

Axes: B images, H × W pixels or tokens, C channels.
"""

from collections.abc import Callable, Sequence

import torch
from detectron2.modeling.backbone import Backbone
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..attention.position import TABLE_NAMES, absolute_embedding
from ..fused import accelerate
from .block import MultiScaleBlock
from .schedule import BlockSpec

# Position parameters: like norms, the detection recipe does not decay them.
NO_WEIGHT_DECAY = ("pos_embed", *TABLE_NAMES)


class PatchEmbed(nn.Module):
    """Patches, overlapping or not: a strided convolution, (B, C, H, W) to (B, H', W', C')."""

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
        # Tokens then lie channels-last in memory too, as every block wants them.
        images = images.to(memory_format=torch.channels_last)
        return self.proj(images).permute(0, 2, 3, 1)


class Trunk(Backbone):
    """A backbone with a given schedule of blocks.

    Args:
        patch_embed: makes tokens of images.
        schedule: the blocks.
        norm_layer: makes a normalisation from its channels.
        act_layer: makes the activation of the MLPs.
        use_abs_pos: absolute positions, resized bicubically to the image.
        pretrain_img_size: side of the images that the absolute positions are made for.
        pretrain_use_cls_token: whether the absolute positions have one for a class token in
            front.
        use_act_checkpoint: recompute each block in backward instead of saving its activations.
        out_features: names of the feature maps to return.
        freeze_at: number of stages to freeze.
        attention_backend: what computes the blocks, one of :data:`mvitv2_det.fused.BACKENDS`.

    Raises:
        ValueError: there is no such backend.
    """

    def __init__(
        self,
        patch_embed: PatchEmbed,
        schedule: Sequence[BlockSpec],
        *,
        norm_layer: Callable[[int], nn.Module],
        act_layer: Callable[[], nn.Module],
        use_abs_pos: bool,
        pretrain_img_size: int,
        pretrain_use_cls_token: bool,
        use_act_checkpoint: bool,
        out_features: Sequence[str],
        freeze_at: int = 0,
        attention_backend: str = "auto",
    ) -> None:
        super().__init__()
        stride = patch_embed.proj.stride[0]
        self.pretrain_use_cls_token = pretrain_use_cls_token
        self.use_act_checkpoint = use_act_checkpoint
        self.freeze_at = freeze_at

        self.patch_embed = patch_embed
        self.pos_embed = None
        if use_abs_pos:
            positions = (pretrain_img_size // stride) ** 2 + int(pretrain_use_cls_token)
            channels = schedule[0].attention.dim
            self.pos_embed = nn.Parameter(torch.zeros(1, positions, channels))
            nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.blocks = nn.ModuleList(
            MultiScaleBlock(spec, norm_layer, act_layer) for spec in schedule
        )
        self._out_features = tuple(out_features)
        self._out_feature_channels, self._out_feature_strides = {}, {}
        self._feature_after_block = {}
        for index, spec in enumerate(schedule):
            name = f"scale{spec.stage}"
            if spec.ends_stage and name in self._out_features:
                self._feature_after_block[index] = name
                self._out_feature_channels[name] = spec.dim_out
                self._out_feature_strides[name] = stride * 2 ** (spec.stage - schedule[0].stage)
                self.add_module(f"{name}_norm", norm_layer(spec.dim_out))
        self.apply(_init_weights)
        self._freeze(num_blocks=sum(spec.stage <= freeze_at for spec in schedule))
        accelerate(self, attention_backend)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Feature maps of images.

        Args:
            images: (B, C, H, W), any size; sizes that no stride divides are rounded up in each
                stage.

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
        recompute = self.use_act_checkpoint and self.training and torch.is_grad_enabled()
        features = {}
        for index in range(max(self._feature_after_block) + 1):
            block = self.blocks[index]
            x = checkpoint(block, x, use_reentrant=False) if recompute else block(x)
            if name := self._feature_after_block.get(index):
                features[name] = getattr(self, f"{name}_norm")(x).permute(0, 3, 1, 2)
        return features

    def train(self, mode: bool = True) -> "Trunk":
        """Sets training mode; frozen blocks stay in evaluation mode, so that they drop no paths."""
        super().train(mode)
        self.blocks[: self._num_frozen_blocks].eval()
        return self

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
                f"{type(self).__name__} expects images of shape (B, {channels}, H, W), "
                f"got {tuple(images.shape)}"
            )


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
