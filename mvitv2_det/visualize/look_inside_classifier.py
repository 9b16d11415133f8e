"""Pictures of where a classifier looks: from its class token, or from a place of an image or clip.

It needs no Detectron2.
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..backbone.trunk import Trunk
from ..errors import UserError
from ..predict.images import read_rgb
from ..recognition.classifier import read_recognizer
from ..recognition.description import ClipInput, Input
from ..video import open_video
from .attention_maps import blocks_of, draw_attention_of_blocks


def look_inside_classifier(
    image_file: Path,
    position: tuple[int, int] | None,
    output: Path,
    *,
    weights: str,
    blocks: Sequence[int] | None = None,
    frame: int | None = None,
) -> list[Path]:
    """Draws ``attention_block_N.png`` for each block, on the image as the network sees it.

    Of a video that is the clip in its middle.

    Args:
        image_file: the image, or a video or folder of frames for a classifier of clips.
        position: (y, x) of the query, in pixels of the image; None for the class token.
        output: folder for the pictures, made if missing.
        weights: of a classifier; see :func:`mvitv2_det.load_weights`.
        frame: of the query, among those of the clip, from 0 on, by default the first.
        blocks: numbers of the blocks to draw, from 0 on; by default the last of each stage.

    Returns:
        the files.

    Raises:
        UserError: something of the model, the image or the request is wrong.
        OSError: a file cannot be written.
    """
    model, description = read_recognizer(weights, of=None)
    input = description.input
    if isinstance(input, ClipInput):
        images, size = _middle_clip(image_file, input)
        frame = 0 if frame is None and position is not None else frame
        if (frame is None) != (position is None) or not 0 <= (frame or 0) < input.frames:
            raise UserError(
                f"--frame must be one of the clip's, 0 to {input.frames - 1}, with --position, got "
                f"{frame}"
            )
    elif frame is not None:
        raise UserError(f"--frame is of clips, and weights {weights} are of images")
    else:
        image = read_rgb(image_file)
        images, size = input.transform()(Image.fromarray(image))[None], image.shape[:2]
    pixel: tuple[int, ...] | None = None
    query = "from the class token"
    if position is not None:
        place = () if frame is None else (frame,)
        pixel = (*place, *_seen_pixel(position, size, input))
        query = f"query at y {position[0]}, x {position[1]}"
        query += "" if frame is None else f" of frame {frame}"
    with torch.no_grad():
        probabilities = model(images).softmax(dim=1)[0]
    best = int(probabilities.argmax())
    output.mkdir(parents=True, exist_ok=True)
    return draw_attention_of_blocks(
        model,
        images,
        _picture(images[0], input),
        pixel,
        output,
        blocks=blocks if blocks is not None else _last_blocks(model),
        query=f"{query}\nfound: {description.classes[best]}, {probabilities[best]:.1%}",
    )


def _middle_clip(file: Path, input: ClipInput) -> tuple[Tensor, tuple[int, int]]:
    """The central crop of a video's middle clip (1, 3, T, S, S), and the frames' height and width.

    Raises:
        UserError: the video cannot be read.
    """
    middle = dataclasses.replace(input, clips=1, crops=1)
    with open_video(file) as video:
        return middle.test_views(video), video.size


def _seen_pixel(position: tuple[int, int], size: tuple[int, int], input: Input) -> tuple[int, int]:
    """Where a pixel of an image is in the network's input.

    Raises:
        UserError: it is outside of the image, or of what is not cut off.
    """
    height, width = size
    y, x = position
    if not (0 <= y < height and 0 <= x < width):
        raise UserError(
            f"--position must be Y X in pixels inside of the image of height {height} and width "
            f"{width}, got {y} {x}"
        )
    whole = math.floor(input.size / input.crop)
    scales = [whole / side if input.mode == "squash" else whole / min(size) for side in size]
    places = [
        math.floor((place + 0.5) * scale - (side * scale - input.size) / 2)
        for place, side, scale in zip(position, size, scales, strict=True)
    ]
    if not all(0 <= place < input.size for place in places):
        raise UserError(
            f"--position {y} {x} is cut off: the network sees the central {input.crop:.3g} of the "
            f"image's short side, a square"
        )
    return places[0], places[1]


def _picture(image: Tensor, input: Input) -> np.ndarray:
    """The network's input (3, …, S, S) as (…, S, S, 3) RGB, 0 to 255."""
    mean, std = (torch.tensor(values) for values in (input.mean, input.std))
    return (255 * (image.movedim(0, -1) * std + mean)).clamp(0, 255).numpy()


def _last_blocks(trunk: Trunk) -> list[int]:
    """The last block of each stage: the next one strides its queries, or there is none."""
    strides = [block.spec.attention.stride_q[-1] for block in blocks_of(trunk)]
    return [index for index, next in enumerate([*strides[1:], 2]) if next > 1]
