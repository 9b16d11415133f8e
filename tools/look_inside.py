#!/usr/bin/env python3
"""Draws what a place of an image attends to, and the feature maps of an image.

    python tools/look_inside.py photo.jpg --position 120 200 --output inside \\
        --config output/RUN/config.yaml --weights output/RUN/model_final.pth
    python tools/look_inside.py photo.jpg --position 120 200 --output inside --block 1 2 \\
        --config mask_rcnn_mvitv2_t_3x --weights timm://mvitv2_tiny

CONFIG is a file, or the name of a config of this project, of a detector or of a backbone alone.
Weights of a backbone are enough. Writes into the output folder:

    attention_block_N.png  for each block: which keys the query at the position attends to, as the
                           mean over heads and per head; the query marked, its window outlined
    feature_maps.png       norm and main components of the backbone's map of each scale
"""

import argparse
import logging
import sys
from pathlib import Path

import detectron2.data.transforms as T
import numpy as np
import torch
from detectron2.config import instantiate
from detectron2.data.detection_utils import read_image
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from mvitv2_det.backbone.trunk import Trunk
from mvitv2_det.data import naming_unreadable_image
from mvitv2_det.errors import UserError, one_line
from mvitv2_det.trained import read_config, read_trained
from mvitv2_det.visualize.attention_maps import attention_of_pixel, draw_attention, find_trunk
from mvitv2_det.visualize.feature_maps import draw_feature_maps

_MEAN, _STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # ImageNet, RGB


def look_inside(args: argparse.Namespace) -> list[Path]:
    """Draws everything; returns the files.

    Raises:
        UserError: something of the model, the image or the request is wrong.
    """
    image = _read(args.image)
    height, width = image.shape[:2]
    y, x = args.position
    if not (0 <= y < height and 0 <= x < width):
        raise UserError(
            f"--position must be Y X in pixels inside of the image of height {height} and width "
            f"{width}, got {y} {x}"
        )
    cfg = read_config(args.config, args.opts)
    model = read_trained(cfg, args.weights, part=_trunk_name(cfg))
    resized = _resize(cfg, image)
    scale = np.array(resized.shape[:2]) / image.shape[:2]
    pixel = tuple(int(place) for place in (np.array(args.position) + 0.5) * scale)
    backbone, images = getattr(model, "backbone", model), _normalised(model, resized)
    trunk = find_trunk(model)
    args.output.mkdir(parents=True, exist_ok=True)
    files = []
    for block in args.block if args.block is not None else _global_blocks(trunk):
        attention = attention_of_pixel(backbone, images, block, pixel)
        files.append(args.output / f"attention_block_{block}.png")
        title = _describe(trunk, block, args.position)
        title += f"; {attention.on_padding:.0%} on padding" if attention.on_padding > 0.005 else ""
        draw_attention(resized, attention, title, files[-1])
    files.append(args.output / "feature_maps.png")
    features, strides = _features(backbone, trunk, images)
    draw_feature_maps(resized, features, strides, f"{args.image.name}: feature maps", files[-1])
    return files


def _read(file: Path) -> np.ndarray:
    """(H, W, 3) RGB."""
    with naming_unreadable_image(str(file)):
        return read_image(str(file), "RGB")


def _trunk_name(cfg: DictConfig) -> str:
    """Where the backbone's parameters are in the config's model."""
    for name in ("backbone.bottom_up", "backbone", "bottom_up"):
        if OmegaConf.select(cfg.model, name) is not None:
            return f"{name}."
    return ""


def _resize(cfg: DictConfig, image: np.ndarray) -> np.ndarray:
    """As the config's test loader does; as it is where the config has none."""
    augmentations = OmegaConf.select(cfg, "dataloader.test.mapper.augmentations")
    if augmentations is None:
        return image
    pixels = T.AugInput(image)
    T.AugmentationList(instantiate(augmentations))(pixels)
    return pixels.image


def _normalised(model: nn.Module, image: np.ndarray) -> Tensor:
    """(H, W, 3) RGB to (1, 3, H, W), as the model does it; by ImageNet's values otherwise."""
    pixels = torch.tensor(np.ascontiguousarray(image)).permute(2, 0, 1).float()
    if getattr(model, "input_format", "RGB") == "BGR":
        pixels = pixels.flip(0)
    mean = getattr(model, "pixel_mean", torch.tensor(_MEAN).view(3, 1, 1))
    std = getattr(model, "pixel_std", torch.tensor(_STD).view(3, 1, 1))
    return ((pixels - mean) / std)[None]


def _global_blocks(trunk: Trunk) -> list[int]:
    """The blocks that attend over the whole map; the last one where there is none."""
    blocks = [index for index, block in enumerate(trunk.blocks) if not block.attn.window_size]
    return blocks or [len(trunk.blocks) - 1]


def _describe(trunk: Trunk, block: int, position: tuple[int, int]) -> str:
    attention = trunk.blocks[block].attn
    size = attention.window_size
    kind = "global" if not size else f"window of {size}×{size} tokens"
    if attention.shift:
        kind += f", shifted by {attention.shift}"
    y, x = position
    heads = f"{attention.num_heads} head" + ("s" if attention.num_heads > 1 else "")
    return f"block {block} of {len(trunk.blocks)}: {kind}, {heads}; query at y {y}, x {x}"


@torch.no_grad()
def _features(
    backbone: nn.Module, trunk: Trunk, images: Tensor
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """The trunk's own maps (C, H', W') of the images as the backbone pads them, and strides."""
    outputs = []
    hook = trunk.register_forward_hook(lambda *call: outputs.append(call[2]))
    try:
        backbone(images)
    finally:
        hook.remove()
    strides = {name: shape.stride for name, shape in trunk.output_shape().items()}
    return {name: maps[0] for name, maps in outputs[0].items()}, strides


def main(arguments: list[str] | None = None) -> int:
    """Draws; returns the exit status, 2 where the user has something to put right."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("image", type=Path)
    parser.add_argument("--config", required=True, help="file or name of a LazyConfig")
    parser.add_argument("--weights", required=True, help="a path, a URL, detectron2://…, timm://…")
    parser.add_argument(
        "--position",
        required=True,
        nargs=2,
        type=int,
        metavar=("Y", "X"),
        help="of the query, in pixels of the image",
    )
    parser.add_argument(
        "--block", nargs="+", type=int, help="from 0 on (default: all global blocks)"
    )
    parser.add_argument("--output", required=True, type=Path, help="folder, made if missing")
    parser.add_argument(
        "--opts", nargs="+", default=[], metavar="KEY=VALUE", help="overrides of the config"
    )
    args = parser.parse_args(arguments)
    logging.getLogger("mvitv2_det.weights").setLevel(logging.ERROR)
    try:
        for file in look_inside(args):
            print(file)
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: cannot write {args.output}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
