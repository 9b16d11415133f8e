#!/usr/bin/env python3
"""Writes videos of handwritten digits that move over photographs, all from scikit-learn's data.

    python tools/make_moving_digits.py --output datasets/moving_digits

The classes are where the digit goes: left or right. Played backwards, a video of one class is one
of the other, so single frames, and all frames in no order, say nothing: only the order of time
tells the classes apart. A fifth of the digits and a third of each photograph are of the validation
split alone. Nothing is downloaded; PyAV (``pip install 'mvitv2_det[demo,video]'``) writes H.264.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # for its neighbours

import numpy as np
from class_folders import new_folder, run
from make_digits import FULL_INK, draw_background, split_digits, split_photographs
from PIL import Image

from mvitv2_det.video.writing import write_video

CLASSES = ("left", "right")
SIDE, FRAMES, FPS = 32, 16, 30
DIGIT = 14  # pixels
COUNTS = {"train": 600, "val": 200}
DIMMED = 0.4  # of the photographs' brightness: a small network learns in minutes
_LEAST_PATH = 10  # pixels


def make_clip(
    digit: np.ndarray, photographs: list[np.ndarray], name: str, rng: np.random.Generator
) -> np.ndarray:
    """Draws a clip (FRAMES, SIDE, SIDE, 3) uint8.

    Args:
        digit: (8, 8) ink.
        photographs: backgrounds.
        name: the class.
        rng: what draws.
    """
    clip = np.repeat(DIMMED * draw_background(photographs, SIDE, rng)[None], FRAMES, axis=0)
    colour = rng.uniform(160, 255, 3)
    ink = Image.fromarray((digit * (255 / FULL_INK)).astype(np.uint8))
    opacity = np.asarray(ink.resize((DIGIT, DIGIT), Image.BICUBIC), np.float32)[..., None] / 255
    room = SIDE - DIGIT
    length = rng.uniform(_LEAST_PATH, room)
    start = rng.uniform(0, room - length)
    # The path does not depend on its direction: backwards it is as likely.
    lefts = (start + length * np.linspace(0, 1, FRAMES)).round().astype(int)
    top = int(rng.integers(room + 1))
    for frame, left in zip(clip, lefts if name == "right" else lefts[::-1], strict=True):
        window = frame[top : top + DIGIT, left : left + DIGIT]
        window += opacity * (colour - window)
    return clip.clip(0, 255).round().astype(np.uint8)


def make_moving_digits(output: Path) -> dict[str, int]:
    """Writes both splits, unless they are there.

    Returns:
        the number of videos of each split.

    Raises:
        UserError: ``output`` holds something else, or cannot be written.
    """
    from sklearn.datasets import load_digits, load_sample_images  # slow to import

    digits = load_digits()
    splits = split_digits(digits.target, np.random.default_rng(0))
    photographs = split_photographs(load_sample_images().images)
    with new_folder(output, COUNTS, ".mp4") as made:
        for number, (split, count) in enumerate(COUNTS.items() if made else ()):
            rng = np.random.default_rng(number)
            for index in range(count):
                name = CLASSES[index % len(CLASSES)]
                digit = digits.images[rng.choice(splits[split])]
                clip = make_clip(digit, photographs[split], name, rng)
                file = made / split / name / f"{index:04d}.mp4"
                file.parent.mkdir(parents=True, exist_ok=True)
                write_video(file, clip, FPS, options={"crf": "18"})
    return COUNTS


def main(arguments: list[str] | None = None) -> int:
    """Makes the data set; returns the exit status, 2 where the user has something to put right."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    return run(make_moving_digits, parser, arguments, "videos")


if __name__ == "__main__":
    sys.exit(main())
