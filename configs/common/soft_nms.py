"""Soft-NMS in the box heads; it changes neither weights nor training.

The MViTv2 paper does not list its settings; it follows Swin (appendix A.1). The public configs of
Swin's detectors use the linear method at IoU 0.3 and keep scores down to 0.001.
"""

from omegaconf import DictConfig

from mvitv2_det.detection.box_inference import SoftNMSCascadeROIHeads
from mvitv2_det.detection.soft_nms import SoftNMSOutputLayers

SETTINGS = dict(
    _target_=SoftNMSOutputLayers,
    # The alternative is "gaussian", with soft_nms_sigma.
    soft_nms_method="linear",
    soft_nms_sigma=0.5,
    test_nms_thresh=0.3,
    test_score_thresh=0.001,
    test_topk_per_image=100,
)


def use_soft_nms(model: DictConfig) -> None:
    """Adds Soft-NMS to the config of a Mask R-CNN or Cascade Mask R-CNN, in place."""
    heads = model.roi_heads
    if "box_predictors" not in heads:
        heads.box_predictor.update(**SETTINGS)
        return
    heads._target_ = SoftNMSCascadeROIHeads
    for predictor in heads.box_predictors:
        predictor.update(**SETTINGS)
