"""A small trained classifier of clips, and videos that its classes tell apart."""

from pathlib import Path

import numpy as np
import torch
from models import randomize

from mvitv2_det.recognition.description import ClipInput, Description
from mvitv2_det.video.writing import write_video

SIZES = {"embed_dim": 8, "blocks": [1, 1, 1, 1], "num_heads": 1, "drop_path_rate": 0.0}
CLASSES = ("ant", "bee", "cat")
INPUT = {"size": 64, "frames": 4, "rate": 3, "clips": 2}  # a clip of 0.4 seconds


def describe_clips(input: dict | None = None, **arguments) -> Description:
    sizes = {"variant": SIZES, "image_size": 64, "frames": 4}
    return Description("video", sizes | arguments, CLASSES, ClipInput(**(INPUT | (input or {}))))


def save_clip_classifier(file: Path, input: dict | None = None, **arguments) -> Path:
    description = describe_clips(input, **arguments)
    torch.manual_seed(0)
    model = randomize(description.build())
    with torch.no_grad():
        # Large enough that videos differ.
        model.head.projection.weight *= 20
    torch.save({"model": model.state_dict(), "recognizer": description.to_dict()}, file)
    return file


def noise_frames(seed: int, count: int = 30, height: int = 72, width: int = 96) -> np.ndarray:
    """(count, H, W, 3) of coarse noise that changes from frame to frame."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, height // 12, width // 12, 3), dtype=np.uint8)
    return coarse.repeat(12, axis=1).repeat(12, axis=2)


def write_noise(file: Path, seed: int, count: int = 30, fps: float = 15) -> Path:
    write_video(file, noise_frames(seed, count), fps, options={"crf": "10"})
    return file
