"""Gallery of a run's predictions beside the ground truth."""

from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.data.detection_utils import check_image_size, read_image
from detectron2.structures import BoxMode
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..data import naming_unreadable_image
from ..errors import UserError
from .instances import draw_instances

IMAGES_PER_PAGE = 8

_DPI = 100
_LONGEST_SIDE = 640  # pixels of a drawn image
_GAP, _PAIR_GAP, _MARGIN = 8, 32, 16  # pixels
_TITLE_HEIGHT, _CAPTION_HEIGHT = 104, 36  # pixels


def draw_gallery(
    dataset: str,
    results: dict[int, list[dict[str, Any]]],
    folder: Path,
    *,
    title: str,
    images: int = 8,
    score_threshold: float = 0.5,
) -> list[Path]:
    """Draws the predictions for some images of a data set beside the ground truth.

    The images are selected evenly, so that nobody can pick the best: the data set is ordered by
    image id and divided into as many equal parts as there are images to draw, and the middle image
    of each part is drawn.

    Args:
        dataset: name of the data set in Detectron2's catalogs.
        results: the predictions of :func:`read_results`.
        folder: folder for ``gallery.png``, ``gallery_2.png`` and so on, with
            :data:`IMAGES_PER_PAGE` images each. Files of an earlier gallery are deleted.
        title: title of each page.
        images: maximum number of images.
        score_threshold: lowest score of the predictions that are drawn.

    Returns:
        The files.

    Raises:
        UserError: an image cannot be read, or the predictions belong to other data.
    """
    records, metadata = DatasetCatalog.get(dataset), MetadataCatalog.get(dataset)
    records = sorted(records, key=lambda record: record["image_id"])
    _check_results(results, records, metadata)
    chosen = [records[index] for index in spread(len(records), images)]
    if not any("segmentation" in result for found in results.values() for result in found):
        # Predictions without masks are compared with the boxes of the ground truth.
        chosen = [_without_masks(record) for record in chosen]
    pairs = [_draw_pair(record, results, metadata, score_threshold) for record in chosen]
    for old in folder.glob("gallery*.png"):
        old.unlink()
    files: list[Path] = []
    for first in range(0, len(pairs), IMAGES_PER_PAGE):
        page = len(files) + 1
        files.append(folder / ("gallery.png" if page == 1 else f"gallery_{page}.png"))
        _draw_page(pairs[first : first + IMAGES_PER_PAGE], title, files[-1])
    return files


def spread(total: int, count: int) -> list[int]:
    """Selects ``count`` of ``total`` positions evenly: the middle of each of equal parts."""
    count = min(count, total)
    return [(2 * part + 1) * total // (2 * count) for part in range(count)]


def _check_results(
    results: dict[int, list[dict[str, Any]]], records: list[dict[str, Any]], metadata: Metadata
) -> None:
    known = {record["image_id"] for record in records}
    categories = metadata.thing_dataset_id_to_contiguous_id
    for image_id, predictions in results.items():
        if image_id not in known:
            raise UserError(
                f"the run's predictions are of image {image_id}, which {metadata.json_file} does "
                f"not list: they were made on other data"
            )
        for prediction in predictions:
            if prediction["category_id"] not in categories:
                raise UserError(
                    f"the run's predictions are of category {prediction['category_id']}, which "
                    f"{metadata.json_file} does not list: they were made on other data"
                )


def _draw_pair(
    record: dict[str, Any],
    results: dict[int, list[dict[str, Any]]],
    metadata: Metadata,
    score_threshold: float,
) -> list[tuple[str, np.ndarray]]:
    """Draws the predictions and the ground truth; returns caption and picture (H, W, 3) of each."""
    image = _read(record)
    scale = _LONGEST_SIDE / max(image.shape[:2])
    predictions = [
        _as_annotation(result, metadata)
        for result in results.get(record["image_id"], [])
        if result["score"] >= score_threshold
    ]
    truth = record.get("annotations", [])
    crowds = sum(annotation.get("iscrowd", 0) for annotation in truth)
    name = Path(record["file_name"]).name[-30:]
    captions = (
        f"{name}: {_count(len(predictions), 'detection')}",
        _count(len(truth) - crowds, "instance")
        + (f", {_count(crowds, 'crowd')}" if crowds else ""),
    )
    pictures = [
        draw_instances(image, annotations, metadata.thing_classes, scale=scale)
        for annotations in (predictions, truth)
    ]
    return list(zip(captions, pictures, strict=True))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _read(record: dict[str, Any]) -> np.ndarray:
    """Reads the RGB image (H, W, 3) of a record in Detectron2's dataset format."""
    with naming_unreadable_image(record["file_name"]):
        image = read_image(record["file_name"], "RGB")
        check_image_size(record, image)
    return image


def _without_masks(record: dict[str, Any]) -> dict[str, Any]:
    annotations = [
        {key: value for key, value in annotation.items() if key != "segmentation"}
        for annotation in record.get("annotations", [])
    ]
    return {**record, "annotations": annotations}


def _as_annotation(result: dict[str, Any], metadata: Metadata) -> dict[str, Any]:
    """Converts a record of COCO's results format to Detectron2's dataset format."""
    category = metadata.thing_dataset_id_to_contiguous_id[result["category_id"]]
    return {**result, "category_id": category, "bbox_mode": BoxMode.XYWH_ABS}


def _draw_page(pairs: list[list[tuple[str, np.ndarray]]], title: str, file: Path) -> None:
    """Writes a page with two pairs in each row; pictures are not resampled."""
    columns = min(2, len(pairs))
    rows = [pairs[first : first + columns] for first in range(0, len(pairs), columns)]
    heights = [max(pair[0][1].shape[0] for pair in row) + _CAPTION_HEIGHT for row in rows]
    lefts = _lefts(columns)
    width = lefts[-1] + _LONGEST_SIDE + _MARGIN
    height = _TITLE_HEIGHT + sum(heights) + _GAP * len(rows) + _MARGIN
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
    FigureCanvasAgg(figure)

    def write(x: float, y: float, text: str, **style: Any) -> None:
        figure.text(x / width, 1 - y / height, text, va="center", **style)

    canvas = np.full((height, width, 3), 255, np.uint8)
    write(_MARGIN, 30, title, fontsize=19)
    for column, left in enumerate(lefts):
        name = ("prediction", "ground truth")[column % 2]
        write(left, 78, name, fontsize=19, weight="bold")
    top = _TITLE_HEIGHT
    for row, row_height in zip(rows, heights, strict=True):
        cells = [cell for pair in row for cell in pair]
        for left, (caption, picture) in zip(lefts, cells, strict=False):
            write(left, top + _CAPTION_HEIGHT / 2, caption, fontsize=15)
            start = top + _CAPTION_HEIGHT
            canvas[start : start + picture.shape[0], left : left + picture.shape[1]] = picture
        top += row_height + _GAP
    figure.figimage(canvas, zorder=-1)
    figure.savefig(file)


def _lefts(columns: int) -> list[int]:
    """Returns the left edges, in pixels, of the pictures in a row of pairs."""
    pair_width = 2 * _LONGEST_SIDE + _GAP + _PAIR_GAP
    starts = [_MARGIN + column * pair_width for column in range(columns)]
    return [left for start in starts for left in (start, start + _LONGEST_SIDE + _GAP)]
