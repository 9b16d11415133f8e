"""Pictures of where a classifier looks: from its class token, or from a place of an image.

It needs no Detectron2.
"""

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
from ..recognition.description import Input
from .attention_maps import blocks_of, draw_attention_of_blocks


def look_inside_classifier(
    image_file: Path,
    position: tuple[int, int] | None,
    output: Path,
    *,
    weights: str,
    blocks: Sequence[int] | None = None,
) -> list[Path]:
    """Draws ``attention_block_N.png`` for each block, on the image as the network sees it.

    Args:
        image_file: the image.
        position: (y, x) of the query, in pixels of the image; None for the class token.
        output: folder for the pictures, made if missing.
        weights: of an image classifier; see :func:`mvitv2_det.load_weights`.
        blocks: numbers of the blocks to draw, from 0 on; by default the last of each stage.

    Returns:
        the files.

    Raises:
        UserError: something of the model, the image or the request is wrong.
        OSError: a file cannot be written.
    """
    image = read_rgb(image_file)
    model, description = read_recognizer(weights)
    input = description.input
    pixel = None if position is None else _seen_pixel(position, image.shape[:2], input)
    images = input.transform()(Image.fromarray(image))[None]
    with torch.no_grad():
        probabilities = model(images).softmax(dim=1)[0]
    best = int(probabilities.argmax())
    query = (
        "from the class token" if position is None else f"query at y {position[0]}, x {position[1]}"
    )
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
    """The network's input (3, S, S) as (S, S, 3) RGB, 0 to 255."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (input.mean, input.std))
    return (255 * (image * std + mean)).clamp(0, 255).permute(1, 2, 0).numpy()


def _last_blocks(trunk: Trunk) -> list[int]:
    """The last block of each stage: the next one strides its queries, or there is none."""
    strides = [block.spec.attention.stride_q[-1] for block in blocks_of(trunk)]
    return [index for index, next in enumerate([*strides[1:], 2]) if next > 1]
