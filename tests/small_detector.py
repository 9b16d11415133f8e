"""A small trained-like detector on disk, for tests of prediction."""

from dataclasses import dataclass
from pathlib import Path

import torch
from conftest import tiny_overrides
from detectron2.config import LazyConfig
from models import randomize
from omegaconf import DictConfig

from mvitv2_det import get_config
from mvitv2_det.config import apply_overrides
from mvitv2_det.engine import build_model

CASCADE = "cascade_mask_rcnn_mvitv2_t_3x"


@dataclass(frozen=True)
class Detector:
    """A config, saved as training saves it, and random weights for it."""

    cfg: DictConfig
    config: str
    weights: str


def save_detector(folder: Path, name: str = "mask_rcnn_mvitv2_t_3x", *overrides: str) -> Detector:
    """Two classes; many detections, as no score is far from a third."""
    cfg = get_config(name)
    changes = tiny_overrides(cfg)
    if name == CASCADE:
        for head in range(3):
            changes.append(f"model.roi_heads.box_heads.{head}.conv_dims=[8]")
            changes.append(f"model.roi_heads.box_heads.{head}.fc_dims=[16]")
            changes.append(f"model.roi_heads.box_predictors.{head}.input_shape.channels=16")
    apply_overrides(cfg, [*changes, "model.roi_heads.num_classes=2", *overrides])
    torch.manual_seed(0)
    model = randomize(build_model(cfg))
    with torch.no_grad():
        for part, parameter in model.named_parameters():
            if "box_predictor" in part:
                parameter *= 0.1  # else one box scores all
    file = folder / "config.yaml"
    LazyConfig.save(cfg, str(file))
    torch.save({"model": model.state_dict()}, folder / "model_final.pth")
    return Detector(cfg, str(file), str(folder / "model_final.pth"))
