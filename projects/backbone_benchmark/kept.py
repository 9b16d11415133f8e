"""Bytes that each block keeps for its backward pass."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from projects.backbone_benchmark import networks
from projects.backbone_benchmark.networks import Setting
from projects.common.memory import saved_for_backward


@dataclass(frozen=True)
class KeptByBlock:
    """One block of a network at a setting.

    Attributes:
        number: of the block, from 1.
        tokens: rows and columns of the map that comes in.
        channels: that go out.
        kept: bytes, of each network; the block's weights do not count.
    """

    setting: Setting
    number: int
    tokens: tuple[int, int]
    channels: int
    kept: dict[str, int]


def measure(setting: Setting, report: Callable[[str], None] = print) -> list[KeptByBlock]:
    """Each block of Detectron2's network and of ours, on the map that it gets in the network."""
    report(f"{setting.full_name}, kept by each block")
    reference = networks.detectron2_network(setting).train()
    ours = networks.our_network(setting, reference, "auto").train()
    found = []
    maps = _incoming(ours, setting)
    for number, (x, *blocks) in enumerate(
        zip(maps, reference.blocks, ours.blocks, strict=True), start=1
    ):
        x = x.detach().requires_grad_()
        kept = {
            name: _kept_by(block, x, setting)
            for name, block in zip(("Detectron2", "ours"), blocks, strict=True)
        }
        channels = blocks[1].mlp.fc2.out_features
        found.append(KeptByBlock(setting, number, tuple(x.shape[1:3]), channels, kept))
    return found


def _kept_by(block: nn.Module, x: Tensor, setting: Setting) -> int:
    def forward() -> Tensor:
        with setting.autocast():
            return block(x)

    return saved_for_backward(forward, exclude=block.parameters())


def _incoming(model: nn.Module, setting: Setting) -> list[Tensor]:
    """What comes into each block, (B, H, W, C)."""
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
