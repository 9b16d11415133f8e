"""What loading did with every tensor."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from tabulate import tabulate

from ..errors import UserError


@dataclass(frozen=True)
class Reshaped:
    """A tensor whose shapes in checkpoint and model differ.

    Attributes:
        name: its name in the model.
        old, new: its shapes in the checkpoint and in the model.
    """

    name: str
    old: tuple[int, ...]
    new: tuple[int, ...]


@dataclass(frozen=True)
class LoadReport:
    """What loading did, tensor by tensor.

    Attributes:
        source: where the weights are from.
        format: ``mvit``, ``timm``, ``torchvision``, ``pyslowfast`` or ``detectron2``.
        loaded: names in the model of the tensors that were copied as they are.
        resized: position tables that were resized on the way, and video filters cut to an image's.
        misfits: tensors outside the backbone that were not copied because their shapes differ, as
            those of another number of classes do; also among ``initialised`` and ``unexpected``.
        initialised: names in the model of what stays as it was.
        unused: names in the checkpoint of what the model has no place for.
        unexpected: those of the last two that such weights should not leave over: not the output
            norms and heads that are new in detection, nor the final norm, classifier and class
            token of a classification network.
    """

    source: str
    format: str
    loaded: tuple[str, ...]
    resized: tuple[Reshaped, ...]
    misfits: tuple[Reshaped, ...]
    initialised: tuple[str, ...]
    unused: tuple[str, ...]
    unexpected: tuple[str, ...]

    def table(self) -> str:
        """A short table; tensors that differ in their block's number only share a line."""
        rows = [("loaded", len(self.loaded), "as they are")] if self.loaded else []
        rows += _rows("resized", _sizes(self.resized))
        rows += _rows("of other shape", _sizes(self.misfits))
        rows += _rows("left at initialisation", dict.fromkeys(self.initialised, ""))
        rows += _rows("unused", dict.fromkeys(self.unused, ""))
        rows += _rows("unexpected among these", dict.fromkeys(self.unexpected, ""))
        title = f"Weights of {self.source} ({self.format}):"
        return f"{title}\n{tabulate(rows, ('', 'tensors', 'which'))}"

    def check_strict(self) -> None:
        """Refuses what is unexpected.

        Raises:
            UserError: there is any; the message names all.
        """
        if self.unexpected:
            raise UserError(
                f"{self.source}: {len(self.unexpected)} of the tensors do not fit, and strict "
                f"loading allows none: {', '.join(shortened(self.unexpected))}"
            )


def shortened(names: Iterable[str]) -> list[str]:
    """Names with their numbers, and their weight and bias, drawn together."""
    return [f"{name} ({count})" if count > 1 else name for name, count in _groups(names).items()]


def _groups(names: Iterable[str]) -> dict[str, int]:
    groups: dict[str, list[str]] = {}
    for name in names:
        pattern = re.sub(r"\d+", "*", re.sub(r"\.(weight|bias)$", "", name))
        groups.setdefault(pattern, []).append(name)
    return {
        members[0] if len(members) == 1 else pattern: len(members)
        for pattern, members in groups.items()
    }


def _rows(kind: str, notes: dict[str, str]) -> list[tuple[str, int, str]]:
    by_note: dict[str, list[str]] = {}
    for name, note in notes.items():
        by_note.setdefault(note, []).append(name)
    rows = []
    for note, names in by_note.items():
        for group, count in _groups(names).items():
            rows.append(("" if rows else kind, count, f"{group} {note}".rstrip()))
    return rows


def _sizes(tensors: Iterable[Reshaped]) -> dict[str, str]:
    return {tensor.name: f"{_size(tensor.old)} → {_size(tensor.new)}" for tensor in tensors}


def _size(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))
