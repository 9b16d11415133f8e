"""Inference of the box heads in two steps: all boxes with their scores, then the selection.

Detectron2 does both in one call, and Cascade R-CNN always with hard NMS. Soft-NMS changes the
second step; multi-scale testing puts boxes of several images between the two.

Axes: R regions of an image, K classes, D detections.
"""

from detectron2.modeling.roi_heads import CascadeROIHeads, FastRCNNOutputLayers, StandardROIHeads
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from detectron2.structures import Instances
from torch import Tensor

from .soft_nms import SoftNMSOutputLayers


def box_candidates(
    roi_heads: StandardROIHeads, features: dict[str, Tensor], proposals: list[Instances]
) -> tuple[list[Tensor], list[Tensor]]:
    """Boxes and scores that the heads give the proposals of each image, before any NMS.

    Args:
        roi_heads: Detectron2's standard or cascaded heads.
        features: maps of the batch, by name.
        proposals: of each image, with ``proposal_boxes``.

    Returns:
        for each image, boxes (R, 4), or (R, K * 4) if each class has its own; and class
        probabilities (R, K + 1), the background's last, averaged over the stages of a cascade.
    """
    if isinstance(roi_heads, CascadeROIHeads):
        return _cascade_candidates(roi_heads, features, proposals)
    maps = [features[name] for name in roi_heads.box_in_features]
    regions = roi_heads.box_pooler(maps, [proposal.proposal_boxes for proposal in proposals])
    predictor = roi_heads.box_predictor
    predictions = predictor(roi_heads.box_head(regions))
    boxes = predictor.predict_boxes(predictions, proposals)
    return list(boxes), list(predictor.predict_probs(predictions, proposals))


def select_detections(
    roi_heads: StandardROIHeads,
    boxes: list[Tensor],
    scores: list[Tensor],
    image_sizes: list[tuple[int, int]],
) -> list[Instances]:
    """Detections by the heads' own NMS, hard or soft, with their thresholds and their limit.

    Args:
        roi_heads: see :func:`box_candidates`, like the next two.
        boxes: of each image.
        scores: of each image.
        image_sizes: height and width, which boxes are clipped to.

    Returns:
        for each image, D detections with ``pred_boxes``, ``scores`` and ``pred_classes``.
    """
    predictor = selecting_predictor(roi_heads)
    if isinstance(predictor, SoftNMSOutputLayers):
        return predictor.select(boxes, scores, image_sizes)[0]
    detections, _ = fast_rcnn_inference(
        boxes,
        scores,
        image_sizes,
        predictor.test_score_thresh,
        predictor.test_nms_thresh,
        predictor.test_topk_per_image,
    )
    return detections


def selecting_predictor(roi_heads: StandardROIHeads) -> FastRCNNOutputLayers:
    """The box predictor whose test settings hold: the last one of a cascade."""
    if isinstance(roi_heads, CascadeROIHeads):
        return roi_heads.box_predictor[-1]
    return roi_heads.box_predictor


class SoftNMSCascadeROIHeads(CascadeROIHeads):
    """Detectron2's cascade, where the last box predictor's way of selecting boxes is used.

    That is Soft-NMS where ``box_predictors[-1]`` is a
    :class:`~mvitv2_det.detection.soft_nms.SoftNMSOutputLayers`. Training and weights are the
    parent's.
    """

    def _forward_box(
        self,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> dict[str, Tensor] | list[Instances]:
        """Losses of all stages in training, detections of each image in inference."""
        if self.training:
            return super()._forward_box(features, proposals, targets)
        boxes, scores = box_candidates(self, features, proposals)
        return select_detections(self, boxes, scores, [x.image_size for x in proposals])


def _cascade_candidates(
    roi_heads: CascadeROIHeads, features: dict[str, Tensor], proposals: list[Instances]
) -> tuple[list[Tensor], list[Tensor]]:
    maps = [features[name] for name in roi_heads.box_in_features]
    image_sizes = [proposal.image_size for proposal in proposals]
    boxes, scores = [], []
    for stage, predictor in enumerate(roi_heads.box_predictor):
        if stage > 0:
            proposals = roi_heads._create_proposals_from_boxes(boxes, image_sizes)
        predictions = roi_heads._run_stage(maps, proposals, stage)
        boxes = predictor.predict_boxes(predictions, proposals)
        scores.append(predictor.predict_probs(predictions, proposals))
    # Summed, then scaled, as Detectron2 does: a mean would round in another way.
    share = 1 / roi_heads.num_cascade_stages
    return list(boxes), [sum(of_stages) * share for of_stages in zip(*scores, strict=True)]
