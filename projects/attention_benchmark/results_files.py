"""Makes tables of the measured costs beside the paper's: records for CSV, and Markdown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from projects.attention_benchmark.measurement import Measured
from projects.attention_benchmark.tables import OUT_OF_MEMORY, Row, Table
from projects.attention_benchmark.training import differences
from projects.common import results as files
from projects.common.memory import GIB, OutOfMemory
from projects.common.timing import Spread, Timing

Cell = str | float | None
# Kinds of costs whose absolute values depend on the machine, or on the size of the images.
KINDS = ("train", "test", "memory", "saved")
# Saved activations are compared with the paper's peak memory, because they are most of it there.
PAPER_NAMES = {"saved": "memory"}
MEMORIES = ("memory", "saved")


@dataclass(frozen=True)
class Ratio:
    """A row's speed or memory over that of the default row.

    Attributes:
        measured: with its spread over the rounds; None where it was not measured, and
            ``"OOM"`` where it or the default row did not fit.
        paper: the same ratio of the paper's numbers.
    """

    measured: Spread | str | None
    paper: float | str | None


def ratio(kind: str, result: Measured, default: Measured) -> Ratio:
    """Compares a cost with the default row's; above 1 is faster, or more memory."""
    own, base = getattr(result, kind), getattr(default, kind)
    measured = None
    if isinstance(own, OutOfMemory) or isinstance(base, OutOfMemory):
        measured = OUT_OF_MEMORY
    elif isinstance(own, Timing) and isinstance(base, Timing):
        measured = own.speed_over(base)
    elif own is not None and base is not None:
        measured = Spread.of([own / base])
    return Ratio(measured, _paper_ratio(kind, result.row, default.row))


def _paper_ratio(kind: str, row: Row, default: Row) -> float | str | None:
    name = PAPER_NAMES.get(kind, kind)
    own, base = row.paper.get(name), default.paper.get(name)
    if own == OUT_OF_MEMORY:
        return OUT_OF_MEMORY
    return None if own is None or base is None else own / base


def default_of(results: Sequence[Measured]) -> Measured:
    """Returns the result that the others are compared with."""
    return next(result for result in results if result.row.is_default)


def records(results: Sequence[Measured]) -> list[dict[str, Cell]]:
    """Makes one flat record per row with all its numbers, for the CSV."""
    default = default_of(results)
    made = []
    for result in results:
        row = result.row
        record: dict[str, Cell] = {
            "row": row.name,
            "config": row.config,
            "attention_backend": result.backend,
            "paper_accuracy": row.paper.get("accuracy"),
            "accuracies": " ".join(f"{value:.2f}" for value in result.accuracies) or None,
            "parameters_M": round(result.cost.million_parameters, 3),
            "paper_parameters_M": row.paper.get("params"),
            "multiply_adds_G": round(result.cost.giga, 3),
            "paper_multiply_adds_G": row.paper.get("giga"),
        }
        for kind in KINDS:
            record |= _absolute(kind, getattr(result, kind))
            record |= _relative(kind, ratio(kind, result, default))
        made.append(record | {"note": row.note})
    return made


def _absolute(kind: str, value: Timing | int | OutOfMemory | None) -> dict[str, Cell]:
    if kind in MEMORIES:
        number = round(value / GIB, 4) if isinstance(value, int) else _word(value)
        return {f"{kind}_GiB": number}
    parts = ("median", "lower", "upper")
    names = [f"{kind}_seconds_{part}" for part in parts]
    if not isinstance(value, Timing):
        return dict.fromkeys(names, _word(value))
    return {
        name: round(getattr(value.spread, part), 5) for name, part in zip(names, parts, strict=True)
    }


def _relative(kind: str, compared: Ratio) -> dict[str, Cell]:
    name = f"{kind}_ratio" if kind in MEMORIES else f"{kind}_speed_ratio"
    parts = {"": "median"}
    if kind not in MEMORIES:
        parts |= {"_lower": "lower", "_upper": "upper"}
    measured = compared.measured
    cells: dict[str, Cell] = {
        name + ending: round(getattr(measured, part), 4)
        if isinstance(measured, Spread)
        else measured
        for ending, part in parts.items()
    }
    paper = compared.paper
    return cells | {f"paper_{name}": round(paper, 4) if isinstance(paper, float) else paper}


def _word(value: OutOfMemory | None) -> str | None:
    return OUT_OF_MEMORY if isinstance(value, OutOfMemory) else None


