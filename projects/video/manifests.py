"""Lists of labelled videos, in the formats that others use.

=============== ===============================================================================
format          what it is
=============== ===============================================================================
``folders``     a folder with a folder for each class, with video files at any depth in it, or
                with folders of frames directly in it
``list``        a text or csv file of lines ``path label``, as PySlowFast and mmaction2 have;
                ``path frames label``, where ``path`` is a folder of frames, is mmaction2's list of
                raw frames and PySlowFast's of three columns. Comma, tab or space divide; a label
                is a number, or a name
``kinetics``    the official csv (label,youtube_id,time_start,time_end,split); files are
                ``id_start_end.*``, as ``abc_000010_000020.mp4``, or ``id.*``, in the root or in a
                folder of the class
``something``   Something-Something's json of ids and templates; files are ``id.*`` or folders
                ``id`` of frames. ``*labels.json`` beside it numbers the classes
``frames``      PySlowFast's list of single frames of Something-Something, with the header
                ``original_vido_id video_id frame_id path labels``; the frames of a video are all
                those of their folder
=============== ===============================================================================

Paths are from the root, which is the manifest's folder where none is given.
"""

import csv
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from timm.utils.misc import natural_key

from mvitv2_det.errors import UserError
from mvitv2_det.predict.inputs import IMAGE_ENDINGS, VIDEO_ENDINGS
from projects.common.sources import Sample, order_classes

FORMATS = ("folders", "list", "kinetics", "something", "frames")
MISSING = ("error", "skip")


class _Line(NamedTuple):
    """A line of a manifest.

    Attributes:
        where: file and line, for errors.
        label: name or number of the class.
        paths: files or folders, the first of which that exists is the video.
    """

    where: str
    label: str
    paths: Sequence[Path]


def read_manifest(
    source: str,
    *,
    classes: Sequence[str] | None = None,
    root: str = "",
    format: str = "",
    missing: str = "error",
) -> tuple[list[Sample], list[str]]:
    """Lists the videos of a manifest, and checks that they exist.

    Args:
        source: file or folder.
        classes: the known classes, in the order of the outputs; labels that are numbers count
            them. None takes those of the manifest: numbers up to the largest, or names in natural
            order.
        root: folder that paths start from; by default the manifest's.
        format: one of :data:`FORMATS`; by default what the content looks like.
        missing: ``error``, or ``skip`` to leave lines out whose video is not there.

    Returns:
        The samples, and the classes.

    Raises:
        UserError: the manifest cannot be read, is of another format, has a label that is not known,
            or names a video that is not there; the message has file and line.
    """
    if format and format not in FORMATS:
        raise UserError(f"dataset.format must be one of {', '.join(FORMATS)}, got {format!r}")
    if missing not in MISSING:
        raise UserError(f"dataset.missing must be {' or '.join(MISSING)}, got {missing!r}")
    path = Path(source)
    if path.is_dir():
        if format not in ("", "folders"):
            raise UserError(f"{source} is a folder: expected a file of format {format!r}")
        samples = _read_folders(path)
        return samples, order_classes(samples, classes, source)
    if not path.is_file():
        raise UserError(f"there is no folder of classes or list of videos {source!r}")
    lines, numbered = _READERS[format or detect_format(path)](path, Path(root or path.parent))
    if not lines:
        raise UserError(f"{source} has no videos")
    known = classes
    if numbered is not None:
        known = classes or numbered
    elif all(line.label.isdecimal() for line in lines):
        known = classes or [str(n) for n in range(1 + max(int(line.label) for line in lines))]
        lines = [line._replace(label=_numbered(line, known)) for line in lines]
    elif classes is not None:
        known = classes
    samples = list(_existing(lines, skip=missing == "skip"))
    if not samples:
        raise UserError(f"{source}: none of its {len(lines)} videos is there; give dataset.root")
    return samples, order_classes(samples, known, source)


def detect_format(path: Path) -> str:
    """Finds a manifest's format by its ending and its first line."""
    if path.is_dir():
        return "folders"
    if path.suffix.lower() == ".json":
        return "something"
    first = next((line.lower() for _, line in _text_lines(path)), "")
    if "youtube_id" in first:
        return "kinetics"
    if first.startswith("original_vido_id"):
        return "frames"
    return "list"


def _read_folders(folder: Path) -> list[Sample]:
    classes = _entries(folder, lambda path: path.is_dir())
    if not classes:
        raise UserError(
            f"folder {folder} has no folders: expected one for each class, with its videos"
        )
    samples = []
    for entry in classes:
        videos = [
            Path(parent, name)
            for parent, _, names in os.walk(entry, followlinks=True)
            for name in names
            if not name.startswith(".") and Path(name).suffix.lower() in VIDEO_ENDINGS
        ]
        videos = sorted(videos, key=lambda path: natural_key(str(path))) or _entries(
            entry, lambda path: path.is_dir() and bool(_entries(path, _is_image))
        )
        if not videos:
            raise UserError(f"class folder {entry} holds no video: fill it or remove it")
        samples += [Sample(path, entry.name) for path in videos]
    return samples


def _read_list(file: Path, root: Path) -> tuple[list[_Line], None]:
    found = []
    for number, text in _text_lines(file):
        where = f"{file}, line {number}"
        cells = _cells(text)
        if not found and [cell.lower() for cell in cells] == ["path", "label"]:
            continue
        if len(cells) not in (2, 3) or not all(cells):
            raise UserError(
                f"{where}: expected path and label, or path, number of frames and label, got "
                f"{text[:80]!r}"
            )
        if len(cells) == 3 and not cells[1].isdecimal():
            raise UserError(f"{where}: expected a number of frames, got {cells[1]!r}")
        found.append(_Line(where, cells[-1], [root / cells[0]]))
    return found, None


