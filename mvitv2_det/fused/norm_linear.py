"""LayerNorm and linear layers in one: the normalised tokens are never saved.

Tokens go through in chunks that stay in the cache. Backward saves the incoming tokens alone and
normalises them again: a few operations for each value, where the product has O.

Axes: T tokens, C channels in, O channels out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .applying import applied
from .products import added_product, column_sums, dense
from .tokens import (
    Casts,
    Low,
    NormGradient,
    TokenKernels,
    cast,
    chunks,
    product_dtype,
    write_chunk,
)


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
    options = _Options(norm.eps, kernels, (low,), parts)
    return list(applied(_NormLinear, x, *_of_norm(norm), options, linear.weight, linear.bias))


def norm_linears_and_input(
    x: Tensor,
    norm: nn.LayerNorm,
    linears: Sequence[nn.Linear],
    kernels: TokenKernels,
    casts: Casts,
    *,
    first_bias: bool = True,
) -> list[Tensor]:
    """``linear(norm(x))`` of each layer, and ``x`` itself, for what goes around them.

    Backward then normalises the tokens once, and the norm's kernel adds what comes to them around
    it.

    Args:
        x: (…, C).
        norm: a LayerNorm of the channels.
        linears: from C to O_i channels.
        kernels: what computes norms.
        casts: those of the layers.
        first_bias: whether the first layer's bias gets its gradient here.

    Returns:
        (…, O_i) for each layer, and (…, C).
    """
    passes = torch.is_grad_enabled() and x.requires_grad
    options = _Options(norm.eps, kernels, tuple(casts[linear] for linear in linears), 1, passes)
    parameters: list[Tensor | None] = []
    for linear in linears:
        parameters += [linear.weight, linear.bias if parameters or first_bias else None]
    outputs = list(applied(_NormLinear, x, *_of_norm(norm), options, *parameters))
    return outputs if passes else [*outputs, x]


def norm_product(
    x: Tensor, norm: nn.LayerNorm, weight: Tensor, bias: Tensor | None, kernels: TokenKernels
) -> Tensor:
    """``linear(norm(x))`` with some rows of a layer's weight (O, C) and bias (O)."""
    low = Casts({"": (weight, bias)}, product_dtype(x))[""]
    options = _Options(norm.eps, kernels, (low,))
    return applied(_NormLinear, x, *_of_norm(norm), options, weight, bias)[0]


class Source(NamedTuple):
    """What maps are made of, for a function to save in their place.

    Attributes:
        tensors: what the function saves for backward.
        make: the maps from these tensors, without gradients, with the bits that they had.
    """

    tensors: tuple[Tensor | None, ...]
    make: Callable[..., list[Tensor]]

    @classmethod
    def of(cls, *maps: Tensor) -> "Source":
        """The maps themselves."""
        return cls(maps, lambda *maps: list(maps))

    def then(self, change: Callable[..., list[Tensor]], *others: Tensor | None) -> "Source":
        """The source of ``change(maps, *others)``."""
        first, count = self.make, len(self.tensors)  # alone: what is saved is not to be held

        def make(*tensors: Tensor | None) -> list[Tensor]:
            return change(first(*tensors[:count]), *tensors[count:])

        return Source((*self.tensors, *others), make)


def source_of_product(
    x: Tensor,
    norm: nn.LayerNorm,
    weight: Tensor,
    bias: Tensor | None,
    kernels: TokenKernels,
    parts: int = 1,
) -> Source:
    """The source of what :func:`norm_linear` or :func:`norm_product` makes: its own arguments."""
    make = partial(_made_again, eps=norm.eps, kernels=kernels, parts=parts, dtype=product_dtype(x))
    return Source((x, norm.weight, norm.bias, weight, bias), make)


def _of_norm(norm: nn.LayerNorm) -> tuple[Tensor | None, Tensor | None]:
    return norm.weight, norm.bias


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


def _made_again(
    x: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    *,
    eps: float,
    kernels: TokenKernels,
    parts: int,
    dtype: torch.dtype,
) -> list[Tensor]:
    weight, bias = cast((weight, bias), dtype)
    weights, biases = _cut(weight, bias, parts)
    return _products(x, norm_weight, norm_bias, eps, weights, biases, kernels)


