"""A page of annotated images of a data set."""

from pathlib import Path
from typing import Any

from detectron2.data.detection_utils import read_image, transform_instance_annotations
from detectron2.data.transforms import ResizeTransform
from detectron2.structures import BoxMode
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..data.coco_format import CocoSummary
from ..data.mapper import naming_unreadable_image
from .gallery import spread
from .instances import draw_instances

_LONGEST_SIDE = 480  # pixels of a drawn image
_COLUMNS = 4
_DPI = 100


def draw_samples(summary: CocoSummary, image_folder: str, file: Path, images: int = 12) -> None:
    """Draws images with their annotations, evenly spread over those that have any.

    Args:
        summary: the data.
        image_folder: where the images are.
        file: the picture to write.
        images: how many, at most.

    Raises:
        UnreadableImage: an image cannot be read.
    """
    by_image: dict[Any, list[dict[str, Any]]] = {}
    for one in summary.content["annotations"]:
        by_image.setdefault(one["image_id"], []).append(one)
    records = [one for one in summary.content["images"] if one["id"] in by_image]
    chosen = [records[index] for index in spread(len(records), images)]
    classes = {category: index for index, category in enumerate(summary.categories)}
    names = list(summary.categories.values())
    rows = -(-len(chosen) // _COLUMNS)
    figure = Figure(figsize=(_COLUMNS * 4.8, rows * 4.2 + 0.4), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(max(rows, 1), _COLUMNS, squeeze=False).flat)
    for axis in axes:
        axis.axis("off")
    for axis, record in zip(axes, chosen, strict=False):
        path = Path(image_folder) / record["file_name"]
        with naming_unreadable_image(str(path)):
            image = read_image(str(path), "RGB")
        height, width = image.shape[:2]
        scale = _LONGEST_SIDE / max(height, width)
        resize = ResizeTransform(
            height, width, max(1, round(height * scale)), max(1, round(width * scale))
        )
        picture = resize.apply_image(image)
        annotations = [
            transform_instance_annotations(
                {**one, "bbox_mode": BoxMode.XYWH_ABS, "category_id": classes[one["category_id"]]},
                [resize],
                picture.shape[:2],
            )
            for one in by_image[record["id"]]
        ]
        axis.imshow(draw_instances(picture, annotations, names))
        axis.set_title(f"{record['file_name'][-40:]}: {len(annotations)}", fontsize=10)
    figure.suptitle(f"{Path(summary.json_file).name}: annotations of {len(chosen)} images")
    figure.savefig(file)
