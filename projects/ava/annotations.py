"""AVA's files: persons and their actions at key frames, names of actions, excluded key frames.

=================== ===========================================================================
file                what it is
=================== ===========================================================================
truths              csv of lines video,second,x1,y1,x2,y2,action,person; a line for each action
persons             csv of the same columns, the last the detector's score, the action empty or
                    -1 where there is none (PySlowFast's ``person_box_67091280_iou90``); or
                    mmaction2's pickle, ``"video,second"`` to (N, 5) boxes and scores, which is
                    read without running code
actions             pbtxt of items of name and id, AVA's own or its list of 60 for evaluation
excluded            csv of lines video,second
=================== ===========================================================================

Boxes are shares of width and height. Actions are counted from 1, as AVA counts them.

Axes: N persons at a key frame, C actions.
"""

import csv
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torchvision.ops import box_iou

from mvitv2_det.errors import UserError
from mvitv2_det.weights.unpickle import load_arrays

# Persons of a detector get the actions of the truth that they overlap more than this (B.6).
LEAST_IOU = 0.9


class KeyFrame(NamedTuple):
    """A second of a video, as AVA counts them."""

    video: str
    second: int


class Person(NamedTuple):
    """A box in shares of width and height: left, top, right, bottom.

    Attributes:
        box: the four numbers.
        actions: what the person does; empty where nothing is known or done.
        score: of the detector, 1 where it gives none.
    """

    box: tuple[float, float, float, float]
    actions: tuple[int, ...] = ()
    score: float = 1.0


Persons = dict[KeyFrame, list[Person]]


def read_actions(path: str | Path) -> dict[int, str]:
    """Names of actions by their numbers, in ascending order.

    Raises:
        UserError: the file cannot be read, or is no list of actions.
    """
    items = re.findall(r"\b(?:item|label)\s*{([^{}]*)}", _text(path))
    found = {}
    for number, item in enumerate(items, 1):
        name = re.search(r"\bname:\s*\"([^\"]*)\"", item) or re.search(r"\bname:\s*'([^']*)'", item)
        key = re.search(r"\b(?:label_)?id:\s*(\d+)", item)
        if name is None or key is None or int(key[1]) < 1:
            raise UserError(f'{path}, item {number}: expected name: "…" and id: from 1 on')
        if int(key[1]) in found:
            raise UserError(f"{path}, item {number}: id {key[1]} has been given before")
        found[int(key[1])] = name[1]
    if not found:
        raise UserError(
            f'{path} lists no actions: expected items such as item {{ name: "walk" id: 1 }}'
        )
    return dict(sorted(found.items()))


def read_excluded(path: str | Path) -> set[KeyFrame]:
    """Key frames that are not evaluated; none if ``path`` is empty.

    Raises:
        UserError: the file cannot be read, or a line is of another kind.
    """
    if not path:
        return set()
    return {_key(cells, where, 2) for where, cells in _rows(path)}


def read_truths(path: str | Path) -> Persons:
    """Persons and what they do, as people have annotated them.

    Raises:
        UserError: the file cannot be read, or a line is of another kind; with its number.
    """
    found = _read_csv(Path(path), scored=False)
    if not any(person.actions for persons in found.values() for person in persons):
        raise UserError(f"{path} has no actions: expected lines video,second,x1,y1,x2,y2,action")
    return found


def read_persons(path: str | Path, least_score: float = 0.0) -> Persons:
    """Persons that a detector has found.

    Args:
        path: a csv, or a pickle whose name ends with ``.pkl`` or ``.pickle``.
        least_score: boxes that score lower are left out.

    Raises:
        UserError: the file cannot be read, is of another kind, or nothing is left.
    """
    is_pickle = Path(path).suffix.lower() in (".pkl", ".pickle")
    every = _read_pickle(Path(path)) if is_pickle else _read_csv(Path(path), scored=True)
    found = {}
    for key, persons in every.items():
        if kept := [person for person in persons if person.score >= least_score]:
            found[key] = kept
    if not found:
        raise UserError(f"{path} has no person that scores {least_score:g}: lower the least score")
    return found


