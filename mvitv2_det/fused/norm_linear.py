"""LayerNorm and linear layer in one: the normalised tokens are never kept.

Tokens go through in chunks that stay in the cache. Backward keeps the incoming tokens alone and
normalises them again: a few operations for each value, where the product has O.

Axes: T tokens, C channels in, O channels out.
"""

import logging
from collections.abc import Iterator, Sequence
from functools import cache
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .triton import available

_log = logging.getLogger(__name__)
_CPU_CHUNK = 4096  # tokens; with 4·96 to 4·768 channels 6 to 50 MB, about a last-level cache


def chunks(tokens: int, device: torch.device) -> Iterator[slice]:
    """Slices that cover the tokens: caches matter on the CPU, launches elsewhere."""
    size = _CPU_CHUNK if device.type == "cpu" else max(tokens, 1)
    return (slice(start, start + size) for start in range(0, max(tokens, 1), size))


def normed_products(
    x: Tensor,
    norm: tuple[Tensor | None, Tensor | None, float],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
) -> list[Tensor]:
    """Linear layers of the normalised ``x``, without gradients.

    Args:
        x: (…, C).
        norm: the norm's weight, bias and eps.
        weights: (O_i, C) each, in the type to compute in.
        biases: (O_i) each, or None.

    Returns:
        (…, O_i) for each.
    """
    tokens, dtype = x.reshape(-1, x.shape[-1]), weights[0].dtype
    outputs = [None] * len(weights)
    with torch.autocast(x.device.type, enabled=False):
        for chunk in chunks(len(tokens), x.device):
            normed = normalise(tokens[chunk], *norm, dtype)[0]
            for part, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
                product = dense(normed, weight, bias)
                outputs[part] = put(outputs[part], chunk, product, len(tokens))
    return [output.view(*x.shape[:-1], -1) for output in outputs]


def put(output: Tensor | None, chunk: slice, part: Tensor, tokens: int) -> Tensor:
    """``output`` (T, …) with a chunk of it written; a chunk that is all of it, as it is."""
    if len(part) == tokens:
        return part
    if output is None:
        output = part.new_empty(tokens, *part.shape[1:])
    output[chunk] = part
    return output


def compute_dtype(x: Tensor) -> torch.dtype:
    """What products of ``x`` are computed in: autocast's type, or its own."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


def normed_linear(x: Tensor, norm: nn.Module, linear: nn.Linear, parts: int = 1) -> list[Tensor]:
    """``linear(norm(x))``, cut into parts along its channels, each contiguous.

    Args:
        x: (…, C).
        norm: what normalises the channels; fused where it is a LayerNorm.
        linear: C to O channels.
        parts: must divide O.

    Returns:
        ``parts`` tensors (…, O / parts).
    """
    if why_not(x, norm):
        return list(linear(norm(x)).chunk(parts, dim=-1))
    return list(_apply(x, norm, linear.weight, linear.bias, parts))


def normed_product(x: Tensor, norm: nn.LayerNorm, weight: Tensor, bias: Tensor | None) -> Tensor:
    """As :func:`normed_linear` where it can be fused, with some rows of a layer's weight."""
    return _apply(x, norm, weight, bias, 1)[0]


def _apply(x: Tensor, norm: nn.LayerNorm, weight: Tensor, bias: Tensor | None, parts: int):
    dtype = compute_dtype(x)
    return _NormedLinear.apply(x, norm.weight, norm.bias, norm.eps, weight, bias, parts, dtype)


def why_not(x: Tensor, norm: nn.Module) -> str | None:
    """Why ``norm`` cannot be fused with what follows it; None where it can."""
    if torch.compiler.is_compiling():
        return "the compiler fuses by itself"
    if torch.jit.is_tracing():
        return "its own gradients cannot be exported"
    if x.is_meta:
        return "operations are counted one by one on the meta device"
    if type(norm) is not nn.LayerNorm or len(norm.normalized_shape) != 1:
        return f"the norm must be a LayerNorm of channels, got {type(norm).__name__}"
    return None


