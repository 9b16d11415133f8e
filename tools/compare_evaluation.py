#!/usr/bin/env python3
"""Compares faster-coco-eval with pycocotools, as this project's evaluator calls them.

    python tools/compare_evaluation.py --output tools/compare_evaluation.md

Two sets are evaluated: results that the COCO API ships with those of pycocotools for them, and
random boxes and masks, with crowds, ties of scores and overlaps of exactly a threshold. Every entry
of the precision and recall arrays is compared, not only their means.
"""

import argparse
import contextlib
import io
import json
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util

WIDTH, HEIGHT, CLASSES = 640, 480, 80


def random_set(images: int, seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Makes annotations and results in COCO's format.

    Args:
        images: their number.
        seed: of all that is drawn.

    Returns:
        the json of the annotations, and the results, which have boxes and masks.
    """
    rng = np.random.default_rng(seed)
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image in range(1, images + 1):
        classes = rng.choice(CLASSES, size=3, replace=False) + 1
        for _ in range(rng.integers(0, 12)):
            # Few sizes and whole pixels: many overlaps are exactly 0.5, 0.75 and so on.
            width, height = (int(size) for size in rng.choice((8, 16, 24, 40, 80, 160, 240), 2))
            x, y = int(rng.integers(0, WIDTH - width)), int(rng.integers(0, HEIGHT - height))
            category, crowd = int(rng.choice(classes)), int(rng.random() < 0.03)
            corners = [x, y, x + width, y, x + width, y + height, x, y + height]
            annotations.append(
                {"id": len(annotations) + 1, "image_id": image, "category_id": category,
                 "bbox": [x, y, width, height], "area": width * height, "iscrowd": crowd,
                 "segmentation": _mask(corners) if crowd else [corners]}
            )  # fmt: skip
            for _ in range(rng.integers(0, 6)):
                dx, dy = (int(shift) * width // 8 for shift in rng.integers(-4, 5, 2))
                moved = [x + dx, y + dy, x + dx + width, y + dy, x + dx + width, y + dy + height,
                         x + dx, y + dy + height]  # fmt: skip
                right = category if rng.random() < 0.8 else int(rng.choice(classes))
                results.append(
                    {"image_id": image, "category_id": right,
                     "bbox": [x + dx, y + dy, width, height],
                     "score": round(float(rng.random()), 2), "segmentation": _mask(moved)}
                )  # fmt: skip
    names = [{"id": number, "name": str(number)} for number in range(1, CLASSES + 1)]
    sizes = [{"id": n, "width": WIDTH, "height": HEIGHT} for n in range(1, images + 1)]
    return {"images": sizes, "annotations": annotations, "categories": names}, results


def _mask(corners: list[int]) -> dict[str, Any]:
    rle = mask_util.frPyObjects([corners], HEIGHT, WIDTH)[0]
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def evaluate(
    json_file: Path, results: list[dict[str, Any]], *, fast: bool
) -> tuple[dict[str, Any], float]:
    """Evaluates results, with boxes and maybe masks, by the evaluator of the configs.

    Returns:
        by task, what the library counted: ``precision``, ``recall`` and ``stats``; and the seconds
        that it all took, from the predictions on.
    """
    from detectron2.data import MetadataCatalog

    from mvitv2_det.evaluation import COCOEvaluator

    kept: dict[str, Any] = {}

    class Evaluator(COCOEvaluator):
        def _derive_coco_results(self, coco_eval: Any, iou_type: str, class_names: Any) -> Any:
            kept[iou_type] = {**coco_eval.eval, "stats": coco_eval.stats}
            return super()._derive_coco_results(coco_eval, iou_type, class_names)

    name = f"compared {json_file}"
    MetadataCatalog.get(name).json_file = str(json_file)
    with contextlib.redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory() as folder:
        evaluator = Evaluator(name, output_dir=folder, use_fast_impl=fast)
        evaluator.reset()
        evaluator._predictions = [{"image_id": None, "instances": [dict(r) for r in results]}]
        begun = time.process_time()
        evaluator.evaluate()
        took = time.process_time() - begun
    MetadataCatalog.remove(name)
    return kept, took


def difference(one: dict[str, Any], other: dict[str, Any]) -> float:
    """The largest difference of any entry of what two libraries counted."""
    return max(
        float(np.abs(np.asarray(one[key]) - np.asarray(other[key])).max())
        for key in ("precision", "recall", "stats")
    )


def compare(
    title: str, json_file: Path, results: list[dict[str, Any]], say: Callable[[str], None]
) -> float:
    """Writes a row of the table for each task; returns the largest difference."""
    official, took = evaluate(json_file, results, fast=False)
    fast, took_fast = evaluate(json_file, results, fast=True)
    worst = 0.0
    for task in official:
        off = difference(official[task], fast[task])
        worst = max(worst, off)
        found = official[task]["stats"][0]
        say(f"| {title} | {task} | {len(results)} | {found:.6f} | {off:.1e} | {took:.1f} | "
            f"{took_fast:.1f} | {took / took_fast:.1f} |")  # fmt: skip
    return worst


def main() -> int:
    """Compares; returns 1 if something differs by more than 1e-6."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=5000, help="of the random set")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--coco-pair", type=Path, default=Path("../shared/data/eval_pair_val2014"),
        help="folder with the annotations and results of the COCO API's own example",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, help="table in Markdown; otherwise it is printed")
    args = parser.parse_args()
    lines = [
        "# faster-coco-eval and pycocotools",
        "",
        f"`python tools/compare_evaluation.py --images {args.images} --seed {args.seed}`, with "
        f"faster-coco-eval {version('faster-coco-eval')} and pycocotools {version('pycocotools')}, "
        f"one core of a CPU. Seconds are of its time, for all tasks of a set together, from the "
        f"predictions to the numbers.",
        "",
        "| set | task | results | AP | largest difference | pycocotools, s | fast, s | times |",
        "|---|---|---|---|---|---|---|---|",
    ]
    worst = 0.0
    for task in ("bbox", "segm"):
        file = args.coco_pair / f"instances_val2014_fake{task}100_results.json"
        if not file.is_file():
            print(f"there is no {file}: this set is left out", file=sys.stderr)
            continue
        truth = args.coco_pair / "instances_val2014_100.json"
        worst = max(worst, compare(f"COCO's example of {task}", truth, json.loads(file.read_text()),
                                   lines.append))  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        content, results = random_set(args.images, args.seed)
        truth = Path(folder) / "random.json"
        truth.write_text(json.dumps(content))
        title = f"{args.images} random images"
        worst = max(worst, compare(title, truth, results, lines.append))
    text = "\n".join(lines) + "\n"
    if args.output:
        args.output.write_text(text, encoding="utf-8")
    print(text)
    return 0 if worst <= 1e-6 else 1


if __name__ == "__main__":
    sys.exit(main())
