"""Tiles of queries, and the windows of keys that each tile attends to.

Axes: B images, H × W tokens of h heads, n windows side by side, r × c queries of a tile in one
window, K = K_h·K_w keys of a window; X any number of channels.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ...sizes import divide_up
from ..shape import AttentionShape

_LOGITS = 2_000_000  # of a tile: 8 MB, so that they are still in the cache when they are read


@dataclass(frozen=True)
class Tile:
    """Some rows of queries in windows side by side.

    Attributes:
        rows, columns: where the queries are on the map.
        window_row, windows: where their keys are: the row of windows, and a slice along it.
        is_first_of_window: whether no earlier tile has the same windows.
        width: columns of each of the windows.
    """

    rows: slice
    columns: slice
    window_row: int
    windows: slice
    is_first_of_window: bool
    width: int

    def view(self, x: Tensor) -> Tensor:
        """The tile's part of a map (B, H, W, h, X), a view (n, B, h, r, c, X)."""
        part = x[:, self.rows, self.columns].unflatten(2, (-1, self.width))
        return part.permute(2, 0, 4, 1, 3, 5)

    def view_windows(self, windows: Tensor) -> Tensor:
        """The tile's windows of those of :func:`split_windows`, a view (n·B·h, K, d)."""
        return windows[self.window_row, self.windows].flatten(0, 2)


def tiles_of(shape: AttentionShape, batch: int, height: int, width: int) -> Iterator[Tile]:
    """Tiles that cover a query map; windows that reach over its border are cut off.

    Args:
        batch, height, width: B, H and W of the map.
    """
    window_height, window_width = shape.window_q
    keys = shape.window_kv[0] * shape.window_kv[1]
    for first, count, columns in _window_groups(width, window_width):
        logits_of_row = count * batch * shape.heads * columns * keys
        step = max(_LOGITS // logits_of_row, 1)
        start = first * window_width
        row = 0
        while row < height:
            window_row, inside = divmod(row, window_height)
            end = min(row + min(step, window_height - inside), height)
            yield Tile(
                rows=slice(row, end),
                columns=slice(start, start + count * columns),
                window_row=window_row,
                windows=slice(first, first + count),
                is_first_of_window=inside == 0,
                width=columns,
            )
            row = end


def _window_groups(size: int, window: int) -> Iterator[tuple[int, int, int]]:
    """First window, number of windows and their width: the whole ones, then one cut off."""
    whole, rest = divmod(size, window)
    if whole:
        yield 0, whole, window
    if rest:
        yield whole, 1, rest


def split_windows(x: Tensor, shape: AttentionShape, scale: float = 1.0) -> Tensor:
    """Keys or values in windows, times ``scale``.

    Args:
        x: (B, H, W, C).

    Returns:
        (rows, columns, B, h, K, d), the last windows padded with zeros.
    """
    x = shape.split_heads(x)
    batch, height, width, heads, channels = x.shape
    rows, columns = divide_up(height, shape.window_kv[0]), divide_up(width, shape.window_kv[1])
    windows = x.new_empty(rows, columns, batch, heads, *shape.window_kv, channels)
    windows[height // shape.window_kv[0] :].zero_()
    windows[:, width // shape.window_kv[1] :].zero_()
    for of_map, of_windows in _matching_parts(x, windows, shape):
        torch.mul(of_map, scale, out=of_windows)
    return windows.flatten(4, 5)


def merge_windows(
    windows: Tensor, size: torch.Size, shape: AttentionShape, scale: float = 1.0
) -> Tensor:
    """The inverse of :func:`split_windows` without the padding, and also times ``scale``.

    Args:
        size: (B, H, W, C) of the map.
    """
    output = windows.new_empty(size)
    windows = windows.unflatten(4, shape.window_kv)
    for of_map, of_windows in _matching_parts(shape.split_heads(output), windows, shape):
        torch.mul(of_windows, scale, out=of_map)
    return output


def _matching_parts(
    x: Tensor, windows: Tensor, shape: AttentionShape
) -> Iterator[tuple[Tensor, Tensor]]:
    """Views of a map (B, H, W, h, d) and of its windows (rows, columns, B, h, K_h, K_w, d) that
    hold the same tokens in the same order: the whole windows, and those cut off at each border.
    """
    height, width = shape.window_kv
    for top, rows, high in _window_groups(x.shape[1], height):
        for left, columns, wide in _window_groups(x.shape[2], width):
            part = x[:, top * height :, left * width :][:, : rows * high, : columns * wide]
            part = part.unflatten(2, (columns, wide)).unflatten(1, (rows, high))
            of_windows = windows[top : top + rows, left : left + columns, :, :, :high, :wide]
            yield part.permute(1, 3, 0, 5, 2, 4, 6), of_windows
