"""Persons drawn on a frame, with lines of text on each."""

from collections.abc import Sequence

import cv2
import numpy as np

from .text import draw_label, text_size

_COLOUR = (0, 230, 110)  # RGB


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
    letters = max(10, min(frame.shape[:2]) // 35)
    thick = max(1, round(letters / 12))
    for box, lines in zip(np.asarray(boxes).round().astype(int).tolist(), labels, strict=True):
        left, top, right, bottom = box
        cv2.rectangle(picture, (left, top), (right, bottom), _COLOUR, thick)
        y = max(top, 0)
        for text in lines:
            draw_label(picture, text, (left, y), letters, _COLOUR)
            y += text_size(text, letters)[1]
    return picture
