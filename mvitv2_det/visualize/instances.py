"""Instances drawn over an image, with Detectron2's Visualizer."""

import colorsys
import math

import numpy as np
from detectron2.structures import BoxMode
from detectron2.utils.visualizer import GenericMask, Visualizer

MAX_LABELLED = 30  # more names than this in one image cover what they name

# In turns of the colour circle. The first hue, green, stands out on photographs and on stains.
_FIRST_HUE, _EVEN_HUES, _GOLDEN_ANGLE = 0.38, 12, (3 - math.sqrt(5)) / 2


def class_colors(number: int) -> list[tuple[float, float, float]]:
    """One RGB colour in [0, 1] per class, the same in every picture of the same data.

    A few classes share the colour circle evenly. Many would get too near to their neighbours,
    which are often of a kind (cat and dog): steps of the golden angle keep those apart.
    """
    step = 1 / number if number <= _EVEN_HUES else _GOLDEN_ANGLE
    return [
        colorsys.hls_to_rgb((_FIRST_HUE + index * step) % 1, (0.5, 0.66)[index % 2], 1.0)
        for index in range(number)
    ]


def draw_instances(
    image: np.ndarray, annotations: list[dict], class_names: list[str]
) -> np.ndarray:
    """Draws masks, boxes and labels, large instances first.

    Labels are left out where there is one class alone, or more than :data:`MAX_LABELLED`
    instances.

    Args:
        image: (H, W, 3), RGB, 0 to 255.
        annotations: in Detectron2's dataset format, ``category_id`` counting from 0;
            ``segmentation`` (polygons, RLE or an (H, W) mask), ``score`` and ``iscrowd`` may be
            missing.
        class_names: of all classes.

    Returns:
        (H, W, 3) RGB, uint8.
    """
    height, width = image.shape[:2]
    crowded = len(annotations) > MAX_LABELLED
    labelled = len(class_names) > 1 and not crowded
    visualizer = Visualizer(image, font_size_scale=_font_scale(len(annotations)))
    palette = class_colors(len(class_names))
    boxes = np.array([_xyxy(annotation) for annotation in annotations]).reshape(-1, 4)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    order = np.argsort(-areas, kind="stable")
    annotations = [annotations[index] for index in order]
    colors = [palette[annotation["category_id"]] for annotation in annotations]
    for annotation, color in zip(annotations, colors, strict=True):
        if annotation.get("segmentation") is not None:
            _draw_mask(visualizer, GenericMask(annotation["segmentation"], height, width), color)
    labels = [_label(annotation, class_names) for annotation in annotations]
    visualizer.overlay_instances(
        boxes=boxes[order], labels=labels if labelled else None, assigned_colors=colors
    )
    return visualizer.get_output().get_image()


def _xyxy(annotation: dict) -> list[float]:
    return BoxMode.convert(list(annotation["bbox"]), annotation["bbox_mode"], BoxMode.XYXY_ABS)


def _draw_mask(visualizer: Visualizer, mask: GenericMask, color: tuple) -> None:
    """Fill and outline; the inside of an 8 or a 0 stays clear, unlike in overlay_instances."""
    visualizer.draw_binary_mask(mask.mask, color, alpha=0.4, area_threshold=0)
    if mask.has_holes:  # draw_binary_mask gives those no outline
        for polygon in mask.polygons:
            visualizer.draw_polygon(polygon.reshape(-1, 2), color, alpha=0)


def _font_scale(instances: int) -> float:
    """Of Visualizer's own size; the width of lines goes with it."""
    if instances > MAX_LABELLED:
        return 0.6
    return 1.6 if instances <= 10 else 1.1


def _label(annotation: dict, class_names: list[str]) -> str:
    label = class_names[annotation["category_id"]]
    if "score" in annotation:
        return f"{label} {annotation['score']:.0%}"
    return f"{label} (crowd)" if annotation.get("iscrowd") else label
