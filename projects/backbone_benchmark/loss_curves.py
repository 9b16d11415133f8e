"""Losses of the same training with Detectron2's backbone and with ours, from the same weights.

A small Mask R-CNN is trained on synthetic images, with the same images at each step. Its losses
include all anchors and all proposals. If some were sampled or suppressed, a difference in the last
bit would soon select others, and the losses would part by a tenth with any backbone. Training still
amplifies differences in rounding. The reference is therefore also trained with its weights changed
in the last bit: its distance from itself is the noise to compare with.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from detectron2.config import instantiate
from detectron2.modeling import MViT as Detectron2MViT
from detectron2.utils.events import EventStorage
from omegaconf import DictConfig
from torch import nn

from mvitv2_det import get_config
from projects.backbone_benchmark.detector import annotated
from projects.backbone_benchmark.tables import COLOURS, save

STEPS = 300
SIDE = 96
BATCH = 1
_ALL = 4096  # more than there are anchors


def measure(steps: int = STEPS, report: Callable[[str], None] = print) -> dict[str, list[float]]:
    """Trains three detectors from the same weights on the same data.

    Returns:
        the total loss of each step, by training; the first is the one to compare with.
    """
    changed = "Detectron2's, weights changed in the last bit"
    models = {
        "Detectron2's backbone": _detector(Detectron2MViT),
        changed: _detector(Detectron2MViT),
        "ours": _detector(None),
    }
    start = models["Detectron2's backbone"].state_dict()
    for model in models.values():
        model.load_state_dict(start)
    _change_last_bits(models[changed].backbone)
    losses = {}
    for name, model in models.items():
        losses[name] = _train(model, steps)
        report(f"loss curve of {name}: {losses[name][0]:.4f} → {losses[name][-1]:.4f}")
    return losses


def _detector(backbone: type[nn.Module] | None) -> nn.Module:
    """Makes a Mask R-CNN on an MViT of 8 blocks and 16 channels, windows included."""
    call = get_config("mask_rcnn_mvitv2_t_3x").model
    bottom_up = call.backbone.bottom_up
    bottom_up.update(
        embed_dim=16,
        depth=8,
        num_heads=1,
        last_block_indexes=(1, 3, 5, 7),
        drop_path_rate=0.0,
        adaptive_window_size=16,
        rel_pos_zero_init=False,
    )
    if backbone is not None:
        bottom_up._target_ = backbone
    call.backbone.out_channels = 32
    call.roi_heads.num_classes = 2
    call.roi_heads.box_head.fc_dims = [64]
    call.roi_heads.box_predictor.input_shape.channels = 64
    call.roi_heads.mask_head.conv_dims = [16, 16]
    _choose_nothing(call)
    torch.manual_seed(0)
    return instantiate(call)


def _choose_nothing(call: DictConfig) -> None:
    """Makes all anchors proposals, and includes all of them in both losses."""
    call.proposal_generator.batch_size_per_image = _ALL
    call.proposal_generator.pre_nms_topk = call.proposal_generator.post_nms_topk = (_ALL, _ALL)
    call.proposal_generator.nms_thresh = 1.0
    call.roi_heads.batch_size_per_image = _ALL


def _change_last_bits(module: nn.Module) -> None:
    with torch.no_grad():
        for weight in module.parameters():
            weight.copy_(torch.nextafter(weight, weight + 1))


def _train(model: nn.Module, steps: int) -> list[float]:
    torch.manual_seed(1)  # orders the samples of the losses
    data = torch.Generator().manual_seed(2)
    # About the recipe's rate. At ten times this rate rounding grows to a tenth within 100 steps.
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1)
    losses = []
    model.train()
    for _ in range(steps):
        with EventStorage():
            total = sum(model([_image(data) for _ in range(BATCH)]).values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses.append(total.item())
    return losses


def _image(generator: torch.Generator) -> dict:
    """Makes an image of noise with one bright and one dark rectangle, of two classes."""
    image = 100 + 20 * torch.randn(3, SIDE, SIDE, generator=generator)
    boxes, masks = [], torch.zeros(2, SIDE, SIDE, dtype=torch.bool)
    for kind in range(2):
        left, top = torch.randint(0, SIDE // 2, (2,), generator=generator).tolist()
        width, height = torch.randint(16, SIDE // 2, (2,), generator=generator).tolist()
        boxes.append([left, top, left + width, top + height])
        masks[kind, top : top + height, left : left + width] = True
        image[:, masks[kind]] += 100 if kind else -80
    return {
        "image": image,
        "instances": annotated(torch.tensor(boxes, dtype=torch.float32), masks),
    }


def table(losses: Mapping[str, list[float]], every: int = 25) -> list[dict]:
    """Makes a row for some steps: losses, and distances from the first training so far."""
    base, *others = losses
    last = len(losses[base]) - 1
    rows = []
    for step in [*range(0, last + 1, every), last]:
        row = {"step": str(step + 1), base: f"{losses[base][step]:.6f}"}
        for name in others:
            row[name] = f"{losses[name][step]:.6f}"
            row[f"{name}: largest relative difference so far"] = (
                f"{max(_differences(losses, name)[: step + 1]):.1e}"
            )
        rows.append(row)
    return rows


def _differences(losses: Mapping[str, list[float]], name: str) -> list[float]:
    base = next(iter(losses.values()))
    return [abs(a - b) / abs(b) for a, b in zip(losses[name], base, strict=True)]


def draw(losses: Mapping[str, list[float]], path: Path) -> None:
    """Draws the losses, and their distances from those of Detectron2's backbone."""
    figure, (above, below) = plt.subplots(2, 1, figsize=(9, 7), sharex=True)
    looks = [
        {"color": COLOURS["Detectron2"], "linewidth": 3},
        {"color": COLOURS["third"], "linewidth": 1.2, "linestyle": "--"},
        {"color": COLOURS["ours"], "linewidth": 1.2},
    ]
    for (name, values), look in zip(losses.items(), looks, strict=True):
        above.plot(values, label=name, **look)
    for name, look in [*zip(losses, looks, strict=True)][1:]:
        differences = [max(d, 1e-9) for d in _differences(losses, name)]
        below.semilogy(differences, label=name, color=look["color"], linewidth=1)
    above.set(ylabel="total loss")
    below.set(xlabel="step", ylabel=f"relative difference from\n{next(iter(losses))}")
    for axis in (above, below):
        axis.legend()
        axis.grid(True, alpha=0.3)
    save(figure, path)