def training_persons(truths: Persons, persons: Persons) -> Persons:
    """Joins truths with persons of a detector, as the recipe trains on both (appendix B.6).

    Where no person of the detector comes with an action, each gets those of the truth that it
    overlaps most, if its IoU is above :data:`LEAST_IOU`, and is left out otherwise. Where some do,
    as in the lists of PySlowFast, all are taken as they are: one without does nothing of the list.
    """
    labelled = any(person.actions for each in persons.values() for person in each)
    found = {}
    for key in truths.keys() | (persons.keys() if labelled else set()):
        own, detected = truths.get(key, []), persons.get(key, [])
        found[key] = _merged([*own, *(detected if labelled else _labelled(detected, own))])
    return dict(sorted(found.items()))


def _labelled(detected: list[Person], truths: list[Person]) -> Iterator[Person]:
    if not detected:
        return
    boxes = [torch.tensor([each.box for each in persons]) for persons in (detected, truths)]
    best = box_iou(*boxes).max(dim=1)
    for person, overlap, index in zip(detected, *(each.tolist() for each in best), strict=True):
        if overlap > LEAST_IOU:
            yield person._replace(actions=truths[index].actions)


def _merged(persons: Iterable[Person]) -> list[Person]:
    """One person for each different box, with the actions of all that have it."""
    found: dict[tuple[float, ...], Person] = {}
    for person in persons:
        old = found.get(person.box, person)
        actions = tuple(dict.fromkeys((*old.actions, *person.actions)))
        found[person.box] = old._replace(actions=actions)
    return list(found.values())


def _read_csv(path: Path, *, scored: bool) -> Persons:
    found: Persons = {}
    for where, cells in _rows(path):
        key = _key(cells, where, 7)
        box = tuple(_number(cell, where) for cell in cells[2:6])
        if not (0 <= box[0] <= box[2] <= 1 and 0 <= box[1] <= box[3] <= 1):
            raise UserError(
                f"{where}: expected a box x1,y1,x2,y2 in shares of width and height, got "
                f"{','.join(cells[2:6])}"
            )
        text = cells[6]
        if text not in ("", "-1") and not (text.isdecimal() and int(text)):
            raise UserError(f"{where}: expected an action counted from 1, got {text!r}")
        actions = (int(text),) if text not in ("", "-1") else ()
        score = _number(cells[7], where) if scored and len(cells) > 7 and cells[7] else 1.0
        found.setdefault(key, []).append(Person(box, actions, score))  # type: ignore[arg-type]
    if not found:
        raise UserError(f"{path} has no lines: expected video,second,x1,y1,x2,y2,action")
    return {key: _merged(persons) for key, persons in found.items()}


def _read_pickle(path: Path) -> Persons:
    try:
        content = load_arrays(path.read_bytes())
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except Exception as error:  # unpickling arbitrary bytes can raise any exception
        raise UserError(f"{path} cannot be read; it is cut off or no pickle: {error}") from error
    wrong = UserError(
        f'{path} must map "video,second" to arrays (N, 4) of boxes or (N, 5) with scores, in '
        f"shares of width and height"
    )
    if not isinstance(content, Mapping):
        raise wrong
    found = {}
    for name, rows in content.items():
        if not isinstance(rows, np.ndarray) or rows.ndim != 2 or rows.shape[1] not in (4, 5):
            raise wrong
        if not ((rows[:, :4] >= 0) & (rows[:, :4] <= 1)).all():
            raise wrong
        # A video's name may hold commas.
        key = _key(str(name).rsplit(",", 1), f"{path}, {name!r}", 2)
        found[key] = [Person(tuple(row[:4]), (), *row[4:]) for row in rows.tolist()]
    return found


def _key(cells: list[str], where: str, least: int) -> KeyFrame:
    if len(cells) < least or not cells[0]:
        expected = "video,second" + (",x1,y1,x2,y2,action" if least > 2 else "")
        raise UserError(f"{where}: expected {expected}, got {','.join(cells)[:80]!r}")
    second = _number(cells[1], where)
    if second != int(second):
        raise UserError(f"{where}: expected whole seconds, got {cells[1]!r}")
    return KeyFrame(cells[0], int(second))


def _number(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise UserError(f"{where}: expected a number, got {text[:40]!r}")
    return value


def _rows(path: str | Path) -> Iterator[tuple[str, list[str]]]:
    for number, line in enumerate(_text(path).splitlines(), 1):
        if line.strip():
            yield f"{path}, line {number}", [cell.strip() for cell in next(csv.reader([line]))]


def _text(path: str | Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
