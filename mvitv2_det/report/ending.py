"""The last words of a training or an evaluation: where everything is, and what to type next."""

import logging
from collections.abc import Collection
from pathlib import Path

from detectron2.utils import comm

from ..engine.provenance import note_start
from ..errors import one_line
from .run_folder import CLASSIFICATIONS, RESULTS, RunFolder
from .writing import ReportOptions, next_commands, write_report

logger = logging.getLogger(__name__)

_FILES = {
    "report.html": "the report: open it in a browser",
    "model_final.pth": "the weights at the end",
    "model_best.pth": "the weights of the best evaluation",
    "config.yaml": "the config",
    "metrics.json": "losses and results, a line for each logged iteration",
    str(RESULTS): "the predictions of the last evaluation",
    str(CLASSIFICATIONS): "the predictions of the last evaluation",
    "log.txt": "all that was printed",
}


def conclude(run: Path, *, trained: bool, trust: Collection[str] = ()) -> None:
    """Writes the cheap report, and logs what there is. What is wrong with it ends no run.

    Args:
        run: the folder.
        trained: whether it was a training, which has noted how it was started.
        trust: see :func:`write_report`.
    """
    try:
        if not trained:
            note_start(run, processes=comm.get_world_size())
        folder = RunFolder.read(run, trust)
        write_report(run, options=ReportOptions(cheap=True), trust=trust)
    except Exception as error:  # the run is done, whatever its data or its folder are like
        reason = one_line(error) or f"{type(error).__name__}: {error}"
        logger.warning("There is no report: %s", reason)
        return
    found = [(name, text) for name, text in _FILES.items() if (run / name).exists()]
    width = max(len(name) for name, _ in found)
    lines = [f"Everything is in {run}:"]
    lines += [f"  {name:<{width}}  {text}" for name, text in found]
    if commands := next_commands(folder):
        lines += ["Next:", *(f"  {command}" for command in commands.splitlines())]
    logger.info("%s", "\n".join(lines))
