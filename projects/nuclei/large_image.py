"""One large image, made of the nuclei's validation images, and how many of its nuclei are found.

    python -m projects.nuclei.large_image make nuclei/instances_val.json nuclei/images \\
        --side 4096 --output large
    mvitv2-det predict large/image.png --tiles 256:64 --config … --weights … --output found
    python -m projects.nuclei.large_image compare large/annotations.json found

``make`` sets validation images side by side, in order of their ids and again from the first on, and
writes them as one image with its annotations. ``compare`` counts what is found at an IoU of 0.5 of
masks.
"""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pycocotools.mask as coco_mask
from PIL import Image

from mvitv2_det.errors import UserError
from mvitv2_det.predict.images import read_rgb
from mvitv2_det.report.evaluation import ImagePairs, Truth, read_predictions
from mvitv2_det.report.mistakes import judge
from mvitv2_det.visualize.masks import MaskPart

CELL = 256  # pixels of a side of each validation image


def make(json_file: Path, folder: Path, side: int, output: Path) -> None:
    """Writes ``image.png`` and ``annotations.json`` of an image of ``side`` × ``side``.

    Raises:
        UserError: an image cannot be read, or the side is too small.
    """
    if side < CELL:
        raise UserError(f"--side must be {CELL} or more, got {side}")
    content = json.loads(json_file.read_text(encoding="utf-8"))
    images = sorted(content["images"], key=lambda image: image["id"])
    images = [image for image in images if (image["height"], image["width"]) == (CELL, CELL)]
    own: dict[int, list[dict]] = defaultdict(list)
    for one in content["annotations"]:
        own[one["image_id"]].append(one)
    read = cache(read_rgb)  # each again and again
    picture = np.zeros((side, side, 3), np.uint8)
    annotations: list[dict] = []
    count = side // CELL
    for cell in range(count * count):
        top, left = cell // count * CELL, cell % count * CELL
        image = images[cell % len(images)]
        picture[top : top + CELL, left : left + CELL] = read(folder / image["file_name"])
        for one in own[image["id"]]:
            part = MaskPart.of_segmentation(one["segmentation"], CELL, CELL)
            placed = MaskPart(part.top + top, part.left + left, part.pixels)
            x, y, width, height = one["bbox"]
            annotations.append(
                {
                    **one,
                    "id": len(annotations) + 1,
                    "image_id": 1,
                    "bbox": [x + left, y + top, width, height],
                    "segmentation": placed.rle(side, side),
                }
            )
    output.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(output / "image.png")
    record = {"id": 1, "file_name": "image.png", "width": side, "height": side}
    text = json.dumps({**content, "images": [record], "annotations": annotations})
    (output / "annotations.json").write_text(text, encoding="utf-8")


def compare(json_file: Path, folder: Path) -> str:
    """Says how many nuclei there are, and how many of them a prediction has found."""
    truth = Truth(json_file)
    results = read_predictions(folder / "results.json", truth)
    # A nucleus is in one cell. What lies over several cells is compared in each, and can be at most
    # one nucleus: two that share none of their pixels do not overlap it by half each.
    found = judge(_cells(truth, results), truth.categories).found
    return f"{int(found.sum()):,} of {len(found):,} found, in {len(results):,} detections"


def _cells(truth: Truth, results: list[dict]) -> Iterator[ImagePairs]:
    """The truth of each cell, and what overlaps the cell: all overlaps at once fill no memory."""
    nuclei, detections = (defaultdict(list) for _ in range(2))
    for annotation in truth.coco.anns.values():
        x, y, width, height = annotation["bbox"]
        nuclei[int(y + height / 2) // CELL, int(x + width / 2) // CELL].append(annotation)
    for result in sorted(results, key=lambda one: -one["score"]):
        x, y, width, height = result["bbox"]
        for row in range(int(y) // CELL, int(y + height) // CELL + 1):
            for column in range(int(x) // CELL, int(x + width) // CELL + 1):
                detections[row, column].append(result)
    (image,) = truth.coco.imgs.values()
    for cell, own in nuclei.items():
        near = detections[cell]
        ious = np.zeros((len(near), len(own)))
        if near:
            masks = [one["segmentation"] for one in near]
            real = [truth.coco.annToRLE(one) for one in own]
            ious = np.asarray(coco_mask.iou(masks, real, [0] * len(own)))
        yield ImagePairs(image, near, own, ious)


def main() -> int:
    """Reads the command line and does what it says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    actions = parser.add_subparsers(dest="action", required=True)
    making = actions.add_parser("make")
    making.add_argument("json_file", type=Path)
    making.add_argument("images", type=Path)
    making.add_argument("--side", type=int, default=4096)
    making.add_argument("--output", type=Path, required=True)
    comparing = actions.add_parser("compare")
    comparing.add_argument("json_file", type=Path)
    comparing.add_argument("found", type=Path)
    args = parser.parse_args()
    try:
        if args.action == "make":
            make(args.json_file, args.images, args.side, args.output)
        else:
            print(compare(args.json_file, args.found))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
