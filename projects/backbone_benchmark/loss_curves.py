"""The same training twice: with Detectron2's backbone and with ours, from the same weights.

A small Mask R-CNN on synthetic images, in one process, with the same images at each step. Its
losses are made of all anchors and all proposals: where some are drawn or suppressed, a difference
in the last bit soon chooses others, and two trainings part by a tenth, whatever their backbones.
Rounding differs still, and training amplifies it: how far the reference drifts from itself when its
weights are changed in the last bit is the noise to compare with.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from detectron2.config import instantiate
from detectron2.modeling import MViT as Detectron2MViT
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from omegaconf import DictConfig
from torch import nn

from mvitv2_det import get_config

STEPS = 300
SIDE = 96
BATCH = 1
_ALL = 4096  # more than there are anchors


@dataclass(frozen=True)
class Curves:
    """Total losses of every step, by training."""

    losses: dict[str, list[float]]


def measure(steps: int = STEPS, report: Callable[[str], None] = print) -> Curves:
    """Trains three detectors from the same weights on the same data."""
    start = _detector(Detectron2MViT).state_dict()
    models = {
        "Detectron2's backbone": _detector(Detectron2MViT),
        "Detectron2's, weights changed in the last bit": _detector(Detectron2MViT),
        "ours": _detector(None),
    }
    for model in models.values():
        model.load_state_dict(start)
    _change_last_bits(models["Detectron2's, weights changed in the last bit"].backbone)
    losses = {}
    for name, model in models.items():
        losses[name] = _train(model, steps)
        report(f"loss curve of {name}: {losses[name][0]:.4f} → {losses[name][-1]:.4f}")
    return Curves(losses)


def _detector(backbone: type[nn.Module] | None) -> nn.Module:
    """Mask R-CNN on an MViT of 8 blocks and 16 channels, windows included."""
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
    """Has all anchors be proposals, and both losses be made of all of them."""
    call.proposal_generator.batch_size_per_image = _ALL
    call.proposal_generator.pre_nms_topk = call.proposal_generator.post_nms_topk = (_ALL, _ALL)
    call.proposal_generator.nms_thresh = 1.0
    call.roi_heads.batch_size_per_image = _ALL


def _change_last_bits(module: nn.Module) -> None:
    with torch.no_grad():
        for weight in module.parameters():
            weight.copy_(torch.nextafter(weight, weight + 1))


def _train(model: nn.Module, steps: int) -> list[float]:
    torch.manual_seed(1)  # the order of the samples that losses are made of
    data = torch.Generator().manual_seed(2)
    # About the recipe's rate; at ten times that rounding grows to a tenth within 100 steps.
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
    """Noise with one bright and one dark rectangle, of two classes."""
    image = 100 + 20 * torch.randn(3, SIDE, SIDE, generator=generator)
    boxes, masks = [], torch.zeros(2, SIDE, SIDE, dtype=torch.bool)
    for kind in range(2):
        left, top = torch.randint(0, SIDE // 2, (2,), generator=generator).tolist()
        width, height = torch.randint(16, SIDE // 2, (2,), generator=generator).tolist()
        boxes.append([left, top, left + width, top + height])
        masks[kind, top : top + height, left : left + width] = True
        image[:, masks[kind]] += 100 if kind else -80
    instances = Instances((SIDE, SIDE))
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32))
    instances.gt_classes = torch.arange(2)
    instances.gt_masks = BitMasks(masks)
    return {"image": image, "instances": instances}
