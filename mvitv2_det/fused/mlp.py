"""LayerNorm, MLP and residual sum in chunks of tokens that stay in the cache.

Kept for backward: the tokens coming in and the MLP's hidden channels before the activation. The
normalised tokens and the activation are computed again.

Axes: T tokens, C channels in, O channels out, M hidden channels.
"""

import torch
import torch.nn.functional as F
from timm.layers import Mlp
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from . import norm_linear as normed_linear
from .norm_linear import (
    NormGradient,
    add_product,
    chunks,
    column_sums,
    compute_dtype,
    dense,
    normalise,
    put,
    token_kernels,
)


def why_not(x: Tensor, norm: nn.Module, mlp: Mlp) -> str | None:
    """Why :func:`normed_mlp` cannot run these modules; None where it can."""
    if reason := normed_linear.why_not(x, norm):
        return reason
    if type(mlp.act) is not nn.GELU:
        return f"the activation must be a GELU, got {type(mlp.act).__name__}"
    return None


def normed_mlp(
    x: Tensor,
    norm: nn.LayerNorm,
    mlp: Mlp,
    skip: Tensor | None = None,
    path_scale: Tensor | None = None,
) -> Tensor:
    """``skip + path_scale * mlp(norm(x))``.

    Args:
        x: (B, H, W, C).
        skip: (B, H, W, O), or None for ``x`` itself; then their gradients are summed here.
        path_scale: (B, 1, 1, 1) of stochastic depth, or None for 1.

    Returns:
        (B, H, W, O).
    """
    if path_scale is not None:
        path_scale = path_scale.expand(*x.shape[:-1], 1).reshape(-1, 1)
    fc1, fc2 = mlp.fc1, mlp.fc2
    parameters = (norm.weight, norm.bias, fc1.weight, fc1.bias, fc2.weight, fc2.bias)
    keeps_hidden = torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in (x, *parameters)
    )
    options = (norm.eps, mlp.act.approximate, compute_dtype(x), keeps_hidden)
    return _NormedMlp.apply(x, skip, path_scale, *parameters, options)


class _NormedMlp(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, skip, path_scale, norm_weight, norm_bias, w1, b1, w2, b2, options):
        eps, approximate, dtype, keeps_hidden = options
        activation = "gelu_tanh" if approximate == "tanh" else "gelu"
        tokens = x.reshape(-1, x.shape[-1])
        skipped = tokens if skip is None else skip.reshape(len(tokens), -1)
        output = torch.empty_like(skipped)
        kept = []  # chunk by chunk: nothing is copied together
        c1, c2 = w1.to(dtype), w2.to(dtype)
        d1, d2 = (None if bias is None else bias.to(dtype) for bias in (b1, b2))
        with torch.autocast(x.device.type, enabled=False):
            for chunk in chunks(len(tokens), x.device):
                part = tokens[chunk]
                normed = normalise(part, norm_weight, norm_bias, eps, dtype)[0]
                if keeps_hidden:
                    kept.append(dense(normed, c1, d1))
                    hidden = F.gelu(kept[-1], approximate=approximate)
                else:
                    hidden = dense(normed, c1, d1, activation)
                added = dense(hidden, c2, d2)
                if path_scale is not None:
                    added *= path_scale[chunk]
                torch.add(skipped[chunk], added, out=output[chunk])
        ctx.save_for_backward(x, path_scale, norm_weight, norm_bias, w1, w2, *kept)
        ctx.options, ctx.has_bias = options, (b1 is not None, b2 is not None)
        ctx.adds_input = skip is None
        return output.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, path_scale, norm_weight, norm_bias, w1, w2, *kept = ctx.saved_tensors
        eps, approximate, dtype, _ = ctx.options
        needs_x, needs_skip, _, *needs_parameters, _ = ctx.needs_input_grad
        tokens = x.reshape(-1, x.shape[-1])
        grads = grad.reshape(len(tokens), -1)
        grad_x = None
        grad_norm = NormGradient(norm_weight, norm_bias)
        grad_w1, grad_w2 = torch.zeros_like(w1), torch.zeros_like(w2)
        grad_b1 = w1.new_zeros(len(w1)) if ctx.has_bias[0] else None
        grad_b2 = w2.new_zeros(len(w2)) if ctx.has_bias[1] else None
        transposed1, transposed2 = (w.to(dtype).T for w in (w1, w2))
        with torch.autocast(x.device.type, enabled=False):
            for chunk, before in zip(chunks(len(tokens), x.device), kept, strict=True):
                grad_added = grads[chunk]
                if path_scale is not None:
                    grad_added = grad_added * path_scale[chunk]
                grad_added = grad_added.to(dtype)
                grad_hidden = dense(grad_added, transposed2, None)
                hidden, sums = _gelu_backward(before, grad_hidden, approximate)
                add_product(grad_w2, grad_added.T, hidden)
                del hidden  # as large as the kept one; the norm's temporaries come next
                normed = normalise(tokens[chunk], norm_weight, norm_bias, eps, dtype)
                add_product(grad_w1, grad_hidden.T, normed[0])
                if grad_b2 is not None:
                    grad_b2 += column_sums(grad_added)
                if grad_b1 is not None:
                    grad_b1 += sums
                grad_normed = dense(grad_hidden, transposed1, None)
                back = grad_norm.backward(grad_normed, tokens[chunk], normed)
                if ctx.adds_input:
                    back += grads[chunk]
                grad_x = put(grad_x, chunk, back, len(tokens))
        parameters = (grad_norm.weight, grad_norm.bias, grad_w1, grad_b1, grad_w2, grad_b2)
        return (
            grad_x.view(x.shape) if needs_x else None,
            grad if needs_skip else None,
            None,
            *(
                g if needed else None
                for g, needed in zip(parameters, needs_parameters, strict=True)
            ),
            None,
        )


def _gelu_backward(kept: Tensor, grad: Tensor, approximate: str) -> tuple[Tensor, Tensor]:
    """The activation of (t, M) again, and the bias' gradient; ``grad`` becomes that of ``kept``."""
    if kernels := token_kernels(kept):
        hidden, _, sums = kernels.gelu_backward(kept, grad, approximate, in_place=True)
        return hidden, sums
    hidden = F.gelu(kept, approximate=approximate)
    torch.ops.aten.gelu_backward(grad, kept, approximate=approximate, grad_input=grad)
    return hidden, column_sums(grad)
