"""Drawing of instances on an image, with Detectron2's Visualizer."""

import colorsys
import math
from typing import Any

import numpy as np
from detectron2.structures import BoxMode
from detectron2.utils.visualizer import GenericMask, Visualizer

MAX_LABELLED = 30  # more labels than this would cover the instances of an image

# Hues in turns of the colour circle. The first, green, stands out on photographs and on stains.
_FIRST_HUE, _EVEN_HUES, _GOLDEN_ANGLE = 0.38, 12, (3 - math.sqrt(5)) / 2


def class_colors(number: int) -> list[tuple[float, float, float]]:
    """Returns one RGB colour in [0, 1] for each class, always the same for the same number.

    A few classes divide the colour circle evenly. With many classes, neighbours would get similar
    colours although they are often similar things (cat and dog), so their hues differ by the
    golden angle.
    """
    step = 1 / number if number <= _EVEN_HUES else _GOLDEN_ANGLE
    return [
        colorsys.hls_to_rgb((_FIRST_HUE + index * step) % 1, (0.5, 0.66)[index % 2], 1.0)
        for index in range(number)
    ]


def draw_instances(
    image: np.ndarray, annotations: list[dict[str, Any]], class_names: list[str]
) -> np.ndarray:
    """Draws masks, boxes and labels, large instances first.

    Labels are omitted if there is only one class, or more than :data:`MAX_LABELLED` instances.

    Args:
        image: RGB image (H, W, 3), values 0 to 255.
        annotations: annotations in Detectron2's dataset format, where ``category_id`` counts from
            0; ``segmentation`` (polygons, RLE or a mask (H, W)), ``score`` and ``iscrowd`` are
            optional.
        class_names: names of all classes.

    Returns:
        RGB picture (H, W, 3), uint8.
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


def _xyxy(annotation: dict[str, Any]) -> list[float]:
    return BoxMode.convert(list(annotation["bbox"]), annotation["bbox_mode"], BoxMode.XYXY_ABS)


def _draw_mask(
    visualizer: Visualizer, mask: GenericMask, color: tuple[float, float, float]
) -> None:
    """Fills and outlines a mask, but not its holes, which ``overlay_instances`` would fill."""
    visualizer.draw_binary_mask(mask.mask, color, alpha=0.4, area_threshold=0)
    if mask.has_holes:  # draw_binary_mask draws no outline of masks with holes.
        for polygon in mask.polygons:
            visualizer.draw_polygon(polygon.reshape(-1, 2), color, alpha=0)


def _font_scale(instances: int) -> float:
    """Returns the scale of fonts and line widths for a number of instances; 1 is Visualizer's."""
    if instances > MAX_LABELLED:
        return 0.6
    return 1.6 if instances <= 10 else 1.1


def _label(annotation: dict[str, Any], class_names: list[str]) -> str:
    label = class_names[annotation["category_id"]]
    if "score" in annotation:
        return f"{label} {annotation['score']:.0%}"
    return f"{label} (crowd)" if annotation.get("iscrowd") else label
