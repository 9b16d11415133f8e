"""YOLO's format, as Ultralytics and Roboflow have it: boxes and polygons, and a data.yaml.

A line of a label file is ``class x y width height``, of a box's centre, or ``class x1 y1 x2 y2 …``
of a polygon; all numbers are shares of the image's width and height. The label file of
``images/a.jpg`` is ``labels/a.txt``, or ``a.txt`` beside it; an image without one has no instance.
"""

import reprlib
from itertools import accumulate
from pathlib import Path
from typing import Any

import yaml

from ...errors import UserError
from ..findings import Findings
from .building import Builder, Split
from .files import IMAGE_SUFFIXES, read_text, split_folders, split_name, within

_LARGEST_YAML, _DEEPEST_YAML = 2**18, 20  # characters, brackets
_FARTHEST = 1.5  # what is only partly outside of its image is put right later
_CLASSES = ("classes.txt", "obj.names")


class _WithoutAliases(yaml.SafeLoader):
    """YAML of plain values; aliases, by which a small file becomes a large one, are an error."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, "aliases are not read", mark)
        return super().compose_node(parent, index)


def find(path: Path) -> Path | None:
    """Finds the file that names the classes: a YAML file, or else one of a name a line."""
    files = [path] if path.is_file() else sorted([*path.glob("*.yaml"), *path.glob("*.yml")])
    for file in files:
        if file.suffix in (".yaml", ".yml") and "names:" in read_text(file):
            return file
    return next((path / name for name in _CLASSES if (path / name).is_file()), None)


def read(file: Path, findings: Findings) -> dict[str, Split]:
    """Reads a data set.

    Args:
        file: what :func:`find` found.
        findings: what is wrong is noted here.

    Raises:
        UserError: the file that names the classes is wrong, or names no folder of images.
    """
    root = file.parent
    if file.name in _CLASSES:
        lines = [line.strip() for line in read_text(file).splitlines()]
        names = dict(enumerate(line for line in lines if line))
        images = _images_of_folders(root)
    else:
        settings = _settings(file)
        names = _names(file, settings.get("names"))
        images = _images_of(file, settings)
    builder = Builder(root, findings, names)
    for split, files in images.items():
        for image_file in files:
            _read_image(builder, split, image_file)
    return builder.splits()


def _settings(file: Path) -> dict[str, Any]:
    text = read_text(file)
    if len(text) > _LARGEST_YAML or _depth(text) > _DEEPEST_YAML:  # else it takes hours
        raise UserError(f"{file} is too large or too deeply nested for a data.yaml")
    try:
        settings = yaml.load(text, _WithoutAliases)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or type(error).__name__
        raise UserError(f"{file}{line}: no YAML: {reason}") from error
    if not isinstance(settings, dict):
        raise UserError(f"{file} has no 'names' of classes, as a data.yaml has")
    return settings


def _depth(text: str) -> int:
    """How deeply brackets are nested, at most."""
    steps = ({"[": 1, "{": 1, "]": -1, "}": -1}.get(letter, 0) for letter in text)
    return max(accumulate(steps, initial=0))


def _names(file: Path, names: object) -> dict[int, str]:
    """The names of classes by number, from a list or a mapping."""
    if isinstance(names, list):
        names = dict(enumerate(names))
    if isinstance(names, dict) and names:
        found = {
            key: str(name)
            for key, name in names.items()
            if type(key) is int and key >= 0 and isinstance(name, str | int | float)
        }
        if len(found) == len(names):
            return found
    raise UserError(
        f"{file}: 'names' must list the names of the classes, or be {{0: cat, 1: dog}}, got "
        f"{reprlib.repr(names)}"
    )


def _images_of(file: Path, settings: dict[str, Any]) -> dict[str, list[Path]]:
    """The image files of each split that a data.yaml names."""
    found: dict[str, list[Path]] = {}
    for key, value in settings.items():
        split = split_name(str(key))
        if not split or not value:
            continue
        for name in value if isinstance(value, list) else [value]:
            if not isinstance(name, str):
                raise UserError(f"{file}: {key!r} must name a folder, got {reprlib.repr(value)}")
            found.setdefault(split, []).extend(_images_at(file, settings.get("path"), name))
    return found or _images_of_folders(file.parent)


def _images_of_folders(root: Path) -> dict[str, list[Path]]:
    """The image files of each split that folders are named after."""
    folder = root / "images" if (root / "images").is_dir() else root
    return {split: _images_in(of) for split, of in split_folders(folder).items()}


def _images_at(file: Path, path: object, name: str) -> list[Path]:
    """The image files of a folder, or of a list of files, that a data.yaml names.

    Its ``path`` is that of its author's machine, and Roboflow's names start with ``../`` although
    the folder is beside the file: what is not there is looked for beside the file.
    """
    root = file.parent
    tries = [f"{path}/{name}"] if isinstance(path, str) else []
    for text in (*tries, name, name.removeprefix("../")):
        try:
            place = within(root, text)
        except UserError:
            continue
        if place.is_dir():
            return _images_in(place)
        if place.is_file() and place.suffix == ".txt":
            lines = [line.strip() for line in read_text(place).splitlines()]
            return [within(root, line) for line in lines if line]
    raise UserError(
        f"{file}: there is no folder {name!r} in {root}: all must be in the folder of the file"
    )


def _images_in(folder: Path) -> list[Path]:
    return sorted(one for one in folder.rglob("*") if one.suffix.lower() in IMAGE_SUFFIXES)


def _read_image(builder: Builder, split: str, file: Path) -> None:
    findings = builder.findings
    try:
        image = builder.add_image(split, file)
        label_file = _label_file(builder.root, file)
        lines = read_text(label_file).splitlines() if label_file else []
    except UserError as error:
        findings.wrong(str(error))
        return
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            category, instance = _parsed(line.split(), image.width, image.height)
            if category not in builder.categories:
                raise UserError(f"class {category} has no name in 'names'")
        except UserError as error:
            findings.wrong(f"{label_file}:{number}: {error}")
            continue
        image.add(category, **instance)


def _label_file(root: Path, image: Path) -> Path | None:
    parts = list(image.relative_to(root.absolute()).parts)
    beside = image.with_suffix(".txt")
    if "images" in parts:
        place = len(parts) - 1 - parts[::-1].index("images")
        parts[place] = "labels"
        label = root.joinpath(*parts).with_suffix(".txt")
        if label.is_file():
            return label
    return beside if beside.is_file() else None


def _parsed(words: list[str], width: int, height: int) -> tuple[int, dict[str, Any]]:
    """The class of a line, and its box or polygon in pixels."""
    try:
        numbers = [float(word) for word in words]
        category = int(words[0])
    except ValueError as error:
        raise UserError(
            f"expected a class and numbers, got {reprlib.repr(' '.join(words))}"
        ) from error
    if not all(abs(number) <= _FARTHEST for number in numbers[1:]):  # NaN neither
        raise UserError(
            f"coordinates are shares of the image's width and height, from 0 to 1, got "
            f"{reprlib.repr(' '.join(words[1:]))}"
        )
    if len(numbers) == 5:
        x, y, w, h = numbers[1:]
        box = (x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height
        return category, {"box": box}
    if len(numbers) < 7 or len(numbers) % 2 == 0:
        raise UserError(
            f"expected a class and the 4 numbers of a box, or the x and y of 3 points or more, got "
            f"{len(numbers)} numbers"
        )
    polygon = [
        number * (height if place % 2 else width) for place, number in enumerate(numbers[1:])
    ]
    return category, {"polygons": [polygon]}
