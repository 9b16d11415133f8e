"""The report on the loading of weights."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from tabulate import tabulate

from ..errors import UserError, readable

# The classifier of a recogniser, whose first axis counts the classes.
_HEAD = "head.projection."
_TABLES = {"as_is": "row for row (as_is)", "aligned": "by distance (aligned)"}


@dataclass(frozen=True)
class Reshaped:
    """A tensor whose shape in the checkpoint differs from its shape in the model.

    Attributes:
        name: name in the model.
        old, new: shapes in the checkpoint and in the model.
        how: how the one became the other, in the words of the report.
    """

    name: str
    old: tuple[int, ...]
    new: tuple[int, ...]
    how: str = "resized"


@dataclass(frozen=True)
class LoadReport:
    """What loading did with each tensor.

    Attributes:
        source: path, URL or description of the source.
        format: ``mvit``, ``timm``, ``torchvision``, ``pyslowfast``, ``mmpretrain``, ``mmaction2``
            or ``detectron2``.
        loaded: names, in the model, of the tensors that were copied unchanged.
        resized: position tables that were resized or aligned, filters that were inflated or reduced
            to their centre frame, heads whose first outputs were taken.
        misfits: tensors of heads that were not copied because their shapes differ, for example
            those of another number of classes; they are also listed in ``initialised`` and
            ``unexpected``.
        zeroed: names, in the model, of temporal positions, which an image network has not, set to
            zero (section 4.3).
        tables: ``as_is`` or ``aligned`` where an image network was loaded into one of clips,
            otherwise empty: how its spatial tables were taken.
        initialised: names, in the model, of the tensors that were not loaded.
        unused: names, in the checkpoint, of the tensors that the model does not have.
        unexpected: the names in ``initialised`` and ``unused`` that point to a mistake. Output
            norms and heads, which are new in detection, do not; neither do the final norm,
            classifier and class token of a classification network.
    """

    source: str
    format: str
    loaded: tuple[str, ...]
    resized: tuple[Reshaped, ...]
    misfits: tuple[Reshaped, ...]
    zeroed: tuple[str, ...]
    tables: str
    initialised: tuple[str, ...]
    unused: tuple[str, ...]
    unexpected: tuple[str, ...]

    def table(self) -> str:
        """Formats the report as a short table.

        Tensors whose names differ only in the number of their block share a line.
        """
        rows = [("loaded", len(self.loaded), "as they are")] if self.loaded else []
        for how in dict.fromkeys(tensor.how for tensor in self.resized):
            rows += _rows(how, _sizes(t for t in self.resized if t.how == how))
        rows += _rows("set to zero", dict.fromkeys(self.zeroed, ""))
        if self.tables:
            names = [*self.loaded, *(tensor.name for tensor in self.resized)]
            spatial = [name for name in names if re.search(r"\.rel_pos_[hw]", name)]
            rows += _rows("spatial tables", dict.fromkeys(spatial, _TABLES[self.tables]))
        rows += _rows("of other shape", _sizes(self.misfits))
        rows += _rows("left at initialisation", dict.fromkeys(self.initialised, ""))
        rows += _rows("unused", dict.fromkeys(self.unused, ""))
        rows += _rows("unexpected among these", dict.fromkeys(self.unexpected, ""))
        title = f"Weights of {self.source} ({self.format}):"
        rows = [(kind, number, readable(which)) for kind, number, which in rows]
        return f"{readable(title)}\n{tabulate(rows, ('', 'tensors', 'which'))}"

    def check_complete(self, part: str = "") -> None:
        """Checks that the weights are those of the whole model, after its training.

        What a random layer finds looks like a result.

        Args:
            part: the beginning of the names of the parameters that must be among the weights, such
                as ``backbone.``; the others may stay random. By default the whole model, and then
                nothing may be left over of the weights, either.

        Raises:
            UserError: they are not; where the numbers of classes differ, it names them.
        """
        for misfit in self.misfits:
            if misfit.name.startswith(part) and misfit.name.endswith("cls_score.weight"):
                raise UserError(
                    f"weights {self.source} know {misfit.old[0] - 1} classes, the config's model "
                    f"{misfit.new[0] - 1}: use the config.yaml that their training has saved, or "
                    f"set model.roi_heads.num_classes"
                )
        missing = [
            name
            for name in self.initialised
            if name.startswith(part) and not name.endswith("num_batches_tracked")
        ]
        # Weights may hold more than a part of the model, but not more than the whole.
        wrong = list(dict.fromkeys((*missing, *(self.unexpected if not part else ()))))
        if wrong:
            raise UserError(
                f"weights {self.source} are not those of the config's model: {len(wrong)} of the "
                f"tensors are in one of them alone or of another shape ("
                f"{', '.join(shortened(wrong)[:3])}, …); use weights of this model after its "
                f"training, with the config.yaml that training has saved"
            )

    def check_strict(self) -> None:
        """Checks that no tensor is unexpected.

        Raises:
            UserError: there are unexpected tensors; the message names them.
        """
        if self.unexpected:
            sizes = [f"{name} {note}" for name, note in _sizes(self.misfits).items()][:3]
            shapes = f" (of other shape: {', '.join(sizes)})" if sizes else ""
            raise UserError(
                f"{self.source}: {len(self.unexpected)} of the tensors do not fit, and strict "
                f"loading allows none: {', '.join(shortened(self.unexpected))}{shapes}"
            )


def shortened(names: Iterable[str]) -> list[str]:
    """Shortens a list of names: those that differ only in numbers, or in weight and bias, merge."""
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
    rows: list[tuple[str, int, str]] = []
    for note, names in by_note.items():
        for group, count in _groups(names).items():
            rows.append(("" if rows else kind, count, f"{group} {note}".rstrip()))
    return rows


def _sizes(tensors: Iterable[Reshaped]) -> dict[str, str]:
    """Notes on the shapes; a head of other classes is named once, with their numbers."""
    notes = {}
    for tensor in tensors:
        prefix, head, _ = tensor.name.rpartition(_HEAD)
        if head and tensor.old[1:] == tensor.new[1:]:
            notes[f"{prefix}head:"] = f"{tensor.old[0]} → {tensor.new[0]} classes"
        else:
            notes[tensor.name] = f"{_size(tensor.old)} → {_size(tensor.new)}"
    return notes


def _size(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))
