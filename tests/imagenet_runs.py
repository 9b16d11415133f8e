"""Small data of projects/imagenet, and its runs."""

import numpy as np
from PIL import Image
from scripts import ROOT, load_script

from mvitv2_det import Variant
from mvitv2_det.config import load_config

CONFIGS = ROOT / "projects" / "imagenet" / "configs"
SMALL = Variant(embed_dim=8, blocks=(1, 1, 1, 1), num_heads=1, drop_path_rate=0.0)
CLASSES = ("dark", "grey", "light")
train_main = load_script("projects/imagenet/train.py").main


def config(name: str):
    return load_config(str(CONFIGS / f"{name}.py"))


def write_image(path, brightness: int, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 40, (36, 40, 3)) + brightness
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def call(*arguments, name="digits"):
    return train_main(["--config-file", str(CONFIGS / f"{name}.py"), *arguments])


def cut(path):
    path.write_bytes(path.read_bytes()[:200])


def empty(folder):
    for path in folder.iterdir():
        path.unlink()
