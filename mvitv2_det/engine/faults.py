"""What ends a training from outside, in one line that says what to do."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..errors import UserError
from .peers import PeerWatch
from .run_hooks import Finished
from .signals import Preempted
from .trainer import Trainer

_LESS_MEMORY = (
    "a smaller dataloader.train.total_batch_size, train.accumulate=2 or more, or "
    "model.backbone.bottom_up.recompute_products=true need less, use_act_checkpoint=true there "
    "less yet"
)
_LOST = "the connection to another process of the run is lost"


def describe_fault(error: BaseException) -> str | None:
    """Finds the line that says what has happened; None if it is a fault of the program."""
    if isinstance(error, UserError | Preempted | Finished):
        return str(error)
    text = " ".join(str(error).split())
    if isinstance(error, torch.OutOfMemoryError):
        return f"the GPU has too little memory: {_LESS_MEMORY}"
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in text:
        return f"there is too little memory: {_LESS_MEMORY}"
    if killed := re.search(r"DataLoader worker \(pid\(?s?\)? [\d, ]+\) [^.]*", text):
        return (
            f"a worker of the loader is gone ({killed[0].strip()}): often the machine has too "
            f"little memory; lower dataloader.train.num_workers, and add --resume to go on"
        )
    if re.search(r"[Cc]onnection (closed|reset)|Timed out|timed out|ProcessGroup|NCCL", text):
        return f"{_LOST}: {text[:200]}"
    if isinstance(error, OSError):
        where = f" {error.filename}" if error.filename else ""
        return f"the system refuses{where}: {error.strerror or text}"
    return None


@contextmanager
def naming_faults(trainer: Trainer | None = None, peers: PeerWatch | None = None) -> Iterator[None]:
    """Turns faults from outside into an error of one line that names the iteration.

    Args:
        trainer: what trains; None before and after.
        peers: finds which process is gone where a connection is lost; then it ends this one.

    Raises:
        UserError: there was such a fault.
    """
    try:
        yield
    except (UserError, Preempted, Finished):
        raise
    except Exception as error:
        line = describe_fault(error)
        if line is None:
            raise
        if peers and line.startswith(_LOST):
            peers.find_gone()
        where = f"training ended in iteration {trainer.iter}: " if trainer else ""
        raise UserError(where + line) from error
