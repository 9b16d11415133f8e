"""Hooks by which a run can be left and resumed as if it had never been left."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from detectron2.engine import HookBase, hooks
from detectron2.utils import comm
from detectron2.utils.events import EventWriter

from ..whole_files import written_whole
from .checkpoint import PeriodicCheckpointer
from .peers import PeerWatch
from .signals import Preempted, SignalWatch

logger = logging.getLogger(__name__)

_LOGGED_WINDOW = 20  # values of which Detectron2's writers log the median


class Finished(Exception):
    """The run ends before its last iteration, because it no longer gets better."""


class Preemption(HookBase):
    """Saves and ends the run when a signal has been noted, in all processes after the same step.

    Args:
        watch: of this process.
        checkpoints: saves.
    """

    def __init__(self, watch: SignalWatch, checkpoints: PeriodicCheckpointer) -> None:
        self.watch = watch
        self.checkpoints = checkpoints

    def before_train(self) -> None:
        """Lets signals speak to the trainer."""
        self.watch.tell = self._tell
        if self.watch.number:
            self._tell()

    def _tell(self) -> None:
        self.trainer.stop_asked = True

    def after_step(self) -> None:
        """Ends the run, if all processes know that it is to end."""
        if self.trainer.stop_agreed and self.trainer.iter < self.trainer.max_iter - 1:
            self.save_and_stop()

    def save_and_stop(self) -> None:
        """Saves the last complete step.

        Raises:
            Preempted: always.
        """
        # After the last step, the trainer counts one further.
        self.trainer.iter = iteration = self.trainer.complete
        self.checkpoints.save_now(iteration)
        comm.synchronize()
        raise Preempted(
            self.watch.number,
            f"iteration {iteration} is saved; the same command with --resume goes on",
        )

    def stop_evaluation(self) -> None:
        """Ends the run between batches of an evaluation, which the resumed run makes up for.

        Several processes do not agree between these batches: they evaluate to the end first.

        Raises:
            Preempted: a signal has been noted.
        """
        if self.watch.number and comm.get_world_size() == 1:
            self.save_and_stop()


class SignsOfLife(HookBase):
    """Tells the other processes that this one gets on."""

    def __init__(self, peers: PeerWatch) -> None:
        self.peers = peers

    def before_step(self) -> None:
        """A step has begun."""
        self.peers.advance()

    def after_step(self) -> None:
        """A step has ended."""
        self.peers.advance()


class LenientWriter(EventWriter):
    """A writer of logs that does not end a training where the disk is full or a service fails.

    Args:
        writer: one of Detectron2's, or of :mod:`.loggers`.
        errors: what is survived.
    """

    def __init__(self, writer: EventWriter, errors: type[Exception] = OSError) -> None:
        self.writer = writer
        self.errors = errors
        self._failed = False

    def write(self) -> None:
        """Writes, or says once that it cannot."""
        self._try(self.writer.write)

    def close(self) -> None:
        """Closes, likewise."""
        self._try(self.writer.close)

    def _try(self, action: Callable[[], None]) -> None:
        try:
            action()
        except self.errors as error:
            if not self._failed:
                name, reason = type(self.writer).__name__, " ".join(str(error).split())[:300]
                logger.warning("%s cannot write (%s): training goes on without", name, reason)
            self._failed = True


class Evaluation(hooks.EvalHook):
    """Detectron2's hook, which makes up for an evaluation that a run was left before or during."""

    def __init__(self, eval_period: int, eval_function: Any) -> None:
        super().__init__(eval_period, eval_function)
        self.evaluated = 0  # iterations after which the last evaluation was
        self.made_up = False

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint stores."""
        return {"evaluated": self.evaluated}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads what a checkpoint has stored."""
        self.evaluated = state_dict["evaluated"]

    def is_due(self) -> bool:
        """Whether the iteration that the run goes on after has not been evaluated."""
        done = self.trainer.start_iter
        is_time = self._period > 0 and done > 0 and done % self._period == 0
        return is_time and self.evaluated != done and done < self.trainer.max_iter

    def before_train(self) -> None:
        """Evaluates what was left out; :class:`BestCheckpointer`, the next hook, looks at it."""
        super().before_train()
        self.made_up = self.is_due()
        if self.made_up:
            iteration = self.trainer.start_iter - 1
            logger.info("Evaluating iteration %d, after which the run was left", iteration)
            self.trainer.storage.iter = iteration
            self._do_eval()
            self.trainer.storage.iter = self.trainer.start_iter

    def _do_eval(self) -> None:
        super()._do_eval()
        self.evaluated = self.trainer.storage.iter + 1


