"""Drawing of instances on an image, by OpenCV.

Axes: H × W pixels of the image, H' × W' of the picture, which may be of another scale.
"""

import colorsys
import math
from typing import Any

import cv2
import numpy as np
from detectron2.structures import BoxMode

from .masks import MaskPart
from .text import RGB, draw_label, text_size

MAX_LABELLED = 30  # of more instances, a class is named only where its name fits over the box
# Sides of a picture in pixels: images with a shorter one are enlarged, those with a longer one are
# shrunk, so that labels can be read and files can be opened.
LEAST_SIDE, MOST_SIDE = 400, 8000

# Of more instances, those are labelled whose labels hide no other.
_PACKED = 1000
_OPACITY = 0.4  # of masks
_LETTERS = 11, 1 / 65  # size of letters: pixels at least, and as a share of the mean side
# Hues in turns of the colour circle. The first, green, stands out on photographs and on stains.
_FIRST_HUE, _EVEN_HUES, _GOLDEN_ANGLE = 0.38, 12, (3 - math.sqrt(5)) / 2
_NO_TRACK = (0.7, 0.7, 0.7)


def class_colors(number: int) -> list[tuple[float, float, float]]:
    """Returns one RGB colour in [0, 1] for each class, always the same for the same number.

    A few classes divide the colour circle evenly. With many classes, neighbours would get similar
    colours although they are often similar things (cat and dog), so their hues differ by the
    golden angle.
    """
    step = 1 / number if number <= _EVEN_HUES else _GOLDEN_ANGLE
    return [_color(index, step) for index in range(number)]


def _color(index: int, step: float) -> tuple[float, float, float]:
    return colorsys.hls_to_rgb((_FIRST_HUE + index * step) % 1, (0.5, 0.66)[index % 2], 1.0)