class _NormedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, norm_weight, norm_bias, eps, weight, bias, parts, dtype):
        ctx.save_for_backward(x, norm_weight, norm_bias, weight)
        ctx.eps, ctx.parts, ctx.dtype, ctx.has_bias = eps, parts, dtype, bias is not None
        weights = weight.to(dtype).chunk(parts)
        biases = (None,) * parts if bias is None else bias.to(dtype).chunk(parts)
        return tuple(normed_products(x, (norm_weight, norm_bias, eps), weights, biases))

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        x, norm_weight, norm_bias, weight = ctx.saved_tensors
        tokens = x.reshape(-1, x.shape[-1])
        weights = weight.to(ctx.dtype).chunk(ctx.parts)
        grads = [grad.reshape(len(tokens), -1).to(ctx.dtype) for grad in grads]
        needs = ctx.needs_input_grad
        grad_tokens = None
        grad_norm = NormGradient(norm_weight, norm_bias)
        grad_weight = torch.zeros_like(weight) if needs[4] else None
        grad_weights = grad_weight.chunk(ctx.parts) if needs[4] else ()
        with torch.autocast(x.device.type, enabled=False):
            for chunk in chunks(len(tokens), x.device):
                normed = normalise(tokens[chunk], norm_weight, norm_bias, ctx.eps, ctx.dtype)
                parts = [grad[chunk] for grad in grads]
                for part_weight, part in zip(grad_weights, parts, strict=False):
                    add_product(part_weight, part.T, normed[0])
                if any(needs[:3]):
                    grad_normed = dense(parts[0], weights[0].T, None)
                    for part, part_weight in zip(parts[1:], weights[1:], strict=True):
                        grad_normed.addmm_(part, part_weight)
                    back = grad_norm.backward(grad_normed, tokens[chunk], normed)
                    if needs[0]:
                        grad_tokens = put(grad_tokens, chunk, back, len(tokens))
        grad_bias = None
        if ctx.has_bias and needs[5]:
            grad_bias = torch.cat([column_sums(grad) for grad in grads]).to(weight.dtype)
        grad_x = grad_tokens.view(x.shape) if needs[0] else None
        return grad_x, grad_norm.weight, grad_norm.bias, None, grad_weight, grad_bias, None, None


def token_kernels(x: Tensor) -> ModuleType | None:
    """Our Triton kernels of tokens where they can run on ``x``, else None."""
    return _kernels_for(x.device, x.dtype) if x.device.type == "cuda" else None


@cache
def _kernels_for(device: torch.device, dtype: torch.dtype) -> ModuleType | None:
    if reason := available.why_not(device, dtype):
        _log.info("Triton kernels of LayerNorm and GELU are not taken: %s", reason)
        return None
    from .triton import tokens

    return tokens


def normalise(
    tokens: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The normalised tokens in ``dtype``, their means and reciprocal standard deviations."""
    dtype = dtype or tokens.dtype
    if kernels := token_kernels(tokens):
        return kernels.layer_norm_forward(tokens, weight, bias, eps, dtype)
    normed, mean, rstd = torch.native_layer_norm(tokens, tokens.shape[-1:], weight, bias, eps)
    return normed.to(dtype), mean, rstd


class NormGradient:
    """Sums the gradients of a LayerNorm's weight and bias over chunks.

    Attributes:
        weight, bias: the sums, of the parameters' shapes; None where there is no parameter.
    """

    def __init__(self, weight: Tensor | None, bias: Tensor | None) -> None:
        self._parameters = (weight, bias)
        self.weight = None if weight is None else torch.zeros_like(weight)
        self.bias = None if bias is None else torch.zeros_like(bias)

    def backward(
        self, grad: Tensor, tokens: Tensor, normed: tuple[Tensor, Tensor, Tensor]
    ) -> Tensor:
        """The gradient of (t, C) tokens from that of what they were normalised to."""
        weight, bias = self._parameters
        if kernels := token_kernels(tokens):
            grad_tokens, grad_weight, grad_bias = kernels.layer_norm_backward(
                grad, tokens, *normed[1:], weight, bias is not None
            )
        else:
            mask = [True, weight is not None, bias is not None]
            grad_tokens, grad_weight, grad_bias = torch.ops.aten.native_layer_norm_backward(
                grad.to(tokens.dtype), tokens, tokens.shape[-1:], *normed[1:], weight, bias, mask
            )
        if weight is not None:
            self.weight += grad_weight
        if bias is not None:
            self.bias += grad_bias
        return grad_tokens


def dense(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str = "none") -> Tensor:
    """Activation of a linear layer, (t, C) to (t, O), without gradients.

    On CPUs oneDNN's product is faster than the one that ``F.linear`` takes, and it computes the
    activation before the result leaves the cache.

    Args:
        activation: ``none``, ``gelu`` or ``gelu_tanh``.
    """
    plain = type(x) is Tensor and x.device.type == "cpu" and x.dtype == torch.float32
    if plain and _has_onednn():
        kind, _, algorithm = activation.partition("_")
        options = ([], algorithm or "none") if kind == "gelu" else ([], "")
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, kind, *options)
    x = F.linear(x, weight, bias)
    if activation == "none":
        return x
    return F.gelu(x, approximate="tanh" if activation == "gelu_tanh" else "none")


@cache
def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def column_sums(x: Tensor) -> Tensor:
    """(t, O) to (O,): the gradient of a bias."""
    if x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64):
        return x.new_ones(len(x)) @ x  # twice as fast as a sum
    return x.sum(0)


def add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """``total += a @ b``; the sum is kept in ``total``'s type."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b
