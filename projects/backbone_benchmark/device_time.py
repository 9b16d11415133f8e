"""Seconds of something short, without the time that it takes to ask for it."""

import time
from collections.abc import Callable

import torch

_FLUSHED = 2**29  # bytes, many times a GPU's cache
_FLUSHES = 4  # about a millisecond, in which all that is timed has been asked for


def seconds_of(run: Callable[[], object], device: str, repetitions: int = 5) -> list[float]:
    """Times of single runs, after one to warm up.

    On a GPU a clock of its own stops them, behind writes that empty its cache and keep it busy
    until the CPU has launched everything: launches cost nothing as long as they take less than
    those.
    """
    run()
    measure = _gpu_seconds if torch.device(device).type == "cuda" else _cpu_seconds
    return measure(run, repetitions)


def _cpu_seconds(run: Callable[[], object], repetitions: int) -> list[float]:
    seconds = []
    for _ in range(repetitions):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return seconds


def _gpu_seconds(run: Callable[[], object], repetitions: int) -> list[float]:
    cache = torch.empty(_FLUSHED, dtype=torch.uint8, device="cuda")
    seconds = []
    for _ in range(repetitions):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        for _ in range(_FLUSHES):
            cache.zero_()
        start.record()
        run()
        end.record()
        end.synchronize()
        seconds.append(start.elapsed_time(end) / 1000)
    return seconds
