"""Relative position tables as the attention kernels read them: R of Eq. 4 is never written.

Kernels look up which row of an axis' table belongs to a query and a key. The gradient of a row is
the sum over all that read it, in an order that is always the same.

Axes: L rows of a table, d channels of a head, Q queries and K keys along the axis of a window,
N = max(Q, K), P programs that summed a part each.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...attention.position.tables import relative_index, resize_table
from ...caching import cached_per_device

_READERS = 32  # of a row that a program adds at once


class AxisTable(NamedTuple):
    """R along an axis.

    Attributes:
        table: (L, d), contiguous.
        rows: (Q, K) int32, the row of each query and key.
        readers: (L, N) int32, the places in the flat ``rows`` that hold each row, -1 for none.
    """

    table: Tensor
    rows: Tensor
    readers: Tensor

    @classmethod
    def of(cls, table: Tensor, queries: int, keys: int) -> "AxisTable":
        """The rows that so many queries and keys read of a table (L', d) for any grid.

        Tables for another grid are resized by a product, whose backward pass, other than that of
        interpolation on a GPU, gives the same bits each time.
        """
        length, device = 2 * max(queries, keys) - 1, table.device
        if length != len(table):
            weights = _resizing(len(table), length, table.dtype, device=device)
            with torch.autocast(device.type, enabled=False):
                table = weights @ table
        rows = _rows(queries, keys, device=device)
        return cls(table.contiguous(), rows, _readers(queries, keys, device=device))


@cached_per_device
def _resizing(length: int, wanted: int, dtype: torch.dtype, *, device: torch.device) -> Tensor:
    """(wanted, length): the weights of each row in the resized table's rows."""
    return resize_table(torch.eye(length, dtype=dtype, device=device), wanted).contiguous()


@cached_per_device
def _rows(queries: int, keys: int, *, device: torch.device) -> Tensor:
    return relative_index(queries, keys, device=device).int()


@cached_per_device
def _readers(queries: int, keys: int, *, device: torch.device) -> Tensor:
    """See :class:`AxisTable`: of those along the longer side at most one reads a row."""
    rows = relative_index(queries, keys, device=device)
    longer = max(queries, keys)
    places = torch.arange(rows.numel(), dtype=torch.int32, device=device).view_as(rows)
    along = torch.arange(longer, device=device)
    along = along[:, None] if queries >= keys else along[None, :]
    readers = torch.full((2 * longer - 1, longer), -1, dtype=torch.int32, device=device)
    readers[rows, along.expand_as(rows)] = places
    return readers


def table_gradients(partial: Tensor, rel_h: AxisTable, rel_w: AxisTable) -> tuple[Tensor, Tensor]:
    """Gradients of both tables, (L_h, d) and (L_w, d) in their type.

    Args:
        partial: (P, Q_h·K_h + Q_w·K_w, d) of R of both axes, contiguous; the sum over P is taken.
        rel_h, rel_w: of height and width.
    """
    lengths, channels = (len(rel_h.table), len(rel_w.table)), partial.shape[2]
    grad = torch.empty(sum(lengths), channels, dtype=rel_h.table.dtype, device=rel_h.table.device)
    _table_gradient_kernel[(sum(lengths),)](
        partial, rel_h.readers, rel_w.readers, grad,
        lengths[0], rel_h.readers.shape[1], rel_w.readers.shape[1],
        rel_h.rows.numel(), len(partial), partial.shape[1],
        CHANNELS=channels, BLOCK=_READERS, D=triton.next_power_of_2(channels), num_warps=4,
    )  # fmt: skip
    first, second = grad.split(lengths)
    return first, second


@triton.jit(
    do_not_specialize=["length_h", "readers_along_h", "readers_along_w", "places_h", "parts",
                       "places"]
)  # fmt: skip
def _table_gradient_kernel(
    partial, readers_h, readers_w, grad, length_h, readers_along_h, readers_along_w, places_h,
    parts, places, CHANNELS: tl.constexpr, BLOCK: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """The gradient of one row of one table."""
    row = tl.program_id(0)
    is_h = row < length_h
    count = tl.where(is_h, readers_along_h, readers_along_w)
    own = tl.where(is_h, readers_h, readers_w) + tl.where(is_h, row, row - length_h) * count
    first = tl.where(is_h, 0, places_h)
    channel = tl.arange(0, D)
    known = (channel < CHANNELS)[None, :]
    total = tl.zeros((BLOCK, D), partial.dtype.element_ty)
    for start in range(0, count, BLOCK):
        reader = start + tl.arange(0, BLOCK)
        place = tl.load(own + reader, mask=reader < count, other=-1)
        mask = (place >= 0)[:, None] & known
        at = partial + (first + place)[:, None] * CHANNELS + channel[None, :]
        for part in range(0, parts):
            total += tl.load(at + part * places * CHANNELS, mask=mask, other=0.0)
    found = tl.sum(total, 0).to(grad.dtype.element_ty)
    tl.store(grad + row * CHANNELS + channel, found, mask=channel < CHANNELS)
