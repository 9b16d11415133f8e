"""Where the queries of a map find their keys: windows, and strips of their rows.

Axes: B images, H × W tokens of h heads, n windows side by side, r × c queries of a strip in one
window, K = Kh·Kw keys of a window; X any number of channels.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ...sizes import divide_up

_SCORES = 1_000_000  # of a strip: 4 MB, so that they are still in the cache when they are read


@dataclass(frozen=True)
class Strip:
    """Query rows of windows side by side.

    Attributes:
        rows, columns: where on the map.
        window_row, windows: whose keys: the row of windows, and a slice along it.
        opens: whether it is the first one of its windows.
        width: columns of each of the windows.
    """

    rows: slice
    columns: slice
    window_row: int
    windows: slice
    opens: bool
    width: int

    def of_map(self, x: Tensor) -> Tensor:
        """The strip's part of a (B, H, W, h, X) map, a view (n, B, h, r, c, X)."""
        part = x[:, self.rows, self.columns].unflatten(2, (-1, self.width))
        return part.permute(2, 0, 4, 1, 3, 5)

    def of_windows(self, windows: Tensor) -> Tensor:
        """The strip's windows of those of :func:`windows_of`, a view (n·B·h, K, d)."""
        return windows[self.window_row, self.windows].flatten(0, 2)


@dataclass(frozen=True)
class Layout:
    """What attention computes, apart from tensors.

    Attributes:
        heads: h.
        scale: of the content logits.
        window_q, window_kv: height and width of the windows in queries and in keys; the whole
            map where attention is global.
        residual: whether the queries are added to the output.
    """

    heads: int
    scale: float
    window_q: tuple[int, int]
    window_kv: tuple[int, int]
    residual: bool

    def by_heads(self, x: Tensor) -> Tensor:
        """(B, H, W, h·d) to (B, H, W, h, d)."""
        return x.unflatten(3, (self.heads, -1))

    def strips(self, batch: int, height: int, width: int, above: int = 0) -> Iterator[Strip]:
        """Strips that cover a query map; windows that reach over its border are cut off.

        Args:
            batch, height, width: of the map.
            above: rows of the whole map above this one, where it is a part.
        """
        window_height, window_width = self.window_q
        keys = self.window_kv[0] * self.window_kv[1]
        for first, count, columns in _window_groups(width, window_width):
            row_scores = count * batch * self.heads * columns * keys
            step = max(_SCORES // row_scores, 1)
            start = first * window_width
            row = 0
            while row < height:
                window_row, inside = divmod(above + row, window_height)
                end = min(row + min(step, window_height - inside), height)
                yield Strip(
                    slice(row, end),
                    slice(start, start + count * columns),
                    window_row,
                    slice(first, first + count),
                    inside == 0,
                    columns,
                )
                row = end


def _window_groups(size: int, window: int) -> Iterator[tuple[int, int, int]]:
    """First window, number of windows and their width: the whole ones, then one cut off."""
    whole, rest = divmod(size, window)
    if whole:
        yield 0, whole, window
    if rest:
        yield whole, 1, rest


def windows_of(x: Tensor, layout: Layout, scale: float = 1.0) -> Tensor:
    """Keys or values in windows, times ``scale``.

    Args:
        x: (B, H, W, C).

    Returns:
        (rows, columns, B, h, K, d), the last windows padded with zeros.
    """
    x = layout.by_heads(x)
    batch, height, width, heads, channels = x.shape
    rows, columns = divide_up(height, layout.window_kv[0]), divide_up(width, layout.window_kv[1])
    windows = x.new_empty(rows, columns, batch, heads, *layout.window_kv, channels)
    windows[height // layout.window_kv[0] :].zero_()
    windows[:, width // layout.window_kv[1] :].zero_()
    for of_map, of_windows in _window_parts(x, windows, layout):
        torch.mul(of_map, scale, out=of_windows)
    return windows.flatten(4, 5)


def unwindows(windows: Tensor, shape: torch.Size, layout: Layout, scale: float = 1.0) -> Tensor:
    """The inverse of :func:`windows_of` without the padding, and also times ``scale``."""
    output = windows.new_empty(shape)
    windows = windows.unflatten(4, layout.window_kv)
    for of_map, of_windows in _window_parts(layout.by_heads(output), windows, layout):
        torch.mul(of_windows, scale, out=of_map)
    return output


def _window_parts(x: Tensor, windows: Tensor, layout: Layout) -> Iterator[tuple[Tensor, Tensor]]:
    """Views of a map (B, H, W, h, d) and of its windows (rows, columns, B, h, Kh, Kw, d) that
    hold the same tokens in the same order: the whole windows, and those cut off at each border.
    """
    height, width = layout.window_kv
    for top, rows, high in _window_groups(x.shape[1], height):
        for left, columns, wide in _window_groups(x.shape[2], width):
            part = x[:, top * height :, left * width :][:, : rows * high, : columns * wide]
            part = part.unflatten(2, (columns, wide)).unflatten(1, (rows, high))
            of_windows = windows[top : top + rows, left : left + columns, :, :, :high, :wide]
            yield part.permute(1, 3, 0, 5, 2, 4, 6), of_windows
