"""Attention from tokens to tokens in strips of rows, for the CPU, without gradients.

Norm, projection, pooling, attention and the last projection of some rows at a time: of the maps
in between, pooled keys and values alone are ever whole. The others stay in the cache, and no
fresh memory has to be mapped for them, which takes as long as filling it.

Axes: B images, H × W tokens, C = h·d channels of h heads; sizes with a dash are pooled ones.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from .folded import folded_projection, pays
from .layout import Layout, windows_of
from .normed_linear import dense, normed_products
from .pooling import HeadPool
from .projection import Skip
from .sizes import divide_up
from .strips import attend, scaled_keys

_TOKENS = 8192  # of a strip; with 96 channels 3 MB for each map


@dataclass(frozen=True)
class _Projection:
    """One of q, k and v: rows of its pooled map from those of the tokens."""

    norm: nn.LayerNorm
    weight: Tensor
    bias: Tensor | None
    pool: HeadPool

    def rows(self, x: Tensor, first: int, end: int) -> Tensor:
        """Rows ``first`` to ``end`` of the pooled map, (B, end - first, W', C), from (B, H, W, C).

        The convolution pads what it is given, so it gets the rows that one more pooled row, or
        several, would need above, and those rows of its output are left out.
        """
        if self.pool.parameters[0] is None:
            return self._project(x[:, first:end])
        (stride, _), (padding, _) = self.pool.stride, self.pool.padding
        kernel = self.pool.parameters[0].shape[2]
        extra = min(divide_up(padding, stride), first)
        top, bottom = (first - extra) * stride, (end - 1) * stride - padding + kernel
        part = x[:, top:bottom]
        if pays([self.pool]):
            (part,) = folded_projection(part, self.norm, self.weight, self.bias, [self.pool])
            pool = self.pool.after_convolution()
        else:
            part, pool = self._project(part), self.pool
        pooled = pool.run(part, *pool.parameters)
        return pooled[:, extra : extra + end - first]

    def _project(self, x: Tensor) -> Tensor:
        norm = (self.norm.weight, self.norm.bias, self.norm.eps)
        return normed_products(x, norm, [self.weight], [self.bias])[0]


def attention_by_rows(
    x: Tensor,
    norm: nn.LayerNorm,
    qkv: nn.Linear,
    pools: Sequence[HeadPool],
    embeddings: tuple[Tensor, ...],
    layout: Layout,
    proj: nn.Linear,
    skip: Skip | None,
) -> Tensor:
    """All of multiscale attention, without gradients.

    Args:
        x: (B, H, W, C_in).
        norm: normalises ``x``.
        qkv: projects to q, k and v side by side.
        pools: what pools each of them.
        embeddings: R of Eq. 4 per axis, (Q_a, K_a, d), or none.
        layout: heads, scale, windows and residual.
        proj: the last projection.
        skip: the connection around it all, of the output's shape.

    Returns:
        (B, H / stride_q, W / stride_q, C_out).
    """
    weights = qkv.weight.chunk(3)
    biases = (None,) * 3 if qkv.bias is None else qkv.bias.chunk(3)
    projections = [_Projection(norm, *part) for part in zip(weights, biases, pools, strict=True)]
    queries = projections[0]
    k, v = (_whole(part, x) for part in projections[1:])
    keys, values = scaled_keys(k, layout), windows_of(v, layout)
    height, width = queries.pool.output_size(x.shape[1:3])
    output = x.new_empty(x.shape[0], height, width, proj.out_features)
    for first, end in _row_strips(x, height, layout.window_q[0]):
        attended = attend(queries.rows(x, first, end), keys, values, embeddings, layout, first)
        projected = dense(attended.flatten(0, 2), proj.weight, proj.bias).view_as(attended)
        rows = output[:, first:end]
        if skip is None:
            rows.copy_(projected)
        else:
            skip.rows(first, end).add(projected, out=rows)
    return output


def _whole(projection: _Projection, x: Tensor) -> Tensor:
    """The pooled map (B, H', W', C)."""
    height, width = projection.pool.output_size(x.shape[1:3])
    output = x.new_empty(x.shape[0], height, width, len(projection.weight))
    for first, end in _row_strips(x, height, 1):
        output[:, first:end] = projection.rows(x, first, end)
    return output


def _row_strips(x: Tensor, height: int, window: int) -> Iterator[tuple[int, int]]:
    """First and last row of strips of a pooled map, some windows or a part of one high."""
    row_tokens = x.shape[0] * x.shape[2] * x.shape[1] / height
    rows = max(int(_TOKENS / row_tokens), 1)
    step = rows // window * window or divide_up(window, divide_up(window, rows))
    together = max(step, window)
    for top in range(0, height, together):
        bottom = min(top + together, height)
        for first in range(top, bottom, step):
            yield first, min(first + step, bottom)
