"""Attention as the paper writes it, one query and key at a time.

Slow and plain on purpose, and made without the package: it reads weights and options off a
``MultiScaleAttention`` and computes everything from them with loops over tokens, of maps with two
axes or three, with a class token or without.
"""

from itertools import product
from math import floor

import torch
from torch import Tensor


def slow_attention(attention, x: Tensor, token: Tensor | None = None):
    """(B, *axes, C_in) to (B, *axes / stride_q, C_out); with a class token also (B, 1, C_out)."""
    if token is None:
        return torch.stack([_one_image(attention, image) for image in x])
    both = [_one_image(attention, *pair) for pair in zip(x, token, strict=True)]
    return torch.stack([z for z, _ in both]), torch.stack([z for _, z in both])


def _one_image(attention, image: Tensor, token: Tensor | None = None):
    heads = attention.spec.num_heads
    maps = _projected(attention, image)
    # Without pooling, zeros complete the windows before the projection; with it, after it.
    is_pooled = attention.pool_q is not None or attention.pool_k is not None
    fills = _projected(attention, torch.zeros_like(image[0, 0]))
    fills = [0 * fill for fill in fills] if is_pooled else fills
    tokens = [None] * heads if token is None else _projected(attention, token[0])
    found = [_one_head(attention, *parts) for parts in zip(maps, fills, tokens, strict=True)]
    merged = [torch.cat(parts, dim=-1) for parts in zip(*found, strict=True)]
    projected = [z @ attention.proj.weight.T + attention.proj.bias for z in merged]
    return projected[0] if token is None else (projected[0], projected[1][None])


def _projected(attention, x: Tensor) -> list[Tensor]:
    """(…, C_in) to q, k and v of each head, (3, …, D)."""
    x = x @ attention.qkv.weight.T
    if attention.qkv.bias is not None:
        x = x + attention.qkv.bias
    x = x.reshape(*x.shape[:-1], 3, attention.spec.num_heads, -1)
    return [head.movedim(-2, 0) for head in x.unbind(-2)]


def _one_head(attention, maps: Tensor, fill: Tensor, token: Tensor | None):
    """Maps (3, *axes, D) of one head, and a token (3, D), to (*axes', D) and (D).

    ``fill`` (3, D) is what q, k and v are where windows reach over the map.
    """
    spec = attention.spec
    norms = attention.norm_q, attention.norm_k, attention.norm_v
    q, k, v = (
        pooled(part, pool, norm, stride)
        for part, pool, norm, stride in zip(
            maps,
            (attention.pool_q, attention.pool_k, attention.pool_v),
            norms,
            (spec.stride_q, spec.stride_kv, spec.stride_kv),
            strict=True,
        )
    )
    if token is not None:
        token = [
            part if norm is None else _normed(part, norm)
            for part, norm in zip(token, norms, strict=True)
        ]
    sides = zip(q.shape[:-1], k.shape[:-1], strict=True)
    grids = [Axis.of(spec, axis, *pair) for axis, pair in enumerate(sides)]
    tables = {term: _tables(attention, term, grids) for term in spec.position_terms}
    rows = [
        _one_query(spec, q, k, v, at, fill, token, grids, tables) for at in places(q.shape[:-1])
    ]
    z = torch.stack(rows).reshape(q.shape)
    z = z + q if spec.residual_pooling else z
    if token is None:
        return (z,)
    keys = torch.stack([token[1], *(k[at] for at in places(k.shape[:-1]))])
    values = torch.stack([token[2], *(v[at] for at in places(v.shape[:-1]))])
    weights = (spec.scale * keys @ token[0]).exp()
    of_token = (weights / weights.sum()) @ values
    if spec.residual_pooling and spec.residual_class_token:
        of_token = of_token + token[0]
    return z, of_token


def seen_keys(grids: "list[Axis]", at) -> list[tuple[int, ...]]:
    return list(product(*(axis.seen(place) for axis, place in zip(grids, at, strict=True))))


def places(size) -> list[tuple[int, ...]]:
    return list(product(*(range(side) for side in size)))


