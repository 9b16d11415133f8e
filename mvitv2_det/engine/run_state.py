"""What a run is determined by beside its config, and where it goes on."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detectron2.utils import comm
from omegaconf import DictConfig

from ..errors import UserError, naming_unwritable
from ..randomness import draw_seed
from ..weights.files import read_checkpoint
from .checkpoint import find_newest
from .provenance import note_start
from .run_hooks import forget_later_metrics
from .validate import setting

logger = logging.getLogger(__name__)


class RunState:
    """What a run is determined by, beside its config: the part ``run`` of its checkpoints.

    Attributes:
        seed: that of the config, of the checkpoint, or one that has been drawn.
        start: the iteration to begin with.

    Args:
        cfg: the config.
        checkpoint: that the run goes on from.

    Raises:
        UserError: the checkpoint cannot be read.
    """

    def __init__(self, cfg: DictConfig, checkpoint: Path | None) -> None:
        content = read_checkpoint(checkpoint)[1] if checkpoint else {}
        # The checkpoint holds the iteration that it was saved after.
        self.start = content["trainer"]["iteration"] + 1 if checkpoint else 0
        stored = content.get("run")
        wanted = setting(cfg, "train.seed")
        if isinstance(stored, dict) and isinstance(stored.get("seed"), int):
            self.seed = stored["seed"]
            if wanted not in (-1, self.seed):
                logger.warning("The run goes on with its seed %d, not %d", self.seed, wanted)
        else:
            self.seed = wanted if wanted >= 0 else comm.all_gather(draw_seed())[0]
        self._shape = {
            "processes": comm.get_world_size(),
            "batch": int(cfg.dataloader.train.total_batch_size),
        }

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint stores."""
        return {"seed": self.seed, **self._shape}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Says so if the run cannot be exactly what it would have been."""
        for key, value in self._shape.items():
            if state_dict[key] != value:
                logger.warning(
                    "The run had %s %d and now has %d: it goes on, but not as it would have",
                    key,
                    state_dict[key],
                    value,
                )


def prepare_folder(folder: Path, state: RunState, resume: bool) -> None:
    """Notes what the run is made with; its log goes on where the run does.

    Raises:
        UserError: the folder cannot be written to.
    """
    with naming_unwritable(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if resume:
            forget_later_metrics(folder / "metrics.json", state.start)
        note_start(folder, seed=state.seed, start=state.start, processes=comm.get_world_size())


def newest_checkpoint(folder: str) -> Path | None:
    """What the first process finds, in all processes.

    Raises:
        UserError: no checkpoint can be read, or a process does not see it.
    """
    found = find_newest(folder) if comm.is_main_process() else None
    newest = comm.all_gather(str(found or ""))[0]
    if newest and not os.path.isfile(newest):
        raise UserError(
            f"process {comm.get_rank()} does not see {newest}: all machines must share "
            f"train.output_dir"
        )
    return Path(newest) if newest else None
