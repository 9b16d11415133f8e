"""Skip connections: the last projection of attention and the sum around it, in one.

Axes: B images, H × W tokens, T of them in all, C channels in and out.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .tokens import (
    add_product,
    chunks,
    column_sums,
    dense,
    product_dtype,
    write_chunk,
)


class Skip(NamedTuple):
    """The skip connection around a path.

    Attributes:
        tokens: (B, H, W, C), added to the path.
        path_scale: the factor of the path, (B, 1, 1, 1), drawn by stochastic depth; None where
            no path is dropped.
    """

    tokens: Tensor
    path_scale: Tensor | None = None

    def rows(self, first: int, end: int) -> "Skip":
        """The skip connection of rows ``first`` to ``end`` of the map."""
        return Skip(self.tokens[:, first:end], self.path_scale)

    def add(self, path: Tensor, out: Tensor | None = None) -> Tensor:
        """``tokens + path_scale * path``."""
        path = path if self.path_scale is None else self.path_scale * path
        return torch.add(self.tokens, path, out=out)


def linear_and_skip(z: Tensor, linear: nn.Linear, skip: Skip) -> Tensor:
    """``skip.tokens + skip.path_scale * linear(z)``.

    Args:
        z: (B, H, W, C).
        linear: a linear layer from C to C channels.
        skip: of the output's shape.

    Returns:
        (B, H, W, C), of the skip connection's type.
    """
    tokens, scale = skip
    return _LinearAndSkip.apply(z, tokens, scale_of_tokens(scale, z), linear.weight, linear.bias)


def scale_of_tokens(path_scale: Tensor | None, x: Tensor) -> Tensor | None:
    """The factor of each token of (B, H, W, C), (T, 1), from that of each image, (B, 1, 1, 1)."""
    return None if path_scale is None else path_scale.expand(*x.shape[:-1], 1).reshape(-1, 1)


class _LinearAndSkip(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, skip, path_scale, weight, bias):
        dtype = product_dtype(z)
        ctx.save_for_backward(z, path_scale, weight)
        ctx.dtype, ctx.has_bias = dtype, bias is not None
        inputs, skipped = z.reshape(-1, z.shape[-1]), skip.reshape(-1, skip.shape[-1])
        output = torch.empty_like(skipped)
        weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
        with torch.autocast(z.device.type, enabled=False):
            for chunk in chunks(len(inputs), z.device):
                added = dense(inputs[chunk].to(dtype), weight, bias)
                if path_scale is not None:
                    added *= path_scale[chunk]
                torch.add(skipped[chunk], added, out=output[chunk])
        return output.view(skip.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        z, path_scale, weight = ctx.saved_tensors
        needs_z, needs_skip, _, needs_weight, needs_bias = ctx.needs_input_grad
        inputs, grads = z.reshape(-1, z.shape[-1]), grad.reshape(-1, grad.shape[-1])
        grad_z = None
        grad_weight = torch.zeros_like(weight) if needs_weight else None
        grad_bias = weight.new_zeros(len(weight)) if ctx.has_bias and needs_bias else None
        transposed = weight.to(ctx.dtype).T
        with torch.autocast(z.device.type, enabled=False):
            for chunk in chunks(len(inputs), z.device):
                added = grads[chunk]
                if path_scale is not None:
                    added = added * path_scale[chunk]
                added = added.to(ctx.dtype)
                if needs_z:
                    grad_chunk = dense(added, transposed, None)
                    grad_z = write_chunk(grad_z, chunk, grad_chunk, len(inputs))
                if grad_weight is not None:
                    add_product(grad_weight, added.T, inputs[chunk].to(ctx.dtype))
                if grad_bias is not None:
                    grad_bias += column_sums(added)
        if grad_z is not None:
            grad_z = grad_z.view(z.shape).to(z.dtype)
        return grad_z, grad if needs_skip else None, None, grad_weight, grad_bias
