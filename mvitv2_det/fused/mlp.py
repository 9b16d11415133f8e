"""LayerNorm, MLP and residual sum in chunks of tokens that stay in the cache.

Saved for backward: the tokens coming in and the MLP's hidden channels before the activation. The
normalised tokens and the activation are computed again, and where it is asked for all of these.

Axes: T tokens, C channels in, O channels out, M hidden channels.
"""

import typing
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.layers import Mlp
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .applying import applied
from .products import added, added_product, column_sums, dense
from .residual import Unsummed, scale_of_tokens
from .tokens import (
    Casts,
    NormGradient,
    SkipSum,
    TokenKernels,
    cast,
    chunks,
    product_dtype,
    write_chunk,
)


def norm_mlp(
    x: Tensor | Unsummed,
    norm: nn.LayerNorm,
    mlp: Mlp,
    skip: Tensor | None,
    path_scale: Tensor | None,
    kernels: TokenKernels,
    casts: Casts | None = None,
    recomputes: bool = False,
) -> Tensor:
    """``skip + path_scale * mlp(norm(x))``.

    Args:
        x: (B, H, W, C), or two of them that are to be summed first.
        norm: a LayerNorm of the channels.
        mlp: linear layer, GELU, linear layer, from C to O channels.
        skip: (B, H, W, O), or None for ``x`` itself; then their gradients are summed here.
        path_scale: the factor of the path, (B, 1, 1, 1), or None where no path is dropped.
        kernels: what computes norms and GELU.
        casts: those of both layers, if they have been cast already.
        recomputes: whether backward computes the hidden channels again, and none are saved.

    Returns:
        (B, H, W, O).
    """
    fc1, fc2 = typing.cast(nn.Linear, mlp.fc1), typing.cast(nn.Linear, mlp.fc2)
    # The sums before and after the MLP then take no passes of their own.
    first = x.skip if isinstance(x, Unsummed) else x
    joins = kernels.JOINS_SUMS and skip is None and first.dtype == product_dtype(first)
    if isinstance(x, Unsummed) and not joins:
        x = x.total()
    x, path = x if isinstance(x, Unsummed) else (x, None)
    parameters = (norm.weight, norm.bias, fc1.weight, fc1.bias, fc2.weight, fc2.bias)
    has_backward = torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in (x, path, skip, *parameters)
    )
    approximate = typing.cast(nn.GELU, mlp.act).approximate
    options = _Options(norm.eps, approximate, has_backward, recomputes, joins, kernels)
    casts = casts or Casts.of([fc1, fc2], product_dtype(first))
    low = casts[fc1], casts[fc2]
    return applied(
        _NormMlp, x, path, skip, scale_of_tokens(path_scale, x), *parameters, options, low
    )


@dataclass(frozen=True)
class _Options:
    """What :class:`_NormMlp` is given beside tensors."""

    eps: float
    approximate: str
    has_backward: bool
    recomputes: bool
    joins_sums: bool
    kernels: TokenKernels


