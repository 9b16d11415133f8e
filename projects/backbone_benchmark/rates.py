"""Rates that the machine reaches, and the clock for operations that are shorter than a pass."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch

from mvitv2_det.fused.products import dense
from projects.common.results import DTYPES

_FLUSHED = 2**29  # bytes, many times a GPU's cache
_FLUSHES = 4  # about a millisecond, enough for the CPU to launch what is timed
_SIDES = {"cpu": 2048, "cuda": 8192}  # of the matrices whose product is timed


@dataclass(frozen=True)
class Rates:
    """Multiply-adds and bytes per second."""

    multiply_adds: float
    bytes: float


@cache
def measure_rates(precision: str, device: str) -> Rates:
    """Measures the best rates of a few large products and of a large copy, once per process.

    Both a square product and a linear layer are tried, because libraries differ in which of them
    is faster.
    """
    dtype = DTYPES[precision]
    side = _SIDES[device]
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    tokens, weight = a[:, : side // 4].contiguous(), b[:, : side // 4].contiguous()
    source = torch.empty(2**28, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    square = min(seconds_of(lambda: a @ b, device))
    layer = min(seconds_of(lambda: dense(tokens, weight, None), device))
    copy = min(seconds_of(lambda: target.copy_(source), device))
    best = max(side**3 / square, tokens.numel() * len(weight) / layer)
    return Rates(best, 2 * source.numel() / copy)


def seconds_of(run: Callable[[], object], device: str, repetitions: int = 5) -> list[float]:
    """Times single runs, after one run to warm up.

    On a GPU its own clock is used. Writes before each run empty its cache and keep it busy until
    the CPU has launched everything, so that the time of launches does not count.
    """
    run()
    measure = _gpu_seconds if torch.device(device).type == "cuda" else _cpu_seconds
    return [measure(run) for _ in range(repetitions)]


def _cpu_seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _gpu_seconds(run: Callable[[], object]) -> float:
    cache = torch.empty(_FLUSHED, dtype=torch.uint8, device="cuda")
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    for _ in range(_FLUSHES):
        cache.zero_()
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000
