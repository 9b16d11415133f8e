#!/usr/bin/env python3
"""Writes scikit-learn's handwritten digits as a folder of classes.

    python tools/make_digit_images.py --output datasets/digit_images

The 1,797 images of ``sklearn.datasets.load_digits`` (8×8 pixels, ten classes), enlarged to 32×32,
in ``train/0`` … ``train/9`` and ``val/0`` … ``val/9``. A fifth of each class is for validation, the
same fifth as that of the detection demo (``tools/make_digits.py``). Nothing is downloaded.
"""

import argparse
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # for its neighbour

import numpy as np
from make_digits import FULL_INK, split_digits
from PIL import Image

from mvitv2_det.errors import UserError, naming_unwritable

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
    if output.exists():
        if counts == {split: len(list((output / split).glob("*/*.png"))) for split in splits}:
            return counts
        raise UserError(f"--output {output} exists and holds something else: name a new folder")
    # Made beside it and renamed at last, so that an interrupted run leaves nothing half-made.
    partial = output.with_name(output.name + ".partial")
    with naming_unwritable(output):
        shutil.rmtree(partial, ignore_errors=True)
        for split, indexes in splits.items():
            for index in indexes:
                folder = partial / split / str(digits.target[index])
                folder.mkdir(parents=True, exist_ok=True)
                ink = np.rint(digits.images[index] * (255 / FULL_INK)).astype(np.uint8)
                enlarged = Image.fromarray(ink).resize((SIDE, SIDE), Image.BICUBIC)
                enlarged.save(folder / f"{index:04d}.png")
        partial.rename(output)
    return counts


def main(arguments: list[str] | None = None) -> int:
    """Makes the data set; returns the exit status, 2 where the user has something to put right."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to make")
    args = parser.parse_args(arguments)
    try:
        counts = make_digits(args.output)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{args.output}: {counts['train']} images for training, {counts['val']} for validation")
    return 0


if __name__ == "__main__":
    sys.exit(main())
