"""Writing predictions: overlays, and results in COCO's format, as they are found."""

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePath
from types import TracebackType
from typing import Any

import cv2
import numpy as np
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import BoxMode, Instances
from PIL import Image

from ..errors import UserError
from ..video.with_av import require_av
from ..video.writing import VideoWriter
from ..visualize.instances import draw_on, picture_scale, resized
from ..visualize.masks import MaskPart, PackedMask
from .classes import Classes
from .inputs import Source
from .label_studio import CONFIG, TASKS, label_studio_config, label_studio_task
from .large_images import LargeImage
from .writing import JsonList, distinct_files, json_list, replacing

RESULTS, IMAGES, OVERLAYS = "results.json", "images.json", "overlays"

# Overlays of other kinds of images become PNG.
_DRAWN_ENDINGS = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class Predicted:
    """An image or a frame, and what was found in it.

    Attributes:
        source: the image, or the video of the frame.
        frame: number of the frame in its video, from 0 on; None for an image.
        image: (H, W, 3) RGB uint8, or a large image.
        instances: what was found, in pixels of ``image``.
    """

    source: Source
    frame: int | None
    image: np.ndarray | LargeImage
    instances: Instances


class OutputFolder:
    """A context manager that writes the output folder.

    ``results.json`` is in COCO's results format, each record also with ``file_name`` and, of
    videos, ``frame`` and, where an instance is tracked, ``track_id``; ``images.json`` is in COCO's
    dataset format without annotations, and lists what was predicted on, under the same ids. Both
    get their names when writing ends, even by an interrupt or error, and hold what was found until
    then. ``overlays/`` holds images and videos under the names of their sources.
    With ``label_studio``, images are also in ``label_studio.json``, and the interface that this is
    for in ``label_studio.xml``.
    """

    def __init__(
        self,
        folder: Path,
        sources: Sequence[Source],
        classes: Classes,
        *,
        draws: bool,
        label_studio: bool = False,
    ) -> None:
        """
        Args:
            folder: the folder, made if missing.
            sources: all that will be added, so that no overlay replaces another or an input.
            classes: the model's classes.
            draws: whether to write overlays.
            label_studio: whether to write tasks of Label Studio.

        Raises:
            UserError: an overlay would replace an input, one of a video needs PyAV, or a video
                would be a task of Label Studio.
        """
        videos = [source for source in sources if source.is_video]
        if label_studio and videos:
            raise UserError(
                f"{videos[0].path} is a video: what is written for Label Studio is of images"
            )
        if draws and videos:
            require_av()
        self._tasks: JsonList | None = None
        self._label_studio = label_studio
        self._folder, self._classes = folder, classes
        self._overlays = _overlay_files(folder / OVERLAYS, sources) if draws else {}
        self._stack = ExitStack()
        self._video: tuple[Source, VideoWriter, tuple[int, int], ExitStack] | None = None
        self.images = self.instances = 0

    def __enter__(self) -> "OutputFolder":
        categories = json.dumps(self._classes.as_coco(), ensure_ascii=False)
        open_list = self._stack.enter_context
        self._results = open_list(json_list(self._folder / RESULTS, "[", "]"))
        head = f'{{"categories": {categories},\n"images": ['
        self._images = open_list(json_list(self._folder / IMAGES, head, "]}"))
        if self._label_studio:
            self._tasks = open_list(json_list(self._folder / TASKS, "[", "]"))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end_video()
        self._stack.__exit__(kind, error, trace)

    def add(self, predicted: Predicted) -> None:
        """Writes what was found in an image, or in the next frame of a video.

        Raises:
            OSError: a file cannot be written.
            UserError: a video cannot be written.
        """
        source, instances = predicted.source, predicted.instances
        height, width = predicted.image.shape[:2]
        image_id = self.images + 1
        where: dict[str, str | int] = {"file_name": source.name}
        if predicted.frame is not None:
            where["frame"] = predicted.frame
        if source in self._overlays:
            self._draw(predicted)
        if self._tasks is not None:
            names, found = self._classes.names, as_annotations(instances)
            self._tasks.extend([label_studio_task(found, names, source.name, height, width)])
            if not self.images:
                interface = label_studio_config(names, masks=instances.has("pred_masks"))
                (self._folder / CONFIG).write_text(interface, encoding="utf-8")
        self._images.extend([{"id": image_id, **where, "width": width, "height": height}])
        self._results.extend(
            result | {"category_id": self._classes.ids[result["category_id"]]} | where
            for result in as_coco(instances, image_id)
        )
        self.images += 1
        self.instances += len(instances)

    def end_video(self) -> None:
        """Finishes the overlay of the video that was added last."""
        if self._video is not None:
            *_, stack = self._video
            self._video = None
            stack.close()

    def _draw(self, predicted: Predicted) -> None:
        image, size = predicted.image, predicted.image.shape[:2]
        scale = picture_scale(*size)
        drawn = image.at_scale(scale) if isinstance(image, LargeImage) else resized(image, scale)
        draw_on(drawn, as_annotations(predicted.instances), self._classes.names, size, scale)
        if predicted.frame is not None:
            self._write_frame(predicted.source, drawn)
            return
        file = self._overlays[predicted.source]
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file, keeps_part=False) as part:
            Image.fromarray(drawn).save(part, quality=95)

    def _write_frame(self, source: Source, drawn: np.ndarray) -> None:
        if self._video is None or self._video[0] != source:
            self.end_video()
            file = self._overlays[source]
            file.parent.mkdir(parents=True, exist_ok=True)
            stack = ExitStack()
            part = stack.enter_context(replacing(file, keeps_part=True))
            writer = stack.enter_context(VideoWriter(part, source.frames_per_second()))
            self._video = source, writer, (drawn.shape[1], drawn.shape[0]), stack
        _, writer, size, _ = self._video
        # A file has frames of one size.
        same = (drawn.shape[1], drawn.shape[0]) == size
        writer.add(drawn if same else cv2.resize(drawn, size))


