"""``torch.compile`` over the sizes of COCO's images: how often it compiles, and what it gains."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch._dynamo.utils import counters

from mvitv2_det.measure import Timing, interleave, resident
from projects.backbone_benchmark import networks
from projects.backbone_benchmark.networks import Setting

# Sides of 800/1333 test images after padding to 32: common ones of COCO, both ways up.
SIZES = ((800, 1088), (800, 1216), (1088, 800), (800, 800), (800, 1344), (1216, 800), (672, 1344))


@dataclass(frozen=True)
class Compiled:
    """What compiling ours did.

    Attributes:
        sizes: in the order they came.
        compilations: graphs compiled by the time each size was done.
        seconds: of the first pass of each size.
        eager, compiled: seconds of later passes at ``sizes[0]``.
        graph_breaks: how often the network fell back to Python.
    """

    sizes: Sequence[tuple[int, int]]
    compilations: list[int]
    seconds: list[float]
    eager: Timing
    compiled: Timing
    graph_breaks: int


def measure(
    setting: Setting,
    rounds: int,
    sizes: Sequence[tuple[int, int]] = SIZES,
    report: Callable[[str], None] = print,
) -> Compiled:
    """Compiles ours once and shows it one size after the other."""
    torch._dynamo.reset()
    counters.clear()
    model = networks.our_network(setting, networks.detectron2_network(setting), "auto").eval()
    compiled = torch.compile(model, dynamic=None)
    compilations, seconds = [], []
    for size in sizes:
        start = time.perf_counter()
        networks.inference(compiled, replace(setting, size=size))()
        seconds.append(time.perf_counter() - start)
        compilations.append(counters["stats"]["unique_graphs"])
        report(f"compile {size}: {seconds[-1]:.1f} s, {compilations[-1]} graphs")
    here = replace(setting, size=sizes[0])
    steps = {
        "eager": resident(networks.inference(model, here)),
        "compiled": resident(networks.inference(compiled, here)),
    }
    times = interleave(steps, rounds=rounds, device=setting.device)
    breaks = sum(counters["graph_break"].values())
    return Compiled(sizes, compilations, seconds, times["eager"], times["compiled"], breaks)
