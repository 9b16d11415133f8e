"""Soft-NMS, which reduces the scores of overlapping boxes instead of dropping the boxes.

Bodla et al., "Soft-NMS: Improving Object Detection With One Line of Code", ICCV 2017, figure 2.
The MViTv2 paper uses it in its system-level comparison (appendix A.1).

Axes: R candidate boxes, G groups of candidates, S slots (candidates of the largest group), K
classes, D detections. The 4 numbers of a box are its corners x1, y1, x2, y2 in pixels.
"""

from typing import Any

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances
from torch import Tensor

SOFT_NMS_METHODS = ("linear", "gaussian")


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor,
    *,
    method: str,
    sigma: float = 0.5,
    iou_threshold: float = 0.5,
    score_threshold: float = 0.001,
    max_per_group: int = -1,
) -> tuple[Tensor, Tensor]:
    """Runs Soft-NMS within each group of boxes, for all groups in the same steps.

    In each step the box with the highest score of every group becomes a detection. The scores of
    the other boxes of its group are reduced by their IoU with it: to ``score * (1 - IoU)`` if the
    IoU exceeds ``iou_threshold`` (``"linear"``), or to ``score * exp(-IoU² / sigma)``
    (``"gaussian"``).

    Two limits equal hard NMS. The linear method does if no score exceeds ``score_threshold /
    (1 - iou_threshold)``, because every reduced score then falls below the threshold. The gaussian
    method approaches hard NMS at the IoU threshold 0 as sigma goes to 0.

    Scores are computed in float32 or a wider type. Of equal scores the first one is selected.

    Args:
        boxes: candidate boxes (R, 4).
        scores: scores (R,) of the boxes.
        groups: integers (R,); only boxes of the same group, for example of a class, affect each
            other.
        method: ``"linear"`` or ``"gaussian"``.
        sigma: width of the gaussian, above 0.
        iou_threshold: IoU above which the linear method reduces a score.
        score_threshold: lower limit of the reduced score of a detection, exclusive.
        max_per_group: maximum number of detections of a group; negative for no limit.

    Returns:
        Indices (D,) of the detections among the candidates, by decreasing score; and their reduced
        scores (D,), in the type of ``scores``.

    Raises:
        ValueError: the method is unknown, or sigma is not positive.
    """
    _check_settings(method, sigma)
    precision = torch.promote_types(scores.dtype, torch.float32)
    scores_in_full = scores.to(precision)
    candidates = _slots(groups, scores_in_full > score_threshold)
    alive = candidates >= 0
    slot_boxes = boxes.to(precision)[candidates]
    slot_scores = scores_in_full[candidates]

    steps = candidates.shape[1] if max_per_group < 0 else min(candidates.shape[1], max_per_group)
    found, found_scores = [], []
    for _ in range(steps):
        best = slot_scores.masked_fill(~alive, -torch.inf).argmax(dim=1, keepdim=True)
        # The index is -1 if the group has no candidate left.
        found.append(torch.where(alive, candidates, -1).gather(1, best)[:, 0])
        found_scores.append(slot_scores.gather(1, best)[:, 0])
        iou = _iou(slot_boxes.take_along_dim(best[..., None], dim=1), slot_boxes)
        if method == "linear":
            slot_scores = torch.where(iou > iou_threshold, slot_scores * (1 - iou), slot_scores)
        else:
            slot_scores = slot_scores * torch.exp(-iou.square() / sigma)
        alive = (alive & (slot_scores > score_threshold)).scatter(1, best, False)
    if not found:
        return groups.new_empty(0, dtype=torch.int64), scores[:0]

    indices, new_scores = torch.cat(found), torch.cat(found_scores)
    indices, new_scores = indices[indices >= 0], new_scores[indices >= 0]
    # Sorting twice puts equal scores in the order of the candidates.
    order = indices.argsort()
    order = order[new_scores[order].argsort(descending=True, stable=True)]
    return indices[order], new_scores[order].to(scores.dtype)


def soft_nms_inference(
    boxes: list[Tensor],
    scores: list[Tensor],
    image_sizes: list[tuple[int, int]],
    *,
    method: str,
    sigma: float,
    iou_threshold: float,
    score_threshold: float,
    max_per_image: int,
) -> tuple[list[Instances], list[Tensor]]:
    """Selects the detections of a batch: Detectron2's ``fast_rcnn_inference`` with Soft-NMS.

    Args:
        boxes: boxes of each image, (R, 4), or (R, K * 4) if each class has its own boxes.
        scores: scores of each image, (R, K + 1), with the background in the last column.
        image_sizes: height and width of each image in pixels, to which boxes are clipped.
        method: see :func:`soft_nms`.
        sigma: see :func:`soft_nms`.
        iou_threshold: see :func:`soft_nms`.
        score_threshold: see :func:`soft_nms`.
        max_per_image: maximum number of detections of an image; negative for no limit.

    Returns:
        For each image, its D detections with ``pred_boxes``, ``scores`` and ``pred_classes``, by
        decreasing score; and for each image, the rows (D,) of ``boxes`` that they come from.

    Raises:
        ValueError: the method is unknown, or sigma is not positive.
    """
    images = range(len(boxes))
    parts = [_candidates(boxes[i], scores[i], image_sizes[i], score_threshold) for i in images]
    all_boxes, all_scores, all_classes, all_rows = map(torch.cat, zip(*parts, strict=True))
    counts = torch.tensor([len(part[0]) for part in parts], device=all_boxes.device)
    image_of = torch.arange(len(boxes), device=all_boxes.device).repeat_interleave(counts)
    keep, new_scores = soft_nms(
        all_boxes,
        all_scores,
        image_of * scores[0].shape[1] + all_classes,
        method=method,
        sigma=sigma,
        iou_threshold=iou_threshold,
        score_threshold=score_threshold,
        # A class cannot have more detections than its image.
        max_per_group=max_per_image,
    )
    results, rows = [], []
    for i in images:
        best = (image_of[keep] == i).nonzero()[:, 0]
        best = best[:max_per_image] if max_per_image >= 0 else best
        result = Instances(image_sizes[i])
        result.pred_boxes = Boxes(all_boxes[keep[best]])
        result.scores = new_scores[best]
        result.pred_classes = all_classes[keep[best]]
        results.append(result)
        rows.append(all_rows[keep[best]])
    return results, rows


