"""Soft-NMS as figure 2 of Bodla et al. (ICCV 2017) writes it: slow, one box at a time."""

import math


def iou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    intersection = width * height
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return intersection / (areas[0] + areas[1] - intersection)


def soft_nms(boxes, scores, method, sigma, iou_threshold, score_threshold):
    """Indices and new scores of the detections of one class, in the order they are found.

    Args:
        boxes: list of [x1, y1, x2, y2].
        scores: list of floats.
    """
    left = [[score, index] for index, score in enumerate(scores)]
    found = []
    while left:
        best = max(left, key=lambda entry: entry[0])  # the first of equal ones
        left.remove(best)
        if best[0] <= score_threshold:
            break
        found.append((best[1], best[0]))
        for entry in left:
            overlap = iou(boxes[best[1]], boxes[entry[1]])
            if method == "gaussian":
                entry[0] *= math.exp(-(overlap**2) / sigma)
            elif overlap > iou_threshold:
                entry[0] *= 1 - overlap
    return found
