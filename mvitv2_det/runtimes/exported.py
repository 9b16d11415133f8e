"""A detector that another library runs, in the place of the model.

Axes: N instances, H × W pixels of the image as the network sees it, M × M of a mask in its box.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from .sessions import Session


class ExportedDetector(nn.Module):
    """Takes and gives what Detectron2's detectors do in evaluation.

    Each image is computed by itself, whatever is beside it. The number and the sizes of the images
    of a call may be any.

    Args:
        session: runs the file that :func:`mvitv2_det.export.write_detector` has written.
    """

    def __init__(self, session: Session) -> None:
        super().__init__()
        self._session = session

    def forward(self, inputs: Sequence[dict[str, Any]]) -> list[dict[str, Instances]]:
        """Finds instances.

        Args:
            inputs: for each image ``image`` (3, H, W), 0 to 255; optionally ``height`` and
                ``width`` of the image that the result is for.

        Returns:
            for each image ``instances``, sorted by descending score.
        """
        images = [one["image"].numpy().astype(np.float32) for one in inputs]
        outputs = self._session(images)
        return [
            {"instances": _instances(one, [torch.from_numpy(array) for array in arrays])}
            for one, arrays in zip(inputs, outputs, strict=True)
        ]


def _instances(one: dict[str, Any], outputs: Sequence[Tensor]) -> Instances:
    """The result for an input, of :class:`mvitv2_det.detection.traceable.Detections`' outputs."""
    size = tuple(one["image"].shape[1:])
    boxes, classes, scores, *masks = outputs
    found = Instances(size, pred_boxes=Boxes(boxes), pred_classes=classes, scores=scores)
    if masks:
        found.pred_masks = masks[0][:, None]  # (N, 1, M, M)
    return detector_postprocess(found, one.get("height", size[0]), one.get("width", size[1]))
