"""Writes a data set of any known format in COCO's format.

    mvitv2-det convert-data yolo_folder/ coco/
    mvitv2-det convert-data all.json coco/ --val-share 0.1

Known are COCO's format, LVIS and Roboflow's folders among it, COCO panoptic, YOLO, Pascal VOC,
LabelMe and CVAT. Data without a split for validation are split by image, so that both parts have
their share of each class. OUTPUT gets a json file for each split; the images stay where they are.
"""

import argparse
from pathlib import Path

from ..errors import UserError
from .entry import add_data_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the source, the target and the options."""
    parser.add_argument("data", metavar="DATA", help="file or folder")
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="folder for the json files")
    add_data_arguments(parser)
    parser.add_argument(
        "--val-share",
        type=float,
        default=0.2,
        help="of the images, where validation has no split of its own (default: 0.2)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of that split (default: 0)")


def run(args: argparse.Namespace) -> int:
    """Converts, and prints what training needs to be told."""
    from tabulate import tabulate

    from ..data.findings import Findings
    from ..data.formats import read_data
    from ..data.sources import write_coco

    findings = Findings(args.data, args.odd)
    data = read_data(args.data, findings, args.format)
    findings.check()
    splits, said = data.divided(args.val_share, args.seed)
    print(f"{args.data}: format {data.format}")
    for line in (*findings.lines, said):
        if line:
            print(line)
    rows, overrides = [], []
    for name, split in splits.items():
        file = args.output / f"{name}.json"
        if any(file.resolve() == one.json_file for one in data.splits.values()):
            raise UserError(f"{file} is the data themselves: name another folder")
        write_coco(file, split.content)
        rows.append((name, len(split.content["images"]), len(split.content["annotations"]), file))
        if name != "test":
            overrides += [f"dataset.{name}_json={file}", f"dataset.{name}_images={split.images}"]
    print(tabulate(rows, ("split", "images", "annotations", "file")))
    print(f"train with {' '.join(overrides)}")
    return 0
