"""The trunk that all networks share: patches, positions, blocks (Fig. 3).

Axes: B images or clips; *axes, the n axes of a map, H × W or T × H × W pixels or tokens; C
channels. A class token travels beside the map, (B, 1, C).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..attention.pooling import convolution
from ..attention.position import (
    ABSOLUTE_NAMES,
    TABLE_NAMES,
    absolute_embedding,
    absolute_shapes,
    separable_embedding,
)
from ..fused import accelerate
from .block import MultiScaleBlock
from .schedule import BlockSpec

# Position parameters: like norms, the detection recipe does not decay them.
NO_WEIGHT_DECAY = (*ABSOLUTE_NAMES, *TABLE_NAMES)


class PatchEmbed(nn.Module):
    """Patches, overlapping or not: a strided convolution with one kernel side per axis."""

    def __init__(
        self,
        in_chans: int,
        embed_dim: int,
        kernel: tuple[int, ...],
        stride: tuple[int, ...],
        padding: tuple[int, ...],
    ) -> None:
        super().__init__()
        self.proj = convolution(len(kernel))(
            in_chans, embed_dim, kernel, stride=stride, padding=padding
        )

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, *axes) images or clips to (B, *axes / stride, C') tokens."""
        # Tokens then lie channels-last in memory too, as every block wants them.
        formats = {4: torch.channels_last, 5: torch.channels_last_3d}
        images = images.to(memory_format=formats[images.dim()])
        return self.proj(images).movedim(1, -1)


class Trunk(nn.Module):
    """A network with a given schedule of blocks, from images or clips to their last tokens.

    Args:
        patch_embed: makes tokens of images or clips.
        schedule: the blocks.
        norm_layer: makes a normalisation from its channels.
        act_layer: makes the activation of the MLPs.
        use_abs_pos: absolute positions, resized to the image.
        pretrain_size: token grid that the absolute positions are made for, one side per axis.
        pretrain_use_cls_token: whether the absolute positions have one for a class token.
        class_token: whether a class token travels beside the map.
        use_act_checkpoint: recompute each block in backward instead of saving its activations.
        attention_backend: what computes the blocks, one of :data:`mvitv2_det.fused.BACKENDS`.
        recompute_products: recompute the widest maps of each block, as in
            :func:`mvitv2_det.fused.accelerate`.

    Raises:
        ValueError: there is no such backend, or it cannot recompute.
    """

    pos_embed: Tensor | None
    pos_embed_spatial: Tensor | None
    pos_embed_temporal: Tensor | None
    pos_embed_class: Tensor | None
    cls_token: Tensor | None

    def __init__(
        self,
        patch_embed: PatchEmbed,
        schedule: Sequence[BlockSpec],
        *,
        norm_layer: Callable[[int], nn.Module],
        act_layer: Callable[[], nn.Module],
        use_abs_pos: bool,
        pretrain_size: Sequence[int],
        pretrain_use_cls_token: bool,
        class_token: bool = False,
        use_act_checkpoint: bool = False,
        attention_backend: str = "auto",
        recompute_products: bool = False,
    ) -> None:
        super().__init__()
        self.pretrain_use_cls_token = pretrain_use_cls_token
        self.use_act_checkpoint = use_act_checkpoint

        self.patch_embed = patch_embed
        channels = schedule[0].attention.dim
        shapes = absolute_shapes(pretrain_size, channels, pretrain_use_cls_token)
        for name in ABSOLUTE_NAMES:
            shape = shapes.get(name) if use_abs_pos else None
            self.register_parameter(name, None if shape is None else _truncated_normal(shape))
        token = _truncated_normal((1, 1, channels)) if class_token else None
        self.register_parameter("cls_token", token)
        self.blocks = nn.ModuleList(
            MultiScaleBlock(spec, norm_layer, act_layer) for spec in schedule
        )
        self.apply(_init_weights)
        accelerate(self, attention_backend, recompute_products)

    @property
    def axes(self) -> int:
        """Axes of the maps: 2 for images, 3 for clips."""
        return len(self.patch_embed.proj.kernel_size)

    def embed(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Tokens with their absolute positions, what goes into the first block.

        Args:
            images: (B, C, *axes), any size.

        Returns:
            (B, *axes / stride, C'), and the class token (B, 1, C') or None.

        Raises:
            ValueError: ``images`` has another number of dimensions or channels.
        """
        self._check_images(images)
        x, token = self.patch_embed(images), self.cls_token
        size = x.shape[1:-1]
        if self.pos_embed is not None:
            if token is not None:
                token = token + self.pos_embed[:, :1]
            x = x + absolute_embedding(self.pos_embed, self.pretrain_use_cls_token, size)
        if self.pos_embed_spatial is not None and self.pos_embed_temporal is not None:
            if token is not None and self.pos_embed_class is not None:
                token = token + self.pos_embed_class
            x = x + separable_embedding(self.pos_embed_spatial, self.pos_embed_temporal, size)
        return x, None if token is None else token.expand(x.shape[0], -1, -1)

    def run_block(
        self, index: int, x: Tensor, token: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Runs one block on a map (B, *axes, C) and a class token (B, 1, C), if there is one."""
        block, tokens = self.blocks[index], (x,) if token is None else (x, token)
        if self.use_act_checkpoint and self.training and torch.is_grad_enabled():
            out = checkpoint(block, *tokens, use_reentrant=False)
        else:
            out = block(*tokens)
        return (out, None) if token is None else out

    def _check_images(self, images: Tensor) -> None:
        channels = self.patch_embed.proj.in_channels
        if images.dim() != 2 + self.axes or images.shape[1] != channels:
            what, sizes = {2: ("images", "H, W"), 3: ("clips", "T, H, W")}[self.axes]
            raise ValueError(
                f"{type(self).__name__} expects {what} of shape (B, {channels}, {sizes}), "
                f"got {tuple(images.shape)}"
            )


def _truncated_normal(shape: tuple[int, ...]) -> nn.Parameter:
    return nn.Parameter(nn.init.trunc_normal_(torch.zeros(shape), std=0.02))


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
