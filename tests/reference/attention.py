"""Attention as the paper writes it, one query and key at a time.

Slow and plain on purpose, and made without the package: it reads weights and options off a
``MultiScaleAttention`` and computes everything from them with loops over tokens.
"""

from math import floor

import torch
from torch import Tensor


def slow_attention(attention, x: Tensor) -> Tensor:
    """(B, H, W, C_in) to (B, H / stride_q, W / stride_q, C_out)."""
    return torch.stack([_one_image(attention, image) for image in x])


def _one_image(attention, image: Tensor) -> Tensor:
    height, width, _ = image.shape
    projected = image @ attention.qkv.weight.T
    if attention.qkv.bias is not None:
        projected = projected + attention.qkv.bias
    projected = projected.reshape(height, width, 3, attention.spec.num_heads, -1)
    heads = [
        _one_head(attention, *projected[:, :, :, head].unbind(2))
        for head in range(attention.spec.num_heads)
    ]
    merged = torch.cat(heads, dim=-1)
    return merged @ attention.proj.weight.T + attention.proj.bias


def _one_head(attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Maps (H, W, D) of one head to (Hq, Wq, D)."""
    q = pooled(q, attention.pool_q, attention.norm_q, attention.spec.stride_q)
    k = pooled(k, attention.pool_k, attention.norm_k, attention.spec.stride_kv)
    v = pooled(v, attention.pool_v, attention.norm_v, attention.spec.stride_kv)
    rows = []
    for i in range(q.shape[0]):
        row = [_one_query(attention, q, k, v, (i, j)) for j in range(q.shape[1])]
        rows.append(torch.stack(row))
    out = torch.stack(rows)
    return out + q if attention.spec.residual_pooling else out


def _one_query(attention, q: Tensor, k: Tensor, v: Tensor, at: tuple[int, int]) -> Tensor:
    grids = [Axis.of(attention, q.shape[axis], k.shape[axis]) for axis in (0, 1)]
    logits, values = [], []
    for key_at in seen_keys(grids, at):
        inside = key_at[0] < k.shape[0] and key_at[1] < k.shape[1]
        key = k[key_at] if inside else torch.zeros_like(k[0, 0])
        value = v[key_at] if inside else torch.zeros_like(v[0, 0])
        query = q[at]
        logit = attention.spec.scale * (query @ key)
        if "q" in attention.spec.position_terms:
            logit = logit + query @ relative(attention, "q", grids, at, key_at)
        if "k" in attention.spec.position_terms:
            logit = logit + key @ relative(attention, "k", grids, at, key_at)
        if "v" in attention.spec.position_terms:
            value = value + relative(attention, "v", grids, at, key_at)
        logits.append(logit)
        values.append(value)
    weights = torch.stack(logits).exp()
    return (weights / weights.sum()) @ torch.stack(values)


class Axis:
    """One axis of the map: who is in whose window, and where.

    ``q_side`` and ``k_side`` are the tokens of a window, or of the whole map without windows;
    ``q_shift`` and ``k_shift`` what the windows are shifted by.
    """

    def __init__(self, q_size, k_size, q_side, k_side, q_shift, k_shift, masked):
        self.q_size, self.k_size, self.q_side, self.k_side = q_size, k_size, q_side, k_side
        self.q_shift, self.k_shift, self.masked = q_shift, k_shift, masked
        self.windows = -(-q_size // q_side)
        if self.windows == 1:
            self.q_shift = self.k_shift = 0

    @classmethod
    def of(cls, attention, q_size, k_size):
        if not attention.spec.window_size:
            return cls(q_size, k_size, q_size, k_size, 0, 0, True)
        q_stride, k_stride = attention.spec.stride_q, attention.spec.stride_kv
        return cls(
            q_size,
            k_size,
            attention.spec.window_size // q_stride,
            attention.spec.window_size // k_stride,
            attention.spec.shift // q_stride,
            attention.spec.shift // k_stride,
            attention.spec.mask_window_padding,
        )

    def seen(self, query: int) -> list[int]:
        """The keys of the query's window; what shifting cut off at the start is a window too."""
        window = floor((query - self.q_shift) / self.q_side)
        end = self.k_size if self.masked else self.windows * self.k_side
        return [key for key in range(end) if floor((key - self.k_shift) / self.k_side) == window]

    def row(self, query: int, key: int) -> int:
        """The row of a table of 2·max(q_side, k_side) - 1 distances."""
        query, key = (query - self.q_shift) % self.q_side, (key - self.k_shift) % self.k_side
        query_step = max(self.k_side / self.q_side, 1)
        key_step = max(self.q_side / self.k_side, 1)
        return int(query * query_step - key * key_step + (self.k_side - 1) * key_step)

    @property
    def rows(self) -> int:
        return 2 * max(self.q_side, self.k_side) - 1


def seen_keys(grids: list[Axis], at: tuple[int, int]) -> list[tuple[int, int]]:
    down, across = (axis.seen(place) for axis, place in zip(grids, at, strict=True))
    return [(i, j) for i in down for j in across]


def relative(attention, term: str, grids: list[Axis], at, key_at) -> Tensor:
    """R of a query and a key."""
    suffix = "" if term == "q" else f"_{term}"
    rows = [axis.row(*pair) for axis, *pair in zip(grids, at, key_at, strict=True)]
    if attention.spec.rel_pos_kind == "joint":
        table = stretched(getattr(attention, f"rel_pos_joint{suffix}"), grids[0].rows)
        table = stretched(table.transpose(0, 1), grids[1].rows).transpose(0, 1)
        return table[rows[0], rows[1]]
    down = stretched(getattr(attention, f"rel_pos_h{suffix}"), grids[0].rows)
    across = stretched(getattr(attention, f"rel_pos_w{suffix}"), grids[1].rows)
    return down[rows[0]] + across[rows[1]]


def stretched(table: Tensor, rows: int) -> Tensor:
    """Linear interpolation between the centres of the rows, constant beyond the ends."""
    if table.shape[0] == rows:
        return table
    out = []
    for row in range(rows):
        centre = (row + 0.5) * table.shape[0] / rows - 0.5
        centre = min(max(centre, 0.0), table.shape[0] - 1.0)
        below = min(floor(centre), table.shape[0] - 2) if table.shape[0] > 1 else 0
        above = min(below + 1, table.shape[0] - 1)
        part = centre - below
        out.append((1 - part) * table[below] + part * table[above])
    return torch.stack(out)


def pooled(x: Tensor, pool, norm, stride: int) -> Tensor:
    """A depthwise convolution over zero padding, and a layer norm; (H, W, D) to (H', W', D)."""
    if pool is None:
        return x
    side = pool.weight.shape[-1]
    rows = []
    for i in range(-(-x.shape[0] // stride)):
        row = []
        for j in range(-(-x.shape[1] // stride)):
            total = torch.zeros_like(x[0, 0])
            for a in range(side):
                for b in range(side):
                    y, z = i * stride + a - side // 2, j * stride + b - side // 2
                    if 0 <= y < x.shape[0] and 0 <= z < x.shape[1]:
                        total = total + pool.weight[:, 0, a, b] * x[y, z]
            row.append(_normed(total, norm))
        rows.append(torch.stack(row))
    return torch.stack(rows)


def _normed(x: Tensor, norm) -> Tensor:
    centred = x - x.mean()
    return centred / (centred.square().mean() + norm.eps).sqrt() * norm.weight + norm.bias
