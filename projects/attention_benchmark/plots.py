"""Draws accuracy against measured costs, and measured costs against the paper's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import hypot
from pathlib import Path
from textwrap import fill

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Annotation, Text
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator
from matplotlib.transforms import Bbox

from projects.attention_benchmark.measurement import Measured
from projects.attention_benchmark.results_files import KINDS, MEMORIES, default_of, ratio
from projects.attention_benchmark.tables import Table
from projects.common.timing import Spread

# Okabe and Ito's colours, told apart by colour-blind readers as well: one per kind of network.
_COLORS = {"ViT": "#d55e00", "Swin": "#009e73", "MViTv1": "#cc79a7", "": "#0072b2"}
_COST_NAMES = {
    "giga": "multiply-adds (G)",
    "train": "time of a training iteration",
    "test": "time of an inference",
    "memory": "peak training memory",
    "saved": "saved activations",
}
_DISTANCES = (9, 18, 30, 44, 60, 78)  # of a label from its point, in points
# What is better avoided in placing a label, in pixels that it hides of an error bar: being a point
# further away, and being nearer to another row's point.
_PER_POINT, _MISLEADING = 7, 200
_DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1))


@dataclass(frozen=True)
class Costs:
    """A row's cost of one kind: counted, or in times of the default row's.

    Attributes:
        name: of the row.
        accuracy: in percent: mean and range of the seeds trained here, or the paper's, where it
            has one.
        measured: this project's, median and quartiles; None where it did not fit.
        paper: the paper's, where it has one.
    """

    name: str
    accuracy: Spread | None
    measured: Spread | None
    paper: float | None


def draw(table: Table, results: Sequence[Measured], head: Mapping[str, str], file: Path) -> None:
    """Writes the picture: a column of panels for each kind of cost.

    Args:
        head: what the last line says: hardware, versions, command.
        file: PNG to write.
    """
    kinds = {kind: costs(kind, results) for kind in KINDS}
    kinds = {kind: rows for kind, rows in kinds.items() if any(row.measured for row in rows)}
    counted = costs("giga", results)
    if not kinds or any(row.paper is not None for row in counted):
        kinds = {"giga": counted, **kinds}
    compared = any(row.paper is not None for rows in kinds.values() for row in rows)
    lines = 2 if compared else 1
    figure = Figure(figsize=(5.2 * len(kinds), 4.6 * lines + 0.9), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(fill(table.title, 44 * len(kinds)), fontsize=14)
    figure.supxlabel(_wrapped(head, 28 * len(kinds)), fontsize=8, color="0.35")
    panels = figure.subplots(lines, len(kinds), squeeze=False)
    for column, (kind, rows) in enumerate(kinds.items()):
        source = "of the paper"
        if results[0].accuracies:
            source = f"measured, mean and range of {len(results[0].accuracies)} seeds"
        _draw_accuracy(panels[0, column], f"{table.accuracy_name} {source}", kind, rows)
        if compared:
            _draw_agreement(panels[1, column], kind, rows)
    # Labels are placed in pixels: the panels must have their sizes before.
    figure.draw_without_rendering()
    for axes in panels.flat:
        _place_labels(axes)
    figure.savefig(file)


def costs(kind: str, results: Sequence[Measured]) -> list[Costs]:
    """The costs of all rows: ``"giga"`` as they are, the others in times of the default row's."""
    default = default_of(results)
    made = []
    for result in results:
        paper = result.row.paper
        if kind == "giga":
            measured, of_paper = Spread.of([result.cost.giga]), paper.get("giga")
        else:
            compared = ratio(kind, result, default)
            measured, of_paper = compared.measured, compared.paper
            if kind not in MEMORIES:
                measured, of_paper = _inverse(measured), _inverse(of_paper)
        made.append(
            Costs(
                result.row.name,
                _accuracy(result),
                measured if isinstance(measured, Spread) else None,
                of_paper if isinstance(of_paper, float) else None,
            )
        )
    return made


def _accuracy(result: Measured) -> Spread | None:
    values = result.accuracies
    if values:
        return Spread(sum(values) / len(values), min(values), max(values))
    paper = result.row.paper.get("accuracy")
    return Spread(paper, paper, paper) if isinstance(paper, float) else None


def _inverse(speed: Spread | float | str | None) -> Spread | float | str | None:
    """Time from speed."""
    if isinstance(speed, Spread):
        return Spread(1 / speed.median, 1 / speed.upper, 1 / speed.lower)
    return 1 / speed if isinstance(speed, float) else speed


def _wrapped(head: Mapping[str, str], width: int) -> str:
    """The head on as few lines as it takes; a command may be longer than a line."""
    lines = [""]
    for part in (f"{name}: {text}" for name, text in head.items()):
        joined = f"{lines[-1]}   {part}".strip()
        if len(joined) > width and lines[-1]:
            lines.append(part)
        else:
            lines[-1] = joined
    return "\n".join(fill(line, 2 * width, break_on_hyphens=False) for line in lines)


def _draw_accuracy(axes: Axes, label: str, kind: str, rows: Sequence[Costs]) -> None:
    _draw_points(axes, [(row, row.measured, row.accuracy) for row in rows])
    absent = [row.name for row in rows if row.measured is None]
    axes.set_title(f"out of memory: {', '.join(absent)}" if absent else "", fontsize=9)
    axes.set_xlabel(_label(kind, "counted" if kind == "giga" else "measured"))
    axes.set_ylabel(label)


