"""What every backbone here is made of: patches, blocks, a feature map where a stage ends (Fig. 3).

Axes: B images, H × W pixels or tokens, C channels.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import FunctionType

import torch
from detectron2.modeling.backbone import Backbone
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..attention.position import TABLE_NAMES, absolute_embedding
from .block import MultiScaleBlock, PathScales
from .schedule import BlockSpec

# Positions: like norms, the detection recipe does not decay them.
NO_WEIGHT_DECAY = ("pos_embed", *TABLE_NAMES)

BlockCall = Callable[[MultiScaleBlock, Tensor, PathScales | None], Tensor]


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
        use_abs_pos: absolute positions, resized bicubically to the image.
        pretrain_img_size: side of the images that the absolute positions are made for.
        pretrain_use_cls_token: whether the absolute positions have one for a class token in
            front.
        use_act_checkpoint: recompute each block in backward instead of keeping its activations.
        out_features: names of the feature maps to return.
        freeze_at: number of stages to freeze.
        block_options: further keywords of :class:`MultiScaleBlock`.
    """

    def __init__(
        self,
        patch_embed: PatchEmbed,
        schedule: Sequence[BlockSpec],
        *,
        norm_layer: Callable[[int], nn.Module],
        use_abs_pos: bool,
        pretrain_img_size: int,
        pretrain_use_cls_token: bool,
        use_act_checkpoint: bool,
        out_features: Sequence[str],
        freeze_at: int = 0,
        **block_options,
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
            self.pos_embed = nn.Parameter(torch.zeros(1, positions, schedule[0].dim))
            nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.blocks = nn.ModuleList(
            MultiScaleBlock(spec, norm_layer=norm_layer, **block_options) for spec in schedule
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
        self._kinds = tuple(replace(s, drop_path=0.0, ends_stage=False) for s in schedule)
        self._compiled_calls: dict[BlockSpec, BlockCall] = {}

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
        features = {}
        for index in range(max(self._feature_after_block) + 1):
            x = self._run_block(index, x)
            if name := self._feature_after_block.get(index):
                features[name] = getattr(self, f"{name}_norm")(x).permute(0, 3, 1, 2)
        return features

    def train(self, mode: bool = True) -> "Trunk":
        """Sets training mode; frozen blocks stay in evaluation mode, so that they drop no paths."""
        super().train(mode)
        self.blocks[: self._num_frozen_blocks].eval()
        return self

    def compile_blocks(self, *, fullgraph: bool = True, **options) -> None:
        """Compiles block by block, when each first runs, for token maps of any height and width.

        Sizes of blocks in a row nest, and the whole network takes the compiler minutes; one block
        takes seconds, and blocks of the same numbers share what was compiled. Weights, their
        names and checkpoints stay as they are. Copies and pickles of the model are not compiled.

        Args:
            fullgraph: raise an error, instead of going on without compilation, where a block
                cannot be compiled in one piece or was compiled too often
                (``torch._dynamo.config.recompile_limit``, for each kind of block).
            options: further keywords of :func:`torch.compile`.
        """
        self._compiled_calls = {
            kind: torch.compile(_with_own_code(_call), fullgraph=fullgraph, **options)
            for kind in dict.fromkeys(self._kinds)
        }

    def __getstate__(self) -> dict:
        """What is copied and pickled: all but compiled code, which cannot be."""
        return self.__dict__ | {"_compiled_calls": {}}

    def _run_block(self, index: int, x: Tensor) -> Tensor:
        block, call, path_scales = self.blocks[index], self._call_of(index), None
        if call is not _call:
            path_scales = block.draw_path_scales(x)
            # Each side a symbol of its own: of one symbol in two places, as a square map would
            # have, the compiler makes conditions and products that it does not simplify.
            torch._dynamo.maybe_mark_dynamic(x, [1, 2])
        if self.use_act_checkpoint and self.training and torch.is_grad_enabled():
            return checkpoint(call, block, x, path_scales, use_reentrant=False)
        return call(block, x, path_scales)

    def _call_of(self, index: int) -> BlockCall:
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return _call  # a part of something greater
        return self._compiled_calls.get(self._kinds[index], _call)

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


def _call(block: MultiScaleBlock, x: Tensor, path_scales: PathScales | None) -> Tensor:
    return block(x, path_scales)


def _with_own_code(function: FunctionType) -> FunctionType:
    """A copy that shares no code object: it is those that Dynamo keeps compiled code with, looks
    it up in one after the other, and counts compilations for."""
    return FunctionType(function.__code__.replace(), function.__globals__)


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
