"""Labelled files: their splits, their classes, and a share that is held out.

What reads the files is of each project.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from timm.utils.misc import natural_key

from mvitv2_det.errors import UserError

VAL_NAMES = ("val", "valid", "validation", "eval", "evaluation", "test")
_HELD_OUT_SEED = 0


@dataclass(frozen=True)
class Sample:
    """A file and the name of its class."""

    path: Path
    label: str


def find_splits(train: str, val: str) -> tuple[str, str]:
    """Finds the two splits of what a user has named.

    A folder that holds ``train`` and ``val`` (or ``valid``, ``validation``, ``eval``, ``test``)
    is a data set, as ImageNet's is; otherwise a folder or file of one of these names beside
    ``train`` is the validation split.

    Args:
        train, val: sources; ``val`` may be empty.

    Returns:
        Both sources. Validation is empty if there is none: a share of training is held out.
    """
    folder = Path(train)
    if (folder / "train").is_dir():
        beside = [folder / name for name in VAL_NAMES]
        train = str(folder / "train")
    else:
        beside = [folder.with_name(name + folder.suffix) for name in VAL_NAMES]
        beside = [path for path in beside if folder.stem == "train" and path != folder]
    found = next((str(path) for path in beside if path.exists()), "")
    return train, val or found


def order_classes(
    samples: Iterable[Sample], classes: Sequence[str] | None, source: str
) -> list[str]:
    """The classes in the order of the outputs.

    Args:
        samples: those of a source.
        classes: the known classes; None takes those of the samples, in natural order.
        source: where the samples come from, for errors.

    Raises:
        UserError: a sample is of a class that is not known.
    """
    paths = {sample.label: sample.path for sample in samples}
    names = sorted(paths, key=natural_key)
    if classes is None:
        return names
    if unknown := [name for name in names if name not in set(classes)]:
        raise UserError(
            f"{source} has class {unknown[0]!r} (of {paths[unknown[0]]}), which is not among the "
            f"{len(classes)} classes that are trained: {_few(classes)}"
        )
    return list(classes)


def given_classes(value: Any) -> list[str] | None:
    """The names that ``dataset.classes`` gives, in the order of the outputs; None if none.

    Args:
        value: names, or the path of a text file of one a line.

    Raises:
        UserError: the file cannot be read or is empty, or a name is given twice.
    """
    if value is None or value == "":
        return None
    source = "it"
    if isinstance(value, str):
        source = value
        try:
            lines = Path(value).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"dataset.classes: cannot read {value}: {error}") from error
        names = [line.strip() for line in lines if line.strip()]
    elif isinstance(value, Sequence):
        names = [str(name) for name in value]
    else:
        raise UserError(
            f"dataset.classes must be names, or a text file of one name a line, got {value}"
        )
    if not names:
        raise UserError(f"dataset.classes: {source} has no names: expected one a line")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"dataset.classes: {source} has {twice[0]!r} more than once")
    return names


def held_out(samples: Sequence[Sample], share: float, *, inside: bool) -> list[Sample]:
    """Divides samples into two parts, always the same: a share of each class, and the rest.

    Args:
        samples: all.
        share: of each class's samples, at least one, in (0, 1).
        inside: return the share, otherwise the rest, which has at least one of each class, too.

    Raises:
        UserError: a class has one sample only.
    """
    rng = np.random.default_rng(_HELD_OUT_SEED)
    by_class: dict[str, list[int]] = {}
    for index, sample in enumerate(samples):
        by_class.setdefault(sample.label, []).append(index)
    chosen: set[int] = set()
    for label, indexes in by_class.items():
        if len(indexes) < 2:
            raise UserError(
                f"class {label!r} has {samples[indexes[0]].path} alone, of which no share can be "
                f"held out: give dataset.val, or more of the class"
            )
        count = min(max(1, round(share * len(indexes))), len(indexes) - 1)
        chosen.update(rng.permutation(indexes)[:count].tolist())
    return [sample for index, sample in enumerate(samples) if (index in chosen) == inside]


def count_samples(samples: Iterable[Sample], what: str) -> str:
    """Counts samples and classes, in words; ``what`` the samples are."""
    counts = Counter(sample.label for sample in samples)
    least, most = min(counts.values()), max(counts.values())
    return f"{sum(counts.values()):,} {what} of {len(counts)} classes, {least} to {most} of each"


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
