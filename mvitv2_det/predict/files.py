"""Detection on files: images and videos in, overlays and results out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.structures import Instances

from ..errors import UserError, naming_unwritable
from .image_predictor import ImagePredictor
from .inputs import Source, find_sources
from .loop import predict_sources
from .outputs import RESULTS, OutputFolder, Predicted
from .predictor import Predictor
from .tiles import TiledPredictor, Tiling
from .tracking import LEAST_SCORE, Tracking
from .writing import check_writable


def predict_files(
    inputs: Sequence[str],
    output: Path,
    *,
    draws: bool = True,
    tiles: str | None = None,
    label_studio: bool = False,
    track: bool = False,
    score_threshold: float = 0.5,
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
        track: whether the instances of videos get numbers that they keep; see
            :class:`mvitv2_det.predict.tracking.Tracking`.
        score_threshold: instances must score higher.
        predictor_options: other keywords of :class:`mvitv2_det.Predictor`.

    Returns:
        the number of inputs that could not be read.

    Raises:
        UserError: it cannot start or go on; what was found until then is written.
        KeyboardInterrupt: after Ctrl-C or SIGTERM; what was found until then is written.
    """
    tiling = Tiling.parse(tiles) if tiles else None
    sources = find_sources(inputs)
    if track and not any(source.is_video for source in sources):
        raise UserError("--track follows instances through videos, and there is none among these")
    tracking = Tracking(score_threshold) if track else None
    check_writable(output)
    # ByteTrack also takes what scores low; a threshold that is none is left to be refused.
    least = min(LEAST_SCORE, score_threshold) if track and score_threshold <= 1 else score_threshold
    plain = Predictor(score_threshold=least, **predictor_options)
    predictor: ImagePredictor[Any, Instances] = TiledPredictor(plain, tiling) if tiling else plain
    folder = OutputFolder(output, sources, plain.classes, draws=draws, label_studio=label_studio)

    def write(source: Source, frame: int | None, image: Any, instances: Instances) -> None:
        if tracking is not None:
            instances = tracking(source, frame, instances)
        folder.add(Predicted(source, frame, image, instances))

    try:
        with naming_unwritable(output), folder:
            return predict_sources(sources, predictor, output, write)
    finally:
        print(
            f"{output / RESULTS}: {folder.instances} instances in {folder.images} images or frames"
        )
