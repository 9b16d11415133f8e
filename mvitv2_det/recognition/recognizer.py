"""MViTv2 and plain ViT as classifiers of images (section 4.1) and of clips (section 4.3).

Axes: B images or clips; H × W or T × H × W pixels and tokens; C channels.

What surrounds the blocks differs between the released networks of the two tasks, and the
constructors here follow each: ``mvit/models/mvit_model.py`` of facebookresearch/mvit for images,
``slowfast/models/video_model_builder.py`` of facebookresearch/SlowFast for clips. Parameters have
the names of both, so that a released file is this network's state dict.
"""

from collections.abc import Callable, Sequence
from functools import partial
from math import log2
from typing import Any

import torch
from torch import Tensor, nn

from ..attention.spec import AttentionSpec
from ..backbone.schedule import BlockSpec, build_plain_schedule, build_schedule
from ..backbone.trunk import PatchEmbed, Trunk
from ..variants import VARIANTS, Variant

# Stochastic depth in training from scratch, by size: appendix B.2 for images, B.4 and the public
# configs of SlowFast for clips. The paper has no clips for T and H: T has what S has, H what L has.
IMAGE_DROP_PATH = {"T": 0.1, "S": 0.1, "B": 0.3, "L": 0.5, "H": 0.8}
CLIP_DROP_PATH = {"T": 0.2, "S": 0.2, "B": 0.3, "L": 0.75, "H": 0.75}

INITIALIZATIONS = ("mvit", "pyslowfast")

LAYER_NORM = partial(nn.LayerNorm, eps=1e-6)


