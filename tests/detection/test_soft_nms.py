"""Soft-NMS against a slow version, against hard NMS in its limits, and in the box heads."""

import pytest
import torch
from detectors import DETECTORS, tiny_detector
from detectron2.layers import ShapeSpec, batched_nms
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads import CascadeROIHeads
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from reference import soft_nms as reference

from mvitv2_det.detection.box_inference import SoftNMSCascadeROIHeads, selecting_predictor
from mvitv2_det.detection.soft_nms import (
    SOFT_NMS_METHODS,
    SoftNMSOutputLayers,
    soft_nms,
    soft_nms_inference,
)

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])]


def random_boxes(number, dtype=torch.float64, side=100.0, spread=0.3):
    """Boxes that overlap a lot; some are empty."""
    corner = spread * side * torch.rand(number, 2, dtype=dtype)
    extent = (0.6 * side * torch.rand(number, 2, dtype=dtype) - 2).clamp(min=0)
    return torch.cat([corner, corner + extent], dim=1)


def settings(**changes):
    defaults = {"method": "linear", "sigma": 0.5, "iou_threshold": 0.3, "score_threshold": 0.05}
    return defaults | changes


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("method", ["linear", "gaussian"])
def test_equals_the_reference(method, ties, device):
    """float64, 300 boxes in seven groups of unequal size, one of them empty: to 1e-12."""
    boxes, scores = random_boxes(300), torch.rand(300, dtype=torch.float64)
    if ties:
        scores = (scores * 8).round() / 8
        boxes[1::3] = boxes[0::3]
    groups = (torch.rand(300) ** 2 * 7).long() * 5
    groups[groups == 15] = 10
    options = settings(method=method)
    keep, new_scores = soft_nms(boxes.to(device), scores.to(device), groups.to(device), **options)
    expected = {}
    for group in groups.unique():
        members = (groups == group).nonzero()[:, 0]
        found = reference.soft_nms(boxes[members].tolist(), scores[members].tolist(), **options)
        expected |= {int(members[index]): score for index, score in found}
    assert len(expected) > 30
    assert set(keep.tolist()) == set(expected)
    assert new_scores.tolist() == pytest.approx([expected[i] for i in keep.tolist()], abs=1e-12)
    # By falling score, equal ones in the order of the candidates.
    order = list(zip((-new_scores).tolist(), keep.tolist(), strict=True))
    assert order == sorted(order)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_lower_precisions_are_computed_in_float32(dtype):
    """From the same rounded input; the scores are then rounded to their type once."""
    boxes, scores = random_boxes(200).to(dtype), torch.rand(200).to(dtype)
    groups = torch.arange(200) % 3
    keep, new_scores = soft_nms(boxes, scores, groups, **settings(method="gaussian"))
    in_full = soft_nms(boxes.float(), scores.float(), groups, **settings(method="gaussian"))
    assert new_scores.dtype == dtype
    assert torch.equal(keep, in_full[0])
    assert torch.equal(new_scores, in_full[1].to(dtype))


def test_linear_is_hard_nms_where_all_that_loses_score_is_dropped():
    """Scores of at most score_threshold / (1 - iou_threshold): exact, order and scores too."""
    boxes = random_boxes(500, torch.float32)
    scores = 0.4 + 0.4 * torch.rand(500)
    groups = torch.randint(0, 4, (500,))
    options = settings(iou_threshold=0.5, score_threshold=0.4)
    keep, new_scores = soft_nms(boxes, scores, groups, **options)
    assert torch.equal(keep, batched_nms(boxes, scores, groups, 0.5))
    assert 20 < len(keep) < 400
    assert torch.equal(new_scores, scores[keep])


def test_gaussian_is_hard_nms_at_iou_0_as_sigma_goes_to_0():
    boxes = random_boxes(500, torch.float32, side=1000.0, spread=1.0)
    boxes[:, 2:] = boxes[:, :2] + 0.3 * (boxes[:, 2:] - boxes[:, :2])
    scores, groups = torch.rand(500), torch.randint(0, 4, (500,))
    options = settings(method="gaussian", sigma=1e-12, score_threshold=1e-6)
    keep, new_scores = soft_nms(boxes, scores, groups, **options)
    assert torch.equal(keep, batched_nms(boxes, scores, groups, 0.0))
    assert 20 < len(keep) < 400
    assert torch.equal(new_scores, scores[keep])


def test_empty_and_limited():
    boxes, scores, groups = random_boxes(50), torch.rand(50), torch.arange(50) % 2
    for count in (0, 50):
        keep, new_scores = soft_nms(
            boxes[:count], scores[:count], groups[:count], **settings(score_threshold=1.0)
        )
        assert keep.shape == new_scores.shape == (0,)
        assert keep.dtype == torch.int64
    every = soft_nms(boxes, scores, groups, **settings())[0]
    three = soft_nms(boxes, scores, groups, **settings(), max_per_group=3)[0]
    first = [i for group in (0, 1) for i in [k for k in every.tolist() if k % 2 == group][:3]]
    assert sorted(three.tolist()) == sorted(first)
    assert len(soft_nms(boxes, scores, groups, **settings(), max_per_group=0)[0]) == 0


