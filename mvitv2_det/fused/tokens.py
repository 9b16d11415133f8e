"""LayerNorm and GELU of tokens, forward and backward, as the fused functions call them.

:data:`TokenKernels` names what a module of such operations has. This module is one, of PyTorch's
own operations; :mod:`mvitv2_det.fused.triton.norm_gelu` is another.

Axes: T tokens, t of them in a chunk, C channels in, O channels out, M hidden channels.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..caching import Keeper
from .products import added, column_sums

JOINS_SUMS = False

_CPU_CHUNK = 4096  # tokens; with 4·96 to 4·768 channels 6 to 50 MB, about a last-level cache
# Devices whose LayerNorm takes tokens of another type than its weight; CUDA's does not.
_MIXED_NORMS = ("cpu",)


class SkipSum(NamedTuple):
    """Asks for the sum over the tokens of what comes around a norm.

    Attributes:
        scale: a factor of each token, (t, 1), or None.
    """

    scale: Tensor | None = None


class NormGradients(NamedTuple):
    """What a norm's backward pass gives.

    Attributes:
        tokens: (t, C).
        weight, bias: (C), None where there is no such parameter.
        skip_sum: the sum that was asked for, (C), or None.
        partial_sum: the sum of the rows of ``partial``, or None without them.
    """

    tokens: Tensor
    weight: Tensor | None
    bias: Tensor | None
    skip_sum: Tensor | None = None
    partial_sum: Tensor | None = None


class TokenKernels(Protocol):
    """The operations that PyTorch and Triton compute each in their own way.

    Attributes:
        JOINS_SUMS: whether there is ``add_layer_norm_forward``, a norm of a residual sum, and
            ``layer_norm_backward`` sums what comes around the norm at no cost.
    """

    JOINS_SUMS: bool

    def layer_norm_forward(
        self,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor, Tensor]: ...

    def layer_norm_backward(
        self,
        grad: Tensor,
        x: Tensor,
        mean: Tensor,
        rstd: Tensor,
        weight: Tensor | None,
        has_bias: bool,
        skip: Tensor | None = None,
        skip_sum: "SkipSum | None" = None,
        partial: Tensor | None = None,
    ) -> "NormGradients": ...

    def gelu_backward(
        self, x: Tensor, grad: Tensor, approximate: str, in_place: bool
    ) -> tuple[Tensor, Tensor, Tensor]: ...


def layer_norm_forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalised tokens (t, C) in ``dtype``, their means and reciprocal standard deviations."""
    normed, mean, rstd = torch.native_layer_norm(
        _as_norms_take(x, weight), x.shape[-1:], weight, bias, eps
    )
    return normed.to(dtype), mean, rstd


def layer_norm_backward(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    has_bias: bool,
    skip: Tensor | None = None,
    skip_sum: SkipSum | None = None,
    partial: Tensor | None = None,
) -> NormGradients:
    """Gradients of the tokens (t, C), the weight and the bias.

    Args:
        skip: what comes to the tokens around the norm, (t, C), which is added to their gradient.
        skip_sum: asks for the sum of ``skip`` over the tokens.
        partial: (P, N) of another sum over tokens, whose rows are added by the same launch.
    """
    # The bias itself is not read; without one there is none to give a gradient to.
    bias = weight if has_bias and weight is not None else None
    mask = [True, weight is not None, has_bias]
    tokens = _as_norms_take(x, weight)
    grad_x, of_weight, of_bias = torch.ops.aten.native_layer_norm_backward(
        grad.to(tokens.dtype), tokens, x.shape[-1:], mean, rstd, weight, bias, mask
    )
    grad_x = grad_x.to(x.dtype)
    of_skip = None
    if skip is not None:
        grad_x.add_(skip)
        if skip_sum is not None:
            of_skip = column_sums(skip if skip_sum.scale is None else skip * skip_sum.scale)
    of_partial = None if partial is None else partial.sum(0)
    return NormGradients(grad_x, of_weight, of_bias, of_skip, of_partial)


def _as_norms_take(x: Tensor, weight: Tensor | None) -> Tensor:
    """Tokens in the type of the norm's weight, where a device's LayerNorm takes no other."""
    if weight is None or x.device.type in _MIXED_NORMS:
        return x
    return x.to(weight.dtype)


