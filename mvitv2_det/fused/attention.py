"""Attention from incoming tokens to the sum with the skip connection, by each backend.

What takes a module apart here, and computes it in other steps, is told by
:mod:`mvitv2_det.fused.choice` that the module is what it looks like.

Axes: B images, H × W tokens, C = h·d channels of h heads. The T frames of a clip lie below each
other in one map, whose height is then T·H; a class token travels beside it, (B, 1, C).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..attention.multiscale import MultiScaleAttention
from ..attention.position import relative_embedding
from ..attention.windows import WindowGrid
from ..sizes import cropped
from .cpu.folded_pooling import folded_projection, folding_saves_work
from .cpu.tiled import pool_and_attend
from .head_pool import HeadPool
from .norm_linear import (
    Source,
    norm_linear,
    norm_linears_and_input,
    norm_product,
    source_of_product,
)
from .residual import Skip, Unsummed, linear_and_skip, linear_beside_skip
from .sdpa import windowed_sdpa
from .shape import AttentionShape
from .skip_pool import pool_skip
from .tokens import Casts, TokenKernels

Pools = tuple[HeadPool, HeadPool, HeadPool]


class Beside(NamedTuple):
    """What an attention is given beside a map of images.

    Attributes:
        frames: T of a clip; 1 for images.
        token: a normalised class token, (B, 1, C_in), or None.
    """

    frames: int = 1
    token: Tensor | None = None

    @property
    def is_nothing(self) -> bool:
        """Whether there is a map of images alone."""
        return self.frames == 1 and self.token is None


NOTHING = Beside()


class Around(NamedTuple):
    """What goes around an attention: how a block makes its skip connection of its tokens.

    Attributes:
        proj: a linear layer of the normalised tokens, where the attention changes the width.
        pool: of ``attention.pooling.skip_pool``.
        path_scale: as of a :class:`~mvitv2_det.fused.residual.Skip`.
    """

    proj: nn.Linear | None
    pool: nn.Module
    path_scale: Tensor | None

    def pooled(self, tokens: Tensor, frames: int = 1) -> Skip:
        """The skip connection of tokens (B, H, W, C_out)."""
        return Skip(pool_skip(tokens, self.pool, frames), self.path_scale)

    def skip(
        self, x: Tensor, norm: nn.LayerNorm, kernels: TokenKernels, frames: int, casts: Casts
    ) -> Skip:
        """The skip connection of a block's tokens (B, H, W, C_in)."""
        if self.proj is not None:
            (x,) = norm_linear(x, norm, self.proj, kernels, casts=casts)
        return self.pooled(x, frames)


# From (attention, x, norm, around, kernels, beside, casts, recomputes) to skip.tokens +
# skip.path_scale * attention(norm(x)), (B, H, W, C_in) to (B, H', W', C_out), perhaps not yet
# summed, and the attention's output for the class token, (B, 1, C_out), or None. Where it
# recomputes, backward projects to q, k and v again instead of having them saved.
Attended = tuple[Tensor | Unsummed, Tensor | None]
Alone = tuple[Tensor, Tensor | None]  # without the skip connection
FusedAttention = Callable[
    [MultiScaleAttention, Tensor, nn.LayerNorm, Around, TokenKernels, Beside, Casts, bool],
    Attended,
]


def reference(
    attention: MultiScaleAttention,
    x: Tensor,
    norm: nn.LayerNorm,
    around: Around,
    kernels: TokenKernels,
    beside: Beside,
    casts: Casts,
    recomputes: bool,
) -> Attended:
    """The modules of the plain model, for options that nothing faster computes."""
    skip = around.skip(x, norm, kernels, beside.frames, casts)
    attended, token = reference_alone(attention, norm(x), beside)
    return skip.add(attended), token


def reference_alone(attention: MultiScaleAttention, x: Tensor, beside: Beside) -> Alone:
    """``attention(x, beside.token)`` of a map whose frames lie below each other."""
    axes = attention.spec.axes
    maps = x if axes == 2 else x.unflatten(1, (beside.frames, -1))
    found = attention(maps) if beside.token is None else attention(maps, beside.token)
    attended, token = found if isinstance(found, tuple) else (found, None)
    return (attended if axes == 2 else attended.flatten(1, 2)), token