class _NormMlp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, x, path, skip, path_scale, norm_weight, norm_bias, w1, b1, w2, b2, options, low
    ):
        dtype = product_dtype(x)
        activation = "gelu_tanh" if options.approximate == "tanh" else "gelu"
        shape, tokens, kept = x.shape, x.reshape(-1, x.shape[-1]), x if path is None else None
        others = None if path is None else path.reshape(tokens.shape)
        skipped = tokens if skip is None else skip.reshape(len(tokens), -1)
        output: typing.Any = None if options.joins_sums else torch.empty_like(skipped)
        saved = []  # chunk by chunk, so that nothing is copied together
        (c1, d1, again1), (c2, d2, again2) = low
        ctx.weights_again = again1, again2
        with torch.autocast(x.device.type, enabled=False):
            for chunk in chunks(len(tokens), x.device):
                if options.joins_sums:
                    total, summed, normed = options.kernels.add_layer_norm_forward(
                        tokens[chunk], None if others is None else others[chunk],
                        d2 if path_scale is None else None, norm_weight, norm_bias, options.eps,
                        dtype, options.has_backward,
                    )  # fmt: skip
                    if others is not None and total is not None:
                        kept = write_chunk(kept, chunk, total, len(tokens))
                else:
                    normed, *_ = options.kernels.layer_norm_forward(
                        tokens[chunk], norm_weight, norm_bias, options.eps, dtype
                    )
                if options.has_backward:
                    before = dense(normed, c1, d1)
                    hidden = F.gelu(before, approximate=options.approximate)
                    if not options.recomputes:
                        saved.append(before)
                    del before
                else:
                    hidden = dense(normed, c1, d1, activation)
                if options.joins_sums and path_scale is None:
                    output = write_chunk(output, chunk, summed.addmm_(hidden, c2.T), len(tokens))
                    continue
                added_path = dense(hidden, c2, d2)
                if path_scale is not None:
                    added_path *= path_scale[chunk]
                if options.joins_sums:
                    output = write_chunk(output, chunk, summed.add_(added_path), len(tokens))
                else:
                    torch.add(skipped[chunk], added_path, out=output[chunk])
        again = b1 if options.recomputes else None
        ctx.save_for_backward(kept, path_scale, norm_weight, norm_bias, w1, again, w2, *saved)
        ctx.options, ctx.dtype = options, dtype
        ctx.has_bias = (b1 is not None, b2 is not None)
        ctx.adds_input = skip is None
        ctx.shape = shape
        return output.view(*shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, path_scale, norm_weight, norm_bias, w1, b1, w2, *saved = ctx.saved_tensors
        options, dtype = ctx.options, ctx.dtype
        needs_x, needs_path, needs_skip, _, *needs_parameters, _, _ = ctx.needs_input_grad
        tokens = x.reshape(-1, x.shape[-1])
        grads = grad.reshape(len(tokens), -1)
        grad_x = grad_w1 = grad_w2 = grad_b2 = None
        # The norm reads the rows whose sum is the bias' gradient.
        sums_skip = ctx.has_bias[1] and ctx.adds_input and options.kernels.JOINS_SUMS
        grad_norm = NormGradient(options.kernels, norm_weight, norm_bias)

        def normalised(part: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            kernels, eps = options.kernels, options.eps
            return kernels.layer_norm_forward(part, norm_weight, norm_bias, eps, dtype)

        c1, c2 = (again() for again in ctx.weights_again)
        (d1,) = cast((b1,), dtype)
        with torch.autocast(x.device.type, enabled=False):
            for number, chunk in enumerate(chunks(len(tokens), x.device)):
                if options.recomputes:
                    normed = normalised(tokens[chunk])
                    before = dense(normed[0], c1, d1)
                else:
                    before = saved[number]
                grad_path = grads[chunk]
                if path_scale is not None:
                    grad_path = grad_path * path_scale[chunk]
                grad_path = grad_path.to(dtype)
                grad_hidden = dense(grad_path, c2.T, None)
                hidden, grad_hidden, partial = options.kernels.gelu_backward(
                    before, grad_hidden, options.approximate, in_place=True
                )
                grad_w2 = added_product(grad_w2, grad_path.T, hidden, w2.dtype)
                del before, hidden  # of equal size; the norm's temporaries come next
                if not options.recomputes:
                    normed = normalised(tokens[chunk])
                grad_w1 = added_product(grad_w1, grad_hidden.T, normed[0], w1.dtype)
                if ctx.has_bias[1] and not sums_skip:
                    grad_b2 = added(grad_b2, column_sums(grad_path))
                grad_normed = dense(grad_hidden, c1.T, None)
                around, skip_sum = (grads[chunk] if ctx.adds_input else None), None
                if sums_skip:
                    skip_sum = SkipSum(None if path_scale is None else path_scale[chunk])
                grad_chunk = grad_norm.backward(
                    grad_normed, tokens[chunk], normed, around, skip_sum,
                    partial if ctx.has_bias[0] else None,
                )  # fmt: skip
                if needs_x or needs_path:
                    grad_x = write_chunk(grad_x, chunk, grad_chunk, len(tokens))
        grad_b1, grad_b2 = (
            None if b is None else b.to(w1.dtype)
            for b in (grad_norm.partial_sum, grad_norm.skip_sum if sums_skip else grad_b2)
        )
        parameters = (grad_norm.weight, grad_norm.bias, grad_w1, grad_b1, grad_w2, grad_b2)
        grad_x = None if grad_x is None else grad_x.view(ctx.shape)
        return (
            grad_x if needs_x else None,
            grad_x if needs_path else None,
            grad if needs_skip else None,
            None,
            *(
                gradient if needed else None
                for gradient, needed in zip(parameters, needs_parameters, strict=True)
            ),
            None,
            None,
        )
