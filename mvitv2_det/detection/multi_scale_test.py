"""Multi-scale testing with horizontal flips, for models that are built from a LazyConfig.

The detector sees every image in several views: resized to each of several sizes, each plain and
mirrored. The boxes of all views go through the detector's NMS together, and the masks of the
resulting detections are averaged over the views. With a single view the results are exactly
those of the detector.

Axes: V views, R regions of an image, K classes, D detections, H × W pixels, M the side of a mask.
"""

from collections.abc import Sequence
from typing import Any

import detectron2.data.transforms as T
import numpy as np
import torch
from detectron2.data.detection_utils import check_image_size, read_image
from detectron2.modeling import detector_postprocess
from detectron2.modeling.meta_arch import GeneralizedRCNN
from detectron2.modeling.roi_heads import StandardROIHeads
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from ..data.mapper import naming_unreadable_image
from ..errors import UserError
from .box_inference import box_candidates, select_detections, selecting_predictor

# Height and width in pixels.
Size = tuple[int, int]


class MultiScaleTest(nn.Module):
    """Detector that runs a given detector on several views of each image, for evaluation.

    Boxes: the boxes of all views above the detector's score threshold are mapped to the first view
    and go through the detector's NMS, hard or soft, once, with its thresholds and limit.
    (Detectron2's ``GeneralizedRCNNWithTTA`` runs NMS in each view and again over all views, so that
    Soft-NMS would reduce scores twice.) Masks: the probabilities for the merged boxes, averaged
    over the views.

    Memory does not grow with the number of views, because only the features of one view are held
    at a time; those of all views would take gigabytes. The features are computed again for the
    masks, except for the last view, whose features are still held. V views therefore cost
    2 V - 1 passes through the backbone, and a single view costs as much as plain inference.

    Args:
        model: a Mask R-CNN, Faster R-CNN or Cascade R-CNN. It must be in evaluation mode when the
            module is called.
        short_sides: lengths of the shorter side that images are resized to, in pixels.
        max_side: upper limit of the longer side, in pixels.
        flip: whether to add a mirrored view of every size.

    Raises:
        UserError: the model is of another kind, or a size is not positive.
    """

    def __init__(
        self,
        model: GeneralizedRCNN,
        short_sides: Sequence[int],
        max_side: int,
        flip: bool = True,
    ) -> None:
        super().__init__()
        _check_model(model)
        _check_sizes(short_sides, max_side)
        self.model = model
        self.views = [
            (T.ResizeShortestEdge(side, max_side), mirrored)
            for side in short_sides
            for mirrored in ((False, True) if flip else (False,))
        ]

    @torch.no_grad()
    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Instances]]:
        """Detects the instances of each image.

        Args:
            batched_inputs: records in Detectron2's input format. Views are resized from the
                original image: from ``image`` (3, H, W) if its size is ``height`` × ``width``,
                otherwise from the file ``file_name``. A resized image without a file name is
                resized again.

        Returns:
            For each image ``{"instances": …}`` at ``height`` × ``width``, like the detector.

        Raises:
            UserError: an image file cannot be read.
            RuntimeError: the module is in training mode.
        """
        if self.training:
            raise RuntimeError("multi-scale testing is for evaluation: call .eval() first")
        originals = [self._original(record) for record in batched_inputs]
        boxes, scores, sizes = [], [], []
        features: dict[str, Tensor] = {}
        for view in self.views:
            # Frees the features of the last view before those of the next are computed.
            features.clear()
            images, features = self._see(originals, view)
            view_boxes, view_scores = self._candidates(images, features)
            sizes.append(images.image_sizes)
            boxes.append(
                [
                    _move(b, size, first, mirrored_from=view[1])
                    for b, size, first in zip(view_boxes, sizes[-1], sizes[0], strict=True)
                ]
            )
            scores.append(view_scores)
        detections = select_detections(
            self.model.roi_heads,
            [torch.cat(of_views) for of_views in zip(*boxes, strict=True)],
            [torch.cat(of_views) for of_views in zip(*scores, strict=True)],
            sizes[0],
        )
        if self.model.roi_heads.mask_on:
            self._add_masks(detections, originals, sizes, features)
        return [
            {"instances": detector_postprocess(instances, *_output_size(record))}
            for instances, record in zip(detections, batched_inputs, strict=True)
        ]

    def _original(self, record: dict[str, Any]) -> np.ndarray:
        """Returns the image of a record as it was before any resizing, (H, W, C)."""
        image = record["image"]
        if tuple(image.shape[-2:]) == _output_size(record) or "file_name" not in record:
            return image.permute(1, 2, 0).cpu().numpy()
        with naming_unreadable_image(record["file_name"]):
            pixels = read_image(record["file_name"], format=self.model.input_format)
            check_image_size(record, pixels)
        return pixels

    def _see(
        self, originals: list[np.ndarray], view: tuple[T.ResizeShortestEdge, bool]
    ) -> tuple[ImageList, dict[str, Tensor]]:
        """Computes one view of all images, padded to a batch, and its feature maps."""
        resize, mirrored = view
        inputs = []
        for original in originals:
            pixels = resize.get_transform(original).apply_image(original)
            image = torch.as_tensor(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
            inputs.append({"image": image.flip(-1) if mirrored else image})
        images = self.model.preprocess_image(inputs)
        return images, self.model.backbone(images.tensor)

    def _candidates(
        self, images: ImageList, features: dict[str, Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Predicts the boxes and scores of each image, and drops those below the score threshold.

        Returns:
            For each image the boxes (R, 4 or K * 4), in pixels of the view; and the scores
            (R, K + 1).
        """
        proposals, _ = self.model.proposal_generator(images, features, None)
        boxes, scores = box_candidates(self.model.roi_heads, features, proposals)
        threshold = selecting_predictor(self.model.roi_heads).test_score_thresh
        rows = [(score[:, :-1] > threshold).any(dim=1) for score in scores]
        return (
            [box[row] for box, row in zip(boxes, rows, strict=True)],
            [score[row] for score, row in zip(scores, rows, strict=True)],
        )

    def _add_masks(
        self,
        detections: list[Instances],
        originals: list[np.ndarray],
        sizes: list[list[Size]],
        features: dict[str, Tensor],
    ) -> None:
        """Sets the mask probabilities ``pred_masks`` (D, 1, M, M) of each image's detections.

        Args:
            detections: the detections of each image, in pixels of the first view.
            originals: the original images.
            sizes: for each view, the sizes of its images.
            features: feature maps of the last view. The dict is emptied, to free their memory.
        """
        totals: list[Tensor] = []
        for view, view_sizes in zip(reversed(self.views), reversed(sizes), strict=True):
            if not features:
                _, features = self._see(originals, view)
            seen = [
                Instances(
                    size,
                    pred_boxes=Boxes(
                        _move(found.pred_boxes.tensor, first, size, mirrored_to=view[1])
                    ),
                    pred_classes=found.pred_classes,
                )
                for found, size, first in zip(detections, view_sizes, sizes[0], strict=True)
            ]
            seen = self.model.roi_heads.forward_with_given_boxes(features, seen)
            features.clear()
            masks = [x.pred_masks.flip(-1) if view[1] else x.pred_masks for x in seen]
            if totals:
                masks = [total + mask for total, mask in zip(totals, masks, strict=True)]
            totals = masks
        for instances, total in zip(detections, totals, strict=True):
            instances.pred_masks = total / len(self.views)


def _move(
    boxes: Tensor, size: Size, to: Size, *, mirrored_from: bool = False, mirrored_to: bool = False
) -> Tensor:
    """Maps boxes (R, 4 or K * 4) from one view of an image to another view.

    Args:
        boxes: boxes in pixels of the first view.
        size: height and width of the first view.
        to: height and width of the second view.
        mirrored_from: whether the first view is mirrored and the second is not.
        mirrored_to: whether the second view is mirrored and the first is not.
    """
    corners = boxes.reshape(-1, 4)
    if mirrored_from:
        corners = _mirror(corners, size[1])
    scale_x, scale_y = to[1] / size[1], to[0] / size[0]
    corners = corners * corners.new_tensor([scale_x, scale_y, scale_x, scale_y])
    if mirrored_to:
        corners = _mirror(corners, to[1])
    return corners.view_as(boxes)


def _mirror(corners: Tensor, width: int) -> Tensor:
    """Mirrors boxes (N, 4) in an image of the given width."""
    x1, y1, x2, y2 = corners.unbind(dim=1)
    return torch.stack((width - x2, y1, width - x1, y2), dim=1)


def _output_size(record: dict[str, Any]) -> Size:
    """Returns the height and width of the original image, which the results refer to."""
    height, width = record["image"].shape[-2:]
    return record.get("height", height), record.get("width", width)


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, GeneralizedRCNN) or not isinstance(model.roi_heads, StandardROIHeads):
        raise UserError(
            f"multi-scale testing is for Mask R-CNN, Faster R-CNN and Cascade R-CNN, got "
            f"{type(model).__name__}"
        )
    if model.roi_heads.keypoint_on:
        raise UserError("multi-scale testing does not merge keypoints: use plain evaluation")


def _check_sizes(short_sides: Sequence[int], max_side: int) -> None:
    is_list = isinstance(short_sides, Sequence) and len(short_sides) > 0
    if not is_list or not all(isinstance(side, int) and side > 0 for side in short_sides):
        raise UserError(
            f"multi_scale_test.short_sides must be a list of whole numbers above 0, got "
            f"{short_sides}"
        )
    if max_side < 1:
        raise UserError(f"multi_scale_test.max_side must be above 0, got {max_side}")
