"""Time of each stage over its roofline, the least time that this machine could take.

The roofline of a block is the longer one of two times: its matrix products and convolutions at the
rate at which the machine multiplies large matrices, and the bytes of its incoming tokens, outgoing
tokens and weights, each moved once, at the rate at which it copies memory.
"""

import time
from collections import defaultdict
from collections.abc import Callable
from statistics import median

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mvitv2_det import VARIANTS, MViT
from projects.backbone_benchmark.networks import Setting, both_networks, inference, stages_of
from projects.backbone_benchmark.rates import measure_rates
from projects.common.memory import synchronize
from projects.common.results import DTYPES

PATCHES = "patch embedding"


def measure(setting: Setting, rounds: int, report: Callable[[str], None] = print) -> list[dict]:
    """Times the stages of Detectron2's network and of ours, in turns, without gradients.

    Returns:
        a row for each stage, with medians over the rounds.
    """
    report(f"{setting.name}, stages")
    models = both_networks(setting)
    seconds = {name: defaultdict(list) for name in models}
    for number in range(rounds + 1):
        for name, model in models.items():
            for stage, took in _stage_seconds(model, setting).items():
                if number:  # the first round warms up
                    seconds[name][stage].append(took)
    rates = measure_rates(setting.precision, setting.device)
    rows = []
    for stage, (multiply_adds, moved) in count_stages(setting).items():
        roofline = max(multiply_adds / rates.multiply_adds, moved / rates.bytes)
        row = {
            **setting.columns,
            "stage": stage,
            "multiply-adds G": f"{multiply_adds / 1e9:.1f}",
            "least bytes GB": f"{moved / 1e9:.3f}",
            "roofline s": f"{roofline:.4f}",
        }
        for name, taken in seconds.items():
            row[f"{name} s"] = f"{median(taken[stage]):.4f}"
            row[f"{name} over the roofline"] = f"{median(taken[stage]) / roofline:.1f}"
        rows.append(row)
    return rows


def _parts(model: nn.Module, setting: Setting) -> list[tuple[str, nn.Module]]:
    """Lists the patch embedding and the blocks, each with the name of its stage."""
    blocks = zip(stages_of(setting.variant), model.blocks, strict=True)
    return [(PATCHES, model.patch_embed), *blocks]


def _stage_seconds(model: nn.Module, setting: Setting) -> dict[str, float]:
    seconds, last = defaultdict(float), [0.0]

    def ends(stage: str) -> Callable:
        def hook(*_) -> None:
            synchronize(setting.device)
            now = time.perf_counter()
            seconds[stage] += now - last[0]
            last[0] = now

        return hook

    handles = [part.register_forward_hook(ends(name)) for name, part in _parts(model, setting)]
    step = inference(model, setting)
    try:
        synchronize(setting.device)
        last[0] = time.perf_counter()
        step()
    finally:
        for handle in handles:
            handle.remove()
    return seconds


def count_stages(setting: Setting) -> dict[str, tuple[int, int]]:
    """Counts the multiply-adds of each stage, and the bytes that it has to move at least."""
    with torch.device("meta"):
        model = MViT(
            **VARIANTS[setting.variant].backbone_arguments(), attention_backend="reference"
        ).eval()
    size = DTYPES[setting.precision].itemsize
    products, moved = defaultdict(int), defaultdict(int)

    def count(stage: str) -> Callable:
        def hook(module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
            weights = sum(weight.numel() for weight in module.parameters())
            moved[stage] += size * (inputs[0].numel() + output.numel() + weights)

        return hook

    for stage, part in _parts(model, setting):
        part.register_forward_hook(count(stage))
    images = torch.empty(setting.batch, 3, *setting.size, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images)
    counts = {name: sum(found.values()) // 2 for name, found in counter.get_flop_counts().items()}
    names = {module: name for name, module in model.named_modules()}
    for stage, part in _parts(model, setting):
        products[stage] += counts[f"MViT.{names[part]}"]
    return {stage: (products[stage], moved[stage]) for stage in products}