class SoftNMSOutputLayers(FastRCNNOutputLayers):
    """Detectron2's box predictor with Soft-NMS in inference; training and weights are the same.

    ``test_nms_thresh`` is the IoU threshold of the linear method. ``test_score_thresh`` is the
    lower limit of the reduced scores; it should be far lower than for hard NMS, for example 0.001
    as in the code of the Soft-NMS paper. Cascade R-CNN needs the ROI heads
    :class:`~mvitv2_det.detection.box_inference.SoftNMSCascadeROIHeads`, because Detectron2's do
    not let a predictor select the boxes.

    Args:
        input_shape: shape of the box features, see ``FastRCNNOutputLayers``.
        soft_nms_method: ``"linear"`` or ``"gaussian"``.
        soft_nms_sigma: width of the gaussian, above 0.
        **options: all other arguments of ``FastRCNNOutputLayers``.

    Raises:
        ValueError: the method is unknown, or sigma is not positive.
    """

    def __init__(
        self,
        input_shape: ShapeSpec | int,
        *,
        soft_nms_method: str = "gaussian",
        soft_nms_sigma: float = 0.5,
        **options: Any,
    ) -> None:
        super().__init__(input_shape, **options)
        _check_settings(soft_nms_method, soft_nms_sigma)
        self.soft_nms_method = soft_nms_method
        self.soft_nms_sigma = soft_nms_sigma

    def inference(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> tuple[list[Instances], list[Tensor]]:
        """Selects the detections of each image from the predictions for its proposals.

        Returns:
            For each image, its D detections; and the indices (D,) of their proposals.
        """
        return self.select(
            self.predict_boxes(predictions, proposals),
            self.predict_probs(predictions, proposals),
            [proposal.image_size for proposal in proposals],
        )

    def select(
        self, boxes: list[Tensor], scores: list[Tensor], image_sizes: list[tuple[int, int]]
    ) -> tuple[list[Instances], list[Tensor]]:
        """Selects the detections among the boxes of each image; see :func:`soft_nms_inference`."""
        return soft_nms_inference(
            boxes,
            scores,
            image_sizes,
            method=self.soft_nms_method,
            sigma=self.soft_nms_sigma,
            iou_threshold=self.test_nms_thresh,
            score_threshold=self.test_score_thresh,
            max_per_image=self.test_topk_per_image,
        )


def _check_settings(method: str, sigma: float) -> None:
    if method not in SOFT_NMS_METHODS:
        raise ValueError(
            f"the Soft-NMS method must be {' or '.join(SOFT_NMS_METHODS)}, got {method!r}"
        )
    if not sigma > 0:
        raise ValueError(f"sigma of Soft-NMS must be above 0, got {sigma}")


def _slots(groups: Tensor, valid: Tensor) -> Tensor:
    """Lists the valid candidates of each group.

    Returns:
        Indices (G, S) of the candidates, one row for each group, filled up with -1.
    """
    chosen = valid.nonzero()[:, 0]
    chosen = chosen[groups[chosen].argsort(stable=True)]
    _, row, counts = groups[chosen].unique_consecutive(return_inverse=True, return_counts=True)
    starts = counts.cumsum(0) - counts
    column = torch.arange(len(chosen), device=groups.device) - starts[row]
    width = int(counts.max()) if len(counts) else 0
    slots = chosen.new_full((len(counts), width), -1)
    slots[row, column] = chosen
    return slots


def _iou(box: Tensor, boxes: Tensor) -> Tensor:
    """Computes the IoU of one box with all boxes of its group; that of two empty boxes is 0.

    Args:
        box: one box of each group, (G, 1, 4).
        boxes: all boxes of each group, (G, S, 4).

    Returns:
        IoU (G, S).
    """
    corner, opposite = torch.maximum(box, boxes)[..., :2], torch.minimum(box, boxes)[..., 2:]
    intersection = (opposite - corner).clamp(min=0).prod(dim=-1)
    area, areas = ((b[..., 2:] - b[..., :2]).prod(dim=-1) for b in (box, boxes))
    union = area + areas - intersection
    return torch.where(union > 0, intersection / union, 0)


def _candidates(
    boxes: Tensor, scores: Tensor, image_size: tuple[int, int], score_threshold: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Selects the pairs of a box and a class of one image whose score exceeds the threshold.

    Returns:
        For each of C pairs, the box (C, 4) clipped to the image, the score (C,), the class (C,)
        and the row (C,) of ``boxes`` that it comes from.
    """
    finite = boxes.isfinite().all(dim=1) & scores.isfinite().all(dim=1)
    rows, classes = ((scores[:, :-1] > score_threshold) & finite[:, None]).nonzero().unbind(dim=1)
    by_class = boxes.unflatten(1, (-1, 4))
    candidates = Boxes(by_class[rows, classes if by_class.shape[1] > 1 else 0])
    candidates.clip(image_size)
    return candidates.tensor, scores[rows, classes], classes, rows
