"""Bytes of activations that each block saves for its backward pass."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mvitv2_det.fused import accelerate
from projects.backbone_benchmark.networks import Setting, both_networks
from projects.common.memory import saved_for_backward


def measure(setting: Setting, rounds: int, report: Callable[[str], None] = print) -> list[dict]:
    """Measures each block of Detectron2's network and of ours on the map that it gets there.

    Args:
        rounds: not used, because the number of bytes is the same in each round.

    Returns:
        a row for each block, and one for all: megabytes without the block's weights, of ours also
        with ``recompute_products``.
    """
    report(f"{setting.full_name}, saved activations of each block")
    networks = {name: model.train() for name, model in both_networks(setting).items()}
    rows, totals = [], [0, 0, 0]
    blocks = zip(*(model.blocks for model in networks.values()), strict=True)
    for number, (x, pair) in enumerate(
        zip(_incoming_maps(networks["ours"], setting), blocks, strict=True), start=1
    ):
        saved = [_saved_by(block, x, setting) for block in pair]
        accelerate(pair[1], recompute_products=True)
        saved.append(_saved_by(pair[1], x, setting))
        totals = [total + of_block for total, of_block in zip(totals, saved, strict=True)]
        size = "×".join(map(str, x.shape[1:3]))
        rows.append(_row(setting, number, size, pair[1].mlp.fc2.out_features, saved))
    return [*rows, _row(setting, "all", "", "", totals)]


def _row(
    setting: Setting, block: int | str, size: str, channels: int | str, saved: list[int]
) -> dict:
    theirs, ours, recomputing = saved
    return {
        **setting.columns,
        "block": block,
        "tokens in": size,
        "channels out": channels,
        "Detectron2 MB": f"{theirs / 1e6:.0f}",
        "ours MB": f"{ours / 1e6:.0f}",
        "ratio": f"{ours / theirs:.2f}",
        "recomputing MB": f"{recomputing / 1e6:.0f}",
        "recomputing ratio": f"{recomputing / theirs:.3f}",
    }


def _saved_by(block: nn.Module, x: Tensor, setting: Setting) -> int:
    x = x.detach().requires_grad_()

    def forward() -> Tensor:
        with setting.autocast():
            return block(x)

    return saved_for_backward(forward, exclude=block.parameters())


def _incoming_maps(model: nn.Module, setting: Setting) -> list[Tensor]:
    """Collects the (B, H, W, C) inputs of all blocks."""
    maps = []
    handles = [
        block.register_forward_pre_hook(lambda module, inputs: maps.append(inputs[0]))
        for block in model.blocks
    ]
    try:
        with torch.no_grad(), setting.autocast():
            model(setting.images())
    finally:
        for handle in handles:
            handle.remove()
    return maps
