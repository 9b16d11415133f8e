"""Relative position tables: their size, their resizing, and who reads which row.

Axes: L = 2·size - 1 rows along an axis of ``size`` tokens, one for each distance; D channels per
head.

A table is trained for one grid; other grids resize it linearly (section 4.2). Resizing, the
scaling of coordinates where queries and keys have different strides, and the order of the
float32 operations follow ``get_rel_pos`` in ``detectron2/modeling/backbone/utils.py``.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ...caching import cached_per_device
from ...sizes import surely_equal

_INTERPOLATION = {1: "linear", 2: "bilinear", 3: "trilinear"}


def table_length(size: int, stride_q: int, stride_kv: int) -> int:
    """Rows of the table of an axis with ``size`` tokens before pooling: all its distances."""
    return 2 * max(size // stride_q, size // stride_kv) - 1


def resize_table(table: Tensor, *lengths: int) -> Tensor:
    """Resizes a relative position table linearly along each of its axes.

    Args:
        table: (L_1, …, L_n, D), n from 1 to 3.
        lengths: rows wanted along each axis.

    Returns:
        ``(*lengths, D)``; ``table`` itself where it has those.
    """
    if surely_equal(lengths, table.shape[:-1]):
        return table
    mode = _INTERPOLATION[len(lengths)]
    return F.interpolate(table.movedim(-1, 0)[None], size=lengths, mode=mode)[0].movedim(0, -1)


@cached_per_device
def relative_index(query_size: int, key_size: int, *, device: torch.device) -> Tensor:
    """The table row of each query and key along one axis.

    The shorter of the two is scaled to the longer one's grid; where their ratio is no whole
    number, the position is cut off in float32 as the reference does.

    Returns:
        int64 (query_size, key_size), values in 0 .. 2·max(query_size, key_size) - 2.
    """
    # Divided as tensors, because sizes may be symbols, and in float64, as Python's numbers are.
    num_queries = torch.full((), query_size, dtype=torch.float64)
    num_keys = torch.full((), key_size, dtype=torch.float64)
    query_step = (num_keys / num_queries).clamp(min=1)
    key_step = (num_queries / num_keys).clamp(min=1)
    queries = torch.arange(query_size, device=device)[:, None] * query_step.float()
    keys = torch.arange(key_size, device=device)[None, :] * key_step.float()
    return (queries - keys + ((num_keys - 1) * key_step).float()).long()