def _draw_agreement(axes: Axes, kind: str, rows: Sequence[Costs]) -> None:
    both = [row for row in rows if row.measured is not None and row.paper is not None]
    if not both:
        axes.text(0.5, 0.5, "not in the paper's table", ha="center", transform=axes.transAxes)
        axes.set_axis_off()
        return
    _draw_points(axes, [(row, row.measured, Spread.of([row.paper])) for row in both])
    numbers = [number for row in both for number in (row.measured.median, row.paper)]
    room = (max(numbers) / min(numbers)) ** 0.18 + 0.02
    limits = min(numbers) / room, max(numbers) * room
    axes.set(xscale="log", yscale="log", xlim=limits, ylim=limits)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(6))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_locator(NullLocator())
    axes.plot(limits, limits, color="0.7", linewidth=1, zorder=0)
    axes.set_xlabel(_label(kind, "counted" if kind == "giga" else "measured"))
    axes.set_ylabel(_label("memory" if kind == "saved" else kind, "paper"))


def _label(kind: str, source: str) -> str:
    unit = "" if kind == "giga" else ", × default row"
    return f"{_COST_NAMES[kind]}{unit}, {source}"


def _draw_points(axes: Axes, points: list[tuple[Costs, Spread | None, Spread | None]]) -> None:
    """Draws points with the spreads of both; the name of each is its line's id."""
    for row, x, y in points:
        if x is None or y is None:
            continue
        color = next(color for prefix, color in _COLORS.items() if row.name.startswith(prefix))
        across, up = ([[s.median - s.lower], [s.upper - s.median]] for s in (x, y))
        axes.errorbar(x.median, y.median, up, across, color=color, linewidth=1, alpha=0.6, zorder=1)
        axes.plot(x.median, y.median, "o", color=color, markersize=6, gid=row.name)
    axes.margins(0.22, 0.16)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _place_labels(axes: Axes) -> None:
    """Names each point, as near to it as other labels, points and the panel's edges allow."""
    renderer = axes.figure.canvas.get_renderer()
    points = [line for line in axes.lines if line.get_gid()]
    bars = [bar.get_window_extent(renderer).padded(2) for bar in axes.collections]
    taken = [_around(axes, line) for line in points]
    for line in points:
        note = _annotate(axes, line)
        note.update_positions(renderer)
        size = Text.get_window_extent(note, renderer).size
        places = []
        for distance in _DISTANCES:
            for dx, dy in _DIRECTIONS:
                box = _label_box(axes, line, (dx * distance, dy * distance), size)
                cost = 30 * _overlap(box, taken, axes.bbox) + _overlap(box, bars, axes.bbox)
                cost += _MISLEADING * _is_nearer_to_another(axes, box, line, points)
                places.append((cost + _PER_POINT * distance, len(places), box))
        _, index, box = min(places)
        distance, direction = divmod(index, len(_DIRECTIONS))
        note.remove()
        _annotate(axes, line, _DISTANCES[distance], _DIRECTIONS[direction])
        taken.append(box)


def _annotate(
    axes: Axes, line: Line2D, distance: float = 0, direction: tuple[int, int] = (1, 1)
) -> Annotation:
    """The name of a point, at a distance in points; with a line to it where that is far."""
    dx, dy = direction
    color = line.get_color()
    arrow = {"arrowstyle": "-", "color": color, "alpha": 0.5, "shrinkB": 3}
    note = axes.annotate(
        line.get_gid(),
        _position(line),
        (dx * distance, dy * distance),
        textcoords="offset points",
        fontsize=8.5,
        color=color,
        ha={1: "left", 0: "center", -1: "right"}[dx],
        va={1: "bottom", 0: "center", -1: "top"}[dy],
        arrowprops=arrow if distance > _DISTANCES[0] else None,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.5},
    )
    note.set_in_layout(False)
    return note


def _label_box(
    axes: Axes, line: Line2D, offset: tuple[float, float], size: tuple[float, float]
) -> Bbox:
    """The pixels of a label of that size in pixels, at that offset in points."""
    starts = []
    for pixel, shift, length in zip(
        axes.transData.transform(_position(line)), offset, size, strict=True
    ):
        before = length if shift < 0 else 0 if shift > 0 else length / 2
        starts.append(pixel + shift * axes.figure.dpi / 72 - before)
    return Bbox.from_bounds(*starts, *size).padded(1)


def _is_nearer_to_another(axes: Axes, box: Bbox, own: Line2D, points: list[Line2D]) -> bool:
    def gap(line: Line2D) -> float:
        x, y = axes.transData.transform(_position(line))
        return hypot(max(box.x0 - x, x - box.x1, 0), max(box.y0 - y, y - box.y1, 0))

    return any(gap(line) < gap(own) for line in points if line is not own)


def _position(line: Line2D) -> tuple[float, float]:
    """Returns the (x, y) of a point in the units of its axes."""
    return line.get_xdata()[0], line.get_ydata()[0]


def _around(axes: Axes, line: Line2D) -> Bbox:
    """The pixels of a point's marker."""
    x, y = axes.transData.transform(_position(line))
    return Bbox.from_extents(x - 5, y - 5, x + 5, y + 5)


def _overlap(box: Bbox, taken: list[Bbox], inside: Bbox) -> float:
    """Pixels that a label shares with others, or that lie outside of the panel."""
    shared = [Bbox.intersection(box, other) for other in taken]
    area = sum(part.width * part.height for part in shared if part is not None)
    within = Bbox.intersection(box, inside)
    visible = 0 if within is None else within.width * within.height
    return area + box.width * box.height - visible
