"""Inference of the box heads in two steps: prediction of boxes and scores, then selection by NMS.

Detectron2 does both steps in one call, and Cascade R-CNN always with hard NMS. Soft-NMS changes
the second step. Multi-scale testing merges the boxes of several views between the two steps.

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
    """Predicts boxes and scores from the proposals of each image, before any NMS.

    Args:
        roi_heads: Detectron2's standard or cascaded heads.
        features: feature maps (B, C, H, W) of the batch, by name.
        proposals: the proposals of each image, with ``proposal_boxes``.

    Returns:
        For each image, the boxes (R, 4), or (R, K * 4) if each class has its own boxes, in
        pixels; and the class probabilities (R, K + 1), with the background in the last column.
        The probabilities of a cascade are averages over its stages.
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
    """Selects detections by the NMS of the heads, hard or soft, with their thresholds and limit.

    Args:
        roi_heads: Detectron2's standard or cascaded heads.
        boxes: the boxes of each image, as :func:`box_candidates` returns them.
        scores: the class probabilities of each image, as :func:`box_candidates` returns them.
        image_sizes: height and width of each image in pixels, to which boxes are clipped.

    Returns:
        For each image, D detections with ``pred_boxes``, ``scores`` and ``pred_classes``.
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
    """Returns the box predictor whose thresholds apply in inference: the last of a cascade."""
    if isinstance(roi_heads, CascadeROIHeads):
        return roi_heads.box_predictor[-1]
    return roi_heads.box_predictor


class SoftNMSCascadeROIHeads(CascadeROIHeads):
    """Detectron2's cascaded heads, with detections selected by the last box predictor.

    If ``box_predictors[-1]`` is a :class:`~mvitv2_det.detection.soft_nms.SoftNMSOutputLayers`,
    detections are selected by Soft-NMS. Training and weights are those of the parent class.
    """

    def _forward_box(
        self,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> dict[str, Tensor] | list[Instances]:
        """Returns the losses of all stages in training, the detections of each image otherwise."""
        if self.training:
            return super()._forward_box(features, proposals, targets)
        boxes, scores = box_candidates(self, features, proposals)
        return select_detections(self, boxes, scores, [x.image_size for x in proposals])


def _cascade_candidates(
    roi_heads: CascadeROIHeads, features: dict[str, Tensor], proposals: list[Instances]
) -> tuple[list[Tensor], list[Tensor]]:
    maps = [features[name] for name in roi_heads.box_in_features]
    image_sizes = [proposal.image_size for proposal in proposals]
    boxes: list[Tensor] = []
    scores: list[list[Tensor]] = []
    for stage, predictor in enumerate(roi_heads.box_predictor):
        if stage > 0:
            proposals = roi_heads._create_proposals_from_boxes(boxes, image_sizes)
        predictions = roi_heads._run_stage(maps, proposals, stage)
        boxes = predictor.predict_boxes(predictions, proposals)
        scores.append(predictor.predict_probs(predictions, proposals))
    # Detectron2 sums and then scales; a mean would round differently.
    share = 1 / roi_heads.num_cascade_stages
    return list(boxes), [sum(of_stages) * share for of_stages in zip(*scores, strict=True)]
