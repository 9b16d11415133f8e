"""``compile_blocks`` over COCO's sizes: how often it compiles, and what it gains."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch._dynamo.utils import counters

from mvitv2_det import compile_blocks
from projects.backbone_benchmark import networks
from projects.backbone_benchmark.networks import STEPS, Setting
from projects.backbone_benchmark.tables import ratio, seconds_cell, speed_over
from projects.common.memory import synchronize
from projects.common.timing import interleave, resident

# Sides of 800/1333 test images after padding to 32: common ones of COCO, both ways up.
SIZES = ((800, 1088), (800, 1216), (1088, 800), (800, 800), (800, 1344), (1216, 800), (672, 1344))
COMPILED = "ours, compiled"


def measure(
    setting: Setting,
    rounds: int,
    sizes: Sequence[tuple[int, int]] = SIZES,
    report: Callable[[str], None] = print,
    **options,
) -> tuple[list[dict], str]:
    """Compiles our network for inference and for training, and runs it on one size after another.

    Args:
        options: of :func:`torch.compile`.

    Returns:
        a row for each step and size, and sentences that compare later passes at the first size
        with those of Detectron2's network and of ours, both uncompiled.
    """
    uncompiled = networks.both_networks(setting)
    rows, sentences = [], []
    for name, make in STEPS.items():
        torch._dynamo.reset()
        counters.clear()
        compiled = networks.our_network(setting, uncompiled["Detectron2"], "auto")
        compile_blocks(compiled, **options)
        for height, width in sizes:
            start = time.perf_counter()
            make(compiled, replace(setting, size=(height, width)))()
            synchronize(setting.device)
            seconds = f"{time.perf_counter() - start:.1f}"
            graphs = str(counters["stats"]["unique_graphs"])
            image = f"{height}×{width}"
            report(f"compile {name} {image}: {seconds} s, {graphs} graphs")
            rows.append(
                {
                    "step": name,
                    "image": image,
                    "first pass s": seconds,
                    "graphs compiled so far": graphs,
                }
            )
        here = replace(setting, size=sizes[0])
        models = {**uncompiled, COMPILED: compiled}
        tasks = {network: resident(make(model, here)) for network, model in models.items()}
        times = interleave(tasks, rounds=rounds, device=setting.device)
        found = [f"{network} {seconds_cell(timing)} s" for network, timing in times.items()]
        gains = [f"{ratio(speed_over(times[COMPILED], times[n]))} over {n}" for n in uncompiled]
        sentences.append(
            f"Later passes of {name} at {'×'.join(map(str, sizes[0]))}: {', '.join(found)}; "
            f"speed-up by compilation {', '.join(gains)}."
        )
    return rows, " ".join(sentences)