def _cut(
    weight: Tensor, bias: Tensor | None, parts: int
) -> tuple[Sequence[Tensor], Sequence[Tensor | None]]:
    """The parts of a layer's weight (O, C) and bias (O)."""
    return weight.chunk(parts), (None,) * parts if bias is None else bias.chunk(parts)


@dataclass(frozen=True)
class _Options:
    """What :class:`_NormLinear` is given beside tensors.

    Attributes:
        eps: of the norm.
        kernels: what computes it.
        low: each layer in the type of products.
        parts: number of parts that each layer's output is cut into.
        passes: whether the tokens are given out again, after all outputs.
    """

    eps: float
    kernels: TokenKernels
    low: tuple[Low, ...]
    parts: int = 1
    passes: bool = False


class _NormLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, norm_weight, norm_bias, options, *parameters):
        ctx.save_for_backward(x, norm_weight, norm_bias, *parameters[::2])
        ctx.parts, ctx.kernels, ctx.eps = options.parts, options.kernels, options.eps
        ctx.dtype, ctx.has_bias = product_dtype(x), [bias is not None for bias in parameters[1::2]]
        ctx.again = [low.again for low in options.low]
        ctx.passes = options.passes
        weights: list[Tensor] = []
        biases: list[Tensor | None] = []
        for weight, bias, _ in options.low:
            of_layer = _cut(weight, bias, ctx.parts)
            weights += of_layer[0]
            biases += of_layer[1]
        given = norm_weight, norm_bias, options.eps
        outputs = _products(x, *given, weights, biases, options.kernels)
        if ctx.passes:
            ctx.set_materialize_grads(False)
            outputs.append(x)
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grad_outputs):
        x, norm_weight, norm_bias, *layers = ctx.saved_tensors
        needs_x, needs_norm_weight, needs_norm_bias, _, *needs = ctx.needs_input_grad
        needs_weight, needs_bias = needs[::2], needs[1::2]
        tokens = x.reshape(-1, x.shape[-1])
        weights = [part for again in ctx.again for part in again().chunk(ctx.parts)]
        around = grad_outputs[-1] if ctx.passes else None
        around = None if around is None else around.reshape(tokens.shape)
        grads = [
            x.new_zeros(len(tokens), len(weight), dtype=ctx.dtype)
            if grad is None
            else grad.reshape(len(tokens), -1).to(ctx.dtype)
            for grad, weight in zip(grad_outputs, weights, strict=False)
        ]
        grad_tokens = None
        grad_norm = NormGradient(ctx.kernels, norm_weight, norm_bias)
        grad_weights: list[Any] = [None] * len(grads)
        with torch.autocast(x.device.type, enabled=False):
            for chunk in chunks(len(tokens), x.device):
                normed = ctx.kernels.layer_norm_forward(
                    tokens[chunk], norm_weight, norm_bias, ctx.eps, ctx.dtype
                )
                parts = [grad[chunk] for grad in grads]
                for i, part in enumerate(parts):
                    layer = i // ctx.parts
                    if needs_weight[layer]:
                        grad_weights[i] = added_product(
                            grad_weights[i], part.T, normed[0], layers[layer].dtype
                        )
                if needs_x or needs_norm_weight or needs_norm_bias:
                    grad_normed = dense(parts[0], weights[0].T, None)
                    for part, part_weight in zip(parts[1:], weights[1:], strict=True):
                        added_product(grad_normed, part, part_weight, grad_normed.dtype)
                    beside = None if around is None else around[chunk]
                    grad_chunk = grad_norm.backward(grad_normed, tokens[chunk], normed, beside)
                    if needs_x:
                        grad_tokens = write_chunk(grad_tokens, chunk, grad_chunk, len(tokens))
        grad_parameters: list[Any] = []
        for layer, weight in enumerate(layers):
            own = slice(layer * ctx.parts, (layer + 1) * ctx.parts)
            grad_parameters.append(_joined(grad_weights[own]) if needs_weight[layer] else None)
            grad_bias = None
            if ctx.has_bias[layer] and needs_bias[layer]:
                grad_bias = _joined([column_sums(grad) for grad in grads[own]]).to(weight.dtype)
            grad_parameters.append(grad_bias)
        grad_x = None if grad_tokens is None else grad_tokens.view(x.shape)
        return grad_x, grad_norm.weight, grad_norm.bias, None, *grad_parameters


def _joined(parts: list[Tensor]) -> Tensor:
    """Parts of a weight or bias below each other."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)
