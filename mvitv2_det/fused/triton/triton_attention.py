"""Pooled attention from the projection to the merged output, with gradients.

Saved for backward: the projection, the output, which the layer after it saves anyway, and a number
for each query and head. Pooled maps and position logits are computed again.

Axes: B images, H × W tokens, C = h·d channels of h heads; sizes with a dash are pooled ones.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..head_pool import HeadPool, flat_parameters, with_flat_parameters
from ..shape import AttentionShape
from .attention_arguments import MAX_CHANNELS, MAX_KEYS_ALONG
from .attention_backward import attention_backward
from .attention_forward import attention_forward
from .pool import pool_backward, pool_forward

MAX_TAPS = 25  # of a pooling kernel: the loop over them is unrolled, and more spill registers


def why_unsupported(channels: int, pools: Sequence[HeadPool], shape: AttentionShape) -> str | None:
    """Says why the kernels cannot compute this attention; None where they can.

    Args:
        channels: of a head.
        pools: of q, k and v.
        shape: heads and windows.
    """
    pooled = [pool for pool in pools if pool.kernel is not None]
    if len({(pool.padding, pool.eps, pool.kernel.shape) for pool in pooled}) > 1:
        return "q, k and v are pooled by other kernels or with another eps"
    taps = [pool.kernel[0].numel() for pool in pooled]
    if max(taps, default=0) > MAX_TAPS:
        return f"its pooling kernels have {max(taps)} taps, at most {MAX_TAPS} go"
    if any(pool.stride[0] != pool.stride[1] for pool in pools):
        return "its strides are not the same along both axes"
    if channels > MAX_CHANNELS:
        return f"its heads have {channels} channels, at most {MAX_CHANNELS} go"
    if sum(shape.window_kv) > MAX_KEYS_ALONG:
        rows, columns = shape.window_kv
        return f"it attends to {rows} rows and {columns} columns, at most {MAX_KEYS_ALONG} go"
    return None


def triton_attention(
    qkv: Tensor,
    pools: Sequence[HeadPool],
    embeddings: tuple[Tensor, ...],
    shape: AttentionShape,
) -> Tensor:
    """Pools and normalises q, k and v, attends in windows, and adds the pooled q.

    Args:
        qkv: (B, H, W, 3·C), the projection: q, k and v side by side.
        pools: the pooling of each of them.
        embeddings: R of Eq. 4 per axis, (Q_a, K_a, d), or none.
        shape: heads, scale, windows and residual.

    Returns:
        (B, H', W', C).
    """
    embeddings = [embedding.to(qkv.dtype) for embedding in embeddings] or [None, None]
    return _TritonAttention.apply(shape, tuple(pools), qkv, *embeddings, *flat_parameters(pools))


class _TritonAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, shape, pools, qkv, rel_h, rel_w, *parameters):
        pools = with_flat_parameters(pools, parameters)
        with torch.cuda.device_of(qkv):  # Triton launches on the current device
            q, k, v = pool_forward(qkv, pools)
            out, lse = attention_forward(q, k, v, rel_h, rel_w, shape)
        ctx.shape, ctx.pools = shape, pools
        ctx.save_for_backward(qkv, rel_h, rel_w, out, lse, *parameters)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        qkv, rel_h, rel_w, out, lse, *parameters = ctx.saved_tensors
        pools = with_flat_parameters(ctx.pools, parameters)
        with torch.cuda.device_of(qkv):
            pooled = pool_forward(qkv, pools)
            *grads, grad_h, grad_w = attention_backward(
                grad.to(qkv.dtype).contiguous(), *pooled, rel_h, rel_w, out, lse, ctx.shape
            )
            del pooled
            grad_qkv, grad_parameters = pool_backward(qkv, pools, grads)
        flat = [tensor for of_pool in grad_parameters for tensor in of_pool]
        return None, None, grad_qkv, grad_h, grad_w, *flat
