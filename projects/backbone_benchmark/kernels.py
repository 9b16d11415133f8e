"""Pooling and attention of each block by our kernels, SDPA and plain PyTorch, over their roofline.

All of them get the same projected q, k and v in the setting's precision, and compute the same
gradients. Linear layers are left out.

Axes: B images, H × W tokens of C = h·d channels of h heads, N = B·h.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Protocol

import torch
from torch import Tensor

from mvitv2_det.attention.multiscale import MultiScaleAttention
from mvitv2_det.fused.attention import pools_and_shape, relative_embeddings
from mvitv2_det.fused.sdpa import windowed_sdpa
from mvitv2_det.fused.shape import AttentionShape
from projects.backbone_benchmark.networks import Setting, both_networks
from projects.backbone_benchmark.rates import measure_rates, seconds_of
from projects.backbone_benchmark.roofline import (
    FAMILIES,
    Work,
    block_of,
    least_bytes,
    multiply_adds,
    works,
)
from projects.common.memory import OutOfMemory, attempt
from projects.common.results import DTYPES

TRITON = "triton"


@dataclass
class KernelTimes:
    """Times of one family of kernels on one kind of block.

    Attributes:
        count: number of such blocks in the network.
        least_bytes: bytes that one block has to move.
        move, multiply: seconds that those bytes, and the block's products, take at the machine's
            rates.
        seconds: measured seconds of one block by implementation.
    """

    work: Work
    family: str
    count: int
    least_bytes: int
    move: float
    multiply: float
    seconds: dict[str, float | OutOfMemory]


class Pieces(Protocol):
    """Pooling and attention of one module on one input, with their gradients."""

    def run(self, family: str) -> Callable[[], object]:
        """Prepares the computation of a family of :data:`roofline.FAMILIES`."""


class Eager:
    """The operations of the plain model."""

    def __init__(self, attention: MultiScaleAttention, qkv: Tensor) -> None:
        self.qkv = qkv
        self.attention = copy.deepcopy(attention)
        self.attention.qkv = torch.nn.Identity()  # what is given is projected already
        names = ("pool_q", "norm_q", "pool_k", "norm_k", "pool_v", "norm_v")
        self.parameters = [
            parameter
            for name in names
            for parameter in self.attention.get_submodule(name).parameters()
        ]
        self.positions = list(self.attention.position_tables("q"))

    def pool(self, qkv: Tensor) -> tuple[Tensor, ...]:
        """(B, H, W, 3·C) to three (N, H', W', d)."""
        return self.attention.project_and_pool(qkv)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Pooled maps to (B, Hq, Wq, C), with q added."""
        return self.attention.merge_heads(self.attention.attend(q, k, v) + q)

    def run(self, family: str) -> Callable[[], object]:
        """Prepares a family; backward runs autograd on one forward pass's saved activations."""
        pieces, kind = family.split()
        if pieces == "pooling":
            inputs, parameters, compute = [self.qkv], self.parameters, self.pool
        else:
            with torch.no_grad():
                inputs = self.pool(self.qkv)
            parameters, compute = self.positions, self.attend
        if kind == "forward":
            return torch.no_grad()(lambda: compute(*inputs))
        inputs = [tensor.detach().requires_grad_() for tensor in inputs]
        outputs = compute(*inputs)
        grads = _like(outputs)
        return lambda: torch.autograd.grad(
            outputs, [*inputs, *parameters], grads, retain_graph=True
        )