def predicted_masks(instances: Instances) -> Iterator[MaskPart | PackedMask]:
    """The masks of predicted instances, one at a time; none of a model without masks."""
    for mask in instances.pred_masks if instances.has("pred_masks") else ():
        yield mask if isinstance(mask, PackedMask) else MaskPart.of(np.asarray(mask))


def as_annotations(instances: Instances) -> list[dict[str, Any]]:
    """Converts predicted instances to Detectron2's dataset format; masks are parts."""
    annotations = [
        {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": category, "score": score}
        for box, category, score in zip(
            instances.pred_boxes.tensor.tolist(),
            instances.pred_classes.tolist(),
            instances.scores.tolist(),
            strict=True,
        )
    ]
    for annotation, mask in zip(annotations, predicted_masks(instances), strict=False):
        annotation["segmentation"] = mask
    for annotation, number in zip(annotations, _track_ids(instances), strict=False):
        annotation["track_id"] = number
    return annotations


def as_coco(instances: Instances, image_id: int) -> list[dict[str, Any]]:
    """Converts predicted instances to COCO's results format; classes keep the model's numbers."""
    fields = {name: value for name, value in instances.get_fields().items() if name != "pred_masks"}
    records = instances_to_coco_json(Instances(instances.image_size, **fields), image_id)
    for record, mask in zip(records, predicted_masks(instances), strict=False):
        part = mask.part() if isinstance(mask, PackedMask) else mask
        record["segmentation"] = part.rle(*instances.image_size)
    for record, number in zip(records, _track_ids(instances), strict=False):
        if number is not None:
            record["track_id"] = number
    return records


def _track_ids(instances: Instances) -> list[int | None]:
    """The number of each instance, None where it has none yet; no list of what is not tracked."""
    if not instances.has("track_ids"):
        return []
    return [None if number < 0 else number for number in instances.track_ids.tolist()]


def _overlay_files(folder: Path, sources: Sequence[Source]) -> dict[Source, Path]:
    """Chooses a file for each source's overlay, so that no two sources share one.

    Raises:
        UserError: an overlay would replace an input.
    """
    names = {}
    for source in sources:
        name = PurePath(source.name)
        if source.is_video:
            name = name if name.suffix.lower() == ".mp4" else name.with_name(name.name + ".mp4")
        elif name.suffix.lower() not in _DRAWN_ENDINGS:
            name = name.with_name(name.name + ".png")
        names[source] = name
    return distinct_files(folder, names)
