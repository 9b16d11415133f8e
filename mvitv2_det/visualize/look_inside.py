"""Pictures of what one place of an image attends to, and of the image's feature maps."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import detectron2.data.transforms as T
import numpy as np
import torch
from detectron2.config import instantiate
from detectron2.data.detection_utils import read_image
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from ..backbone.trunk import Trunk
from ..data import naming_unreadable_image
from ..errors import UserError
from ..trained import read_config, read_trained
from .attention_maps import blocks_of, draw_attention_of_blocks, find_trunk
from .feature_maps import draw_feature_maps

_MEAN, _STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # ImageNet, RGB


def look_inside(
    image_file: Path,
    position: tuple[int, int],
    output: Path,
    *,
    config: str,
    weights: str,
    overrides: Sequence[str] = (),
    trust: Collection[str] = (),
    blocks: Sequence[int] | None = None,
) -> list[Path]:
    """Draws ``attention_block_N.png`` for each block, and ``feature_maps.png``.

    Args:
        image_file: the image.
        position: (y, x) of the query, in pixels of the image.
        output: folder for the pictures, made if missing.
        config: file or name of the config of a detector or of a backbone alone.
        weights: of the backbone at least; see :func:`mvitv2_det.load_weights`.
        overrides: of the config, ``key=value``.
        trust: what a YAML config may call beside what :mod:`mvitv2_det.allowed_names` knows.
        blocks: numbers of the blocks to draw, from 0 on; by default those that attend over the
            whole map.

    Returns:
        the files.

    Raises:
        UserError: something of the model, the image or the request is wrong.
        OSError: a file cannot be written.
    """
    image = _read(image_file)
    height, width = image.shape[:2]
    y, x = position
    if not (0 <= y < height and 0 <= x < width):
        raise UserError(
            f"--position must be Y X in pixels inside of the image of height {height} and width "
            f"{width}, got {y} {x}"
        )
    cfg = read_config(config, overrides, trust)
    # Weights of a classifier have all of the trunk but the output norms.
    model = read_trained(cfg, weights, part=f"{_trunk_name(cfg)}blocks.")
    resized = _resize(cfg, image)
    scale = np.array(resized.shape[:2]) / image.shape[:2]
    row, column = (int(place) for place in (np.array(position) + 0.5) * scale)
    backbone, images = getattr(model, "backbone", model), normalised(model, resized)
    trunk = find_trunk(model)
    output.mkdir(parents=True, exist_ok=True)
    files = draw_attention_of_blocks(
        backbone,
        images,
        resized,
        (row, column),
        output,
        blocks=blocks if blocks is not None else global_blocks(trunk),
        query=f"query at y {y}, x {x}",
    )
    files.append(output / "feature_maps.png")
    features, strides = _features(backbone, trunk, images)
    draw_feature_maps(resized, features, strides, f"{image_file.name}: feature maps", files[-1])
    return files


def _read(file: Path) -> np.ndarray:
    """Reads an image as (H, W, 3) RGB."""
    with naming_unreadable_image(str(file)):
        return read_image(str(file), "RGB")


def _trunk_name(cfg: DictConfig) -> str:
    """Gives the prefix of the trunk's parameters among those of the config's model."""
    for name in ("backbone.bottom_up", "backbone", "bottom_up"):
        if OmegaConf.select(cfg.model, name) is not None:
            return f"{name}."
    return ""


def _resize(cfg: DictConfig, image: np.ndarray) -> np.ndarray:
    """Resizes as the config's test loader does; leaves the image as it is if there is none."""
    augmentations = OmegaConf.select(cfg, "dataloader.test.mapper.augmentations")
    if augmentations is None:
        return image
    pixels = T.AugInput(image)
    T.AugmentationList(instantiate(augmentations))(pixels)
    return pixels.image


def normalised(model: nn.Module, image: np.ndarray) -> Tensor:
    """Normalises (H, W, 3) RGB to (1, 3, H, W) with the model's mean, or else ImageNet's.

    Args:
        model: on any device.
        image: 0 to 255.

    Returns:
        in the model's order of colours, on the CPU.
    """
    pixels = torch.tensor(np.ascontiguousarray(image)).permute(2, 0, 1).float()
    if getattr(model, "input_format", "RGB") == "BGR":
        pixels = pixels.flip(0)
    mean = getattr(model, "pixel_mean", torch.tensor(_MEAN).view(3, 1, 1))
    std = getattr(model, "pixel_std", torch.tensor(_STD).view(3, 1, 1))
    return ((pixels - mean.cpu()) / std.cpu())[None]


def global_blocks(trunk: Trunk) -> list[int]:
    """Finds the blocks that attend over the whole map; the last block if none does."""
    blocks = [
        index
        for index, block in enumerate(blocks_of(trunk))
        if not block.spec.attention.window_size
    ]
    return blocks or [len(trunk.blocks) - 1]


@torch.no_grad()
def _features(
    backbone: nn.Module, trunk: Any, images: Tensor
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Computes the trunk's maps (C, H', W') of the images, padded by the backbone, and strides."""
    outputs = []
    hook = trunk.register_forward_hook(lambda *call: outputs.append(call[2]))
    try:
        backbone(images)
    finally:
        hook.remove()
    strides = {name: shape.stride for name, shape in trunk.output_shape().items()}
    return {name: maps[0] for name, maps in outputs[0].items()}, strides