def markdown(table: Table, results: Sequence[Measured], head: Mapping[str, str]) -> str:
    """Formats the measured costs beside the paper's, with ratios to the default row."""
    default = default_of(results)
    columns: dict[str, list[str]] = {
        "row": [
            f"**{result.row.name}**" if result.row.is_default else result.row.name
            for result in results
        ],
        f"{table.accuracy_name}, paper": _shown(results, "accuracy", 1),
        **_trained(table, results),
        "params (M)": [f"{result.cost.million_parameters:.1f}" for result in results],
        "paper (M)": _shown(results, "params", 0),
        "multiply-adds (G)": [f"{result.cost.giga:.2f}" for result in results],
        "paper (G)": _shown(results, "giga", 1),
    }
    headings = {
        "train": ("train (it/s)", "speed"),
        "test": ("test (im/s)", "speed"),
        "memory": ("peak memory (GiB)", "memory"),
        "saved": ("saved activations (GiB)", "memory"),
    }
    batch = int(head.get("batch", "1"))
    for kind, (heading, what) in headings.items():
        compared = [ratio(kind, result, default) for result in results]
        columns[heading] = [_amount(kind, getattr(result, kind), batch) for result in results]
        columns[f"{kind}: {what} ×"] = [_times(c.measured) for c in compared]
        if kind not in PAPER_NAMES and any(columns[heading]):
            columns[f"{kind}: paper ×"] = [_times(c.paper) for c in compared]
    columns["backend"] = [result.backend for result in results]
    columns = {name: cells for name, cells in columns.items() if any(cells)}
    notes = [_explanation(table, columns), *_findings(table, results)]
    of_rows = [f"- {result.row.name}: {result.row.note}" for result in results if result.row.note]
    if of_rows:
        notes.append("\n".join(of_rows))
    return files.markdown(table.title, head, columns, notes)


def _trained(table: Table, results: Sequence[Measured]) -> dict[str, list[str]]:
    """Columns of the accuracies that were measured here."""
    accuracies = _accuracies(results)
    if not accuracies:
        return {}
    compared = differences(accuracies, table.default.name)
    return {
        f"{table.accuracy_name}, trained here": [
            f"{sum(values) / len(values):.1f} ({min(values):.1f} to {max(values):.1f})"
            for values in accuracies.values()
        ],
        f"less {table.default.name}": [
            f"{compared[name].mean:+.1f} ± {compared[name].half_width:.1f}"
            if name in compared
            else ""
            for name in accuracies
        ],
    }


def _accuracies(results: Sequence[Measured]) -> dict[str, Sequence[float]]:
    return {result.row.name: result.accuracies for result in results if result.accuracies}


def _findings(table: Table, results: Sequence[Measured]) -> list[str]:
    """What the accuracies that were measured here show, and what noise hides."""
    accuracies = _accuracies(results)
    if not accuracies:
        return []
    compared = differences(accuracies, table.default.name)
    beyond = [name for name, difference in compared.items() if difference.is_beyond_noise]
    hidden = [name for name in compared if name not in beyond]
    seeds = len(accuracies[table.default.name])
    text = (
        f"Trained here: mean and range of {seeds} seeds; differences from {table.default.name} are "
        f"taken seed by seed, ± is their 95 % interval (Student's t). "
    )
    if beyond:
        text += f"Beyond noise differ: {', '.join(beyond)}. "
    if hidden:
        text += f"Noise hides whether these differ: {', '.join(hidden)}."
    commands = "\n".join(
        f"- {result.row.name}: `mvitv2-det train --config-file {result.row.config} --num-gpus 8`"
        for result in results
    )
    return [text.strip(), f"At full scale, on COCO:\n\n{commands}"]


def _explanation(table: Table, columns: Mapping[str, list[str]]) -> str:
    text = "Multiply-adds and parameters are counted at the paper's protocol; accuracies are the "
    trained = any("trained here" in name for name in columns)
    text += "paper's but for those trained here." if trained else "paper's, none was measured here."
    if any("×" in name for name in columns):
        text += (
            f" × is over the row in bold, {table.default.name}: above 1 is faster, or more "
            f"memory; median of the rounds, with quartiles. The paper's are from V100 GPUs."
        )
    return text


def _shown(results: Sequence[Measured], name: str, digits: int) -> list[str]:
    numbers = [result.row.paper.get(name) for result in results]
    return ["" if number is None else f"{number:.{digits}f}" for number in numbers]


def _amount(kind: str, value: Timing | int | OutOfMemory | None, batch: int) -> str:
    if value is None:
        return ""
    if isinstance(value, OutOfMemory):
        return "out of memory"
    if kind in MEMORIES:
        return f"{value / GIB:.2f}"
    return f"{(batch if kind == 'test' else 1) / value.spread.median:.3g}"


def _times(value: Spread | float | str | None) -> str:
    if value is None:
        return ""
    if value == OUT_OF_MEMORY:
        return "out of memory"
    if not isinstance(value, Spread):
        return f"{value:.2f}"
    if value.lower == value.upper:
        return f"{value.median:.2f}"
    return f"{value.median:.2f} ({value.lower:.2f} to {value.upper:.2f})"