def _one_query(spec, q: Tensor, k: Tensor, v: Tensor, at, fill, token, grids, tables) -> Tensor:
    query, logits, values = q[at], [], []
    for key_at in seen_keys(grids, at):
        inside = all(place < side for place, side in zip(key_at, k.shape[:-1], strict=True))
        key, value = (k[key_at], v[key_at]) if inside else fill[1:]
        logit = spec.scale * (query @ key)
        if "q" in spec.position_terms:
            logit = logit + query @ relative(tables["q"], grids, at, key_at)
        if "k" in spec.position_terms:
            logit = logit + key @ relative(tables["k"], grids, at, key_at)
        if "v" in spec.position_terms:
            value = value + relative(tables["v"], grids, at, key_at)
        logits.append(logit)
        values.append(value)
    if token is not None:
        logits.append(spec.scale * (query @ token[1]))
        values.append(token[2])
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
    def of(cls, spec, axis, q_size, k_size):
        if not spec.window_size:
            return cls(q_size, k_size, q_size, k_size, 0, 0, True)
        q_stride, k_stride = spec.stride_q[axis], spec.stride_kv[axis]
        return cls(
            q_size,
            k_size,
            spec.window_size // q_stride,
            spec.window_size // k_stride,
            spec.shift // q_stride,
            spec.shift // k_stride,
            spec.mask_window_padding,
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


# The axes that each table covers, of clips; images have the last two of these axes.
COVERED = {
    "decomposed": {"t": "t", "h": "h", "w": "w"},
    "joint": {"joint": "thw"},
    "joint_space": {"hw": "hw", "t": "t"},
    "space": {"h": "h", "w": "w"},
    "time": {"t": "t"},
}


def _tables(attention, term: str, grids: "list[Axis]") -> list[tuple[str, Tensor]]:
    """The tables of a term, each with the axes that it covers and as long as these need it."""
    letters = "thw"[-len(grids) :]
    tables = []
    for name, covered in COVERED[attention.spec.rel_pos_kind].items():
        covered = "".join(letter for letter in covered if letter in letters)
        if not covered:
            continue
        table = getattr(attention, f"rel_pos_{name}" + ("" if term == "q" else f"_{term}"))
        for place, letter in enumerate(covered):
            rows = grids[letters.index(letter)].rows
            table = stretched(table.transpose(0, place), rows).transpose(0, place)
        tables.append((covered, table))
    return tables


def relative(tables: list[tuple[str, Tensor]], grids: "list[Axis]", at, key_at) -> Tensor:
    """R of a query and a key: the sum of one row of each table."""
    letters = "thw"[-len(grids) :]
    pairs = zip(letters, grids, at, key_at, strict=True)
    rows = {letter: axis.row(*pair) for letter, axis, *pair in pairs}
    return sum(table[tuple(rows[letter] for letter in covered)] for covered, table in tables)


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


def pooled(x: Tensor, pool, norm, stride: tuple[int, ...]) -> Tensor:
    """A depthwise convolution over zero padding, and a layer norm; (*axes, D) to (*axes', D)."""
    if pool is None:
        return x
    kernel = pool.weight.shape[2:]
    size = [-(-side // step) for side, step in zip(x.shape[:-1], stride, strict=True)]
    rows = []
    for at in places(size):
        total = torch.zeros_like(x[(0,) * len(size)])
        for tap in places(kernel):
            source = tuple(
                place * step + offset - side // 2
                for place, step, offset, side in zip(at, stride, tap, kernel, strict=True)
            )
            if all(0 <= place < side for place, side in zip(source, x.shape[:-1], strict=True)):
                total = total + pool.weight[(slice(None), 0, *tap)] * x[source]
        rows.append(_normed(total, norm))
    return torch.stack(rows).reshape(*size, -1)


def _normed(x: Tensor, norm) -> Tensor:
    centred = x - x.mean()
    return centred / (centred.square().mean() + norm.eps).sqrt() * norm.weight + norm.bias
