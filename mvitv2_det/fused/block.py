"""A block that is computed by the fastest exact way, with the parameters of the plain one.

Axes: B images, H × W tokens, C channels. The T frames of a clip lie below each other in one map,
whose height is then T·H; a class token travels beside it, (B, 1, C).
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..backbone.block import MultiScaleBlock
from ..caching import Keeper
from .attention import NOTHING, Around, Beside
from .choice import AUTO, Choice, choose
from .mlp import norm_mlp
from .norm_linear import norm_linear
from .residual import Skip, Unsummed
from .skip_pool import pool_skip
from .tokens import Casts, product_dtype

# Factors of the attention's and of the MLP's path, (B, 1, 1, 1) each, drawn by stochastic depth;
# None where no path is dropped.
PathScales = tuple[Tensor | None, Tensor | None]


class FusedBlock(MultiScaleBlock):
    """A :class:`~mvitv2_det.backbone.block.MultiScaleBlock` with another way to compute it.

    Made of a plain block by :func:`mvitv2_det.fused.accelerate`.

    Attributes:
        backend: what to compute it with, a name in :data:`~mvitv2_det.fused.choice.BACKENDS`.
        recomputes: whether backward computes q, k and v before pooling and the MLP's hidden
            channels again, and none are saved; where norms, linear layers and MLP are fused.
        compiled: compiled code of :meth:`compute`, or None; see
            :func:`mvitv2_det.fused.compile_blocks`.
        kept: what has been made of the weights while they are promised not to change, or None;
            see :func:`mvitv2_det.constant_weights`.
    """

    backend: str = AUTO
    recomputes: bool = False
    # Only a LayerNorm is taken apart; `choose` has norms of other types called as modules.
    norm1: nn.LayerNorm
    norm2: nn.LayerNorm
    compiled: Callable[["FusedBlock", Tensor, PathScales], Tensor] | None = None
    kept: Keeper | None = None

    def forward(self, x: Tensor, token: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Computes the block; see :meth:`MultiScaleBlock.forward`.

        Raises:
            ValueError: the backend asked for by name cannot compute this block; the message says
                why.
        """
        choice = self.choose(x, token)
        if choice.is_plain:
            return super().forward(x, token)
        if x.dim() > 4 or token is not None:
            return self._compute_beside(x, token, choice)
        if self.compiled is None or not choice.compiled:
            return self.compute(x, choice, self.draw_path_scales(x))
        # Each side a symbol of its own: of one symbol in two places, as a square map would have,
        # the compiler makes conditions and products that it does not simplify.
        torch._dynamo.maybe_mark_dynamic(x, [1, 2])
        return self.compiled(self, x, self.draw_path_scales(x))

    def choose(self, x: Tensor, token: Tensor | None = None) -> Choice:
        """What computes this block on tokens ``x`` (B, *axes, C), and why nothing faster.

        Raises:
            ValueError: as :meth:`forward`.
        """
        return choose(
            self,
            self.backend,
            x,
            has_token=token is not None,
            has_compiled_code=self.compiled is not None,
        )

    def _compute_beside(
        self, x: Tensor, token: Tensor | None, choice: Choice
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Computes clips (B, T, H, W, C), or maps (B, H, W, C), and a class token (B, 1, C)."""
        frames, is_clip = (x.shape[1] if x.dim() > 4 else 1), x.dim() > 4
        maps = x.flatten(1, 2) if is_clip else x
        scales = self.draw_path_scales(maps)
        normed = None if token is None else self.norm1(token)
        beside = Beside(frames, normed)
        maps, attended = self.compute_with(maps, choice, scales, beside)
        maps = maps.unflatten(1, (frames, -1)) if is_clip else maps
        if token is None or normed is None or attended is None:
            return maps
        attention_scale, mlp_scale = (
            None if s is None else s.flatten(1)[..., None] for s in scales
        )
        skip = self.proj(normed) if self.widens_in_attention else token
        token = Skip(skip, attention_scale).add(attended)
        normed = self.norm2(token)
        skip = self.proj(normed) if self.widens_in_mlp else token
        return maps, Skip(skip, mlp_scale).add(self.mlp(normed))

    def compute(self, x: Tensor, choice: Choice, path_scales: PathScales) -> Tensor:
        """Computes images (B, H, W, C_in); see :meth:`compute_with`."""
        return self.compute_with(x, choice, path_scales, NOTHING)[0]

    def compute_with(
        self, x: Tensor, choice: Choice, path_scales: PathScales, beside: Beside
    ) -> tuple[Tensor, Tensor | None]:
        """Computes the plain forward pass, each step in the way that was chosen.

        Args:
            x: (B, H, W, C_in).
            choice: what computes the steps.
            path_scales: from :meth:`draw_path_scales`. Drawn outside of compiled code, their
                rates are no part of it, and the random numbers are those of the plain model.
            beside: frames, and a class token normalised by ``norm1``.

        Returns:
            (B, H', W', C_out), and the attention's output for the class token, or None.
        """
        attention_scale, mlp_scale = path_scales
        if choice.kernels is None:
            normed = self.norm1(x)
            skip = self.proj(normed) if self.widens_in_attention else x
            skip = pool_skip(skip, self.pool_skip, beside.frames)
            attended, token = choice.attend(self.attn, normed, beside)
            x = Skip(skip, attention_scale).add(attended)
            normed = self.norm2(x)
            skip = self.proj(normed) if self.widens_in_mlp else x
            return Skip(skip, mlp_scale).add(self.mlp(normed)), token
        kernels, casts, skip = choice.kernels, self._casts(x), None
        recomputes = self.recomputes and torch.is_grad_enabled()
        proj = self.proj if self.widens_in_attention else None
        around = Around(proj, self.pool_skip, attention_scale)
        summed, token = choice.fused_attend(
            self.attn, x, self.norm1, around, kernels, beside, casts, recomputes
        )
        if self.widens_in_mlp:
            summed = summed.total() if isinstance(summed, Unsummed) else summed
            (skip,) = norm_linear(summed, self.norm2, self.proj, kernels, casts=casts)
        x = norm_mlp(summed, self.norm2, self.mlp, skip, mlp_scale, kernels, casts, recomputes)
        return x, token

    def _casts(self, x: Tensor) -> Casts:
        """All linear layers of the block in the type of products of ``x``."""
        dtype = product_dtype(x)
        if self.kept is None or torch.is_grad_enabled():
            return self._cast(dtype)
        return self.kept.once((dtype, x.device), lambda: self._cast(dtype))

    def _cast(self, dtype: torch.dtype) -> Casts:
        widening = [self.proj] if self.widens_in_attention or self.widens_in_mlp else []
        layers = self.attn.qkv, self.attn.proj, self.mlp.fc1, self.mlp.fc2, *widening
        return Casts.of(cast("tuple[nn.Linear, ...]", layers), dtype)

    def draw_path_scales(self, x: Tensor) -> PathScales:
        """Factors of the paths of each image of ``x`` (B, H, W, C), attention's first."""
        return self._draw_path_scale(x), self._draw_path_scale(x)

    def _draw_path_scale(self, x: Tensor) -> Tensor | None:
        if not self.training or isinstance(self.drop_path, nn.Identity):
            return None
        return self.drop_path(x.new_ones(x.shape[0], 1, 1, 1))

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out of copies and pickles compiled code, which they cannot hold, and promises."""
        return super().__getstate__() | {"compiled": None, "kept": None}
