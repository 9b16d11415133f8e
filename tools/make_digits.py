#!/usr/bin/env python3
"""Makes a small instance segmentation data set, in COCO's format, of what scikit-learn ships.

    python tools/make_digits.py --output datasets/digits

The 1,797 handwritten digits of ``sklearn.datasets.load_digits`` (8×8 pixels, ten classes) are
enlarged, cut out with exact masks and placed at many sizes on crops of the two photographs of
``sklearn.datasets.load_sample_images``. No digit image and no piece of a photograph is in both
splits. Nothing is downloaded; the same arguments make the same files.

Written into the output folder:

    train.json, val.json    instances; the key ``digit_index`` says which scikit-learn digit it is
    train/, val/            images
"""

import argparse
import json
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from mvitv2_det.errors import UserError

SPLITS = ("train", "val")
VAL_SHARE = 0.2  # of each class's digit images
VAL_WIDTH = 1 / 3  # of each photograph, its left
VERSION = 1  # raised whenever the same arguments would make other files

DIGIT_SIDE = 8
FULL_INK = 16.0
INK_THRESHOLD = 6.5  # where a stroke ends
LEAST_OPACITY = 0.5  # of the thinnest ink: keeps the strokes of a 4 or 8 apart
SUPERSAMPLING = 3
SIZES = (0.12, 0.5)  # height of a digit over that of the image, drawn log-uniformly
MOST_DIGITS = 6
MOST_HIDDEN = 0.05  # of a digit's mask, by the digits placed after it
LEAST_CONTRAST = 90.0  # of 255, in luminance, between a digit and what it is placed on
LUMINANCE = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True)
class Settings:
    """What determines the data set."""

    train_images: int = 1500
    val_images: int = 100
    image_size: int = 192
    seed: int = 0
    version: int = VERSION

    def images_of(self, split: str) -> int:
        """Gives the number of images in a split."""
        return self.train_images if split == "train" else self.val_images


@dataclass
class Placed:
    """A digit on an image: its index in scikit-learn's set and its visible mask (H, W) bool."""

    digit_index: int
    mask: np.ndarray
    drawn_area: int


