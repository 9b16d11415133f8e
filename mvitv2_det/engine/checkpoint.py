"""Checkpoints of a run: written whole, found by looking, read without running anything in them.

Detectron2's checkpointer writes under the final name, unpickles whatever ``last_checkpoint`` names,
and knows no other checkpoint than that one. :class:`RunCheckpointer` stands in front of it.
"""

import logging
import os
import re
import shutil
import socket
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import hooks
from detectron2.utils import comm

from ..errors import UserError
from ..weights.files import read_checkpoint
from ..whole_files import UNFINISHED, written_whole
from .sharding import gathered, is_sharded, load_model

try:
    import fcntl
except ImportError:  # Windows, where a second run in a folder is not noticed
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

_POINTER, _LOCK = "last_checkpoint", ".lock"
_WRITTEN_AT_START = ("config.yaml", "log.txt", "metrics.json", "run.json")
_NAME = re.compile(r"model_(?:(\d+)|final|best)\.pth")


class RunCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, of which nothing is lost and which runs nothing that it reads.

    It takes the arguments of :class:`detectron2.checkpoint.DetectionCheckpointer`.
    """

    def save(self, name: str, **kwargs: Any) -> None:
        """Writes ``NAME.pth``, of the main process alone; see :func:`written_whole`.

        All processes must call it where the model is sharded.

        Raises:
            UserError: it cannot be written; earlier checkpoints stay.
        """
        writes = self.save_dir and self.save_to_disk
        if not writes and not is_sharded(self.model):
            return
        content = {"model": self.model.state_dict()}
        content |= {key: part.state_dict() for key, part in self.checkpointables.items()}
        if is_sharded(self.model):
            content = gathered(content)
        if not writes:
            return
        path = Path(self.save_dir) / f"{name}.pth"
        logger.info("Saving checkpoint to %s", path)
        try:
            with written_whole(path) as unfinished, unfinished.open("wb") as file:
                torch.save(content | kwargs, file)
            if _NAME.fullmatch(path.name) and name != "model_best":
                self.tag_last_checkpoint(path.name)
        # torch says so in an error of its own if the disk is full.
        except (OSError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"cannot write checkpoint {path}: {reason}; earlier checkpoints are whole: make "
                f"room, and add --resume to go on"
            ) from error

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Writes the name of the last checkpoint, for Detectron2 and for people."""
        with written_whole(Path(self.save_dir) / _POINTER) as unfinished:
            unfinished.write_text(last_filename_basename, encoding="utf-8")

    def has_checkpoint(self) -> bool:
        """Tells whether there is a checkpoint to go on from, readable or not."""
        return bool(checkpoint_files(self.save_dir))

    def get_checkpoint_file(self) -> str:
        """Returns the newest readable checkpoint; see :func:`find_newest`."""
        return str(find_newest(self.save_dir) or "")

    def _load_file(self, f: str) -> dict[str, Any]:
        weights, others = read_checkpoint(f)
        return {**others, "model": weights}

    def resume(self, file: Path) -> dict[str, Any]:
        """Loads a checkpoint of this run into the model and all else that it was saved of.

        Returns:
            what the checkpoint holds beside these.

        Raises:
            UserError: it is of another model or run.
        """
        logger.info("Going on from %s", file)
        weights, others = read_checkpoint(file)
        for key in self.checkpointables:
            if key not in others:
                raise UserError(
                    f"checkpoint {file} has no {key}, with which the run is to go on: use the "
                    f"config that it was trained with, or name another train.output_dir"
                )
        try:
            load_model(self.model, weights)
            for key, part in self.checkpointables.items():
                part.load_state_dict(others.pop(key))
        except UserError:
            raise
        except Exception as error:  # what optimizers and hooks raise for a state that is not theirs
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"checkpoint {file} is not of this run ({type(error).__name__}: {reason}): use the "
                f"config that it was trained with, or name another train.output_dir"
            ) from error
        return others


class PeriodicCheckpointer(hooks.PeriodicCheckpointer):
    """Detectron2's hook, which also counts the checkpoints that were there before a run resumed.

    Without that, each time that a run goes on, it would leave ``max_to_keep`` files for ever.
    """

    def before_train(self) -> None:
        """Finds the checkpoints of the run until now; saves the final one if no step is left."""
        super().before_train()
        files = checkpoint_files(self.checkpointer.save_dir)
        numbered = [f for f in files if _iteration_of_name(f) is not None]
        self.recent_checkpoints = [
            str(file)
            for file in sorted(numbered, key=lambda f: _iteration_of_name(f) or 0)
            if (_iteration_of_name(file) or 0) < self.trainer.start_iter
        ]
        if self.trainer.start_iter >= self.trainer.max_iter:
            # Left after the last step: the final checkpoint may be missing or damaged.
            self.trainer.iter = self.trainer.start_iter - 1
            self.checkpointer.save(f"{self.file_prefix}_final", iteration=self.trainer.iter)
            self.trainer.iter = self.trainer.start_iter

    def step(self, iteration: int, **kwargs: Any) -> None:
        """Saves if it is time, and removes what is more than ``max_to_keep``, oldest first."""
        is_last = iteration >= self.trainer.max_iter - 1
        if (iteration + 1) % self.period == 0:
            self.save_now(iteration)
        if is_last:
            self.checkpointer.save(f"{self.file_prefix}_final", iteration=iteration)

    def save_now(self, iteration: int) -> None:
        """Saves ``model_ITERATION.pth``, which resuming goes on from."""
        name = f"{self.file_prefix}_{iteration:07d}"
        self.checkpointer.save(name, iteration=iteration)
        path = str(Path(self.checkpointer.save_dir) / f"{name}.pth")
        self.recent_checkpoints = [f for f in self.recent_checkpoints if f != path] + [path]
        while self.max_to_keep and len(self.recent_checkpoints) > self.max_to_keep:
            Path(self.recent_checkpoints.pop(0)).unlink(missing_ok=True)