def _cells(text: str) -> list[str]:
    """A line's cells; paths may hold spaces if the label and the number of frames do not."""
    for separator in (",", "\t"):
        if separator in text:
            return [cell.strip() for cell in next(csv.reader([text], delimiter=separator))]
    head, *rest = text.rsplit(maxsplit=2)
    if len(rest) == 2 and not rest[0].isdecimal():
        head, rest = text.rsplit(maxsplit=1)[0], rest[1:]
    return [head, *rest]


def _read_kinetics(file: Path, root: Path) -> tuple[list[_Line], None]:
    found = []
    rows = csv.DictReader(line for _, line in _text_lines(file))
    names = {name.strip().lower(): name for name in rows.fieldnames or ()}
    needed = ("label", "youtube_id", "time_start", "time_end")
    if lacking := [name for name in needed if name not in names]:
        raise UserError(f"{file}, line 1: expected columns {', '.join(needed)}; no {lacking[0]}")
    for number, row in enumerate(rows, 2):
        where = f"{file}, line {number}"
        label, video, *times = ((row[names[name]] or "").strip() for name in needed)
        try:
            start, end = (int(float(time)) for time in times)
        except ValueError:
            raise UserError(f"{where}: expected times in seconds, got {times}") from None
        if not label or not video:
            raise UserError(f"{where}: expected label and youtube_id, got {label!r}, {video!r}")
        stems = [f"{video}_{start:06d}_{end:06d}", video]
        folders = [root, root / label, root / label.replace(" ", "_")]
        paths = [folder / stem for stem in stems for folder in folders]
        found.append(_Line(where, label, paths))
    return found, None


def _read_something(file: Path, root: Path) -> tuple[list[_Line], list[str] | None]:
    content = _read_json(file)
    if not isinstance(content, list):
        raise UserError(f"{file} must be a list of videos with id and template")
    found = []
    for number, entry in enumerate(content, 1):
        where = f"{file}, entry {number}"
        if not isinstance(entry, dict) or not {"id", "template"} <= set(entry):
            raise UserError(f"{where}: expected id and template, got {str(entry)[:80]}")
        label = str(entry["template"]).replace("[", "").replace("]", "")
        found.append(_Line(where, label, [root / str(entry["id"])]))
    numbers = next(iter(sorted(file.parent.glob("*labels.json"))), None)
    if numbers is None:
        return found, None
    order = _read_json(numbers)
    try:
        return found, sorted(order, key=lambda name: int(order[name]))
    except (TypeError, ValueError, KeyError) as error:
        raise UserError(f"{numbers} must give each class a number: {error}") from error


def _read_frames(file: Path, root: Path) -> tuple[list[_Line], None]:
    found: dict[str, _Line] = {}
    for number, text in list(_text_lines(file))[1:]:
        where, cells = f"{file}, line {number}", text.split()
        if len(cells) != 5:
            raise UserError(
                f"{where}: expected video, video, frame, path, label, got {text[:80]!r}"
            )
        label = cells[4].strip('"')
        if label and cells[0] not in found:
            found[cells[0]] = _Line(where, label, [(root / cells[3]).parent])
    return list(found.values()), None


_READERS = {
    "list": _read_list,
    "kinetics": _read_kinetics,
    "something": _read_something,
    "frames": _read_frames,
}


def _numbered(line: _Line, classes: Sequence[str]) -> str:
    if int(line.label) >= len(classes):
        raise UserError(
            f"{line.where}: label {line.label} is not among the {len(classes)} classes, which are "
            f"counted from 0"
        )
    return classes[int(line.label)]


def _existing(lines: Iterable[_Line], *, skip: bool) -> Iterator[Sample]:
    listed: dict[Path, dict[str, Path]] = {}
    for line in lines:
        found = next((path for path in map(lambda p: _find(p, listed), line.paths) if path), None)
        if found is not None:
            yield Sample(found, line.label)
        elif not skip:
            raise UserError(
                f"{line.where}: there is no video {line.paths[0]}; dataset.root says where paths "
                f"start, dataset.missing=skip leaves such lines out"
            )


def _find(path: Path, listed: dict[Path, dict[str, Path]]) -> Path | None:
    """A file, a folder, or a file whose ending is not known, by one listing of its folder."""
    folder = path.parent
    if folder not in listed:
        names = os.listdir(folder) if folder.is_dir() else []
        listed[folder] = {name: folder / name for name in names}
        for name in names:
            stem, ending = os.path.splitext(name)
            if ending.lower() in VIDEO_ENDINGS:
                listed[folder].setdefault(stem, folder / name)
    return listed[folder].get(path.name)


def _entries(folder: Path, is_wanted) -> list[Path]:  # type: ignore[no-untyped-def]
    try:
        inside = [path for path in folder.iterdir() if not path.name.startswith(".")]
    except OSError as error:
        raise UserError(f"cannot read folder {folder}: {error.strerror}") from error
    return sorted(filter(is_wanted, inside), key=lambda path: natural_key(path.name))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_ENDINGS


def _text_lines(file: Path) -> Iterator[tuple[int, str]]:
    """Lines that are not empty, with their numbers."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {file}: {error}") from error
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            yield number, line.strip()


def _read_json(file: Path) -> object:
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {file}: {error}") from error
