#!/usr/bin/env python3
"""Writes scikit-learn's handwritten digits as a folder of classes.

    python tools/make_digit_images.py --output datasets/digit_images

The 1,797 images of ``sklearn.datasets.load_digits`` (8×8 pixels, ten classes), enlarged to 32×32,
in ``train/0`` … ``train/9`` and ``val/0`` … ``val/9``. A fifth of each class is for validation, the
same fifth as that of the detection demo (``tools/make_digits.py``). Nothing is downloaded.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # for its neighbours

import numpy as np
from class_folders import new_folder, run
from make_digits import FULL_INK, split_digits
from PIL import Image

SIDE = 32


def make_digits(output: Path) -> dict[str, int]:
    """Writes both splits, unless they are there.

    Returns:
        the number of images of each split.

    Raises:
        UserError: ``output`` holds something else, or cannot be written.
    """
    from sklearn.datasets import load_digits  # slow to import

    digits = load_digits()
    splits = split_digits(digits.target, np.random.default_rng(0))
    counts = {split: len(indexes) for split, indexes in splits.items()}
    with new_folder(output, counts, ".png") as made:
        for split, indexes in splits.items() if made else ():
            for index in indexes:
                folder = made / split / str(digits.target[index])
                folder.mkdir(parents=True, exist_ok=True)
                ink = np.rint(digits.images[index] * (255 / FULL_INK)).astype(np.uint8)
                enlarged = Image.fromarray(ink).resize((SIDE, SIDE), Image.BICUBIC)
                enlarged.save(folder / f"{index:04d}.png")
    return counts


def main(arguments: list[str] | None = None) -> int:
    """Makes the data set; returns the exit status, 2 where the user has something to put right."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    return run(make_digits, parser, arguments, "images")


if __name__ == "__main__":
    sys.exit(main())
