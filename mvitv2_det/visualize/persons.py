"""Persons drawn on a frame, with lines of text on each."""

from collections.abc import Sequence

import cv2
import numpy as np

_COLOUR, _INK = (0, 230, 110), (0, 0, 0)  # RGB


def draw_persons(
    frame: np.ndarray, boxes: np.ndarray, labels: Sequence[Sequence[str]]
) -> np.ndarray:
    """Draws boxes and their texts.

    Args:
        frame: (H, W, 3) RGB, uint8; it is left as it is.
        boxes: (N, 4) left, top, right, bottom in pixels.
        labels: lines of text on each, from its top on.

    Returns:
        (H, W, 3) RGB, uint8.
    """
    picture = np.ascontiguousarray(frame).copy()
    scale = max(0.35, min(frame.shape[:2]) / 900)
    thick = max(1, round(2 * scale))
    for box, lines in zip(np.asarray(boxes).round().astype(int).tolist(), labels, strict=True):
        left, top, right, bottom = box
        cv2.rectangle(picture, (left, top), (right, bottom), _COLOUR, thick)
        y = max(top, 0)
        for line in lines:
            # OpenCV's font has no other letters than ASCII's.
            text = line.encode("ascii", "replace").decode()
            (width, height), below = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
            end = y + height + below + 2
            cv2.rectangle(picture, (left, y), (left + width + 2, end), _COLOUR, -1)
            place = (left + 1, end - below)
            cv2.putText(picture, text, place, cv2.FONT_HERSHEY_SIMPLEX, scale, _INK, 1, cv2.LINE_AA)
            y = end
    return picture
