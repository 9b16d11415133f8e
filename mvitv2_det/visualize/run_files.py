"""What a run of train_net.py leaves behind: its metrics and its last predictions.

The files are those of Detectron2's ``JSONWriter`` (``metrics.json``) and ``COCOEvaluator``
(``coco_instances_results.json``).
"""

import json
from collections import defaultdict
from pathlib import Path

from ..errors import UserError


def read_metrics(file: Path) -> list[dict[str, float]]:
    """What a run logged, one record per iteration, in order.

    A run that was resumed or started anew in the same folder goes on at the end of the file: what
    was logged of the iterations that it repeated is left out.

    Raises:
        UserError: the file is missing or not what ``JSONWriter`` writes.
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


def read_results(file: Path) -> dict[int, list[dict]]:
    """Predictions in COCO's results format, by image id.

    Raises:
        UserError: the file is missing or not in that format.
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
    """Those records of :func:`read_metrics` that hold AP."""
    return [record for record in records if "bbox/AP" in record]


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"cannot read {file}: {error.strerror}; expected the output folder of a finished run "
            f"of train_net.py"
        ) from error