def picture_scale(height: int, width: int) -> float:
    """Pixels of a picture for each of the image: a whole number, or one divided by it."""
    if max(height, width) > MOST_SIDE:
        return 1 / math.ceil(max(height, width) / MOST_SIDE)
    enlarged = math.ceil(LEAST_SIDE / min(height, width))
    return max(1, min(enlarged, MOST_SIDE // 4 // max(height, width)))


def draw_instances(
    image: np.ndarray,
    annotations: list[dict[str, Any]],
    class_names: list[str],
    *,
    scale: float | None = None,
) -> np.ndarray:
    """Draws masks, boxes and labels, large instances first.

    A label holds the score, where there is one, and the class's name. The name is left out if there
    is only one class, or where it would hide others among more than :data:`MAX_LABELLED`. Instances
    of a video that are tracked are labelled with their numbers, too, and have a colour for each
    number, not for each class; they are grey where they have none yet.

    Args:
        image: RGB image (H, W, 3), uint8.
        annotations: annotations in Detectron2's dataset format, where ``category_id`` counts from
            0; ``segmentation`` (of any kind that :class:`.masks.MaskPart` reads), ``score``,
            ``iscrowd`` and ``track_id`` (a number or None) are optional.
        class_names: names of all classes.
        scale: of the picture; by default :func:`picture_scale`.

    Returns:
        RGB picture (H', W', 3), uint8.
    """
    height, width = image.shape[:2]
    scale = picture_scale(height, width) if scale is None else scale
    picture = resized(image, scale)
    draw_on(picture, annotations, class_names, (height, width), scale)
    return picture


def resized(image: np.ndarray, scale: float) -> np.ndarray:
    """A copy of an image (H, W, 3) at another scale."""
    if scale == 1:
        return np.array(image, order="C")
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return cv2.resize(np.ascontiguousarray(image), size, interpolation=way)


def draw_on(
    picture: np.ndarray,
    annotations: list[dict[str, Any]],
    class_names: list[str],
    size: tuple[int, int],
    scale: float,
) -> None:
    """Draws on a picture of an image; see :func:`draw_instances`.

    Args:
        picture: (H', W', 3) RGB, uint8; it is changed.
        annotations: in pixels of the image.
        class_names: names of all classes.
        size: H and W of the image.
        scale: of the picture.
    """
    boxes = np.array([_xyxy(annotation) for annotation in annotations]).reshape(-1, 4)
    order = np.argsort(-(boxes[:, 2:] - boxes[:, :2]).prod(axis=1), kind="stable")
    boxes = np.rint(boxes[order] * scale).astype(int)
    annotations = [annotations[index] for index in order]
    palette = class_colors(len(class_names))
    colors = [_in_bytes(_color_of(annotation, palette)) for annotation in annotations]
    side = math.sqrt(picture.shape[0] * picture.shape[1])
    letters = round(max(_LETTERS[0], _LETTERS[1] * side))
    thick = max(1, round(letters / 12))
    outlines = [
        MaskPart.of_segmentation(annotation["segmentation"], *size).scaled(scale).contours()
        if annotation.get("segmentation") is not None
        else []
        for annotation in annotations
    ]
    if any(outlines):
        filled = picture.copy()
        for lines, color in zip(outlines, colors, strict=True):
            cv2.drawContours(filled, lines, -1, color, cv2.FILLED)
        cv2.addWeighted(filled, _OPACITY, picture, 1 - _OPACITY, 0, dst=picture)
    for lines, box, color in zip(outlines, boxes.tolist(), colors, strict=True):
        cv2.drawContours(picture, lines, -1, color, thick, cv2.LINE_AA)
        # Beside its outline, a box says little.
        cv2.rectangle(picture, box[:2], box[2:], color, 1 if lines else thick)
    _draw_labels(picture, annotations, boxes, colors, class_names, letters)


def _draw_labels(
    picture: np.ndarray,
    annotations: list[dict[str, Any]],
    boxes: np.ndarray,
    colors: list[RGB],
    class_names: list[str],
    letters: int,
) -> None:
    """Writes each label where it hides the least of the others, small instances first."""
    crowded, packed = len(annotations) > MAX_LABELLED, len(annotations) > _PACKED
    taken = np.zeros(picture.shape[:2], np.uint8)
    for annotation, box, color in reversed(list(zip(annotations, boxes, colors, strict=True))):
        score = f"{annotation['score']:.0%}" if "score" in annotation else ""
        crowd = "(crowd)" if annotation.get("iscrowd") else ""
        name = class_names[annotation["category_id"]] if len(class_names) > 1 else ""
        number = f"#{annotation['track_id']}" if annotation.get("track_id") is not None else ""
        text = " ".join(filter(None, (number, name, score, crowd)))
        if crowded and score and text_size(text, letters)[0] > box[2] - box[0]:
            text = number or score
        if not text:
            continue
        width, height = text_size(text, letters)
        (left, top), hidden = _place(box.tolist(), width, height, taken)
        if packed and hidden:
            continue
        taken[top : top + height, left : left + width] = 1
        draw_label(picture, text, (left, top), letters, color)


def _place(
    box: list[int], width: int, height: int, taken: np.ndarray
) -> tuple[tuple[int, int], int]:
    """Chooses a place for a label, x and y of its corner, and says how many taken pixels it hides.

    Args:
        box: left, top, right, bottom.
        width, height: of the label.
        taken: (H', W') uint8, 1 where labels are.
    """
    left, top, right, bottom = box
    corners = [
        (left, top - height),  # above, below, beside, inside
        (left, bottom + 1),
        (right - width, top - height),
        (right + 1, top),
        (left - width, top),
        (left, top),
        (right - width, bottom - height),
    ]
    least = None
    for x, y in corners:
        # Moved into the picture, where it lies over an edge of it.
        x, y = max(0, min(x, taken.shape[1] - width)), max(0, min(y, taken.shape[0] - height))
        hidden = cv2.countNonZero(taken[y : y + height, x : x + width])
        if least is None or hidden < least[1]:
            least = (x, y), hidden
        if not hidden:
            break
    assert least is not None
    return least


def _color_of(
    annotation: dict[str, Any], palette: list[tuple[float, float, float]]
) -> tuple[float, float, float]:
    if "track_id" not in annotation:
        return palette[annotation["category_id"]]
    number = annotation["track_id"]
    return _NO_TRACK if number is None else _color(number, _GOLDEN_ANGLE)


def _xyxy(annotation: dict[str, Any]) -> list[float]:
    return BoxMode.convert(list(annotation["bbox"]), annotation["bbox_mode"], BoxMode.XYXY_ABS)


def _in_bytes(color: tuple[float, float, float]) -> RGB:
    red, green, blue = (round(255 * part) for part in color)
    return red, green, blue
