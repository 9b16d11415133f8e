"""Pooled attention from the projection to the merged output, with gradients.

Saved for backward: the projection or what it is made of, the output, which the layer after it saves
anyway, a number for each query and head, and the pools' parameters side by side, which are few.
Pooled maps and position logits are computed again.

Axes: B images, H × W tokens, C = h·d channels of h heads; sizes with a dash are pooled ones.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..applying import applied
from ..head_pool import HeadPool, flat_parameters, with_flat_parameters
from ..norm_linear import Source
from ..shape import AttentionShape
from .attention_arguments import MAX_CHANNELS, MAX_KEYS_ALONG
from .attention_backward import attention_backward
from .attention_forward import attention_forward
from .axis_tables import AxisTable
from .pool import packed_parameters, pool_backward, pool_forward

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
    tables: Sequence[AxisTable],
    shape: AttentionShape,
    source: Source | None = None,
    packed: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Pools and normalises q, k and v, attends in windows, and adds the pooled q.

    Args:
        qkv: (B, H, W, 3·C), the projection: q, k and v side by side.
        pools: the pooling of each of them.
        tables: those of Eq. 4 for both axes of a window, or none.
        shape: heads, scale, windows and residual.
        source: what is saved for backward in place of ``qkv``; None for ``qkv`` itself.
        packed: the pools' parameters if they have been put together already.
        bias: what the projection has added, (3·C), if its gradient is to be given here: the sum of
            the projection's, which is then not read again for it.

    Returns:
        (B, H', W', C).
    """
    own = [rel.table for rel in tables] or [None, None]
    places = tuple(rel[1:] for rel in tables)
    parameters = flat_parameters(pools)
    beside = source or Source.of(qkv), packed, bias
    return applied(_TritonAttention, shape, tuple(pools), places, *beside, qkv, *own, *parameters)


class _TritonAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, shape, pools, places, source, packed, bias, qkv, *tensors):
        table_h, table_w, *parameters = tensors
        pools = with_flat_parameters(pools, parameters)
        with torch.cuda.device_of(qkv):  # Triton launches on the current device
            packed = packed_parameters(pools) if packed is None else packed
            q, k, v = pool_forward(qkv, pools, packed)
            out, lse = attention_forward(q, k, v, *_axis_tables((table_h, table_w), places), shape)
        ctx.shape, ctx.pools, ctx.places, ctx.make_maps = shape, pools, places, source.make
        ctx.num_parameters, ctx.bias_type = len(parameters), None if bias is None else bias.dtype
        ctx.save_for_backward(table_h, table_w, out, lse, packed, *parameters, *source.tensors)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        table_h, table_w, out, lse, packed, *saved = ctx.saved_tensors
        parameters, made_of = saved[: ctx.num_parameters], saved[ctx.num_parameters :]
        pools = with_flat_parameters(ctx.pools, parameters)
        (qkv,) = ctx.make_maps(*made_of)
        with torch.cuda.device_of(qkv):
            pooled = pool_forward(qkv, pools, packed)
            tables = _axis_tables((table_h, table_w), ctx.places)
            *grads, grad_h, grad_w = attention_backward(
                grad.to(qkv.dtype).contiguous(), *pooled, *tables, out, lse, ctx.shape
            )
            del pooled
            bias_type = ctx.bias_type if ctx.needs_input_grad[5] else None
            grad_qkv, grad_parameters, grad_bias = pool_backward(
                qkv, pools, grads, packed, bias_type
            )
        flat = [tensor for of_pool in grad_parameters for tensor in of_pool]
        return None, None, None, None, None, grad_bias, grad_qkv, grad_h, grad_w, *flat


def _axis_tables(
    tables: Sequence[Tensor | None], places: Sequence[tuple[Tensor, Tensor]]
) -> list[AxisTable | None]:
    """Tables with the places that read them; None for both without positions."""
    if not places:
        return [None, None]
    return [AxisTable(table, *own) for table, own in zip(tables, places, strict=True)]
