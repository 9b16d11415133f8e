"""Predictions as pre-annotations of Label Studio, to be corrected by people.

Its format is in https://labelstud.io/guide/predictions: places are in percent of the image, masks
are polygons. Those have no holes, so that of a mask with holes the outline alone remains.
"""

from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import cv2
import numpy as np

from ..visualize.masks import MaskPart

TASKS, CONFIG = "label_studio.json", "label_studio.xml"

_ROUGHNESS = 0.5  # pixels by which a polygon may leave the mask's outline


def label_studio_task(
    annotations: list[dict[str, Any]], names: list[str], file_name: str, height: int, width: int
) -> dict[str, Any]:
    """Makes the task of an image.

    Args:
        annotations: what was found, as :func:`.outputs.as_annotations` gives it.
        names: of the classes.
        file_name: from the folder that Label Studio serves as local storage.
        height, width: of the image, in pixels.
    """
    size = np.array([width, height])
    result = []
    for number, one in enumerate(annotations):
        common = {
            "from_name": "label",
            "to_name": "image",
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "score": one["score"],
        }
        name = names[one["category_id"]]
        if one.get("segmentation") is not None:
            part = MaskPart.of_segmentation(one["segmentation"], height, width)
            for region, points in enumerate(_polygons(part)):
                corners = (100 * points / size).round(3).tolist()
                value = {"points": corners, "closed": True, "polygonlabels": [name]}
                id_ = f"{number}-{region}"
                result.append({"id": id_, "type": "polygonlabels", "value": value, **common})
        else:
            left, top, right, bottom = one["bbox"]
            value = {
                "x": 100 * left / width,
                "y": 100 * top / height,
                "width": 100 * (right - left) / width,
                "height": 100 * (bottom - top) / height,
                "rotation": 0,
                "rectanglelabels": [name],
            }
            result.append({"id": str(number), "type": "rectanglelabels", "value": value, **common})
    scores = [one["score"] for one in annotations]
    prediction = {"model_version": "mvitv2_det", "score": min(scores, default=0), "result": result}
    image = f"/data/local-files/?d={quote(file_name)}"
    return {"data": {"image": image}, "predictions": [prediction]}


def label_studio_config(names: list[str], *, masks: bool) -> str:
    """Makes the labelling interface that the tasks are for."""
    tag = "PolygonLabels" if masks else "RectangleLabels"
    labels = "".join(f"    <Label value={quoteattr(name)}/>\n" for name in names)
    return (
        f'<View>\n  <Image name="image" value="$image"/>\n'
        f'  <{tag} name="label" toName="image">\n{labels}  </{tag}>\n</View>\n'
    )


def _polygons(part: MaskPart) -> list[np.ndarray]:
    """Outer outlines of the regions, (points, 2) of x and y, through the pixels' outer corners."""
    # Twice as large, an outline goes around the pixels rather than through their centres.
    grown = np.pad(part.pixels.repeat(2, 0).repeat(2, 1), 1)
    grown = cv2.dilate(grown, np.ones((2, 2), np.uint8), anchor=(0, 0)) if grown.size else grown
    found, _ = cv2.findContours(grown, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    smooth = [cv2.approxPolyDP(line, 2 * _ROUGHNESS, closed=True)[:, 0] for line in found]
    corner = np.array([part.left, part.top])
    return [(line - 1) / 2 + corner for line in smooth if len(line) > 2]
