"""COCO's metrics: pycocotools, or a faster library that gives the same numbers.

``tools/compare_evaluation.py`` measures how much the same, and how much faster.
"""

import contextlib
import importlib.util
import io
import logging
from functools import partial
from typing import Any
from unittest import mock

from detectron2 import evaluation
from detectron2.evaluation import coco_evaluation
from detectron2.utils.file_io import PathManager

from .errors import UserError

logger = logging.getLogger(__name__)


class COCOEvaluator(evaluation.COCOEvaluator):
    """Detectron2's evaluator, whose fast implementation is faster-coco-eval.

    Detectron2's own has to be compiled with it, and only approximates pycocotools.

    Args:
        args, options: as there.
        use_fast_impl: whether faster-coco-eval counts instead of pycocotools, the reference.

    Raises:
        UserError: faster-coco-eval is asked for and not installed.
    """

    def __init__(self, *args: Any, use_fast_impl: bool = False, **options: Any) -> None:
        if use_fast_impl:
            check_fast_evaluation()
        super().__init__(*args, use_fast_impl=False, **options)
        self._fast = use_fast_impl
        if use_fast_impl:
            from faster_coco_eval import COCO

            # pycocotools indexes results in Python, which takes longer than to count them.
            with contextlib.redirect_stdout(io.StringIO()):
                self._coco_api = COCO(PathManager.get_local_path(self._metadata.json_file))

    def _eval_predictions(self, predictions: Any, img_ids: Any = None) -> None:
        if not self._fast:
            super()._eval_predictions(predictions, img_ids)
            return
        from faster_coco_eval import COCOeval_faster

        logger.info("faster-coco-eval is what counts")
        # Detectron2 takes its class from its module, and from nowhere else.
        counting = partial(COCOeval_faster, print_function=print)  # as pycocotools prints
        with mock.patch.object(coco_evaluation, "COCOeval", counting):
            super()._eval_predictions(predictions, img_ids)


def check_fast_evaluation() -> None:
    """Raises UserError where faster-coco-eval is not installed."""
    if importlib.util.find_spec("faster_coco_eval") is None:
        raise UserError(
            "dataloader.evaluator.use_fast_impl needs faster-coco-eval: "
            "python -m pip install 'mvitv2_det[eval]'"
        )
