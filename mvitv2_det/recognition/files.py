"""Classification on files: images in; a table, a json file and sheets of pictures out."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import numpy as np
from PIL import Image
from tabulate import tabulate

from ..errors import UserError, naming_unwritable
from ..predict.inputs import Source, find_sources
from ..predict.loop import predict_sources
from ..predict.writing import check_writable, json_list, replacing
from ..visualize.classification import Classified, draw_classified, shortened
from .classifier import Classifier, Likely

RESULTS = "results.json"
IMAGES_PER_SHEET = 30

_MOST_ROWS = 40  # of the table on the terminal
_MOST_LETTERS = 28  # of a class there
_SIDE = 512  # pixels, the longest of what is kept of an image until its sheet is drawn


def classify_files(
    inputs: Sequence[str], output: Path, classifier: Classifier, *, draws: bool = True
) -> int:
    """Classifies all inputs, writes and prints what is found; names those that cannot be read.

    Args:
        inputs: files, folders and patterns; see :func:`mvitv2_det.predict.inputs.find_sources`.
        output: folder to write, made if missing; see :class:`ClassifiedFolder`.
        classifier: of images.
        draws: whether to draw sheets.

    Returns:
        the number of inputs that could not be read.

    Raises:
        UserError: it cannot start or go on; what was found until then is written.
        KeyboardInterrupt: after Ctrl-C or SIGTERM; what was found until then is written.
    """
    sources = find_sources(inputs, videos=False)
    check_writable(output)
    folder = ClassifiedFolder(output, sources, classifier.description.classes, draws=draws)
    try:
        with naming_unwritable(output), folder:
            return predict_sources(
                sources,
                classifier,
                output,
                lambda source, _, image, found: folder.add(source, None, image, found),
            )
    finally:
        print(folder.table())
        print(f"{output / RESULTS}: classes of {folder.images} images")


class ClassifiedFolder:
    """A context manager that writes the output folder.

    ``results.json`` is a list with a record for each image: ``file_name``, and the most probable
    ``classes``, best first, with their ``category_ids``, from 0 on, and ``probabilities``. It gets
    its name when writing ends, even by an interrupt or error, and holds what was found until then.
    A record of a window of a video also has ``start`` and ``end``, in seconds. ``sheet_1.png`` and
    so on show :data:`IMAGES_PER_SHEET` images each, with their classes.

    Attributes:
        images: how many were added, or videos or windows of videos.
    """

    def __init__(
        self,
        folder: Path,
        sources: Sequence[Source],
        classes: Sequence[str],
        *,
        draws: bool,
        noun: str = "image",
    ) -> None:
        """
        Args:
            folder: the folder; sheets of an earlier run are deleted.
            sources: all that will be added, so that no sheet replaces an input.
            classes: names of all classes.
            draws: whether to draw sheets.
            noun: what is added, for titles.

        Raises:
            UserError: a sheet would replace an input.
        """
        self._folder, self._classes, self._draws = folder, list(classes), draws
        self._noun = noun
        self._stack = ExitStack()
        self._rows: list[list[str]] = []
        self._pending: list[Classified] = []
        self._sheets = self._drawn = 0
        self.images = 0
        inputs = {source.path.resolve() for source in sources}
        for old in sorted(folder.glob("sheet_*.png")) if draws else []:
            if old.resolve() in inputs:
                raise UserError(f"a sheet would replace input {old}: choose another --output")
            old.unlink()

    def __enter__(self) -> "ClassifiedFolder":
        self._results = self._stack.enter_context(json_list(self._folder / RESULTS, "[", "]"))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._draw()
        finally:
            self._stack.__exit__(kind, error, trace)

    def add(
        self,
        source: Source,
        span: tuple[float, float] | None,
        image: np.ndarray | None,
        found: Sequence[Likely],
    ) -> None:
        """Writes what was found in an image or a video.

        Args:
            source: the file.
            span: seconds from and to, of a window of a video.
            image: (H, W, 3), which sheets show; without one it is on none.
            found: the most probable classes, best first.

        Raises:
            OSError: a file cannot be written.
        """
        numbers = [likely.number for likely in found]
        probabilities = [likely.probability for likely in found]
        self._results.extend(
            [
                {
                    "file_name": source.name,
                    **({"start": round(span[0], 3), "end": round(span[1], 3)} if span else {}),
                    "classes": [likely.name for likely in found],
                    "category_ids": numbers,
                    "probabilities": [round(probability, 6) for probability in probabilities],
                }
            ]
        )
        self.images += 1
        if len(self._rows) < _MOST_ROWS:
            cells = [
                f"{shortened(likely.name, _MOST_LETTERS)} {100 * likely.probability:.1f} %"
                for likely in found
            ]
            when = f" {span[0]:.1f}–{span[1]:.1f} s" if span else ""
            self._rows.append([source.name + when, *cells])
        if self._draws and image is not None:
            picture = Image.fromarray(image)
            picture.thumbnail((_SIDE, _SIDE))
            self._pending.append(Classified(picture, numbers, probabilities, name=source.name))
            if len(self._pending) == IMAGES_PER_SHEET:
                self._draw()

    def table(self) -> str:
        """Formats the classes of the first images, one in each row."""
        width = max((len(row) for row in self._rows), default=1)
        headers = [self._noun, *(f"{place}." for place in range(1, width))]
        text = tabulate(self._rows, headers, disable_numparse=True)
        more = self.images - len(self._rows)
        return f"{text}\n… and {more} more" if more else text

    def _draw(self) -> None:
        if not self._pending:
            return
        rows, self._pending = self._pending, []
        self._sheets += 1
        last = self._drawn = self._drawn + len(rows)
        title = f"{self._noun}s {last - len(rows) + 1} to {last}, with their most probable classes"
        with replacing(self._folder / f"sheet_{self._sheets}.png", keeps_part=False) as part:
            draw_classified(rows, self._classes, part, title)
