"""Pooling and attention of each block over their byte floors: our kernels, SDPA and plain PyTorch.

All get the same projected q, k and v, as they come from the linear layer in the setting's
precision, and give the same gradients. Linear layers are left out.

Axes: B images, H × W tokens of C = h·d channels of h heads, N = B·h maps.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import Protocol

import torch
from torch import Tensor

from mvitv2_det.attention import MultiScaleAttention
from mvitv2_det.attention.attend import attend
from mvitv2_det.attention.pooling import pool_map
from mvitv2_det.attention.position import relative_embedding
from mvitv2_det.attention.position.decomposed import query_terms
from mvitv2_det.fused.head_pool import HeadPool
from mvitv2_det.fused.sdpa import windowed_sdpa
from projects.backbone_benchmark import networks
from projects.backbone_benchmark.device_time import seconds_of
from projects.backbone_benchmark.floors import (
    FAMILIES,
    Work,
    least_bytes,
    multiply_adds,
    stages_of,
    work_of,
    works,
)
from projects.backbone_benchmark.networks import DTYPES, Setting
from projects.backbone_benchmark.stages import Rates, measure_rates
from projects.common.memory import OutOfMemory, attempt

TRITON = "triton"


@dataclass
class KernelTimes:
    """One family of kernels on one kind of block.

    Attributes:
        count: blocks of the network that do this.
        least_bytes: of one block.
        byte_floor, product_floor: seconds that those bytes, and the products, take at the
            machine's rates.
        seconds: of one block, by what computes it.
    """

    setting: Setting
    work: Work
    family: str
    count: int
    least_bytes: int
    byte_floor: float
    product_floor: float
    seconds: dict[str, float | OutOfMemory]


class Pieces(Protocol):
    """Pooling and attention of one module on one input, with their gradients."""

    def run(self, family: str) -> Callable[[], object]:
        """What computes a family of :data:`floors.FAMILIES`."""


class Eager:
    """Plain operations, as in ``MultiScaleAttention.reference``: maps of single heads."""

    def __init__(self, attention: MultiScaleAttention, qkv: Tensor) -> None:
        self.attention, self.qkv = attention, qkv
        self.pools = _modules(attention)
        self.parameters = [p for pool in self.pools for p in pool.parameters()]
        self.positions = list(attention.position_tables())

    def pool(self, qkv: Tensor) -> list[Tensor]:
        """(B, H, W, 3·C) to three (N, H', W', d)."""
        parts = qkv.unflatten(-1, (3, self.attention.num_heads, -1))
        parts = parts.permute(3, 0, 4, 1, 2, 5).flatten(1, 2).unbind(0)
        return [
            norm(pool_map(part, pool)) for part, (pool, norm) in zip(parts, self.pools, strict=True)
        ]

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Pooled maps to (B, Hq, Wq, C), q added."""
        attention, tables = self.attention, self.positions
        windowed = [q, k, v]
        if attention.window_size:
            queries, keys = attention.window_grids(q.shape[1:3], k.shape[1:3])
            windowed = [queries.partition(q), keys.partition(k), keys.partition(v)]
        terms = query_terms(windowed[0], tables, windowed[1].shape[1:3])
        z = attend(*windowed, attention.scale, terms)
        if attention.window_size:
            z = queries.unpartition(z)
        z = (z + q).unflatten(0, (-1, attention.num_heads))
        return z.permute(0, 2, 3, 1, 4).flatten(3)

    def run(self, family: str) -> Callable[[], object]:
        """As :class:`Pieces`; gradients are autograd's, of what one forward pass has kept."""
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
    """What the ``sdpa`` backend does: maps with heads side by side, PyTorch's fused attention."""

    def __init__(self, attention: MultiScaleAttention, qkv: Tensor, work: Work) -> None:
        super().__init__(attention, qkv)
        self.work = work
        self.head_pools = head_pools(attention)
        self.positions = embeddings(attention, work)

    def pool(self, qkv: Tensor) -> list[Tensor]:
        """(B, H, W, 3·C) to three (B, H', W', C)."""
        return [
            pool.run(part, *pool.parameters)
            for part, pool in zip(qkv.chunk(3, dim=-1), self.head_pools, strict=True)
        ]

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Pooled maps to (B, Hq, Wq, C), q added."""
        heads, scale = self.attention.num_heads, self.attention.scale
        windows = self.work.window_q, self.work.window_kv
        return windowed_sdpa(q, k, v, self.positions, heads, scale, *windows) + q


class Triton:
    """Our kernels."""

    def __init__(self, attention: MultiScaleAttention, qkv: Tensor, work: Work) -> None:
        from mvitv2_det.fused.triton.attention import AttentionShape

        self.qkv, self.pools = qkv, head_pools(attention)
        self.positions = [e.detach().to(qkv.dtype) for e in embeddings(attention, work)]
        self.shape = AttentionShape(
            attention.num_heads, attention.scale, work.window_q, work.window_kv, residual=True
        )

    @torch.no_grad()
    def run(self, family: str) -> Callable[[], object]:
        """As :class:`Pieces`."""
        from mvitv2_det.fused.triton.attention import attention_forward
        from mvitv2_det.fused.triton.attention_backward import attention_backward
        from mvitv2_det.fused.triton.pooling import pool_backward, pool_forward

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


def _modules(attention: MultiScaleAttention) -> list[torch.nn.Sequential]:
    """Convolution and norm of q, k and v."""
    return [
        torch.nn.Sequential(getattr(attention, f"pool_{part}"), getattr(attention, f"norm_{part}"))
        for part in "qkv"
    ]


def head_pools(attention: MultiScaleAttention) -> list[HeadPool]:
    """The same of all heads at once."""
    return [HeadPool.of(*pair, attention.num_heads) for pair in _modules(attention)]


def embeddings(attention: MultiScaleAttention, work: Work) -> tuple[Tensor, ...]:
    """R of Eq. 4 of each axis, (Q_a, K_a, d), which backends compute once for a forward pass."""
    return tuple(
        relative_embedding(table, queries, keys).detach().requires_grad_()
        for table, queries, keys in zip(
            attention.position_tables(), work.window_q, work.window_kv, strict=True
        )
    )


def _like(outputs: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
    if isinstance(outputs, Tensor):
        return torch.randn_like(outputs)
    return [torch.randn_like(output) for output in outputs]


def pieces_of(
    attention: MultiScaleAttention, work: Work, setting: Setting
) -> Iterator[tuple[str, Pieces]]:
    """What is compared on one block; our kernels on GPUs alone."""
    generator = torch.Generator().manual_seed(0)
    shape = (work.batch, *work.size, 3 * work.channels)
    qkv = torch.randn(shape, generator=generator).to(setting.device, DTYPES[setting.precision])
    if setting.device == "cuda":
        yield TRITON, Triton(attention, qkv, work)
    yield "sdpa", Sdpa(attention, qkv, work)
    yield "eager", Eager(attention, qkv)


def measure(
    setting: Setting, rounds: int, report: Callable[[str], None] = print
) -> list[KernelTimes]:
    """Every kind of block of a network, each family of kernels by all that compute it."""
    rates = measure_rates(setting.precision, setting.device)
    network = networks.our_network(setting, networks.detectron2_network(setting), "auto")
    results = []
    for work, count in works(setting).items():
        report(f"kernels {setting.name}, {work.name}")
        attention = _module_of(network, work, setting)
        times = {name: {} for name in FAMILIES}
        for name, pieces in pieces_of(attention, work, setting):
            for family in FAMILIES:
                times[family][name] = attempt(
                    lambda p=pieces, f=family: _seconds(p, f, setting, rounds)
                )
            del pieces
        results += [
            _with_floors(setting, work, family, count, rates, times[family]) for family in FAMILIES
        ]
    return results


def _seconds(pieces: Pieces, family: str, setting: Setting, rounds: int) -> float:
    with setting.autocast():
        return median(seconds_of(pieces.run(family), setting.device, rounds))


def _module_of(network: torch.nn.Module, work: Work, setting: Setting) -> MultiScaleAttention:
    """The attention of the first block that does this work."""
    for stage, block in zip(stages_of(setting.variant), network.blocks, strict=True):
        if work_of(block.attn, stage, work.batch, work.size) == work:
            return block.attn
    raise LookupError(work.name)


def _with_floors(
    setting: Setting, work: Work, family: str, count: int, rates: Rates, seconds: dict
) -> KernelTimes:
    moved = least_bytes(work, family, DTYPES[setting.precision].itemsize)
    products = multiply_adds(work, family)
    floors = moved / rates.bytes, products / rates.multiply_adds
    return KernelTimes(setting, work, family, count, moved, *floors, seconds)
