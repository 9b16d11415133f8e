"""A picture of a run's curves while it trains."""

import logging
from pathlib import Path

from detectron2.engine import HookBase
from detectron2.utils import comm

from mvitv2_det.visualize.curves import draw_curves
from mvitv2_det.visualize.run_files import read_metrics

logger = logging.getLogger(__name__)


class CurvesHook(HookBase):
    """Draws ``curves.png`` after each evaluation, of what has been logged until then.

    Args:
        output_dir: the run's folder, in which Detectron2's ``JSONWriter`` writes ``metrics.json``.
        period: iterations from one evaluation to the next; 0 draws at the end alone.
    """

    def __init__(self, output_dir: str, period: int) -> None:
        self.folder = Path(output_dir)
        self.period = period

    def after_step(self) -> None:
        """Draws, if there has been an evaluation."""
        if self.period > 0 and (self.trainer.iter + 1) % self.period == 0:
            self._draw()

    def after_train(self) -> None:
        """Draws the whole run."""
        self._draw()

    def _draw(self) -> None:
        metrics = self.folder / "metrics.json"
        if comm.is_main_process() and metrics.exists():
            title = f"{self.folder.resolve().name}: {self.trainer.max_iter:,} iterations"
            try:
                draw_curves(read_metrics(metrics), title, self.folder / "curves.png")
            except OSError as error:  # a full disk is no reason to stop training
                logger.warning("no curves.png: %s", error)
