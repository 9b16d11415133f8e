"""Tiny detectors with random weights that find many objects of many classes."""

import torch
from conftest import tiny_overrides
from models import randomize
from torch import nn

from mvitv2_det import get_config
from mvitv2_det.config import apply_overrides
from mvitv2_det.detection.box_inference import SoftNMSCascadeROIHeads
from mvitv2_det.detection.soft_nms import SoftNMSOutputLayers
from mvitv2_det.engine import build_model

DETECTORS = ("mask_rcnn_mvitv2_t_3x", "cascade_mask_rcnn_mvitv2_t_3x")


def tiny_detector(name: str, soft_nms_method: str = "", score_threshold: float = 0.02) -> nn.Module:
    """A detector in evaluation mode, with Soft-NMS where a method is given."""
    cfg = get_config(name)
    apply_overrides(cfg, tiny_overrides(cfg))
    heads = cfg.model.roi_heads
    for head in heads.get("box_heads") or [heads.box_head]:
        head.update(conv_dims=[8], fc_dims=[32])
    for predictor in heads.get("box_predictors") or [heads.box_predictor]:
        predictor.test_score_thresh = score_threshold
        predictor.input_shape.channels = 32
        if soft_nms_method:
            predictor.update(_target_=SoftNMSOutputLayers, soft_nms_method=soft_nms_method)
    if soft_nms_method and "box_predictors" in heads:
        heads._target_ = SoftNMSCascadeROIHeads
    torch.manual_seed(0)
    model = randomize(build_model(cfg)).eval()
    predictors = model.roi_heads.box_predictor
    with torch.no_grad():
        for predictor in predictors if isinstance(predictors, nn.ModuleList) else [predictors]:
            # Several classes of a region pass the threshold, and boxes stay inside the image.
            predictor.cls_score.weight *= 2.5
            predictor.bbox_pred.weight *= 0.3
            predictor.bbox_pred.bias *= 0.1
    return model