def tiled(
    attention: MultiScaleAttention,
    x: Tensor,
    norm: nn.LayerNorm,
    around: Around,
    kernels: TokenKernels,
    beside: Beside,
    casts: Casts,
    recomputes: bool,
) -> Attended:
    """Tiles that stay in the cache of a CPU, with little saved for backward."""
    skip = around.skip(x, norm, kernels, beside.frames, casts)
    pools, shape = pools_and_shape(attention, x, beside.frames)
    embeddings = relative_embeddings(attention, shape)
    qkv = attention.qkv
    source = None
    if folding_saves_work(pools[1:]):
        layer = qkv if torch.is_grad_enabled() else casts[qkv]
        sizes = [qkv.out_features // 3, qkv.out_features // 3 * 2]
        weight_q, weight_kv = layer.weight.split(sizes)
        bias_q, bias_kv = (None, None) if layer.bias is None else layer.bias.split(sizes)
        q = norm_product(x, norm, weight_q, bias_q, kernels)
        k, v = folded_projection(x, norm, weight_kv, bias_kv, pools[1:])
        maps = [q, k, v]
        if recomputes:
            source = source_of_product(x, norm, weight_q, bias_q, kernels)
            source = source.then(lambda maps, k, v: [*maps, k, v], k, v)
        pools = (pools[0], pools[1].without_convolution(), pools[2].without_convolution())
    else:
        maps = _projected(attention, x, norm, kernels, 3, casts)
        if recomputes:
            source = _source_of_projected(attention, x, norm, kernels, 3)
    token = None if beside.token is None else attention.project_token(beside.token)
    z, of_token = pool_and_attend(maps, pools, embeddings, shape, token, source)
    attended = linear_and_skip(z, attention.proj, skip, casts)
    if token is None or of_token is None:
        return attended, None
    return attended, _projected_token(attention, of_token, token[0])


def triton(
    attention: MultiScaleAttention,
    x: Tensor,
    norm: nn.LayerNorm,
    around: Around,
    kernels: TokenKernels,
    beside: Beside,
    casts: Casts,
    recomputes: bool,
) -> Attended:
    """Triton kernels: pooling of q, k and v in one launch, and attention in one."""
    from .triton.axis_tables import AxisTable
    from .triton.pool import packed_parameters
    from .triton.triton_attention import triton_attention

    pools, shape = pools_and_shape(attention, x)
    sides = zip(attention.position_tables("q"), shape.window_q, shape.window_kv, strict=False)
    tables = [
        casts.kept.once((axis, *own), partial(AxisTable.of, table, *own))
        for axis, (table, *own) in enumerate(sides)
    ]
    packed = None
    if not torch.is_grad_enabled():
        packed = casts.kept.once("pools", partial(packed_parameters, pools))
    linears = [attention.qkv] if around.proj is None else [attention.qkv, around.proj]
    # What fills windows is the bias too; otherwise pooling's kernel sums its gradient.
    fills = attention.spec.window_fill_is_projected
    given = x
    qkv, *projected, x = norm_linears_and_input(x, norm, linears, kernels, casts, first_bias=fills)
    skip = around.pooled(projected[0] if projected else x)
    (qkv,) = _windows_filled(attention, [qkv])
    source = _source_of_projected(attention, given, norm, kernels, 1) if recomputes else None
    bias = None if fills else attention.qkv.bias
    z = triton_attention(qkv, pools, tables, shape, source, packed, bias)
    z = cropped(z, *x.shape[1:3]) if fills else z
    if kernels.JOINS_SUMS:
        return linear_beside_skip(z, attention.proj, skip, casts), None
    return linear_and_skip(z, attention.proj, skip, casts), None


def sdpa(
    attention: MultiScaleAttention,
    x: Tensor,
    norm: nn.LayerNorm,
    around: Around,
    kernels: TokenKernels,
    beside: Beside,
    casts: Casts,
    recomputes: bool,
) -> Attended:
    """One call of PyTorch's fused attention."""
    skip = around.skip(x, norm, kernels, beside.frames, casts)
    if recomputes:  # without the casts, which would be kept until backward
        z, token = _pool_and_sdpa(
            attention, x, [x], beside, lambda x: _projected(attention, x, norm, kernels, 3)
        )
    else:
        maps = _projected(attention, x, norm, kernels, 3, casts)
        z, token = _pool_and_sdpa(attention, x, maps, beside)
    return linear_and_skip(z, attention.proj, skip, casts), token


def sdpa_alone(attention: MultiScaleAttention, x: Tensor, beside: Beside = NOTHING) -> Alone:
    """``attention(x)`` with one call of PyTorch's fused attention, and nothing else fused."""
    maps = _windows_filled(attention, attention.qkv(x).chunk(3, dim=-1))
    z, token = _pool_and_sdpa(attention, x, maps, beside)
    return attention.proj(z), token


def _pool_and_sdpa(
    attention: MultiScaleAttention,
    x: Tensor,
    given: Sequence[Tensor],
    beside: Beside,
    project: Callable[..., Sequence[Tensor]] = lambda *maps: maps,
) -> Alone:
    """From ``project(*given)``, q, k and v of ``x`` (B, H, W, C), to what is projected last.

    Of the class token, to what has been projected.
    """
    pools, shape = pools_and_shape(attention, x, beside.frames)
    embeddings = relative_embeddings(attention, shape)
    token = () if beside.token is None else attention.project_token(beside.token)

    count = len(given)

    def attend(*tensors: Tensor) -> tuple[Tensor, ...]:
        maps = project(*tensors[:count])
        q, k, v = (pool(tensor) for tensor, pool in zip(maps, pools, strict=True))
        of_token = tensors[count : count + len(token)]
        embeddings = shape.on_map(tensors[count + len(token) :])
        token_kv = (of_token[1], of_token[2]) if of_token else None
        z = windowed_sdpa(q, k, v, embeddings, shape, token_kv)
        z = z + q if shape.residual else z
        return (z, _token_sdpa(of_token, k, v, shape)) if of_token else (z,)

    inputs = (*given, *token, *embeddings)
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        # Pooled, normalised and widened maps are many, and cheap to compute again.
        found = checkpoint(attend, *inputs, use_reentrant=False, preserve_rng_state=False)
    else:
        found = attend(*inputs)
    if not token:
        return found[0], None
    return found[0], _projected_token(attention, found[1], token[0])


def _projected(
    attention: MultiScaleAttention,
    x: Tensor,
    norm: nn.LayerNorm,
    kernels: TokenKernels,
    parts: int,
    casts: Casts | None = None,
) -> list[Tensor]:
    """q, k and v of ``x`` (B, H, W, C), in 3 parts or side by side in one."""
    maps = norm_linear(x, norm, attention.qkv, kernels, parts=parts, casts=casts)
    return _windows_filled(attention, maps)


def _source_of_projected(
    attention: MultiScaleAttention, x: Tensor, norm: nn.LayerNorm, kernels: TokenKernels, parts: int
) -> Source:
    """What :func:`_projected` makes its maps of."""
    weight, bias = attention.qkv.weight, attention.qkv.bias
    source = source_of_product(x, norm, weight, bias, kernels, parts)
    return source.then(partial(_windows_filled, attention), bias)


def _windows_filled(
    attention: MultiScaleAttention, maps: Sequence[Tensor], bias: Tensor | None = None
) -> list[Tensor]:
    """Completes the windows of k and v, (B, H, W, C), which are not pooled, if zeros are not to.

    Those of q as well where q, k and v lie side by side in one map. ``bias``: the projection's, if
    it is not to be asked of the module.
    """
    if not attention.spec.window_fill_is_projected:
        return list(maps)
    grid = WindowGrid.over(maps[-1], attention.spec.window_size)
    fills = (attention.qkv.bias if bias is None else bias).chunk(len(maps))
    filled = (grid.filled(x, fill) for x, fill in zip(maps[-2:], fills[-2:], strict=True))
    return [*maps[:-2], *filled]


def _token_sdpa(token: Sequence[Tensor], k: Tensor, v: Tensor, shape: AttentionShape) -> Tensor:
    """What a class token attends to, (B·h, 1, d): the keys of the map, (B, H, W, C), and itself."""
    keys, values = (
        torch.cat([shape.split_heads(x).flatten(1, 2).transpose(1, 2).flatten(0, 1), own], dim=1)
        for x, own in zip((k, v), token[1:], strict=True)
    )
    return F.scaled_dot_product_attention(token[0], keys, values, scale=shape.scale)


def _projected_token(attention: MultiScaleAttention, z: Tensor, token_q: Tensor) -> Tensor:
    """The attention's output for a class token, (B, 1, C), from what it attends to (B·h, 1, d)."""
    if attention.spec.residual_pooling and attention.spec.residual_class_token:
        z = z + token_q
    return attention.proj(attention.merge_heads(z))


def pools_and_shape(
    attention: MultiScaleAttention, x: Tensor, frames: int = 1
) -> tuple[Pools, AttentionShape]:
    """How the module pools q, k and v of ``x`` (B, H, W, C), and the shape of its attention."""
    spec = attention.spec
    pools = (
        HeadPool.of(attention.pool_q, attention.norm_q, spec.num_heads, frames),
        HeadPool.of(attention.pool_k, attention.norm_k, spec.num_heads, frames),
        HeadPool.of(attention.pool_v, attention.norm_v, spec.num_heads, frames),
    )
    if spec.window_size:
        window_q, window_kv = (
            (spec.window_size // stride[0],) * 2 for stride in (spec.stride_q, spec.stride_kv)
        )
    else:
        window_q, window_kv = (pool.output_size(x.shape[1:3]) for pool in pools[:2])
    masks = spec.mask_window_padding and spec.window_size > 0
    shape = AttentionShape(
        spec.num_heads, spec.scale, window_q, window_kv, spec.residual_pooling, masks, frames
    )
    return pools, shape


def relative_embeddings(
    attention: MultiScaleAttention, shape: AttentionShape
) -> tuple[Tensor, ...]:
    """R of Eq. 4 per axis, (Q_a, K_a, d), as :meth:`AttentionShape.on_map` takes them."""
    if not (tables := attention.position_tables("q")):
        return ()
    (query_rows, query_columns), (key_rows, key_columns) = shape.window_q, shape.window_kv
    height, width, *times = tables
    frames = shape.frames
    return (
        relative_embedding(height, query_rows // frames, key_rows // frames),
        relative_embedding(width, query_columns, key_columns),
        *(relative_embedding(time, frames, frames) for time in times),
    )
