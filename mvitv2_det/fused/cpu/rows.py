"""Attention from tokens to tokens, some rows at a time, for inference on the CPU.

Norm, projection, pooling, attention and the last projection of some rows at a time: of the maps
in between, pooled keys and values alone are ever whole. The others stay in the cache, and no
fresh memory has to be mapped for them, which takes as long as filling it.

Axes: B images, H × W tokens, C = h·d channels of h heads; sizes with a dash are pooled ones.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...attention.windows import WindowGrid
from ...sizes import divide_up
from .. import tokens as kernels
from ..head_pool import HeadPool
from ..norm_linear import norm_products_without_gradients
from ..products import dense
from ..residual import Skip
from ..shape import AttentionShape
from .folded_pooling import folded_projection, folding_saves_work
from .tiled import attend, scaled_keys
from .tiles import split_windows

_TOKENS = 8192  # computed at a time; with 96 channels 3 MB for each map


@dataclass(frozen=True)
class _Projection:
    """The projection of some of q, k and v that are pooled alike."""

    norm: nn.LayerNorm
    weight: Tensor
    bias: Tensor | None
    pools: Sequence[HeadPool]

    def rows(self, x: Tensor, first: int, end: int) -> list[Tensor]:
        """Rows ``first`` to ``end`` of the pooled maps, (B, end - first, W', C), from (B, H, W, C).

        The convolution pads what it is given, so it gets the rows that one more pooled row, or
        several, would need above, and those rows of its output are left out.
        """
        pool = self.pools[0]
        if pool.kernel is None:
            return self._project(x[:, first:end])
        (stride, _), (padding, _) = pool.stride, pool.padding
        extra = min(divide_up(padding, stride), first)
        top, bottom = (first - extra) * stride, (end - 1) * stride - padding + pool.kernel.shape[2]
        pooled = self._project_and_pool(x[:, top:bottom])
        return [part[:, extra : extra + end - first] for part in pooled]

    def _project_and_pool(self, x: Tensor) -> list[Tensor]:
        pools = self.pools
        if folding_saves_work(pools):
            parts = folded_projection(x, self.norm, self.weight, self.bias, pools)
            pools = [pool.without_convolution() for pool in pools]
        else:
            parts = self._project(x)
        return [pool(part) for part, pool in zip(parts, pools, strict=True)]

    def _project(self, x: Tensor) -> list[Tensor]:
        count = len(self.pools)
        biases = (None,) * count if self.bias is None else self.bias.chunk(count)
        return norm_products_without_gradients(
            x, self.norm, self.weight.chunk(count), biases, kernels
        )


def attention_row_by_row(
    x: Tensor,
    norm: nn.LayerNorm,
    qkv: nn.Linear,
    pools: Sequence[HeadPool],
    embeddings: Sequence[Tensor],
    shape: AttentionShape,
    proj: nn.Linear,
    skip: Skip,
    window_fill: Tensor | None,
    casts: kernels.Casts,
) -> Tensor:
    """All of multiscale attention, without gradients.

    Under autocast weights, maps and products are of its type, as are the logits between; products
    and softmax sum in float32.

    Args:
        x: (B, H, W, C_in).
        norm: normalises ``x``.
        qkv: projects to q, k and v side by side.
        pools: the pooling of each of them.
        embeddings: R of Eq. 4 per axis, (Q_a, K_a, d), or none.
        shape: heads, scale, windows and residual.
        proj: the last projection.
        skip: the connection around all of it, of the output's shape.
        window_fill: what completes windows of k and of v, (2, C); None for zeros.
        casts: those of both linear layers.

    Returns:
        (B, H / stride_q, W / stride_q, C_out), of the type of ``x``.
    """
    dtype = kernels.product_dtype(x)
    (weight, bias, _), (proj_weight, proj_bias, _) = casts[qkv], casts[proj]
    pools = [pool.with_kernel_of(dtype) for pool in pools]
    embeddings = kernels.cast(embeddings, dtype)
    with torch.autocast(x.device.type, enabled=False):
        queries, *others = _projections(norm, weight, bias, pools)
        k, v = (part for projection in others for part in _whole(projection, x))
        if window_fill is not None:
            grid, fills = WindowGrid.over(k, shape.window_kv[0]), window_fill.to(dtype)
            k, v = (grid.filled(x, fill) for x, fill in zip((k, v), fills, strict=True))
        keys, values = scaled_keys(k, shape), split_windows(v, shape)
        height, width = queries.pools[0].output_size(x.shape[1:3])
        output = x.new_empty(x.shape[0], height, width, proj.out_features)
        for first, end in _row_ranges(x, height, shape.window_q[0]):
            (q,) = queries.rows(x, first, end)
            attended = attend(q, keys, values, embeddings, shape, first)
            projected = dense(attended.flatten(0, 2), proj_weight, proj_bias)
            skip.rows(first, end).add(projected.view_as(attended), out=output[:, first:end])
    return output


def _projections(
    norm: nn.LayerNorm, weight: Tensor, bias: Tensor | None, pools: Sequence[HeadPool]
) -> list[_Projection]:
    """The projection of q, and of k and v, together where they are pooled alike."""
    alike = pools[1].pools_like(pools[2])
    groups = [pools[:1], pools[1:]] if alike else [[pool] for pool in pools]
    sizes = [len(weight) // 3 * len(group) for group in groups]
    weights = weight.split(sizes)
    biases = [None] * len(groups) if bias is None else bias.split(sizes)
    return [_Projection(norm, *part) for part in zip(weights, biases, groups, strict=True)]


def _whole(projection: _Projection, x: Tensor) -> list[Tensor]:
    """The pooled maps (B, H', W', C)."""
    count = len(projection.pools)
    height, width = projection.pools[0].output_size(x.shape[1:3])
    channels = len(projection.weight) // count
    size = (len(x), height, width, channels)
    outputs = [projection.weight.new_empty(size) for _ in range(count)]
    for first, end in _row_ranges(x, height, 1):
        for output, rows in zip(outputs, projection.rows(x, first, end), strict=True):
            output[:, first:end] = rows
    return outputs


def _row_ranges(x: Tensor, height: int, window: int) -> Iterator[tuple[int, int]]:
    """First and last row of parts of a pooled map, some windows or a part of one high."""
    row_tokens = x.shape[0] * x.shape[2] * x.shape[1] / height
    rows = max(int(_TOKENS / row_tokens), 1)
    step = rows // window * window or divide_up(window, divide_up(window, rows))
    together = max(step, window)
    for top in range(0, height, together):
        bottom = min(top + together, height)
        for first in range(top, bottom, step):
            yield first, min(first + step, bottom)
