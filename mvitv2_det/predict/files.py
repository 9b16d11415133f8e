"""Detection on files: images and videos in, overlays and results out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.structures import Instances

from ..errors import naming_unwritable
from .image_predictor import ImagePredictor
from .inputs import find_sources
from .loop import predict_sources
from .outputs import RESULTS, OutputFolder, Predicted
from .predictor import Predictor
from .tiles import TiledPredictor, Tiling
from .writing import check_writable


def predict_files(
    inputs: Sequence[str],
    output: Path,
    *,
    draws: bool = True,
    tiles: str | None = None,
    label_studio: bool = False,
    **predictor_options: Any,
) -> int:
    """Predicts on all inputs and writes what is found; names inputs that cannot be read.

    Args:
        inputs: files, folders and patterns; see :func:`mvitv2_det.predict.inputs.find_sources`.
        output: folder to write, made if missing; see
            :class:`mvitv2_det.predict.outputs.OutputFolder`.
        draws: whether to write overlays.
        label_studio: whether to write tasks of Label Studio, too.
        tiles: SIDE or SIDE:OVERLAP, to look at large images in parts; see
            :class:`mvitv2_det.predict.tiles.Tiling`.
        predictor_options: keywords of :class:`mvitv2_det.Predictor`.

    Returns:
        the number of inputs that could not be read.

    Raises:
        UserError: it cannot start or go on; what was found until then is written.
        KeyboardInterrupt: after Ctrl-C or SIGTERM; what was found until then is written.
    """
    tiling = Tiling.parse(tiles) if tiles else None
    sources = find_sources(inputs)
    check_writable(output)
    plain = Predictor(**predictor_options)
    predictor: ImagePredictor[Any, Instances] = TiledPredictor(plain, tiling) if tiling else plain
    folder = OutputFolder(output, sources, plain.classes, draws=draws, label_studio=label_studio)
    try:
        with naming_unwritable(output), folder:
            return predict_sources(
                sources, predictor, output, lambda *found: folder.add(Predicted(*found))
            )
    finally:
        print(
            f"{output / RESULTS}: {folder.instances} instances in {folder.images} images or frames"
        )