def checkpoint_files(folder: str | Path) -> list[Path]:
    """Lists the checkpoints of a run: files of its own names, in its folder and not linked there.

    Raises:
        UserError: the folder cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return []
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise UserError(f"cannot read train.output_dir {folder}: {error.strerror}") from error
    return [
        entry
        for entry in entries
        if _NAME.fullmatch(entry.name) and entry.is_file() and not entry.is_symlink()
    ]


def find_newest(folder: str | Path) -> Path | None:
    """Finds the readable checkpoint of the highest iteration, and names those passed over.

    Returns:
        its path; None if there is no checkpoint.

    Raises:
        UserError: there are checkpoints, but none is readable.
    """
    _check_pointer(Path(folder))
    files = checkpoint_files(folder)
    passed_over: list[str] = []
    found: list[tuple[int, bool, Path]] = []
    for file in files:
        try:
            iteration = _iteration_of_name(file)
            found.append(
                (_read_iteration(file) if iteration is None else iteration, iteration is None, file)
            )
        except UserError as error:
            passed_over.append(str(error))
    # A numbered checkpoint comes before one of the same iteration that is the best or the last.
    for _, _, file in sorted(found, key=lambda one: (-one[0], one[1], one[2].name)):
        try:
            _check_whole(file)
            _read_iteration(file)
        except UserError as error:
            passed_over.append(str(error))
            continue
        for line in passed_over:
            logger.warning("Passed over: %s", line)
        return file
    if files:
        raise UserError(
            f"none of the {len(files)} checkpoints in {folder} can be read ({passed_over[0]}): "
            f"remove them to start anew"
        )
    return None


def check_fresh(folder: str | Path) -> None:
    """Refuses to start a run where another one has left checkpoints.

    Raises:
        UserError: there are some.
    """
    files = checkpoint_files(folder)
    if files:
        raise UserError(
            f"train.output_dir {folder} has checkpoints of a run ({files[-1].name}): add --resume "
            f"to go on with it, or name another folder"
        )


@contextmanager
def only_run_in(folder: str | Path) -> Iterator[None]:
    """Keeps a second run out of a folder, until this one ends, in whatever way.

    Raises:
        UserError: another run is in the folder, or it cannot be written to.
    """
    if not comm.is_main_process():
        yield
        return
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / _LOCK).open("a+", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write to train.output_dir {folder}: {error.strerror}") from error
    with lock:
        try:
            # This lock is of the process: workers do not inherit it, and it ends with the process.
            if fcntl:
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.seek(0)
            who = lock.read(200).strip() or "another process"
            raise UserError(
                f"train.output_dir {folder} is in use by {who}: wait for its end, or name another "
                f"folder"
            ) from error
        for name in _WRITTEN_AT_START:
            if (folder / name).is_dir():
                raise UserError(f"{folder / name} is a folder, not the file that a run writes")
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        lock.flush()
        for left_over in folder.glob(f"{UNFINISHED}*"):
            shutil.rmtree(left_over, ignore_errors=True)
        yield


def _iteration_of_name(file: Path) -> int | None:
    match = _NAME.fullmatch(file.name)
    return int(match[1]) if match and match[1] else None


def _read_iteration(file: Path) -> int:
    """Reads the iteration after which a checkpoint was saved.

    Raises:
        UserError: it cannot be read, or holds no state of training.
    """
    trainer = read_checkpoint(file)[1].get("trainer")
    trainer = trainer if isinstance(trainer, dict) else {}
    iteration = trainer.get("iteration")
    # Detectron2's DefaultTrainer has the trainer with the optimizer inside.
    if not isinstance(iteration, int) or not {"optimizer", "_trainer"} & trainer.keys():
        raise UserError(f"checkpoint {str(file)!r} holds weights alone, no state of a training")
    return iteration


def _check_whole(file: Path) -> None:
    """Compares the check sums of all that a checkpoint holds: reading it does not.

    Raises:
        UserError: the file is damaged.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
    except (OSError, zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"checkpoint {str(file)!r} is cut off or damaged: {error}") from error
    if damaged:
        raise UserError(f"checkpoint {str(file)!r} is damaged: {damaged} has another check sum")


def _check_pointer(folder: Path) -> None:
    """Says so if ``last_checkpoint`` names what no run writes; it is not looked at otherwise."""
    pointer = folder / _POINTER
    try:
        name = pointer.read_bytes()[:200].decode("utf-8", errors="replace").strip()
    except OSError:
        return  # it is not there, or is a folder: a checkpoint is found without
    if name and not _NAME.fullmatch(name):
        logger.warning(
            "Passed over: %s names %s, which is no checkpoint of this folder",
            pointer,
            ascii(name),
        )
    elif name and not (folder / name).is_file():
        logger.warning("Passed over: %s names %s, which is not there", pointer, name)