def gelu_backward(
    x: Tensor, grad: Tensor, approximate: str, in_place: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """GELU(x) of (t, M) again, the gradient of x, and partial sums of it over the tokens, (P, M).

    Args:
        in_place: write the gradient over ``grad``.
    """
    hidden = F.gelu(x, approximate=approximate)
    if not in_place:
        grad = grad.clone()
    torch.ops.aten.gelu_backward(grad, x, approximate=approximate, grad_input=grad)
    return hidden, grad, column_sums(grad)[None]


def chunks(tokens: int, device: torch.device) -> Iterator[slice]:
    """Slices that cover the tokens: caches matter on a CPU, launches elsewhere."""
    size = _CPU_CHUNK if device.type == "cpu" else max(tokens, 1)
    return (slice(start, start + size) for start in range(0, max(tokens, 1), size))


def write_chunk(output: Tensor | None, chunk: slice, part: Tensor, tokens: int) -> Tensor:
    """``output`` (T, …) with ``part`` written to the chunk; ``part`` itself if it is all tokens."""
    if len(part) == tokens:
        return part
    if output is None:
        output = part.new_empty(tokens, *part.shape[1:])
    output[chunk] = part
    return output


def product_dtype(x: Tensor) -> torch.dtype:
    """The type that products of ``x`` are computed in: autocast's, or its own."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


def cast(tensors: Sequence[Tensor | None], dtype: torch.dtype) -> list[Any]:
    """Parameters in the type of products; those that have it are not copied.

    On a GPU all are cast by one launch. Nothing is kept here: weights may change at any time.
    """
    others = [x for x in tensors if x is not None and x.dtype != dtype]
    with torch.no_grad():
        if not others or others[0].device.type == "cpu":
            return [None if x is None else x.to(dtype) for x in tensors]
        made = [torch.empty_like(x, dtype=dtype) for x in others]
        torch._foreach_copy_(made, others)
    rest = iter(made)
    return [x if x is None or x.dtype == dtype else next(rest) for x in tensors]


class Low(NamedTuple):
    """A linear layer in the type of products, without gradients.

    Attributes:
        weight, bias: of the layer.
        again: makes the weight once more, for backward.
    """

    weight: Tensor
    bias: Tensor | None
    again: Callable[[], Tensor]


class Casts:
    """Linear layers of a block in the type of products: each pass casts all by one launch on a GPU.

    Backward holds none of what forward has cast. The first layer there has all weights cast again;
    each is let go of when its layer has taken it.

    Args:
        layers: weight and bias of each, by what it is asked for.
        dtype: the type of products.

    Attributes:
        kept: what else is made of the block's weights, which lives as long as the casts.
    """

    def __init__(
        self, layers: Mapping[Hashable, tuple[Tensor, Tensor | None]], dtype: torch.dtype
    ) -> None:
        again = _CastAgain({key: weight for key, (weight, _) in layers.items()}, dtype)
        found = iter(cast([tensor for pair in layers.values() for tensor in pair], dtype))
        self._made = {key: Low(next(found), next(found), partial(again, key)) for key in layers}
        self.kept = Keeper()

    @classmethod
    def of(cls, linears: Sequence[nn.Linear], dtype: torch.dtype) -> "Casts":
        """Casts of layers, each known by the layer itself."""
        return cls({linear: (linear.weight, linear.bias) for linear in linears}, dtype)

    def __getitem__(self, key: Hashable) -> Low:
        return self._made[key]


class _CastAgain:
    """The weights of :class:`Casts` in backward."""

    def __init__(self, weights: Mapping[Hashable, Tensor], dtype: torch.dtype) -> None:
        self._weights, self._dtype = weights, dtype
        self._made: dict[Hashable, Tensor] = {}

    def __call__(self, key: Hashable) -> Tensor:
        if key not in self._made:
            made = cast(list(self._weights.values()), self._dtype)
            self._made = dict(zip(self._weights, made, strict=True))
        return self._made.pop(key)


class NormGradient:
    """Sums the gradients of a LayerNorm's weight and bias over chunks, and what is beside them.

    Attributes:
        weight, bias: the sums, of the parameters' shapes; None where there is no parameter, and
            before the first chunk.
        skip_sum, partial_sum: the sums of the same names in :class:`NormGradients`.
    """

    def __init__(self, kernels: TokenKernels, weight: Tensor | None, bias: Tensor | None) -> None:
        self._kernels = kernels
        self._weight, self._has_bias = weight, bias is not None
        self.weight: Tensor | None = None
        self.bias: Tensor | None = None
        self.skip_sum: Tensor | None = None
        self.partial_sum: Tensor | None = None

    def backward(
        self,
        grad: Tensor,
        tokens: Tensor,
        normed: tuple[Tensor, Tensor, Tensor],
        skip: Tensor | None = None,
        skip_sum: SkipSum | None = None,
        partial: Tensor | None = None,
    ) -> Tensor:
        """The gradient of (t, C) tokens from that of what ``layer_norm_forward`` made of them.

        The others are those of :func:`layer_norm_backward`.
        """
        _, mean, rstd = normed
        found = self._kernels.layer_norm_backward(
            grad, tokens, mean, rstd, self._weight, self._has_bias, skip, skip_sum, partial
        )
        for name, part in zip(found._fields[1:], found[1:], strict=True):
            if part is not None:
                setattr(self, name, added(getattr(self, name), part))
        return found.tokens