def split_digits(targets: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Chooses the digit images of each split, the same share of each class.

    Args:
        targets: (N,) class of each digit image.
    """
    splits = {split: [] for split in SPLITS}
    for label in np.unique(targets):
        indexes = rng.permutation(np.flatnonzero(targets == label))
        held_out = round(VAL_SHARE * len(indexes))
        splits["val"].append(indexes[:held_out])
        splits["train"].append(indexes[held_out:])
    return {split: np.sort(np.concatenate(parts)) for split, parts in splits.items()}


def split_photographs(photographs: list[np.ndarray]) -> dict[str, list[np.ndarray]]:
    """Cuts each photograph (H, W, 3): its left is for validation, the rest for training."""
    cuts = [round(VAL_WIDTH * photograph.shape[1]) for photograph in photographs]
    return {
        "train": [p[:, cut:] for p, cut in zip(photographs, cuts, strict=True)],
        "val": [p[:, :cut] for p, cut in zip(photographs, cuts, strict=True)],
    }


def draw_background(
    photographs: list[np.ndarray], size: int, rng: np.random.Generator
) -> np.ndarray:
    """Draws a random square of a photograph, mirrored or not: (size, size, 3) float32, 0..255."""
    photograph = photographs[rng.integers(len(photographs))]
    height, width, _ = photograph.shape
    longest = min(height, width)
    side = int(rng.integers(longest // 2, longest + 1))
    top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
    crop = photograph[top : top + side, left : left + side]
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    resized = Image.fromarray(np.ascontiguousarray(crop)).resize((size, size), Image.BICUBIC)
    return np.asarray(resized, dtype=np.float32)


def render_digit(digit: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Enlarges a digit smoothly.

    Args:
        digit: (8, 8) ink, 0..16.
        height, width: size of the whole 8×8 image in pixels.

    Returns:
        opacity (h, w) float32 in 0..1 and mask (h, w) bool, both cut to the stroke.
    """
    sides = (width, height)
    ink = Image.fromarray(np.pad(digit, 1).astype(np.float32)).resize(
        [SUPERSAMPLING * round(side * (DIGIT_SIDE + 2) / DIGIT_SIDE) for side in sides],
        Image.BICUBIC,
    )
    ink = np.asarray(ink)
    inked = ink > INK_THRESHOLD
    weight = (ink - INK_THRESHOLD) / (FULL_INK - INK_THRESHOLD)
    opacity = inked * (LEAST_OPACITY + (1 - LEAST_OPACITY) * weight.clip(0, 1))
    opacity, coverage = _average_cells(opacity), _average_cells(inked)
    mask = coverage >= 0.5
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    cut = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return opacity[cut], mask[cut]


def _average_cells(fine: np.ndarray) -> np.ndarray:
    """Averages (SUPERSAMPLING · h, SUPERSAMPLING · w) to (h, w)."""
    h, w = (side // SUPERSAMPLING for side in fine.shape)
    cells = fine.reshape(h, SUPERSAMPLING, w, SUPERSAMPLING)
    return cells.mean(axis=(1, 3), dtype=np.float32)


def draw_colour(under: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draws a random RGB colour (3,) that stands out from the pixels (P, 3) below it."""
    luminance = under @ LUMINANCE
    dark, bright = np.percentile(luminance, (10, 90))
    best, best_contrast = np.zeros(3), -np.inf
    for _ in range(30):
        colour = rng.uniform(0, 255, size=3)
        own = colour @ LUMINANCE
        contrast = max(dark - own, own - bright)
        if contrast > best_contrast:
            best, best_contrast = colour, contrast
        if contrast >= LEAST_CONTRAST:
            return colour
    return best


def place_digit(
    image: np.ndarray,
    placed: list[Placed],
    digit: np.ndarray,
    digit_index: int,
    rng: np.random.Generator,
) -> None:
    """Draws a digit into the image at a random size and place; gives up if there is no room.

    Args:
        image: (H, W, 3) float32, drawn on.
        placed: digits on the image so far: one is added, and those it covers lose that part of
            their masks.
    """
    size = image.shape[0]
    low, high = np.log(SIZES)
    for _ in range(20):
        height = max(round(size * np.exp(rng.uniform(low, high))), DIGIT_SIDE)
        width = max(round(height * rng.uniform(0.85, 1.3)), DIGIT_SIDE)
        opacity, stroke = render_digit(digit, height, width)
        h, w = stroke.shape
        if max(h, w) >= size:
            continue
        top, left = rng.integers(size - h), rng.integers(size - w)
        mask = np.zeros(image.shape[:2], dtype=bool)
        mask[top : top + h, left : left + w] = stroke
        if any((p.mask & ~mask).sum() < (1 - MOST_HIDDEN) * p.drawn_area for p in placed):
            continue
        window = image[top : top + h, left : left + w]
        colour = draw_colour(window[stroke], rng)
        window += opacity[..., None] * (colour - window)
        for p in placed:
            p.mask &= ~mask
        placed.append(Placed(digit_index, mask, int(mask.sum())))
        return


def annotation(number: int, image_id: int, category: int, placed: Placed) -> dict:
    """Makes a COCO annotation with a run-length encoded mask, as digits have holes."""
    rle = coco_mask.encode(np.asfortranarray(placed.mask, dtype=np.uint8))
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category,
        "bbox": coco_mask.toBbox(rle).tolist(),
        "area": int(coco_mask.area(rle)),
        "iscrowd": 0,
        "segmentation": {"size": rle["size"], "counts": rle["counts"].decode("ascii")},
        "digit_index": placed.digit_index,
    }


def make_split(folder: Path, split: str, settings: Settings, progress=print) -> None:
    """Writes the images and the json of one split into ``folder``."""
    from sklearn.datasets import load_digits, load_sample_images  # slow to import

    digits = load_digits()
    # The split must not depend on which of the two is made; what is drawn then does.
    indexes = split_digits(digits.target, np.random.default_rng(settings.seed))[split]
    photographs = split_photographs(load_sample_images().images)[split]
    rng = np.random.default_rng((settings.seed, SPLITS.index(split)))

    (folder / split).mkdir(parents=True)
    images, annotations = [], []
    total, size = settings.images_of(split), settings.image_size
    for image_id in range(1, total + 1):
        image = draw_background(photographs, size, rng)
        placed: list[Placed] = []
        for digit_index in rng.choice(indexes, size=rng.integers(2, MOST_DIGITS + 1)):
            place_digit(image, placed, digits.images[digit_index], int(digit_index), rng)
        name = f"{image_id:05d}.jpg"
        pixels = image.round().clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / split / name, quality=92)
        images.append({"id": image_id, "file_name": name, "width": size, "height": size})
        for p in placed:
            category = int(digits.target[p.digit_index]) + 1
            annotations.append(annotation(len(annotations) + 1, image_id, category, p))
        if image_id % 250 == 0 or image_id == total:
            progress(f"{split}: {image_id} of {total} images, {len(annotations)} digits")

    content = {
        "info": {"description": "handwritten digits on photographs", "settings": asdict(settings)},
        "images": images,
        "annotations": annotations,
        # COCO's ids start at 1; the name is the digit.
        "categories": [{"id": label + 1, "name": str(label)} for label in range(10)],
    }
    (folder / f"{split}.json").write_text(json.dumps(content), encoding="utf-8")


def recorded_settings(output: Path, split: str) -> dict | None:
    """Reads the settings that a split was made with; None if this tool did not make it."""
    try:
        content = json.loads((output / f"{split}.json").read_text(encoding="utf-8"))
        return content["info"]["settings"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def is_complete(output: Path, settings: Settings) -> bool:
    """Whether the folder holds the data set of these settings, all images included."""
    return all(
        recorded_settings(output, split) == asdict(settings)
        and len(list((output / split).glob("*.jpg"))) == settings.images_of(split)
        for split in SPLITS
    )


def make_digits(output: Path, settings: Settings, progress=print) -> bool:
    """Makes the data set, unless it is there already.

    Args:
        output: folder to make; what this tool made there with other settings is replaced.
        settings: what to make.
        progress: called with lines to show.

    Returns:
        whether anything was made.

    Raises:
        UserError: ``output`` holds something else, or cannot be written.
    """
    if is_complete(output, settings):
        return False
    if output.exists() and not output.is_dir():
        raise UserError(f"--output {output} is a file: name a folder")
    is_own = any(recorded_settings(output, split) for split in SPLITS)
    if output.exists() and any(output.iterdir()) and not is_own:
        raise UserError(f"--output {output} holds other files: name a new or empty folder")
    # Made beside it and renamed at last, so that an interrupted run leaves nothing half-made.
    partial = output.with_name(output.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        for split in SPLITS:
            make_split(partial, split, settings, progress)
        if output.exists():
            shutil.rmtree(output)
        partial.rename(output)
    except OSError as error:
        raise UserError(f"cannot write --output {output}: {error.strerror}") from error
    return True


def check_settings(settings: Settings) -> None:
    """Refuses settings out of range.

    Raises:
        UserError: names the option.
    """
    least = {"train_images": 1, "val_images": 1, "image_size": 64, "seed": 0}
    for name, lowest in least.items():
        if getattr(settings, name) < lowest:
            option = "--" + name.replace("_", "-")
            raise UserError(f"{option} must be at least {lowest}, got {getattr(settings, name)}")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Parses the command line."""
    defaults = Settings()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to make")
    for name, text in (
        ("train_images", "images to train on"),
        ("val_images", "images to validate on"),
        ("image_size", "side of the images, in pixels"),
        ("seed", "of all that is drawn at random"),
    ):
        default = getattr(defaults, name)
        option = "--" + name.replace("_", "-")
        parser.add_argument(option, type=int, default=default, help=f"{text} (default: {default})")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Makes the data set; returns the exit status, 2 where the user has something to put right."""
    args = parse(arguments)
    settings = Settings(args.train_images, args.val_images, args.image_size, args.seed)
    try:
        check_settings(settings)
        made = make_digits(args.output, settings)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{args.output}: {'made' if made else 'is there already, with the same settings'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
