"""Testing at several scales and mirrored, for models that are built from a LazyConfig.

Every image is seen in several views: resized to each short side, as it is and mirrored. All boxes
of all views go into one NMS, the detector's own; the masks of what is left are averaged over the
views. One view alone gives exactly what the detector gives.

Axes: V views, R regions of an image, K classes, D detections, H × W pixels, M the side of a mask.
"""

from collections.abc import Sequence

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
    """A detector that looks at every image several times; stands in its place in evaluation.

    Boxes: those of all views above the detector's score threshold, from before its NMS, meet in
    the frame of the first view and go once through the detector's NMS, hard or soft, with its
    thresholds and limit. (Detectron2's ``GeneralizedRCNNWithTTA`` suppresses in each view and
    again over all: scores of Soft-NMS would decay twice.) Masks: the probabilities for the merged
    boxes, averaged over the views.

    Memory does not grow with the number of views: the features of one view exist at a time. They
    are computed again for the masks, since those of all views would be gigabytes; only the last
    view's are used twice, so that V views cost 2 V - 1 passes through the backbone, and one view
    no more than plain inference.

    Args:
        model: a Mask R-CNN, Faster R-CNN or Cascade, in evaluation mode when called.
        short_sides: lengths of the shorter side to resize to, in pixels.
        max_side: the most that the longer side may have, in pixels.
        flip: look at every scale mirrored as well.

    Raises:
        UserError: the model is of another kind, or the sizes make no sense.
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
    def forward(self, batched_inputs: list[dict]) -> list[dict[str, Instances]]:
        """Detections of each image.

        Args:
            batched_inputs: Detectron2's dicts. Views are resized from the original image: that
                is ``image`` (3, H, W) where it has the record's ``height`` and ``width``, else the
                file ``file_name``. A resized image without a file is resized again.

        Returns:
            for each image ``{"instances": …}`` at ``height`` × ``width``, as the detector gives.

        Raises:
            UserError: an image file cannot be read.
        """
        if self.training:
            raise RuntimeError("multi-scale testing is for evaluation: call .eval() first")
        originals = [self._original(record) for record in batched_inputs]
        boxes, scores, sizes = [], [], []
        features = {}
        for view in self.views:
            # One view's must go before the next one's are computed.
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

    def _original(self, record: dict) -> np.ndarray:
        """The image of a record as it was before any resizing, (H, W, C)."""
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
        """One view of all images, padded to a batch, and its feature maps."""
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
        """Boxes (R, 4 or K * 4) and scores (R, K + 1) that can become detections, by image."""
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
        """Sets ``pred_masks`` (D, 1, M, M), probabilities, of each image's detections.

        Args:
            detections: in the frame of the first view.
            originals: the images.
            sizes: of each view, the sizes of its images.
            features: of the last view; emptied, so that nobody keeps them alive.
        """
        totals = None
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
            if totals is not None:
                masks = [total + mask for total, mask in zip(totals, masks, strict=True)]
            totals = masks
        for instances, total in zip(detections, totals, strict=True):
            instances.pred_masks = total / len(self.views)


def _move(
    boxes: Tensor, size: Size, to: Size, *, mirrored_from: bool = False, mirrored_to: bool = False
) -> Tensor:
    """Boxes (R, 4 or K * 4) of an image of one size, on the same image of another size.

    Args:
        boxes: in pixels of ``size``.
        size: of the image that the boxes are on.
        to: of the other image.
        mirrored_from: the first image is mirrored, the second is not.
        mirrored_to: the second image is mirrored, the first is not.
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
    """Boxes (N, 4) on the mirrored image."""
    x1, y1, x2, y2 = corners.unbind(dim=1)
    return torch.stack((width - x2, y1, width - x1, y2), dim=1)


def _output_size(record: dict) -> Size:
    """Height and width of the results for a record: the original image's."""
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
