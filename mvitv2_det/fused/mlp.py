"""LayerNorm, MLP and residual sum in chunks of tokens that stay in the cache.

Saved for backward: the tokens coming in and the MLP's hidden channels before the activation. The
normalised tokens and the activation are computed again.

Axes: T tokens, C channels in, O channels out, M hidden channels.
"""

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from timm.layers import Mlp
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .residual import scale_of_tokens
from .tokens import (
    NormGradient,
    TokenKernels,
    add_product,
    chunks,
    column_sums,
    dense,
    product_dtype,
    write_chunk,
)


def norm_mlp(
    x: Tensor,
    norm: nn.LayerNorm,
    mlp: Mlp,
    skip: Tensor | None,
    path_scale: Tensor | None,
    kernels: TokenKernels,
) -> Tensor:
    """``skip + path_scale * mlp(norm(x))``.

    Args:
        x: (B, H, W, C).
        norm: a LayerNorm of the channels.
        mlp: linear layer, GELU, linear layer, from C to O channels.
        skip: (B, H, W, O), or None for ``x`` itself; then their gradients are summed here.
        path_scale: the factor of the path, (B, 1, 1, 1), or None where no path is dropped.
        kernels: what computes norms and GELU.

    Returns:
        (B, H, W, O).
    """
    fc1, fc2 = mlp.fc1, mlp.fc2
    parameters = (norm.weight, norm.bias, fc1.weight, fc1.bias, fc2.weight, fc2.bias)
    saves_hidden = torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in (x, *parameters)
    )
    options = _Options(norm.eps, cast(nn.GELU, mlp.act).approximate, saves_hidden, kernels)
    return _NormMlp.apply(x, skip, scale_of_tokens(path_scale, x), *parameters, options)


@dataclass(frozen=True)
class _Options:
    """What :class:`_NormMlp` is given beside tensors."""

    eps: float
    approximate: str
    saves_hidden: bool
    kernels: TokenKernels


class _NormMlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, skip, path_scale, norm_weight, norm_bias, w1, b1, w2, b2, options):
        dtype = product_dtype(x)
        activation = "gelu_tanh" if options.approximate == "tanh" else "gelu"
        tokens = x.reshape(-1, x.shape[-1])
        skipped = tokens if skip is None else skip.reshape(len(tokens), -1)
        output = torch.empty_like(skipped)
        saved = []  # chunk by chunk, so that nothing is copied together
        c1, c2 = w1.to(dtype), w2.to(dtype)
        d1, d2 = (None if bias is None else bias.to(dtype) for bias in (b1, b2))
        with torch.autocast(x.device.type, enabled=False):
            for chunk in chunks(len(tokens), x.device):
                normed, *_ = options.kernels.layer_norm_forward(
                    tokens[chunk], norm_weight, norm_bias, options.eps, dtype
                )
                if options.saves_hidden:
                    saved.append(dense(normed, c1, d1))
                    hidden = F.gelu(saved[-1], approximate=options.approximate)
                else:
                    hidden = dense(normed, c1, d1, activation)
                added = dense(hidden, c2, d2)
                if path_scale is not None:
                    added *= path_scale[chunk]
                torch.add(skipped[chunk], added, out=output[chunk])
        ctx.save_for_backward(x, path_scale, norm_weight, norm_bias, w1, w2, *saved)
        ctx.options, ctx.dtype = options, dtype
        ctx.has_bias = (b1 is not None, b2 is not None)
        ctx.adds_input = skip is None
        return output.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, path_scale, norm_weight, norm_bias, w1, w2, *saved = ctx.saved_tensors
        options, dtype = ctx.options, ctx.dtype
        needs_x, needs_skip, _, *needs_parameters, _ = ctx.needs_input_grad
        tokens = x.reshape(-1, x.shape[-1])
        grads = grad.reshape(len(tokens), -1)
        grad_x = None
        grad_norm = NormGradient(options.kernels, norm_weight, norm_bias)
        grad_w1, grad_w2 = torch.zeros_like(w1), torch.zeros_like(w2)
        grad_b1 = w1.new_zeros(len(w1)) if ctx.has_bias[0] else None
        grad_b2 = w2.new_zeros(len(w2)) if ctx.has_bias[1] else None
        transposed1, transposed2 = (w.to(dtype).T for w in (w1, w2))
        with torch.autocast(x.device.type, enabled=False):
            for chunk, before in zip(chunks(len(tokens), x.device), saved, strict=True):
                grad_added = grads[chunk]
                if path_scale is not None:
                    grad_added = grad_added * path_scale[chunk]
                grad_added = grad_added.to(dtype)
                grad_hidden = dense(grad_added, transposed2, None)
                hidden, grad_hidden, sums = options.kernels.gelu_backward(
                    before, grad_hidden, options.approximate, in_place=True
                )
                add_product(grad_w2, grad_added.T, hidden)
                del hidden  # as large as the saved one; the norm's temporaries come next
                normed = options.kernels.layer_norm_forward(
                    tokens[chunk], norm_weight, norm_bias, options.eps, dtype
                )
                add_product(grad_w1, grad_hidden.T, normed[0])
                if grad_b2 is not None:
                    grad_b2 += column_sums(grad_added)
                if grad_b1 is not None:
                    grad_b1 += sums
                grad_normed = dense(grad_hidden, transposed1, None)
                grad_chunk = grad_norm.backward(grad_normed, tokens[chunk], normed)
                if ctx.adds_input:
                    grad_chunk += grads[chunk]
                if needs_x:
                    grad_x = write_chunk(grad_x, chunk, grad_chunk, len(tokens))
        parameters = (grad_norm.weight, grad_norm.bias, grad_w1, grad_b1, grad_w2, grad_b2)
        return (
            None if grad_x is None else grad_x.view(x.shape),
            grad if needs_skip else None,
            None,
            *(
                gradient if needed else None
                for gradient, needed in zip(parameters, needs_parameters, strict=True)
            ),
            None,
        )
