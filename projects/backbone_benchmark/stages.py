"""Time of each stage over its floor: what the machine could not do it faster than.

The floor of a block is the larger of two times: its matrix products and convolutions at the
rate that this machine multiplies large matrices at, and the bytes of its incoming tokens, outgoing
tokens and weights, each moved once, at the rate that it copies memory at.
"""

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from statistics import median

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mvitv2_det import VARIANTS, MViT
from mvitv2_det.fused.norm_linear import dense
from projects.backbone_benchmark import networks
from projects.backbone_benchmark.device_time import seconds_of
from projects.backbone_benchmark.floors import stages_of
from projects.backbone_benchmark.networks import DTYPES, Setting
from projects.common.memory import synchronize

PATCHES = "patch embedding"
_SIDES = {"cpu": 2048, "cuda": 8192}  # of the matrices whose product is timed


@dataclass(frozen=True)
class Rates:
    """What the machine reaches: multiply-adds and bytes a second."""

    multiply_adds: float
    bytes: float


@dataclass
class Stage:
    """One stage of the network at a setting.

    Attributes:
        multiply_adds, bytes: of its products, and of what it has to move.
        floor: seconds.
        seconds: measured, of each network, medians.
    """

    setting: Setting
    name: str
    multiply_adds: float
    bytes: float
    floor: float
    seconds: dict[str, float]


@cache
def measure_rates(precision: str, device: str) -> Rates:
    """The best of a few repetitions of large products and of a large copy, once in a run.

    Products of a square and of a linear layer: libraries differ in which they are fast at.
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


def measure(setting: Setting, rounds: int, report: Callable[[str], None] = print) -> list[Stage]:
    """Stages of Detectron2's network and of ours, in turns, without gradients."""
    report(f"{setting.name}, stages")
    reference = networks.detectron2_network(setting)
    both = {
        "Detectron2": reference,
        "ours": networks.our_network(setting, reference, "auto"),
    }
    seconds = {name: defaultdict(list) for name in both}
    for number in range(rounds + 1):
        for name, model in both.items():
            for stage, took in _stage_seconds(model, setting).items():
                if number:  # the first round warms up
                    seconds[name][stage].append(took)
    stages = _floors(setting, measure_rates(setting.precision, setting.device))
    for stage in stages:
        stage.seconds = {name: median(taken[stage.name]) for name, taken in seconds.items()}
    return stages


def _stage_seconds(model: nn.Module, setting: Setting) -> dict[str, float]:
    seconds, last = defaultdict(float), [0.0]

    def ends(stage: str) -> Callable:
        def hook(*_) -> None:
            synchronize(setting.device)
            now = time.perf_counter()
            seconds[stage] += now - last[0]
            last[0] = now

        return hook

    handles = [model.patch_embed.register_forward_hook(ends(PATCHES))]
    for block, stage in zip(model.blocks, stages_of(setting.variant), strict=True):
        handles.append(block.register_forward_hook(ends(stage)))
    step = networks.inference(model, setting)
    try:
        synchronize(setting.device)
        last[0] = time.perf_counter()
        step()
    finally:
        for handle in handles:
            handle.remove()
    return seconds


def _floors(setting: Setting, rates: Rates) -> list[Stage]:
    with torch.device("meta"):
        model = MViT(
            **VARIANTS[setting.variant].backbone_arguments(), attention_backend="reference"
        ).eval()
    size = DTYPES[setting.precision].itemsize
    moved = defaultdict(int)

    def count(stage: str) -> Callable:
        def hook(module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
            weights = sum(weight.numel() for weight in module.parameters())
            moved[stage] += size * (inputs[0].numel() + output.numel() + weights)

        return hook

    names = dict.fromkeys([PATCHES, *stages_of(setting.variant)])
    model.patch_embed.register_forward_hook(count(PATCHES))
    for block, stage in zip(model.blocks, stages_of(setting.variant), strict=True):
        block.register_forward_hook(count(stage))
    images = torch.empty(setting.batch, 3, *setting.size, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images)
    counts = {name: sum(found.values()) // 2 for name, found in counter.get_flop_counts().items()}
    products = defaultdict(int, {PATCHES: counts["MViT.patch_embed"]})
    for index, stage in enumerate(stages_of(setting.variant)):
        products[stage] += counts[f"MViT.blocks.{index}"]
    return [
        Stage(
            setting,
            name,
            products[name],
            moved[name],
            max(products[name] / rates.multiply_adds, moved[name] / rates.bytes),
            {},
        )
        for name in names
    ]