@pytest.mark.parametrize("class_agnostic", [True, False])
def test_inference_on_a_batch(class_agnostic):
    """Three images, the second without a candidate; each as if alone, and as hard NMS's in form.

    In the limit where Soft-NMS is hard NMS, Detectron2's own function gives the same.
    """
    sizes, rows, classes = [(90, 120), (50, 60), (100, 80)], (40, 7, 60), 5
    boxes = [
        torch.stack([random_boxes(r, torch.float32) for _ in range(classes)], dim=1).flatten(1)
        for r in rows
    ]
    if class_agnostic:
        boxes = [b[:, :4] for b in boxes]
    scores = [0.7 * torch.rand(r, classes + 1) for r in rows]
    scores[1] *= 0.1
    boxes[2][3, 1] = torch.inf
    scores[2][5, 2] = torch.nan
    options = settings(iou_threshold=0.5, score_threshold=0.4)
    results, indices = soft_nms_inference(boxes, scores, sizes, **options, max_per_image=9)
    expected = fast_rcnn_inference(boxes, scores, sizes, 0.4, 0.5, 9)
    assert [len(result) for result in results] == [9, 0, 9]
    for image, (result, hard) in enumerate(zip(results, expected[0], strict=True)):
        assert result.image_size == hard.image_size
        assert torch.equal(result.pred_boxes.tensor, hard.pred_boxes.tensor)
        assert torch.equal(result.scores, hard.scores)
        assert torch.equal(result.pred_classes, hard.pred_classes)
        # Detectron2 counts its indices without the rows that are not finite.
        finite = boxes[image].isfinite().all(dim=1) & scores[image].isfinite().all(dim=1)
        assert torch.equal(indices[image], finite.nonzero()[:, 0][expected[1][image]])
    # A limit changes none of the best.
    options = settings(method="gaussian")
    every, _ = soft_nms_inference(boxes, scores, sizes, **options, max_per_image=-1)
    best, _ = soft_nms_inference(boxes, scores, sizes, **options, max_per_image=9)
    assert len(every[0]) > 50
    assert torch.equal(every[0].scores[:9], best[0].scores)
    assert torch.equal(every[0].pred_boxes.tensor[:9], best[0].pred_boxes.tensor)


@pytest.fixture
def image():
    return torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)


@torch.no_grad()
def detections(model, image):
    return model([{"image": image}])[0]["instances"]


@pytest.mark.parametrize("method", SOFT_NMS_METHODS)
@pytest.mark.parametrize("name", DETECTORS)
def test_in_the_box_heads(name, method, image):
    """By config: the weights stay, and what is selected is Soft-NMS of all boxes."""
    plain, soft = tiny_detector(name), tiny_detector(name, method)
    assert list(plain.state_dict()) == list(soft.state_dict())
    plain_detections, soft_detections = detections(plain, image), detections(soft, image)
    predictor = selecting_predictor(plain.roi_heads)
    # No NMS: no IoU is above 1.
    predictor.test_nms_thresh, predictor.test_topk_per_image = 1.0, -1
    every = detections(plain, image)
    keep, scores = soft_nms(
        every.pred_boxes.tensor,
        every.scores,
        every.pred_classes,
        **settings(method=method, iou_threshold=0.5, score_threshold=predictor.test_score_thresh),
    )
    assert torch.equal(soft_detections.scores, scores[:100])
    assert torch.equal(soft_detections.pred_boxes.tensor, every.pred_boxes.tensor[keep[:100]])
    assert torch.equal(soft_detections.pred_masks, every.pred_masks[keep[:100]])
    assert len(every) > len(plain_detections) > 20
    assert not torch.equal(soft_detections.scores, plain_detections.scores)


def test_cascade_heads_with_hard_nms_are_detectron2s(image):
    """The same detections, bit for bit, from the part that is written again."""
    model = tiny_detector("cascade_mask_rcnn_mvitv2_t_3x")
    assert type(model.roi_heads) is CascadeROIHeads
    expected = detections(model, image)
    model.roi_heads.__class__ = SoftNMSCascadeROIHeads
    actual = detections(model, image)
    assert len(expected) > 20
    for field in ("scores", "pred_classes", "pred_masks"):
        assert torch.equal(actual.get(field), expected.get(field))
    assert torch.equal(actual.pred_boxes.tensor, expected.pred_boxes.tensor)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"soft_nms_method": "hard"}, "linear or gaussian, got 'hard'"),
        ({"soft_nms_sigma": 0.0}, "above 0, got 0.0"),
    ],
)
def test_bad_settings(changes, words):
    arguments = {"box2box_transform": Box2BoxTransform(weights=(10, 10, 5, 5)), "num_classes": 2}
    with pytest.raises(ValueError, match=words):
        SoftNMSOutputLayers(ShapeSpec(channels=4), **arguments, **changes)
