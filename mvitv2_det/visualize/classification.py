"""Pictures of a classifier's results: predictions on images, its worst mistakes, what it confuses.

All take plain data and need no Detectron2.
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from ..errors import UserError
from ..predict.images import read_rgb
from ..predict.inputs import VIDEO_ENDINGS
from ..video import open_video

MOST_CONFUSED = 40  # classes that a picture of a confusion matrix shows, at most

_DPI = 100
_COLUMNS, _CELL, _GAP, _MARGIN = 6, 280, 24, 24  # the last three in pixels
_IMAGE_HEIGHT, _LINE, _TITLE_HEIGHT = 210, 26, 64  # pixels
_MOST_LETTERS = 30  # of a line as wide as a cell
# Okabe and Ito's colours, which colour-blind readers can tell apart.
_NEUTRAL, _RIGHT, _WRONG = "#56b4e9", "#009e73", "#d55e00"


class Classified(NamedTuple):
    """An image and what a classifier finds in it.

    Attributes:
        image: the file, or the image itself where there is no file. A video, also as a folder of
            frames, is shown as four of its frames.
        top: numbers of the most probable classes, best first.
        probabilities: of the classes in ``top``, in [0, 1].
        label: number of the true class; None if it is not known.
        label_probability: what the classifier gives the true class, in [0, 1].
        name: written above the image; by default the end of the file's path.
    """

    image: str | Path | Image.Image
    top: Sequence[int]
    probabilities: Sequence[float]
    label: int | None = None
    label_probability: float | None = None
    name: str = ""


def draw_confusion_matrix(
    counts: np.ndarray | Sequence[Sequence[int]],
    classes: Sequence[str],
    path: str | Path | IO[bytes],
    title: str = "",
    of: str = "true class's images",
) -> None:
    """Draws how often each class is taken for each.

    Of more than :data:`MOST_CONFUSED` classes those are drawn that most mistakes are about, in
    their order.

    Args:
        counts: (classes, classes) images, by true class (row) and predicted class (column).
        classes: names.
        path: picture to write, of a kind that matplotlib knows by its ending, such as ``.png``.
        title: by default the share of images that are classified correctly.
        of: what the shares of a row are shares of.

    Raises:
        UserError: there is not a row and a column for each class.
    """
    matrix = np.asarray(counts)
    if matrix.shape != (len(classes), len(classes)):
        raise UserError(
            f"a confusion matrix of {len(classes)} classes must be of shape "
            f"({len(classes)}, {len(classes)}), got {matrix.shape}"
        )
    total, right = int(matrix.sum()), int(np.trace(matrix))
    if not title:
        title = f"{right:,} of {total:,} images are classified correctly"
        title += f" ({right / total:.1%})" if total else ""
    totals = matrix.sum(axis=1)
    shown = np.arange(len(classes))
    if len(classes) > MOST_CONFUSED:
        mistakes = totals + matrix.sum(axis=0) - 2 * np.diag(matrix)
        shown = np.sort(np.argsort(-mistakes, kind="stable")[:MOST_CONFUSED])
        title += f"; the {MOST_CONFUSED} of {len(classes):,} classes with the most mistakes"
    part = matrix[np.ix_(shown, shown)]
    # A class without images has no shares: its row stays blank.
    shares = np.divide(
        part, totals[shown, None], out=np.full(part.shape, np.nan), where=totals[shown, None] > 0
    )
    side = min(4 + 0.42 * len(shown), 18)
    figure = Figure(figsize=(side + 1.6, side), dpi=_DPI, layout="constrained")
    axes = figure.subplots()
    drawn = axes.imshow(100 * shares, cmap="Blues", vmin=0, vmax=100)
    figure.colorbar(drawn, ax=axes, fraction=0.046, pad=0.02, label=f"% of the {of}")
    names = [shortened(classes[index]) for index in shown.tolist()]
    # Names are text, though they may hold the dollar signs of formulas.
    axes.set_xticks(range(len(shown)), names, rotation=90, parse_math=False)
    axes.set_yticks(range(len(shown)), names, parse_math=False)
    axes.tick_params(labelsize=9)
    axes.grid(visible=False)
    axes.set(xlabel="predicted class", ylabel="true class")
    figure.suptitle(title, fontsize=12)
    for (row, column), number in np.ndenumerate(part):
        if number:
            color = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, f"{number}", ha="center", va="center", fontsize=8, color=color)
    figure.savefig(path)


def write_mistakes(
    rows: Iterable[Classified], classes: Sequence[str], path: str | Path, most: int = 48
) -> None:
    """Draws the images that a classifier is most wrong about, worst first, on one sheet.

    The worst are those whose true class gets the lowest probability, which cost most in
    cross-entropy.

    Args:
        rows: all images classified, right and wrong, with ``label`` and ``label_probability``;
            only the mistakes are kept while they are read.
        classes: names.
        path: picture to write, of a kind that matplotlib knows by its ending, such as ``.png``.
        most: images on the sheet, at most.

    Raises:
        UserError: a row has no label.
    """
    total, wrong = 0, []
    for row in rows:
        row = Classified(*row)
        if row.label is None or row.label_probability is None:
            raise UserError(f"image {row.image} has no label and probability of it to judge by")
        total += 1
        if row.top[0] != row.label:
            wrong.append(row)
    worst = sorted(wrong, key=lambda row: row.label_probability or 0.0)[:most]
    title = f"{len(wrong):,} mistakes in {total:,} images"
    if len(wrong) > len(worst):
        title += f": the {len(worst)} whose true class has the lowest probability"
    draw_classified(worst, classes, path, title)


def draw_classified(
    rows: Sequence[Classified], classes: Sequence[str], path: str | Path, title: str
) -> None:
    """Draws a sheet of images, each with its most probable classes as bars.

    An image that cannot be read is left blank.

    Args:
        rows: the images; a label, where there is one, is written in a line of its own.
        classes: names.
        path: picture to write, of a kind that matplotlib knows by its ending, such as ``.png``.
        title: of the sheet.
    """
    lines = max((len(row.top) for row in rows), default=0)
    lines += 1 + any(row.label is not None for row in rows)
    columns = max(3, min(_COLUMNS, len(rows)))  # the title needs some width
    cell_height = _IMAGE_HEIGHT + lines * _LINE + _GAP
    width = 2 * _MARGIN + columns * (_CELL + _GAP) - _GAP
    height = _TITLE_HEIGHT + math.ceil(len(rows) / columns) * cell_height + _MARGIN
    sheet = _Sheet(width, height)
    sheet.write(_MARGIN, _TITLE_HEIGHT / 2, title, fontsize=18)
    for index, row in enumerate(rows):
        left = _MARGIN + index % columns * (_CELL + _GAP)
        top = _TITLE_HEIGHT + index // columns * cell_height
        _draw_cell(sheet, row, classes, left, top)
    sheet.save(path)


class _Sheet:
    """A page on which things have places in pixels from its upper left corner."""

    def __init__(self, width: int, height: int) -> None:
        self._figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
        FigureCanvasAgg(self._figure)
        self._canvas = np.full((height, width, 3), 255, np.uint8)

    def write(self, x: float, y: float, text: str, **style: Any) -> None:
        """Writes a line with its middle at height ``y``."""
        height, width = self._canvas.shape[:2]
        style = {"va": "center", "parse_math": False, **style}
        place: dict[str, Any] = {"x": x / width, "y": 1 - y / height, "s": text}
        self._figure.text(**place, **style)

    def fill(self, x: float, y: float, width: float, height: float, color: str) -> None:
        """Fills a rectangle whose upper left corner is (x, y)."""
        whole_height, whole_width = self._canvas.shape[:2]
        corner = x / whole_width, 1 - (y + height) / whole_height
        size = width / whole_width, height / whole_height
        self._figure.add_artist(Rectangle(corner, *size, color=color, alpha=0.35, lw=0))

    def paste(self, x: int, y: int, image: np.ndarray) -> None:
        """Puts (H, W, 3) uint8 there, not resampled."""
        self._canvas[y : y + image.shape[0], x : x + image.shape[1]] = image

    def save(self, path: str | Path) -> None:
        self._figure.figimage(self._canvas, zorder=-1)
        self._figure.savefig(path)


def _draw_cell(sheet: _Sheet, row: Classified, classes: Sequence[str], left: int, top: int) -> None:
    name = row.name or ("" if isinstance(row.image, Image.Image) else _path_end(row.image))
    sheet.write(left, top + _LINE / 2, shortened(name, from_end=True), fontsize=10, color="0.3")
    picture = _thumbnail(row.image)
    y = top + _LINE
    if picture is None:
        sheet.fill(left, y, _CELL, _IMAGE_HEIGHT, "0.6")
        sheet.write(left + 12, y + _IMAGE_HEIGHT / 2, "cannot be read", fontsize=11)
    else:
        sheet.paste(left, y, picture)
    y += _IMAGE_HEIGHT + 4
    if row.label is not None:
        text = f"truth: {shortened(classes[row.label], 18)}"
        sheet.write(left, y + _LINE / 2, text, fontsize=11, weight="bold", color=_RIGHT)
        if row.label_probability is not None:
            _write_share(sheet, left, y, row.label_probability)
        y += _LINE
    for index, probability in zip(row.top, row.probabilities, strict=True):
        color = _NEUTRAL if row.label is None else _RIGHT if index == row.label else _WRONG
        sheet.fill(left, y + 2, max(_CELL * probability, 1), _LINE - 4, color)
        sheet.write(left + 6, y + _LINE / 2, shortened(classes[index], 24), fontsize=11)
        _write_share(sheet, left, y, probability)
        y += _LINE


def _write_share(sheet: _Sheet, left: int, y: float, probability: float) -> None:
    x, middle = left + _CELL - 4, y + _LINE / 2
    sheet.write(x, middle, f"{100 * probability:.1f} %", fontsize=11, ha="right")


def _thumbnail(image: str | Path | Image.Image) -> np.ndarray | None:
    """Resizes an image to fit a cell; None if its file cannot be read."""
    if not isinstance(image, Image.Image):
        try:
            image = Image.fromarray(_read(Path(image)))
        except UserError:
            return None
    image = image.convert("RGB")
    scale = min(_CELL / image.width, _IMAGE_HEIGHT / image.height)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC))


def _read(file: Path) -> np.ndarray:
    """(H, W, 3) of an image, or of a video: two rows of two frames, from its start to its end."""
    if not (file.is_dir() or file.suffix.lower() in VIDEO_ENDINGS):
        return read_rgb(file)
    with open_video(file) as video:
        frames = video.frames(np.linspace(0, len(video) - 1, 4).round().astype(int))
    gap = max(1, min(frames.shape[1:3]) // 40)
    framed = np.pad(frames, ((0, 0), (0, gap), (0, gap), (0, 0)), constant_values=255)
    return np.vstack([np.hstack(list(framed[:2])), np.hstack(list(framed[2:]))])


def _path_end(path: str | Path) -> str:
    """The file's name and its folder's, which often is the name of its class."""
    return "/".join(Path(path).parts[-2:])


def shortened(text: str, most: int = _MOST_LETTERS, *, from_end: bool = False) -> str:
    """Cuts a text off at its end, or at its start, so that the other is kept."""
    if len(text) <= most:
        return text
    return f"…{text[1 - most :]}" if from_end else f"{text[: most - 1]}…"