class _AskedToSave:
    """Stands in for a checkpointer, and notes what it is to save."""

    def __init__(self) -> None:
        self._asked: list[tuple[str, dict[str, Any]]] = []

    def save(self, name: str, **more: Any) -> None:
        """Notes it."""
        self._asked.append((name, more))

    def take(self) -> list[tuple[str, dict[str, Any]]]:
        """Gives what was noted since."""
        asked, self._asked = self._asked, []
        return asked


class BestCheckpointer(hooks.BestCheckpointer):
    """Detectron2's hook, which knows the best of before a run resumed, and when to stop.

    Args:
        evaluation: the hook before.
        checkpointer, val_metric: as there.
        patience: evaluations in a row without a better one after which the run ends; None trains
            to the end.
    """

    def __init__(
        self, evaluation: Evaluation, checkpointer: Any, val_metric: str, patience: int | None
    ) -> None:
        self._asked = _AskedToSave()
        super().__init__(evaluation._period, self._asked, val_metric)
        self.checkpointer = checkpointer
        self.evaluation = evaluation
        self.patience = patience
        self.without_better = 0

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint stores."""
        best = None if self.best_metric is None else float(self.best_metric)
        return {"best": best, "iter": self.best_iter, "without_better": self.without_better}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads what a checkpoint has stored."""
        self.best_metric, self.best_iter = state_dict["best"], state_dict["iter"]
        self.without_better = state_dict["without_better"]

    def before_train(self) -> None:
        """Looks at an evaluation that has just been made up for."""
        if self.evaluation.made_up:
            self._best_checking()
        self._stop_if_patience_ends()

    def _best_checking(self) -> None:
        if comm.is_main_process():
            before = self.best_iter
            super()._best_checking()
            self.without_better = 0 if self.best_iter != before else self.without_better + 1
        # All processes save together: of a sharded model each has a part.
        for name, more in comm.all_gather(self._asked.take())[0]:
            self.checkpointer.save(name, **more)

    def after_step(self) -> None:
        """Looks at an evaluation.

        Raises:
            Finished: there have been too many without a better result.
        """
        super().after_step()
        self._stop_if_patience_ends()

    def _stop_if_patience_ends(self) -> None:
        if self.patience is None:
            return
        is_time = self._period > 0 and (self.trainer.iter + 1) % self._period == 0
        is_start = self.trainer.iter == self.trainer.start_iter
        if (is_time or is_start) and comm.all_gather(self.without_better)[0] >= self.patience:
            raise Finished(
                f"{self.patience} evaluations in a row without a better {self._val_metric} than "
                f"that of iteration {self.best_iter}"
            )


class LoggedWindow(HookBase):
    """Keeps the values whose medians are logged, so that a log goes on as it would have."""

    def __init__(self) -> None:
        self._restored: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        """The last values of each thing that the step has logged, with their iterations."""
        storage = self.trainer.storage
        hints, latest = storage.smoothing_hints(), storage.latest()
        return {
            name: (
                hints[name],
                [(float(value), int(at)) for value, at in history.values()[-_LOGGED_WINDOW:]],
            )
            for name, history in storage.histories().items()
            if latest[name][1] == self.trainer.iter
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps the values until training starts."""
        self._restored = state_dict

    def before_train(self) -> None:
        """Puts the values back."""
        for name, (hint, values) in self._restored.items():
            for value, place in values:
                self.trainer.storage.put_scalar(name, value, smoothing_hint=hint, cur_iter=place)


class LastLineAgain(HookBase):
    """Writes the line of the iteration that a run goes on after.

    A run may have been left between its checkpoint and its line, or before its evaluation, which is
    part of it. This hook comes after those that put values back.

    Args:
        writer: of metrics.json, from which :func:`forget_later_metrics` has removed the line.
        period: iterations between lines.
    """

    def __init__(self, writer: EventWriter, period: int) -> None:
        self.writer, self.period = writer, period

    def before_train(self) -> None:
        """Writes it, if there is to be one."""
        start = self.trainer.start_iter
        if start and start % self.period == 0:
            self.writer.write()


def forget_later_metrics(file: Path, start: int) -> None:
    """Removes the lines of metrics.json that a run that goes on at an iteration writes again.

    Args:
        file: what Detectron2's ``JSONWriter`` writes; it may be missing.
        start: the iteration; also the line before goes, for :class:`LastLineAgain`.
    """
    if not file.is_file():
        return
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and _iteration(line) < start - 1]
    if kept != lines:
        with written_whole(file) as unfinished:
            unfinished.write_text("".join(kept), encoding="utf-8")


def _iteration(line: str) -> float:
    try:
        return float(json.loads(line)["iteration"])
    except (ValueError, KeyError, TypeError):
        return float("inf")  # cut off where a run ended
