"""Attention from incoming tokens to the sum with the skip connection, by each backend.

What takes a module apart here, and computes it in other steps, is told by
:mod:`mvitv2_det.fused.choice` that the module is what it looks like.

Axes: B images, H × W tokens, C channels.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..attention.multiscale import MultiScaleAttention
from ..attention.position import relative_embedding
from .cpu.folded_pooling import folded_projection, folding_saves_work
from .cpu.rows import attention_row_by_row
from .cpu.tiled import pool_and_attend
from .head_pool import HeadPool
from .norm_linear import norm_linear, norm_product
from .residual import Skip, linear_and_skip
from .sdpa import windowed_sdpa
from .shape import AttentionShape
from .tokens import TokenKernels

Pools = tuple[HeadPool, HeadPool, HeadPool]
# From (attention, x, norm, skip, kernels) to skip.tokens + skip.path_scale * attention(norm(x)),
# (B, H, W, C_in) to (B, H', W', C_out).
FusedAttention = Callable[[MultiScaleAttention, Tensor, nn.LayerNorm, Skip, TokenKernels], Tensor]


def reference(
    attention: MultiScaleAttention,
    x: Tensor,
    norm: nn.LayerNorm,
    skip: Skip,
    kernels: TokenKernels,
) -> Tensor:
    """The modules of the plain model, for options that nothing faster computes."""
    return skip.add(attention(norm(x)))


def tiled(
    attention: MultiScaleAttention,
    x: Tensor,
    norm: nn.LayerNorm,
    skip: Skip,
    kernels: TokenKernels,
) -> Tensor:
    """Tiles that stay in the cache of a CPU, with little saved for backward."""
    pools, shape = pools_and_shape(attention, x)
    embeddings = relative_embeddings(attention, shape)
    qkv = attention.qkv
    if not torch.is_grad_enabled():
        return attention_row_by_row(x, norm, qkv, pools, embeddings, shape, attention.proj, skip)
    if folding_saves_work(pools[1:]):
        channels = qkv.out_features // 3
        weight_q, weight_kv = qkv.weight.split([channels, 2 * channels])
        bias_q, bias_kv = (
            (None, None) if qkv.bias is None else qkv.bias.split([channels, 2 * channels])
        )
        q = norm_product(x, norm, weight_q, bias_q, kernels)
        maps = [q, *folded_projection(x, norm, weight_kv, bias_kv, pools[1:])]
        pools = (pools[0], pools[1].without_convolution(), pools[2].without_convolution())
    else:
        maps = norm_linear(x, norm, qkv, kernels, parts=3)
    z = pool_and_attend(maps, pools, embeddings, shape)
    return linear_and_skip(z, attention.proj, skip)


def triton(
    attention: MultiScaleAttention,
    x: Tensor,
    norm: nn.LayerNorm,
    skip: Skip,
    kernels: TokenKernels,
) -> Tensor:
    """Triton kernels: pooling of q, k and v in one launch, and attention in one."""
    from .triton.triton_attention import triton_attention

    pools, shape = pools_and_shape(attention, x)
    embeddings = relative_embeddings(attention, shape)
    (qkv,) = norm_linear(x, norm, attention.qkv, kernels)
    z = triton_attention(qkv, pools, embeddings, shape)
    return linear_and_skip(z, attention.proj, skip)


def sdpa(
    attention: MultiScaleAttention,
    x: Tensor,
    norm: nn.LayerNorm,
    skip: Skip,
    kernels: TokenKernels,
) -> Tensor:
    """One call of PyTorch's fused attention."""
    maps = norm_linear(x, norm, attention.qkv, kernels, parts=3)
    return linear_and_skip(_pool_and_sdpa(attention, x, maps), attention.proj, skip)


def sdpa_alone(attention: MultiScaleAttention, x: Tensor) -> Tensor:
    """``attention(x)`` with one call of PyTorch's fused attention, and nothing else fused."""
    maps = attention.qkv(x).chunk(3, dim=-1)
    return attention.proj(_pool_and_sdpa(attention, x, maps))


def _pool_and_sdpa(attention: MultiScaleAttention, x: Tensor, maps: Sequence[Tensor]) -> Tensor:
    """From the projected q, k and v of ``x`` (B, H, W, C) to what is projected last."""
    pools, shape = pools_and_shape(attention, x)
    embeddings = relative_embeddings(attention, shape)

    def attend(q: Tensor, k: Tensor, v: Tensor, *embeddings: Tensor) -> Tensor:
        q, k, v = (pool(tensor) for tensor, pool in zip((q, k, v), pools, strict=True))
        z = windowed_sdpa(q, k, v, embeddings, shape)
        return z + q if shape.residual else z

    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        # Pooled, normalised and widened maps are many, and cheap to compute again.
        return checkpoint(attend, *maps, *embeddings, use_reentrant=False, preserve_rng_state=False)
    return attend(*maps, *embeddings)


def pools_and_shape(attention: MultiScaleAttention, x: Tensor) -> tuple[Pools, AttentionShape]:
    """How the module pools q, k and v of ``x`` (B, H, W, C), and the shape of its attention."""
    spec = attention.spec
    pools = (
        HeadPool.of(attention.pool_q, attention.norm_q, spec.num_heads),
        HeadPool.of(attention.pool_k, attention.norm_k, spec.num_heads),
        HeadPool.of(attention.pool_v, attention.norm_v, spec.num_heads),
    )
    if spec.window_size:
        window_q, window_kv = (
            (spec.window_size // stride[0],) * 2 for stride in (spec.stride_q, spec.stride_kv)
        )
    else:
        window_q, window_kv = (pool.output_size(x.shape[1:3]) for pool in pools[:2])
    masks = spec.mask_window_padding and spec.window_size > 0
    shape = AttentionShape(
        spec.num_heads, spec.scale, window_q, window_kv, spec.residual_pooling, masks
    )
    return pools, shape


def relative_embeddings(
    attention: MultiScaleAttention, shape: AttentionShape
) -> tuple[Tensor, ...]:
    """R of Eq. 4 per axis, (Q_a, K_a, d); empty without relative positions."""
    if not (tables := attention.position_tables("q")):
        return ()
    return tuple(
        relative_embedding(table, queries, keys)
        for table, queries, keys in zip(tables, shape.window_q, shape.window_kv, strict=True)
    )
