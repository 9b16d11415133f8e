"""Frame mAP in plain loops over single boxes, from the words of the PASCAL VOC measure."""


def overlap(one, other):
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    area = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return shared / (area - shared)


def average_precision(truths, detections, iou):
    """Of one action.

    Args:
        truths: (frame, box) of each.
        detections: (frame, box, score) of each.
    """
    if not truths:
        return None
    ranked = sorted(enumerate(detections), key=lambda each: (-each[1][2], each[0]))
    used = [False] * len(truths)
    points = [(0.0, 1.0)]
    hits = 0
    for rank, (_, (frame, box, _score)) in enumerate(ranked, 1):
        best, best_overlap = None, -1.0
        for index, (other_frame, other) in enumerate(truths):
            if other_frame == frame and overlap(box, other) > best_overlap:
                best, best_overlap = index, overlap(box, other)
        if best is not None and best_overlap >= iou and not used[best]:
            used[best] = True
            hits += 1
        points.append((hits / len(truths), hits / rank))
    area = 0.0
    for index in range(1, len(points)):
        step = points[index][0] - points[index - 1][0]
        area += step * max(precision for _, precision in points[index:])
    return area
