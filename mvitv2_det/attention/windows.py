"""Windows over token maps: fixed ones, and shifted ones with their masks (Swin).

Axes: N = batch × heads, H × W tokens, D channels per head, n = rows × columns windows per
map, w tokens along a window's side; Q_a queries and K_a keys along axis a of a window.

Maps that are no whole number of windows are padded below and to the right, and the padded tokens
are not masked by default: released weights were trained so. Where attention pools, the pooled maps
are padded with zeros, as in Detectron2's MViT: a padded key has a content logit of 0, its position
logits, and a value of 0. Without pooling, zeros are padded before q, k and v are projected, as in
Detectron2's ViT and in Swin: padded keys and values are then the projection's bias.

Shifted windows (Swin, Liu et al. 2021, section 3.2) are laid over the padded map after it was
rolled up and to the left by the shift. The last window of an axis then holds two regions that are
no neighbours, its own and the one rolled in from the other end, and neither may see the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..sizes import cropped, divide_up, surely_equal

PADDING = -1


@dataclass(frozen=True)
class WindowGrid:
    """How the windows lie over maps of one size.

    Attributes:
        size: (H, W) of the maps.
        window: w, tokens along a side.
        shift: tokens by which the windows are shifted down and to the right. An axis that one
            window covers is not shifted.
    """

    size: tuple[int, int]
    window: int
    shift: int = 0

    @classmethod
    def over(cls, maps: Tensor, window: int) -> "WindowGrid":
        """Windows that are not shifted, over maps (N, H, W, D)."""
        return cls((maps.shape[1], maps.shape[2]), window)

    @property
    def counts(self) -> tuple[int, int]:
        """Rows and columns of windows."""
        height, width = self.size
        return divide_up(height, self.window), divide_up(width, self.window)

    @property
    def shifts(self) -> tuple[int, int]:
        """The shift along each axis."""
        if not self.shift:
            return 0, 0
        rows, columns = self.counts
        return (self.shift if rows > 1 else 0, self.shift if columns > 1 else 0)

    def partition(self, x: Tensor) -> Tensor:
        """Cuts maps into windows: (N, H, W, D) to (N·n, w, w, D), row-major within each map.

        Maps may be whole numbers of windows already, as from :meth:`filled`.
        """
        (rows, columns), w = self.counts, self.window
        x = self._padded(x)
        if any(self.shifts):
            x = x.roll([-shift for shift in self.shifts], dims=(1, 2))
        x = x.reshape(x.shape[0], rows, w, columns, w, x.shape[-1])
        return x.transpose(2, 3).flatten(0, 2)

    def filled(self, x: Tensor, fill: Tensor) -> Tensor:
        """Completes the windows of maps (N, H, W, D) with ``fill``, which is broadcast to them."""
        if self._is_whole(x):
            return x
        padded = self._padded(x)
        height, width = (
            torch.arange(side, device=x.device) < own
            for side, own in zip(padded.shape[1:3], self.size, strict=True)
        )
        inside = height[:, None, None] & width[:, None]
        return torch.where(inside, padded, fill.to(x.dtype))

    def _padded(self, x: Tensor) -> Tensor:
        if self._is_whole(x):
            return x
        (rows, columns), w = self.counts, self.window
        return F.pad(x, (0, 0, 0, columns * w - x.shape[2], 0, rows * w - x.shape[1]))

    def _is_whole(self, x: Tensor) -> bool:
        (rows, columns), w = self.counts, self.window
        return surely_equal((rows * w - x.shape[1], columns * w - x.shape[2]), (0, 0))

    def unpartition(self, windows: Tensor) -> Tensor:
        """Puts windows back into maps and drops the padding: the inverse of :meth:`partition`."""
        (height, width), (rows, columns) = self.size, self.counts
        x = windows.unflatten(0, (-1, rows, columns)).transpose(2, 3)
        x = x.flatten(3, 4).flatten(1, 2)
        if any(self.shifts):
            x = x.roll(self.shifts, dims=(1, 2))
        return cropped(x, height, width)

    def regions(self, axis: int, *, mask_padding: bool, device: torch.device) -> Tensor:
        """Which region of its window each place along an axis lies in.

        Returns:
            int64 (windows along the axis, w): 0, or 1 for what was rolled in from the other
            end, or :data:`PADDING` for padded places where ``mask_padding``.
        """
        size, count, shift = self.size[axis], self.counts[axis], self.shifts[axis]
        rolled = torch.arange(count * self.window, device=device) + shift
        tokens = rolled % (count * self.window)
        region = (rolled != tokens).long()
        if mask_padding:
            region = region.masked_fill(tokens >= size, PADDING)
        return region.reshape(count, self.window)


def mask_terms(
    queries: WindowGrid, keys: WindowGrid, windowed_q: Tensor, *, mask_padding: bool
) -> list[Tensor]:
    """What keeps attention within regions, as terms of its logits along each axis.

    A key is seen where it lies in the query's region along both axes. Two terms along single axes
    say so without a mask of every query and key. Their value is finite, so that padded queries,
    whose output is dropped, make no NaN where they have no key at all.

    Args:
        queries, keys: the grids over the pooled maps of q and of k.
        windowed_q: (N·n, Q_h, Q_w, D): its number, dtype and device are the terms'.
        mask_padding: whether padded keys are hidden from the map's own queries.

    Returns:
        (N·n, Q_h, 1, K_h, 1) and (N·n, 1, Q_w, 1, K_w) for the axes that hide something.
    """
    hidden = torch.finfo(windowed_q.dtype).min / 4
    rows, columns = queries.counts
    maps = windowed_q.shape[0] // (rows * columns)
    terms = []
    for axis in (0, 1):
        size, covered = keys.size[axis], keys.counts[axis] * keys.window
        is_padded = not surely_equal((size,), (covered,))
        if not (queries.shifts[axis] or (mask_padding and is_padded)):
            continue
        seen = _same_region(queries, keys, axis, mask_padding, windowed_q.device)
        term = torch.zeros(seen.shape, dtype=windowed_q.dtype, device=windowed_q.device)
        term = term.masked_fill(~seen, hidden)
        in_grid = term[None, :, None] if axis == 0 else term[None, None, :]
        term = in_grid.expand(maps, rows, columns, *term.shape[1:]).flatten(0, 2)
        terms.append(term[:, :, None, :, None] if axis == 0 else term[:, None, :, None, :])
    return terms


def _same_region(
    queries: WindowGrid, keys: WindowGrid, axis: int, mask_padding: bool, device: torch.device
) -> Tensor:
    """bool (windows along the axis, Q_a, K_a)."""
    of_queries, of_keys = (
        grid.regions(axis, mask_padding=mask_padding, device=device) for grid in (queries, keys)
    )
    return of_queries[:, :, None] == of_keys[:, None, :]


def largest_shift(window: int, strides: Sequence[int]) -> int:
    """Half a window, rounded down to what every stride divides."""
    step = max(strides)
    return window // 2 // step * step