class Sdpa(Eager):
    """PyTorch's fused attention as in the ``sdpa`` backend, on maps with heads side by side."""

    def __init__(self, attention: MultiScaleAttention, qkv: Tensor) -> None:
        super().__init__(attention, qkv)
        self.head_pools, self.shape = pools_and_shape(self.attention, qkv)
        self.positions = embeddings(self.attention, self.shape)

    def pool(self, qkv: Tensor) -> tuple[Tensor, ...]:
        """(B, H, W, 3·C) to three (B, H', W', C)."""
        parts = qkv.chunk(3, dim=-1)
        return tuple(pool(part) for part, pool in zip(parts, self.head_pools, strict=True))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Pooled maps to (B, Hq, Wq, C), with q added."""
        return windowed_sdpa(q, k, v, self.positions, self.shape) + q


class Triton:
    """Our Triton kernels."""

    def __init__(self, attention: MultiScaleAttention, qkv: Tensor) -> None:
        self.qkv = qkv
        self.pools, self.shape = pools_and_shape(attention, qkv)
        from mvitv2_det.fused.triton.axis_tables import AxisTable

        windows = self.shape.window_q, self.shape.window_kv
        sides = zip(attention.position_tables("q"), *windows, strict=True)
        self.positions = [AxisTable.of(table.detach(), *own) for table, *own in sides]

    @torch.no_grad()
    def run(self, family: str) -> Callable[[], object]:
        """Prepares a family, without autograd."""
        from mvitv2_det.fused.triton.attention_backward import attention_backward
        from mvitv2_det.fused.triton.attention_forward import attention_forward
        from mvitv2_det.fused.triton.pool import pool_backward, pool_forward

        pooled = pool_forward(self.qkv, self.pools)
        given = (*pooled, *self.positions)
        if family == "pooling forward":
            return lambda: pool_forward(self.qkv, self.pools)
        if family == "pooling backward":
            grads = _like(pooled)
            return lambda: pool_backward(self.qkv, self.pools, grads)
        if family == "attention forward":
            return lambda: attention_forward(*given, self.shape)
        out, lse = attention_forward(*given, self.shape)
        grad = torch.randn_like(out)
        return lambda: attention_backward(grad, *given, out, lse, self.shape)


def embeddings(attention: MultiScaleAttention, shape: AttentionShape) -> tuple[Tensor, ...]:
    """Computes R of Eq. 4 of each axis, (Q_a, K_a, d), as backends do once for a forward pass."""
    return tuple(
        embedding.detach().requires_grad_() for embedding in relative_embeddings(attention, shape)
    )


def _like(outputs: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
    if isinstance(outputs, Tensor):
        return torch.randn_like(outputs)
    return [torch.randn_like(output) for output in outputs]


def pieces_of(
    attention: MultiScaleAttention, work: Work, setting: Setting
) -> Iterator[tuple[str, Pieces]]:
    """Yields the implementations that are compared on one block; our kernels only on GPUs."""
    generator = torch.Generator().manual_seed(0)
    shape = (work.batch, *work.size, 3 * work.channels)
    qkv = torch.randn(shape, generator=generator).to(setting.device, DTYPES[setting.precision])
    if setting.device == "cuda":
        yield TRITON, Triton(attention, qkv)
    yield "sdpa", Sdpa(attention, qkv)
    yield "eager", Eager(attention, qkv)


def measure(setting: Setting, rounds: int, report: Callable[[str], None] = print) -> list[dict]:
    """Times each family of kernels on every kind of block of a network, by all implementations.

    Returns:
        a row for each kind of block and family, then one for each family on all blocks, and one
        for everything.
    """
    times = []
    network = both_networks(setting)["ours"]
    for work, count in works(setting).items():
        report(f"kernels {setting.name}, {work.name}")
        seconds = {family: {} for family in FAMILIES}
        attention = block_of(network, setting, work).attn
        for name, pieces in pieces_of(attention, work, setting):
            for family in FAMILIES:
                seconds[family][name] = attempt(
                    lambda p=pieces, f=family: _seconds(p, f, setting, rounds)
                )
            del pieces
        times += [_timed(setting, work, family, count, seconds[family]) for family in FAMILIES]
    return table(setting, times)


def _seconds(pieces: Pieces, family: str, setting: Setting, rounds: int) -> float:
    with setting.autocast():
        return median(seconds_of(pieces.run(family), setting.device, rounds))


def _timed(setting: Setting, work: Work, family: str, count: int, seconds: dict) -> KernelTimes:
    rates = measure_rates(setting.precision, setting.device)
    moved = least_bytes(work, family, DTYPES[setting.precision].itemsize)
    multiply = multiply_adds(work, family) / rates.multiply_adds
    return KernelTimes(work, family, count, moved, moved / rates.bytes, multiply, seconds)


def table(setting: Setting, times: Sequence[KernelTimes]) -> list[dict]:
    """Makes the rows of :func:`measure`."""
    rows = [_row(f"{t.count} × {t.work.name}", t.family, [replace(t, count=1)]) for t in times]
    for family in FAMILIES:
        rows.append(_row("all blocks", family, [t for t in times if t.family == family]))
    rows.append(_row("all blocks", "all", times))
    return [setting.columns | row for row in rows]


def _row(blocks: str, family: str, parts: Sequence[KernelTimes]) -> dict[str, str]:
    """Sums over blocks, each of which has a roofline of its own."""
    bandwidth = sum(part.count * part.move for part in parts)
    roofline = sum(part.count * max(part.move, part.multiply) for part in parts)
    row = {
        "blocks": blocks,
        "kernels": family,
        "least MB": f"{sum(part.count * part.least_bytes for part in parts) / 1e6:.1f}",
        "bandwidth bound ms": f"{1e3 * bandwidth:.4f}",
        "roofline ms": f"{1e3 * roofline:.4f}",
    }
    for name in parts[0].seconds:
        seconds = [part.seconds[name] for part in parts]
        fits = not any(isinstance(one, OutOfMemory) for one in seconds)
        total = sum(p.count * s for p, s in zip(parts, seconds, strict=True)) if fits else 0.0
        row[f"{name} ms"] = f"{1e3 * total:.4f}" if fits else "out of memory"
        for bound, least in (("bandwidth bound", bandwidth), ("roofline", roofline)):
            row[f"{name} over {bound}"] = f"{total / least:.2f}" if fits else ""
    return row