class Recognizer(Trunk):
    """A network with a linear layer on the mean of its last tokens, or on its class token.

    :meth:`image` and :meth:`video` make the networks of the paper, :meth:`multiscale` all others
    of that kind, MViTv1 among them (:data:`mvitv2_det.variants.MVITV1_ARGUMENTS`), and
    :meth:`plain` the plain ViT that the paper compares with.

    Args:
        patch_embed: makes tokens of images or clips.
        schedule: the blocks.
        num_classes: outputs.
        grid: tokens along each axis that the absolute positions are made for.
        class_token: classify a class token, not the mean of all tokens.
        use_abs_pos: absolute positions, resized to the image or clip.
        head_dropout: dropout before the linear layer.
        norm_layer, act_layer, use_act_checkpoint, attention_backend, recompute_products: as in
            :class:`mvitv2_det.MViT`.
        initialization: ``"mvit"``: linear layers from a truncated normal distribution of standard
            deviation 0.02, biases 0, convolutions as PyTorch has them. ``"pyslowfast"``:
            convolutions too from that distribution, biases of linear layers and of norms 0.02.

    Raises:
        ValueError: a name is unknown, or there are windows and a class token.
    """

    def __init__(
        self,
        patch_embed: PatchEmbed,
        schedule: Sequence[BlockSpec],
        num_classes: int,
        *,
        grid: tuple[int, ...],
        class_token: bool = False,
        use_abs_pos: bool = False,
        head_dropout: float = 0.0,
        norm_layer: Callable[[int], nn.Module] = LAYER_NORM,
        act_layer: Callable[[], nn.Module] = nn.GELU,
        initialization: str = "mvit",
        use_act_checkpoint: bool = False,
        attention_backend: str = "auto",
        recompute_products: bool = False,
    ) -> None:
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        if initialization not in INITIALIZATIONS:
            raise ValueError(
                f"initialization must be {' or '.join(INITIALIZATIONS)}, got {initialization!r}"
            )
        if class_token and any(spec.attention.window_size for spec in schedule):
            raise ValueError("a class token would have to be in all windows at once: choose one")
        super().__init__(
            patch_embed,
            schedule,
            norm_layer=norm_layer,
            act_layer=act_layer,
            use_abs_pos=use_abs_pos,
            pretrain_size=grid,
            pretrain_use_cls_token=class_token,
            class_token=class_token,
            use_act_checkpoint=use_act_checkpoint,
            attention_backend=attention_backend,
            recompute_products=recompute_products,
        )
        channels = schedule[-1].dim_out
        self.num_classes = num_classes
        self.norm = norm_layer(channels)
        self.head = Head(channels, num_classes, head_dropout)
        if initialization == "pyslowfast":
            self.apply(_init_as_pyslowfast)

    @classmethod
    def multiscale(
        cls,
        variant: Variant,
        num_classes: int,
        input_size: tuple[int, ...],
        *,
        patch_kernel: tuple[int, ...] = (7, 7),
        patch_stride: tuple[int, ...] = (4, 4),
        patch_padding: tuple[int, ...] = (3, 3),
        in_chans: int = 3,
        pool_kernel: tuple[int, ...] = (3, 3),
        adaptive_kv_stride: int = 4,
        adaptive_window_size: int | Sequence[int] = 0,
        window_layout: str = "hybrid",
        residual_pooling: bool = True,
        residual_class_token: bool = True,
        expand_in_attention: bool = True,
        full_q_pooling: bool = True,
        use_rel_pos: bool = True,
        rel_pos_kind: str = "decomposed",
        rel_pos_terms: Sequence[str] = ("q",),
        rel_pos_zero_init: bool = False,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_path_rate: float = 0.0,
        **options: Any,
    ) -> "Recognizer":
        """Any MViTv2 or MViTv1 of images or clips.

        Args:
            variant: the size.
            num_classes: outputs.
            input_size: (H, W) of images, or (T, H, W) of clips, that the positions are made for.
                Other sizes resize them.
            patch_kernel, patch_stride, patch_padding: the patch embedding's convolution, a number
                for each axis.
            in_chans: channels of the images.
            pool_kernel: kernel of the pooling convolutions.
            adaptive_kv_stride: K/V stride in height and width of the first stage, halved from
                stage to stage.
            adaptive_window_size: windows of images, as in :class:`mvitv2_det.MViT`; 0: none.
            residual_class_token: whether the class token's query is added to its output as all
                others are (Eq. 5).
            window_layout, residual_pooling, expand_in_attention, full_q_pooling: as in
                :class:`mvitv2_det.MViT`.
            use_rel_pos, rel_pos_zero_init, mlp_ratio, qkv_bias: likewise.
            rel_pos_kind, rel_pos_terms: as in :class:`~mvitv2_det.attention.spec.AttentionSpec`.
            drop_path_rate: stochastic depth of the last block; it grows linearly from 0.
            options: further keywords of :class:`Recognizer`.

        Raises:
            ValueError: a size does not fit another, or a name is unknown; the message says which.
        """
        # Three more stages halve height and width; time is strided by the patches alone.
        grid = _patch_grid(input_size, patch_stride, halvings=8)
        schedule = build_schedule(
            embed_dim=variant.embed_dim,
            depth=variant.depth,
            num_heads=variant.num_heads,
            last_block_indexes=variant.last_block_indexes,
            adaptive_kv_stride=adaptive_kv_stride,
            adaptive_window_size=adaptive_window_size,
            window_layout=window_layout,
            table_size=grid,
            drop_path_rate=drop_path_rate,
            expand_in_attention=expand_in_attention,
            global_kv_stride_factor=1,
            full_q_pooling=full_q_pooling,
            mlp_ratio=mlp_ratio,
            attention=AttentionSpec(
                qkv_bias=qkv_bias,
                pool_kernel=(*pool_kernel,),
                stride_q=(1,) * len(pool_kernel),
                stride_kv=(1,) * len(pool_kernel),
                residual_pooling=residual_pooling,
                residual_class_token=residual_class_token,
                use_rel_pos=use_rel_pos,
                rel_pos_kind=rel_pos_kind,
                rel_pos_terms=(*rel_pos_terms,),
                rel_pos_zero_init=rel_pos_zero_init,
                table_size=grid,
            ),
        )
        patches = PatchEmbed(
            in_chans, variant.embed_dim, (*patch_kernel,), (*patch_stride,), (*patch_padding,)
        )
        return cls(patches, schedule, num_classes, grid=grid, **options)

    @classmethod
    def plain(
        cls,
        num_classes: int = 1000,
        image_size: int = 224,
        *,
        patch_size: int = 16,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        window_size: int = 0,
        window_layout: str = "hybrid",
        pooling: bool = False,
        kv_stride: int = 1,
        drop_path_rate: float = 0.0,
        **options: Any,
    ) -> "Recognizer":
        """A plain ViT of images, by default ViT-B with full attention (Table 4a).

        It has absolute positions, no relative ones, and no class token.

        Args:
            num_classes: outputs.
            image_size: side of the images that the positions are made for.
            patch_size, embed_dim, depth, num_heads: the size, as in :class:`mvitv2_det.ViT`.
            window_size, window_layout, pooling, kv_stride, drop_path_rate: likewise.
            options: further keywords of :class:`Recognizer`.

        Raises:
            ValueError: a size does not fit another, or a name is unknown; the message says which.
        """
        side = (patch_size, patch_size)
        grid = _patch_grid((image_size, image_size), side)
        schedule = build_plain_schedule(
            stage=int(log2(patch_size)),
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            window_size=window_size,
            table_size=grid[0],
            drop_path_rate=drop_path_rate,
            window_layout=window_layout,
            pooling=pooling,
            kv_stride=kv_stride,
            attention=AttentionSpec(residual_pooling=pooling, use_rel_pos=False),
        )
        patches = PatchEmbed(3, embed_dim, kernel=side, stride=side, padding=(0, 0))
        return cls(patches, schedule, num_classes, grid=grid, use_abs_pos=True, **options)

    @classmethod
    def image(
        cls,
        variant: str | Variant = "T",
        num_classes: int = 1000,
        class_token: bool = False,
        *,
        image_size: int = 224,
        **options: Any,
    ) -> "Recognizer":
        """The network of ImageNet (Table 2); with a class token, that of ImageNet-21K.

        It takes images (B, 3, H, W). Without a class token, channels of L double in the MLPs, as
        in the paper's tables and the released weights; those of all others in attention.

        Args:
            variant: T, S, B, L or H; or another size.
            num_classes: outputs; 19,168 for ImageNet-21K as facebookresearch/mvit has it.
            class_token: classify a class token.
            image_size: side of the images that the position tables are made for.
            options: further keywords of :meth:`multiscale`.

        Raises:
            ValueError: there is no such variant, or as in :meth:`multiscale`.
        """
        size, drop_path_rate = _size(variant, IMAGE_DROP_PATH)
        defaults: dict[str, Any] = {
            "drop_path_rate": drop_path_rate,
            "expand_in_attention": class_token or variant != "L",
        }
        return cls.multiscale(
            size,
            num_classes,
            (image_size, image_size),
            class_token=class_token,
            **defaults | options,
        )

    @classmethod
    def video(
        cls,
        variant: str | Variant = "S",
        frames: int = 16,
        num_classes: int = 400,
        class_token: bool = True,
        *,
        image_size: int = 224,
        **options: Any,
    ) -> "Recognizer":
        """The network of Kinetics and Something-Something (Table 10).

        It takes clips (B, 3, T, H, W). All released ones have a class token (appendix B.1 says
        otherwise), L has 40 frames of 312².

        Args:
            variant: T, S, B, L or H; or another size.
            frames: T that the position tables are made for.
            num_classes: outputs.
            class_token: classify a class token.
            image_size: side of the frames that the position tables are made for.
            options: further keywords of :meth:`multiscale`.

        Raises:
            ValueError: there is no such variant, or as in :meth:`multiscale`.
        """
        size, drop_path_rate = _size(variant, CLIP_DROP_PATH)
        defaults: dict[str, Any] = {
            "patch_kernel": (3, 7, 7),
            "patch_stride": (2, 4, 4),
            "patch_padding": (1, 3, 3),
            "pool_kernel": (3, 3, 3),
            "adaptive_kv_stride": 8,
            "residual_class_token": False,
            "drop_path_rate": drop_path_rate,
            "head_dropout": 0.5,
            "initialization": "pyslowfast",
        }
        return cls.multiscale(
            size,
            num_classes,
            (frames, image_size, image_size),
            class_token=class_token,
            **defaults | options,
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images or clips.

        Args:
            images: (B, C, H, W) images or (B, C, T, H, W) clips, of any size.

        Returns:
            (B, num_classes), before softmax.

        Raises:
            ValueError: ``images`` has another number of dimensions or channels.
        """
        x, token = self.run_blocks(images)
        x = x.flatten(1, -2)
        if token is None:
            return self.head(self.norm(x).mean(dim=1))
        # All tokens are normalised, as in the reference: parameters that move the map alone then
        # have gradients, zeros, which training on several processes waits for.
        return self.head(self.norm(torch.cat((token, x), dim=1))[:, 0])

    def run_blocks(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """The last map, before the last norm.

        Args:
            images: as for :meth:`forward`.

        Returns:
            (B, *axes, C), and the class token (B, 1, C) or None.

        Raises:
            ValueError: as :meth:`forward`.
        """
        x, token = self.embed(images)
        for index in range(len(self.blocks)):
            x, token = self.run_block(index, x, token)
        return x, token

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """The layers of parameters by their names, from input to output, as timm asks for them.

        ``timm.optim.param_groups_layer_decay`` calls it. The last norm belongs to the last block.

        Args:
            coarse: timm's coarser division; there is one division here.
        """
        del coarse
        return {
            "stem": r"^cls_token|^pos_embed|^patch_embed",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))],
        }


class Head(nn.Module):
    """Dropout and a linear layer, (B, C) to (B, classes)."""

    def __init__(self, channels: int, num_classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.projection = nn.Linear(channels, num_classes)
        nn.init.trunc_normal_(self.projection.weight, std=0.02)
        nn.init.zeros_(self.projection.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C) to logits (B, classes)."""
        return self.projection(self.dropout(x))


def _size(variant: str | Variant, drop_path_rates: dict[str, float]) -> tuple[Variant, float]:
    """The size of a network, and its stochastic depth."""
    if isinstance(variant, Variant):
        return variant, variant.drop_path_rate
    if variant not in VARIANTS:
        raise ValueError(f"variant must be one of {', '.join(VARIANTS)}, got {variant!r}")
    return VARIANTS[variant], drop_path_rates[variant]


def _patch_grid(
    input_size: tuple[int, ...], patch_stride: Sequence[int], halvings: int = 1
) -> tuple[int, ...]:
    """Patches along each axis, rounded down as the released tables are."""
    if len(input_size) != len(patch_stride):
        raise ValueError(
            f"patch_stride must have a number for each axis of input_size {input_size}, got "
            f"{tuple(patch_stride)}"
        )
    least = [1] * (len(input_size) - 2) + [halvings] * 2
    for size, stride, patches in zip(input_size, patch_stride, least, strict=True):
        if size < patches * stride:
            raise ValueError(
                f"input_size must be at least {patches} patch strides = {patches * stride} along "
                f"each axis that is halved, got {input_size}"
            )
    return tuple(size // stride for size, stride in zip(input_size, patch_stride, strict=True))


@torch.no_grad()
def _init_as_pyslowfast(module: nn.Module) -> None:
    if isinstance(module, (nn.Linear, nn.Conv2d, nn.Conv3d)):
        nn.init.trunc_normal_(module.weight, std=0.02)
    if isinstance(module, (nn.Linear, nn.LayerNorm)) and module.bias is not None:
        nn.init.constant_(module.bias, 0.02)
