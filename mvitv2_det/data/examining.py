"""Examining of a data set of any format, as a whole."""

from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from .categories import with_categories_of, without_unused_parents
from .coco_format import CocoSummary, examine_coco_data
from .findings import Findings
from .formats import read_data
from .sources import write_coco


@dataclass(frozen=True)
class Examined:
    """What was found in a data set.

    Attributes:
        format: its format.
        splits: by name what each split holds, and the folder of its images.
        lines: what was put right or left out.
        faults: what is wrong, a line each.
    """

    format: str
    splits: dict[str, tuple[CocoSummary, str]]
    lines: list[str]
    faults: list[str]


def examine(path: str, images: str | None, format: str | None, odd: str, output: Path) -> Examined:
    """Examines a data set, and goes on after whatever is wrong with single records.

    Args:
        path: a file or folder.
        images: the folder of the images of a json file in COCO's format; found out by default.
        format: the format; found out by default.
        odd: what is done with what is odd; see :class:`.findings.Findings`.
        output: folder for the json files of data that were converted.

    Raises:
        UserError: the data cannot be read at all.
    """
    findings = Findings(path, odd)
    if images is not None and format is None:
        return _examined("coco", {"": (path, images)}, findings, odd)
    data = read_data(path, findings, format)
    files = {}
    for name, split in data.splits.items():
        file = split.json_file
        if file is None:
            file = output / f"{Path(path).stem}_{name or 'all'}.json"
            write_coco(file, split.content)
        files[name] = str(file), str(images or split.images)
    return _examined(data.format, files, findings, odd)


def _examined(
    format: str, files: dict[str, tuple[str, str]], findings: Findings, odd: str
) -> Examined:
    summaries = {
        name: examine_coco_data(file, images, odd) for name, (file, images) in files.items()
    }
    all_findings = [findings, *(summary.findings for summary in summaries.values())]
    lines = [line for one in all_findings for line in one.lines]
    faults = [line for one in all_findings for line in one.faults]
    kept, left_out = without_unused_parents(list(summaries.values()))
    summaries = dict(zip(summaries, kept, strict=True))
    lines += left_out
    for name in ("val", "test") if "train" in summaries else ():
        if name not in summaries:
            continue
        train = summaries["train"]
        try:
            summaries[name], differing = with_categories_of(
                summaries[name], train.content["categories"], train.json_file
            )
            lines += differing
        except UserError as error:
            faults.append(str(error))
    splits = {name: (one, files[name][1]) for name, one in summaries.items()}
    return Examined(format, splits, lines, faults)
