"""Figures of a report, each as text that an HTML page holds: SVG, or JPEG of photographs."""

import base64
import io
from collections.abc import Callable
from typing import IO, Any

import cv2
import matplotlib
import numpy as np
from matplotlib.figure import Figure

from .evaluation import Evaluated
from .mistakes import KINDS, Judged
from .statistics import LARGE, SMALL, DataStatistics

MOST_CLASSES = 12  # with a curve of their own

_STYLE: Any = {
    "savefig.format": "svg",
    "svg.fonttype": "none",  # text stays text: it can be searched, and the file is small
    "svg.hashsalt": "mvitv2_det",  # the same figure is the same text
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "font.size": 10,
}
_BLUE, _ORANGE = "#0072b2", "#d55e00"


def as_svg(draw: Callable[[IO[bytes]], Any]) -> str:
    """Gives the address ``data:…`` of what a function draws into a file with matplotlib."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        draw(buffer)
    return _address("image/svg+xml", buffer.getvalue())


def as_jpeg(picture: np.ndarray) -> str:
    """Gives the address ``data:…`` of (H, W, 3) RGB, uint8."""
    bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    _, content = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, 88])
    return _address("image/jpeg", content.tobytes())


def precision_recall(evaluated: Evaluated) -> str:
    """Curves of the mean over classes at three IoUs, and of each class, if they are few, at 0.5."""
    with_truth = (evaluated.precision[0] > -1).any(0)
    precision = evaluated.precision[:, :, with_truth]
    names = [one.name for one, known in zip(evaluated.classes, with_truth, strict=True) if known]

    def draw(file: IO[bytes]) -> None:
        figure = Figure(figsize=(6.4, 4.6), layout="constrained")
        axes = figure.subplots()
        if 1 < len(names) <= MOST_CLASSES:
            for index, name in enumerate(names):
                axes.plot(evaluated.recalls, precision[0, :, index], linewidth=1, label=name)
        for iou, line in ((0.5, "-"), (0.75, "--"), (0.9, ":")):
            row = int(np.argmin(np.abs(evaluated.ious - iou)))
            if len(names):
                mean = precision[row].mean(1)
                label = f"mean at IoU {iou:g}" if len(names) > 1 else f"IoU {iou:g}"
                axes.plot(evaluated.recalls, mean, "k" + line, linewidth=2, label=label)
        axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
        if len(names):
            axes.legend(fontsize=8)
        figure.savefig(file)

    return as_svg(draw)


def mistakes(judged: Judged) -> str:
    """Bars: what AP50 would gain if an oracle put each kind of mistake right."""
    base = judged.ap50()
    gains = [judged.ap50(kind) - base for kind in KINDS]

    def draw(file: IO[bytes]) -> None:
        figure = Figure(figsize=(6.4, 2.6), layout="constrained")
        axes = figure.subplots()
        bars = axes.barh(list(KINDS), gains, color=_ORANGE)
        axes.bar_label(bars, fmt="%.1f", padding=3)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.margins(x=0.12)
        axes.set_xlabel("AP50 gained without this kind (points)")
        figure.savefig(file)

    return as_svg(draw)


def sizes(splits: list[DataStatistics]) -> str:
    """Histograms: how large instances are, and how many there are in an image."""

    def draw(file: IO[bytes]) -> None:
        figure = Figure(figsize=(9, 3.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        most = max((one.sides.max() for one in splits if len(one.sides)), default=100.0)
        least = min((one.sides.min() for one in splits if len(one.sides)), default=1.0)
        edges = np.geomspace(max(least, 1), max(most, 2) * 1.001, 32)
        many = max((one.per_image.max() for one in splits if len(one.per_image)), default=1)
        counts = np.arange(-0.5, many + 1.5, max(1, round(many / 30)))
        for split, color in zip(splits, (_BLUE, _ORANGE), strict=False):
            style = {"color": color, "alpha": 0.55, "label": split.name}
            left.hist(split.sides, edges, weights=_shares(split.sides), **style)
            right.hist(split.per_image, counts, weights=_shares(split.per_image), **style)
        for limit in (SMALL, LARGE):
            left.axvline(limit, color="0.4", linestyle=":", linewidth=1)
        left.set(xscale="log", xlabel="√area of an instance (pixels; dots: COCO's sizes)")
        left.set_ylabel("% of instances")
        left.xaxis.set_major_formatter("{x:g}")
        right.set(xlabel="instances in an image", ylabel="% of images")
        right.legend()
        figure.savefig(file)

    return as_svg(draw)


def _shares(values: np.ndarray) -> np.ndarray:
    return np.full(len(values), 100 / max(len(values), 1))


def _address(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
