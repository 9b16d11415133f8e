"""What an exported detector or backbone takes, made of an image: without Detectron2 and torch.

The file says of itself how, in its metadata. Pillow resizes, as in evaluation: OpenCV's bilinear
resizing does not antialias, and gives other pixels.

Axes: H × W pixels of the image as the network sees it.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .errors import UserError
from .predict.images import as_rgb, read_rgb

ENTRY = "input"  # of the metadata


@dataclass(frozen=True)
class ExportedInput:
    """How an image becomes the input of an exported file.

    Attributes:
        short_side: pixels that the image's shorter side gets, unless the longer side would get more
            than ``long_side``; then that gets ``long_side``.
        long_side: see there.
        size: (H, W) of a file that takes images of one size; None of one that takes any. The image
            is then resized as above or, where it would not fit, to fit; and what is left of
            H × W, to the right and below, gets the colour ``mean``.
        channel_order: ``RGB`` or ``BGR``.
        mean: of each channel in that order, for values of 0 to 255.
        std: likewise.
        normalised: whether the file takes (x − mean) / std and a batch of images, as a backbone
            does; a detector takes x, of one image.
    """

    short_side: int
    long_side: int
    size: tuple[int, int] | None
    channel_order: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    normalised: bool

    @classmethod
    def read(cls, file: str | Path) -> "ExportedInput":
        """Reads what a file of ONNX says of itself.

        Raises:
            UserError: it is no such file, or says nothing; or ONNX Runtime is not installed.
        """
        try:
            import onnxruntime
        except ImportError as error:
            raise UserError(
                f"{file} is read by ONNX Runtime, which cannot be imported ({error}): "
                f"pip install onnxruntime, or use ExportedInput.from_json"
            ) from error
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4  # errors are raised as well
        try:
            session = onnxruntime.InferenceSession(
                str(file), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # of no common kind
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"cannot read {file}: {reason}") from error
        metadata = session.get_modelmeta().custom_metadata_map
        if ENTRY not in metadata:
            raise UserError(
                f"{file} does not say what it takes: export it again by mvitv2-det export, with a "
                f"config whose dataloader.test.mapper resizes by ResizeShortestEdge alone"
            )
        return cls.from_json(metadata[ENTRY])

    @classmethod
    def from_json(cls, text: str) -> "ExportedInput":
        """Reads the entry ``input`` of the metadata of a file of any format.

        Raises:
            UserError: it is not that of a detector or a backbone.
        """
        try:
            values: dict[str, Any] = json.loads(text)
            for name, value in values.items():
                values[name] = tuple(value) if isinstance(value, list) else value
            return cls(**values)
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(
                f"not the input of an exported detector or backbone: {text[:100]!r}: {error}"
            ) from error

    def __call__(
        self, image: str | Path | np.ndarray | Image.Image
    ) -> tuple[np.ndarray, tuple[float, float]]:
        """Makes the input.

        Args:
            image: a file, an array (H, W, 3) RGB of uint8, or an image of Pillow.

        Returns:
            (3, H, W), or (1, 3, H, W) where it is normalised, float32; and by how much x and y have
            been scaled: boxes of a detector divided by ``(*scale, *scale)`` are in pixels of the
            image.

        Raises:
            UserError: the image cannot be read, or resized to one pixel or more.
        """
        rgb = read_rgb(image) if isinstance(image, (str, Path)) else as_rgb(image, "RGB")
        height, width = rgb.shape[:2]
        new_height, new_width = self.resized(height, width)
        if min(new_height, new_width) < 1:
            raise UserError(f"an image of {height}×{width} cannot be resized: its side vanishes")
        resized = Image.fromarray(rgb).resize((new_width, new_height), Image.Resampling.BILINEAR)
        pixels = np.asarray(resized, np.float32)
        if self.channel_order == "BGR":
            pixels = pixels[:, :, ::-1]
        mean, std = (np.asarray(values, np.float32) for values in (self.mean, self.std))
        if self.size is not None:
            canvas = np.empty((*self.size, 3), np.float32)
            canvas[:] = mean
            canvas[:new_height, :new_width] = pixels
            pixels = canvas
        if self.normalised:
            pixels = (pixels - mean) / std
        made = np.ascontiguousarray(pixels.transpose(2, 0, 1))
        return made[None] if self.normalised else made, (new_width / width, new_height / height)

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """(H, W) that an image gets, as by Detectron2's ``ResizeShortestEdge``."""
        scale = self.short_side / min(height, width)
        sides = (
            self.short_side if height < width else scale * height,
            (scale * width if height < width else self.short_side),
        )
        limits = [self.long_side / max(sides)]
        if self.size is not None:
            limits += [most / side for most, side in zip(self.size, sides, strict=True)]
        if min(limits) < 1:
            sides = sides[0] * min(limits), sides[1] * min(limits)
        return int(sides[0] + 0.5), int(sides[1] + 0.5)
