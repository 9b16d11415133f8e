"""A detector as a function of tensors, which can be traced."""

from typing import Any

from detectron2.export import TracingAdapter
from torch import Tensor, nn


class Detections(TracingAdapter):
    """A detector that takes one image and gives tensors.

    Takes (3, H, W) float32, 0 to 255, in the channel order of the config's ``input_format``.
    Gives, in pixels of that image, sorted by descending score: boxes (N, 4) as x0, y0, x1, y1;
    classes (N,), int64; scores (N,); and of a model with masks their probabilities inside of the
    boxes, (N, M, M), which ``detectron2.layers.paste_masks_in_image`` puts in place.

    Attributes:
        names: the names of the outputs.
    """

    def __init__(self, detector: nn.Module, image: Tensor) -> None:
        super().__init__(detector, image, _detect)
        self.names = ["boxes", "classes", "scores"]
        if getattr(detector.roi_heads, "mask_on", False):
            self.names.append("masks")


def _detect(detector: Any, image: Tensor) -> tuple[Tensor, ...]:
    (found,) = detector.inference([{"image": image}], do_postprocess=False)
    outputs = (found.pred_boxes.tensor, found.pred_classes, found.scores)
    return (*outputs, found.pred_masks[:, 0]) if found.has("pred_masks") else outputs
