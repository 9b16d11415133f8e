"""Labels over time: a picture of a video's windows, and labels drawn on frames.

Needs no Detectron2.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from .classification import shortened

MOST_CLASSES = 12  # rows of a picture

_DPI = 110
_LINE_SHARE, _LEAST_LINE = 0.06, 12  # of a frame's shorter side; pixels
_BAR, _BACK, _TEXT = (0, 114, 178), (0, 0, 0), (255, 255, 255)


class Span(NamedTuple):
    """A window of a video.

    Attributes:
        start, end: seconds.
        probabilities: by class, in [0, 1]; of the most probable ones.
    """

    start: float
    end: float
    probabilities: Mapping[str, float]


def draw_timeline(spans: Sequence[Span], path: str | Path, title: str) -> None:
    """Draws the probabilities of the most probable classes over time.

    Each window is drawn as far as it is the nearest one. The most probable class of each is
    marked.

    Args:
        spans: in order; one at least.
        path: picture to write, of a kind that matplotlib knows by its ending.
        title: of the picture.
    """
    sums: dict[str, float] = {}
    for span in spans:
        for name, probability in span.probabilities.items():
            sums[name] = sums.get(name, 0.0) + probability
    names = sorted(sums, key=lambda name: -sums[name])[:MOST_CLASSES]
    values = np.array([[span.probabilities.get(name, 0.0) for span in spans] for name in names])
    edges = boundaries(spans)
    figure = Figure(figsize=(11, 1.7 + 0.36 * len(names)), dpi=_DPI, layout="constrained")
    axes = figure.subplots()
    rows = np.arange(len(names) + 1) - 0.5
    drawn = axes.pcolormesh(edges, rows, 100 * values, cmap="Blues", vmin=0, vmax=100)
    best = [max(span.probabilities, key=span.probabilities.__getitem__) for span in spans]
    marked = [(place, names.index(name)) for place, name in enumerate(best) if name in names]
    if marked:
        places, of = np.array(marked).T
        axes.hlines(of, edges[places], edges[places + 1], color="#d55e00", lw=2.5)
    axes.set_yticks(range(len(names)), [shortened(name) for name in names], parse_math=False)
    axes.invert_yaxis()
    axes.set_xlabel("seconds; orange: the most probable class of each window")
    axes.set_title(title, fontsize=11, parse_math=False)
    figure.colorbar(drawn, ax=axes, pad=0.01, label="%")
    figure.savefig(path)


def boundaries(spans: Sequence[Span]) -> np.ndarray:
    """(spans + 1,) seconds: each span is the nearest one between two of them."""
    middles = np.array([(span.start + span.end) / 2 for span in spans])
    return np.concatenate([[spans[0].start], (middles[1:] + middles[:-1]) / 2, [spans[-1].end]])


def draw_labels(frame: np.ndarray, labels: Sequence[tuple[str, float]]) -> np.ndarray:
    """Draws classes into the upper left corner of a frame, each with a bar of its probability.

    Args:
        frame: (H, W, 3) RGB, uint8.
        labels: names and probabilities, best first.

    Returns:
        (H, W, 3) RGB, uint8.
    """
    line = max(_LEAST_LINE, round(_LINE_SHARE * min(frame.shape[:2])))
    image = Image.fromarray(frame)
    # Colours on a layer of its own are blended, so that what is below can be seen.
    layer = Image.new("RGBA", image.size)
    draw, font = ImageDraw.Draw(layer), _font(line)
    height, pad = round(1.4 * line), line // 3
    texts = [f"{shortened(name)}  {probability:.0%}" for name, probability in labels]
    width = max((draw.textlength(text, font) for text in texts), default=0) + 2 * pad
    for row, (text, (_, probability)) in enumerate(zip(texts, labels, strict=True)):
        top, bottom = row * height, (row + 1) * height - 1
        draw.rectangle((0, top, width, bottom), fill=(*_BACK, 130))
        draw.rectangle((0, top, width * probability, bottom), fill=(*_BAR, 190))
        draw.text((pad, (top + bottom) / 2), text, fill=_TEXT, font=font, anchor="lm")
    image.paste(layer, mask=layer)
    return np.asarray(image)


@lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.FreeTypeFont:
    """The font that matplotlib brings: it has the letters of most languages of Europe."""
    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)
