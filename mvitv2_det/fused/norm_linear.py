"""LayerNorm and linear layer in one: the normalised tokens are never saved.

Tokens go through in chunks that stay in the cache. Backward saves the incoming tokens alone and
normalises them again: a few operations for each value, where the product has O.

Axes: T tokens, C channels in, O channels out.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .products import added_product, column_sums, dense
from .tokens import Casts, NormGradient, TokenKernels, chunks, product_dtype, write_chunk


def norm_linear(
    x: Tensor,
    norm: nn.LayerNorm,
    linear: nn.Linear,
    kernels: TokenKernels,
    parts: int = 1,
    casts: Casts | None = None,
) -> list[Tensor]:
    """``linear(norm(x))``, cut into parts along its channels.

    Args:
        x: (…, C).
        norm: a LayerNorm of the channels.
        linear: a linear layer from C to O channels.
        kernels: what computes norms.
        parts: number of parts; must divide O.
        casts: that of ``linear``, if it has been cast already.

    Returns:
        ``parts`` tensors (…, O / parts), each contiguous.
    """
    low = (casts or Casts.of([linear], product_dtype(x)))[linear]
    parameters = *_of_norm(norm), linear.weight, linear.bias
    return list(_NormLinear.apply(x, *parameters, parts, kernels, low))


def norm_product(
    x: Tensor, norm: nn.LayerNorm, weight: Tensor, bias: Tensor | None, kernels: TokenKernels
) -> Tensor:
    """``linear(norm(x))`` with some rows of a layer's weight (O, C) and bias (O)."""
    low = Casts({"": (weight, bias)}, product_dtype(x))[""]
    return _NormLinear.apply(x, *_of_norm(norm), weight, bias, 1, kernels, low)[0]


def norm_products_without_gradients(
    x: Tensor,
    norm: nn.LayerNorm,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    kernels: TokenKernels,
) -> list[Tensor]:
    """Several linear layers of the normalised ``x``.

    Args:
        x: (…, C).
        norm: a LayerNorm of the channels.
        weights: (O_i, C) each, in the type to compute in.
        biases: (O_i) each, or None.

    Returns:
        (…, O_i) for each.
    """
    return _products(x, *_of_norm(norm), weights, biases, kernels)


def _of_norm(norm: nn.LayerNorm) -> tuple[Tensor | None, Tensor | None, float]:
    return norm.weight, norm.bias, norm.eps


def _products(
    x: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    eps: float,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    kernels: TokenKernels,
) -> list[Tensor]:
    tokens, dtype = x.reshape(-1, x.shape[-1]), weights[0].dtype
    outputs: list[Tensor | None] = [None] * len(weights)
    with torch.autocast(x.device.type, enabled=False):
        for chunk in chunks(len(tokens), x.device):
            normed, *_ = kernels.layer_norm_forward(
                tokens[chunk], norm_weight, norm_bias, eps, dtype
            )
            for part, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
                product = dense(normed, weight, bias)
                outputs[part] = write_chunk(outputs[part], chunk, product, len(tokens))
    return [output.view(*x.shape[:-1], -1) for output in outputs if output is not None]


class _NormLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, norm_weight, norm_bias, eps, weight, bias, parts, kernels, low):
        ctx.save_for_backward(x, norm_weight, norm_bias, weight)
        ctx.eps, ctx.parts, ctx.kernels = eps, parts, kernels
        ctx.dtype, ctx.has_bias = product_dtype(x), bias is not None
        weight, bias, ctx.weight_again = low
        weights = weight.chunk(parts)
        biases = (None,) * parts if bias is None else bias.chunk(parts)
        return tuple(_products(x, norm_weight, norm_bias, eps, weights, biases, kernels))

    @staticmethod
    @once_differentiable
    def backward(ctx, *grad_outputs):
        x, norm_weight, norm_bias, weight = ctx.saved_tensors
        needs_x, needs_norm_weight, needs_norm_bias, _, needs_weight, needs_bias, *_ = (
            ctx.needs_input_grad
        )
        tokens = x.reshape(-1, x.shape[-1])
        weights = ctx.weight_again().chunk(ctx.parts)
        grads = [grad.reshape(len(tokens), -1).to(ctx.dtype) for grad in grad_outputs]
        grad_tokens = None
        grad_norm = NormGradient(ctx.kernels, norm_weight, norm_bias)
        grad_weights: list[Any] = [None] * ctx.parts
        with torch.autocast(x.device.type, enabled=False):
            for chunk in chunks(len(tokens), x.device):
                normed = ctx.kernels.layer_norm_forward(
                    tokens[chunk], norm_weight, norm_bias, ctx.eps, ctx.dtype
                )
                parts = [grad[chunk] for grad in grads]
                if needs_weight:
                    grad_weights = [
                        added_product(total, part.T, normed[0], weight.dtype)
                        for total, part in zip(grad_weights, parts, strict=True)
                    ]
                if needs_x or needs_norm_weight or needs_norm_bias:
                    grad_normed = dense(parts[0], weights[0].T, None)
                    for part, part_weight in zip(parts[1:], weights[1:], strict=True):
                        added_product(grad_normed, part, part_weight, grad_normed.dtype)
                    grad_chunk = grad_norm.backward(grad_normed, tokens[chunk], normed)
                    if needs_x:
                        grad_tokens = write_chunk(grad_tokens, chunk, grad_chunk, len(tokens))
        grad_weight = grad_bias = None
        if needs_weight:
            grad_weight = _joined(grad_weights)
        if ctx.has_bias and needs_bias:
            grad_bias = _joined([column_sums(grad) for grad in grads]).to(weight.dtype)
        grad_x = None if grad_tokens is None else grad_tokens.view(x.shape)
        parameters = grad_norm.weight, grad_norm.bias, None, grad_weight, grad_bias
        return grad_x, *parameters, None, None, None


def _joined(parts: list[Tensor]) -> Tensor:
    """Parts of a weight or bias below each other."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)
