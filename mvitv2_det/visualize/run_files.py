"""Reading of the files of a training run: its metrics and its last predictions.

Detectron2's ``JSONWriter`` writes ``metrics.json``, and its ``COCOEvaluator`` writes
``coco_instances_results.json``.
"""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from ..errors import UserError


def read_metrics(file: Path) -> list[dict[str, float]]:
    """Reads the metrics of a run, one record for each logged iteration, in order.

    A run that is resumed or restarted in the same folder appends to the file. Only the last
    record of a repeated iteration is returned.

    Raises:
        UserError: the file is missing, or not in the format of ``JSONWriter``.
    """
    records: list[dict[str, float]] = []
    for number, line in enumerate(_read_text(file).splitlines(), start=1):
        try:
            record = json.loads(line)
            iteration = record["iteration"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{file}, line {number}: expected a json record with 'iteration', as training "
                f"writes, got {line[:40]!r}"
            ) from error
        while records and records[-1]["iteration"] >= iteration:
            records.pop()
        records.append(record)
    return records


def read_results(file: Path) -> dict[int, list[dict[str, Any]]]:
    """Reads predictions in COCO's results format, and groups them by image id.

    Raises:
        UserError: the file is missing, or not in this format.
    """
    try:
        results = json.loads(_read_text(file))
        by_image = defaultdict(list)
        for result in results:
            if not {"category_id", "bbox", "score"} <= result.keys():
                raise KeyError("category_id, bbox or score")
            by_image[result["image_id"]].append(result)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is not in COCO's results format: {error}") from error
    return dict(by_image)


def evaluations(records: list[dict[str, float]]) -> list[dict[str, float]]:
    """Selects the records of :func:`read_metrics` that hold AP or accuracies."""
    return [r for r in records if "bbox/AP" in r or "classification/top1" in r]


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"cannot read {file}: {error.strerror}; expected the output folder of a finished run "
            f"of train_net.py"
        ) from error
