"""Whether two lists of detections are the same, but for rounding and the order of ties."""

import torch
from detectron2.structures import Instances


def partners(
    found: Instances, expected: Instances, pixels: float = 1e-3, score: float = 1e-4
) -> list[int | None]:
    """For each expected instance, one that was found: each at most once, the nearest first.

    Of the same class, with all sides of its box within ``pixels`` and its score within ``score``.
    """
    sides = (expected.pred_boxes.tensor[:, None] - found.pred_boxes.tensor[None]).abs().amax(-1)
    scores = (expected.scores[:, None] - found.scores[None]).abs()
    fits = (sides <= pixels) & (scores <= score)
    fits &= expected.pred_classes[:, None] == found.pred_classes[None]
    distance = torch.where(fits, sides, torch.inf)
    chosen: list[int | None] = []
    for row in distance:
        best = int(row.argmin()) if len(row) else 0
        chosen.append(best if len(row) and row[best] < torch.inf else None)
        if chosen[-1] is not None:
            distance[:, best] = torch.inf
    return chosen


def check_same(found: Instances, expected: Instances, score: float = 1e-4) -> None:
    """Asserts that all have partners, in the same order but for ties; masks, all but 1 in 1000."""
    assert found.image_size == expected.image_size and len(found) == len(expected)
    chosen = partners(found, expected, score=score)
    assert None not in chosen
    assert torch.allclose(found.scores, expected.scores, rtol=0, atol=score)
    if expected.has("pred_masks"):
        assert found.pred_masks.dtype == expected.pred_masks.dtype
        differing = found.pred_masks[chosen] != expected.pred_masks
        assert differing.float().mean() < 1e-3
