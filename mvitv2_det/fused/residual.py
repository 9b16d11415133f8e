"""Skip connections: the last projection of attention and the sum around it, in one.

Axes: B images, H × W tokens, T of them in all, C channels in and out.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .applying import applied
from .products import added, added_product, column_sums, dense
from .tokens import Casts, chunks, product_dtype, write_chunk


class Skip(NamedTuple):
    """The skip connection around a path.

    Attributes:
        tokens: (B, H, W, C), added to the path.
        path_scale: the factor of the path, (B, 1, 1, 1), drawn by stochastic depth; None where
            no path is dropped.
    """

    tokens: Tensor
    path_scale: Tensor | None = None

    def add(self, path: Tensor) -> Tensor:
        """``tokens + path_scale * path``."""
        return self.tokens + (path if self.path_scale is None else self.path_scale * path)


class Unsummed(NamedTuple):
    """A skip connection, and the path to be added to it, of one shape and type."""

    skip: Tensor
    path: Tensor

    def total(self) -> Tensor:
        """The sum."""
        return self.skip + self.path


def linear_beside_skip(
    z: Tensor, linear: nn.Linear, skip: Skip, casts: Casts | None = None
) -> Unsummed:
    """The two terms of :func:`linear_and_skip`, for a norm that sums them as it reads them."""
    tokens, scale = skip
    scale, low = scale_of_tokens(scale, z), (casts or Casts.of([linear], product_dtype(z)))[linear]
    path = applied(_LinearAndSkip, z, None, scale, linear.weight, linear.bias, low)
    return Unsummed(tokens, path)


def linear_and_skip(z: Tensor, linear: nn.Linear, skip: Skip, casts: Casts | None = None) -> Tensor:
    """``skip.tokens + skip.path_scale * linear(z)``.

    Args:
        z: (B, H, W, C).
        linear: a linear layer from C to C channels.
        skip: of the output's shape.
        casts: that of ``linear``, if it has been cast already.

    Returns:
        (B, H, W, C), of the skip connection's type.
    """
    tokens, scale = skip
    scale = scale_of_tokens(scale, z)
    low = (casts or Casts.of([linear], product_dtype(z)))[linear]
    return applied(_LinearAndSkip, z, tokens, scale, linear.weight, linear.bias, low)


def scale_of_tokens(path_scale: Tensor | None, x: Tensor) -> Tensor | None:
    """The factor of each token of (B, H, W, C), (T, 1), from that of each image, (B, 1, 1, 1)."""
    return None if path_scale is None else path_scale.expand(*x.shape[:-1], 1).reshape(-1, 1)


class _LinearAndSkip(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, skip, path_scale, weight, bias, low):
        dtype = product_dtype(z)
        ctx.save_for_backward(z, path_scale, weight)
        ctx.dtype, ctx.has_bias = dtype, bias is not None
        inputs = z.reshape(-1, z.shape[-1])
        skipped = None if skip is None else skip.reshape(-1, skip.shape[-1])
        output: Any = None if skipped is None else torch.empty_like(skipped)
        weight, bias, ctx.weight_again = low
        with torch.autocast(z.device.type, enabled=False):
            for chunk in chunks(len(inputs), z.device):
                path = dense(inputs[chunk].to(dtype), weight, bias)
                if path_scale is not None:
                    path *= path_scale[chunk]
                if skipped is None:
                    output = write_chunk(output, chunk, path, len(inputs))
                else:
                    torch.add(skipped[chunk], path, out=output[chunk])
        return output.view(*z.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        z, path_scale, weight = ctx.saved_tensors
        needs_z, needs_skip, _, needs_weight, needs_bias, _ = ctx.needs_input_grad
        inputs, grads = z.reshape(-1, z.shape[-1]), grad.reshape(-1, grad.shape[-1])
        grad_z = grad_weight = grad_bias = None
        transposed = ctx.weight_again().T
        with torch.autocast(z.device.type, enabled=False):
            for chunk in chunks(len(inputs), z.device):
                path = grads[chunk]
                if path_scale is not None:
                    path = path * path_scale[chunk]
                path = path.to(ctx.dtype)
                if needs_z:
                    grad_chunk = dense(path, transposed, None)
                    grad_z = write_chunk(grad_z, chunk, grad_chunk, len(inputs))
                if needs_weight:
                    given = inputs[chunk].to(ctx.dtype)
                    grad_weight = added_product(grad_weight, path.T, given, weight.dtype)
                if ctx.has_bias and needs_bias:
                    grad_bias = added(grad_bias, column_sums(path))
        if grad_z is not None:
            grad_z = grad_z.view(z.shape).to(z.dtype)
        if grad_bias is not None:
            grad_bias = grad_bias.to(weight.dtype)
        return grad_z, grad if needs_skip else None, None, grad_weight, grad_bias, None
