"""``MViT.compile_blocks`` over COCO's sizes: how often it compiles, and what it gains."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch._dynamo.utils import counters

from projects.backbone_benchmark import networks
from projects.backbone_benchmark.networks import Setting
from projects.common.memory import OutOfMemory
from projects.common.timing import Timing, interleave, resident

# Sides of 800/1333 test images after padding to 32: common ones of COCO, both ways up.
SIZES = ((800, 1088), (800, 1216), (1088, 800), (800, 800), (800, 1344), (1216, 800), (672, 1344))
REFERENCE, EAGER, COMPILED = "Detectron2", "ours", "ours, compiled"
STEPS: dict[str, Callable[[nn.Module, Setting], Callable]] = {
    "inference": networks.inference,
    "training": networks.training,
}


@dataclass(frozen=True)
class Compiled:
    """What compiling ours did.

    Attributes:
        step: one of :data:`STEPS`.
        sizes: in the order they came.
        graphs: compiled by the time each size was done.
        seconds: of the first pass of each size.
        times: of later passes at ``sizes[0]``, Detectron2's and ours without compilation and with.
    """

    step: str
    sizes: Sequence[tuple[int, int]]
    graphs: list[int]
    seconds: list[float]
    times: dict[str, Timing | OutOfMemory]


def measure(
    setting: Setting,
    rounds: int,
    sizes: Sequence[tuple[int, int]] = SIZES,
    report: Callable[[str], None] = print,
    **options,
) -> list[Compiled]:
    """Compiles ours for each step anew, and shows it one size after the other.

    Args:
        options: of :func:`torch.compile`.
    """
    reference = networks.detectron2_network(setting)
    found = []
    for name, make in STEPS.items():
        torch._dynamo.reset()
        counters.clear()
        compiled = networks.our_network(setting, reference, "auto")
        compiled.compile_blocks(**options)
        graphs, seconds = [], []
        for size in sizes:
            start = time.perf_counter()
            make(compiled, replace(setting, size=size))()
            if setting.device == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
            graphs.append(counters["stats"]["unique_graphs"])
            report(f"compile {name} {size}: {seconds[-1]:.1f} s, {graphs[-1]} graphs")
        models = {
            REFERENCE: reference,
            EAGER: networks.our_network(setting, reference, "auto"),
            COMPILED: compiled,
        }
        here = replace(setting, size=sizes[0])
        steps = {network: resident(make(model, here)) for network, model in models.items()}
        times = interleave(steps, rounds=rounds, device=setting.device)
        found.append(Compiled(name, sizes, graphs, seconds, times))
    return found
