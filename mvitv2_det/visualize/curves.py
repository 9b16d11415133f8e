"""Table of a run's AP or accuracies, and curves of its losses and of these."""

import math
import re
from collections import defaultdict
from pathlib import Path
from typing import IO

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from tabulate import tabulate

from ..errors import UserError
from .run_files import evaluations

AP_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl")
TASKS = {"bbox": "box", "segm": "mask"}

_LOSS_NAMES = {
    "total_loss": "total",
    "loss_rpn_cls": "RPN objectness",
    "loss_rpn_loc": "RPN box",
    "loss_cls": "class",
    "loss_box_reg": "box",
    "loss_mask": "mask",
}
# Okabe and Ito's colours, which colour-blind readers can tell apart.
_CURVE_COLORS = ("#000000", "#0072b2", "#56b4e9", "#d55e00", "#e69f00", "#009e73", "#cc79a7")
# Curves of the validation: a metric's label, colour and line.
_VALIDATION_CURVES = {
    "bbox/AP50": ("box AP50", "#0072b2", "--"),
    "bbox/AP": ("box AP", "#0072b2", "-"),
    "segm/AP50": ("mask AP50", "#d55e00", "--"),
    "segm/AP": ("mask AP", "#d55e00", "-"),
    "classification/top5": ("top-5", "#0072b2", "--"),
    "classification/top1": ("top-1", "#0072b2", "-"),
    "model_ema/bbox/AP": ("box AP, averaged weights", "#56b4e9", "-"),
    "model_ema/segm/AP": ("mask AP, averaged weights", "#e69f00", "-"),
    "model_ema/classification/top1": ("top-1, averaged weights", "#d55e00", "-"),
}
# What the metrics of a run's weights, and of their moving average, begin with.
_WEIGHTS = {"": "", "model_ema/": "averaged weights"}
ACCURACIES = {"classification/top1": "top-1", "classification/top5": "top-5"}


def ap_table(records: list[dict[str, float]]) -> str:
    """Formats the last evaluation as a table in percent.

    It has a row for boxes and one for masks, or a row of accuracies; of a run that averages its
    weights, the same again for the average.

    Args:
        records: the records of :func:`read_metrics`.

    Raises:
        UserError: the records hold no evaluation.
    """
    evaluated = evaluations(records)
    if not evaluated:
        raise UserError("the run's metrics.json holds no evaluation: let it train to its end")
    last = evaluated[-1]
    headers, rows = (
        ["", *AP_NAMES],
        [
            [f"{name}, {of}" if of else name]
            + [_percent(last.get(f"{prefix}{task}/{ap}", math.nan)) for ap in AP_NAMES]
            for prefix, of in _WEIGHTS.items()
            for task, name in TASKS.items()
            if f"{prefix}{task}/AP" in last
        ],
    )
    if not rows:
        keys = [key for key in ACCURACIES if key in last]
        rows = [
            [_percent(last[prefix + key]) for key in keys] + ([of] if of else [])
            for prefix, of in _WEIGHTS.items()
            if prefix + keys[0] in last
        ]
        headers = [ACCURACIES[key] for key in keys] + ([""] if len(rows) > 1 else [])
    return tabulate(
        rows, headers=headers, disable_numparse=True, stralign="right", tablefmt="simple"
    )


def last_evaluated(records: list[dict[str, float]]) -> int:
    """Returns the iteration of the last evaluation.

    Raises:
        IndexError: the records hold no evaluation.
    """
    return int(evaluations(records)[-1]["iteration"])


def draw_curves(records: list[dict[str, float]], title: str, file: Path | IO[bytes]) -> None:
    """Draws the losses, and the AP or the accuracies, over the iterations.

    Args:
        records: the records of :func:`read_metrics`, with or without evaluations.
        title: title of the picture.
        file: to write, of the kind that its ending says.
    """
    figure = Figure(figsize=(14, 5.6), dpi=100, layout="constrained")
    figure.suptitle(title)
    losses, precision = figure.subplots(1, 2)
    _draw_losses(losses, records)
    _draw_precision(precision, evaluations(records))
    for axes in (losses, precision):
        axes.set_xlabel("iteration")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file)


def smooth(values: np.ndarray) -> np.ndarray:
    """Computes a centred running mean over a twentieth of a curve.

    Args:
        values: the curve (N,). Curves of fewer than 40 values are not smoothed.

    Returns:
        The means (N,). Near the ends they are taken over fewer values.
    """
    window = 2 * (len(values) // 40) + 1
    ones = np.ones(window)
    counts = np.convolve(np.ones(len(values)), ones, mode="same")
    return np.convolve(values, ones, mode="same") / counts


def _percent(value: float) -> str:
    """Formats an AP; it is not a number if the data have no object of that size."""
    return "-" if math.isnan(value) else f"{value:.1f}"


def _draw_losses(axes: Axes, records: list[dict[str, float]]) -> None:
    """Draws each loss as logged (thin) and its running mean (thick).

    Detectron2 logs the median over 20 iterations.
    """
    curves = _loss_curves(records)
    for index, (name, points) in enumerate(curves.items()):
        iterations, values = np.array(points).T
        color = _CURVE_COLORS[index % len(_CURVE_COLORS)]
        axes.plot(iterations, values, color=color, linewidth=0.8, alpha=0.3)
        width = 2.4 if name == "total" else 1.6
        axes.plot(iterations, smooth(values), color=color, linewidth=width, label=name)
    axes.set(title="Training losses", ylabel="loss (log scale)", yscale="log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    if curves:
        axes.legend(ncols=2)


def _loss_curves(records: list[dict[str, float]]) -> dict[str, list[tuple[float, float]]]:
    """Lists the points (iteration, loss) of each loss, summed over the stages of a cascade."""
    curves: dict[str, list[tuple[float, float]]] = {name: [] for name in _LOSS_NAMES.values()}
    for record in records:
        sums: dict[str, float] = defaultdict(float)
        for key, value in record.items():
            if key == "total_loss" or key.startswith("loss_"):
                part = re.sub(r"_stage\d+$", "", key)
                sums[_LOSS_NAMES.get(part, part.removeprefix("loss_"))] += value
        for name, value in sums.items():
            curves.setdefault(name, []).append((record["iteration"], value))
    return {name: points for name, points in curves.items() if points}


def _draw_precision(axes: Axes, evaluated: list[dict[str, float]]) -> None:
    is_detection = not evaluated or "bbox/AP" in evaluated[-1]
    axes.set(
        title="Validation", ylabel=f"{'average precision' if is_detection else 'accuracy'} (%)"
    )
    if not evaluated:
        axes.text(0.5, 0.5, "no evaluation", ha="center", transform=axes.transAxes)
        return
    iterations = [record["iteration"] for record in evaluated]
    for metric, (name, color, line) in _VALIDATION_CURVES.items():
        values = [record.get(metric, math.nan) for record in evaluated]
        if not np.isnan(values).all():
            label = f"{name}: {_percent(values[-1])} at the end"
            axes.plot(iterations, values, line, color=color, marker="o", ms=4, label=label)
    axes.set_ylim(bottom=0, top=max(1, min(100, 1.08 * axes.dataLim.y1)))
    axes.legend()
