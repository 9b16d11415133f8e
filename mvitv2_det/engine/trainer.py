"""One step of training: Detectron2's trainer, seeded step by step, with a say for all processes."""

import itertools
import logging
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from ..data.loader import TrainLoader
from ..errors import UserError
from ..randomness import STEP, derived_seed, seed_all
from .sharding import sharded_state

logger = logging.getLogger(__name__)


class Trainer(SimpleTrainer):
    """Detectron2's trainer for mixed precision and large batches, which a run can leave and resume.

    Args:
        model: gives a dict of losses of a batch.
        loader: of batches.
        optimizer: of the model.
        seed: of the run.
        precision: of autocast; None trains in float32.
        accumulate: parts into which a batch is cut; their gradients are summed. A mean over the
            images so stays what it is; batch norm, and losses that are means over something else,
            see the parts.
        clip_norm: the largest L2 norm of all gradients of a batch together; None does not limit it.
        max_non_finite: steps in a row that are skipped because the loss is not finite.
    """

    def __init__(
        self,
        model: nn.Module,
        loader: Any,
        optimizer: torch.optim.Optimizer,
        *,
        seed: int,
        precision: torch.dtype | None = None,
        accumulate: int = 1,
        clip_norm: float | None = None,
        max_non_finite: int = 0,
    ) -> None:
        super().__init__(model, loader, optimizer)
        self.seed = seed
        self.precision = precision
        self.accumulate = accumulate
        self.clip_norm = clip_norm
        self.max_non_finite = max_non_finite
        self.grad_scaler = torch.amp.GradScaler(enabled=precision == torch.float16)
        self.non_finite = 0  # steps in a row, until now
        # Set by a signal in one process at any time; and, by each step, in all processes.
        self.stop_asked = self.stop_agreed = False
        # The iteration whose state is in memory, whole; None while parameters change.
        self.complete: int | None = None
        self._device = next(model.parameters()).device

    def run_step(self) -> None:
        """Forward and backward of a batch, and a step of the optimizer if the loss is finite.

        Raises:
            UserError: more steps in a row than are allowed had a loss that is not finite.
        """
        start = time.perf_counter()
        batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        seed_all(derived_seed(self.seed, STEP, self.iter, comm.get_rank()))
        self.optimizer.zero_grad()
        losses: dict[str, Tensor] = {}
        for part, share, is_last in self._parts(batch):
            with self._reducing_gradients(is_last), self._autocast():
                found = self._losses(part)
                total: Tensor = sum(found.values())  # type: ignore[assignment]
                self.grad_scaler.scale(share * total).backward()
            for name, loss in found.items():
                losses[name] = losses.get(name, 0.0) + share * loss.detach()
        self.after_backward()
        is_finite = all(bool(torch.isfinite(loss).all()) for loss in losses.values())
        any_non_finite, self.stop_agreed = self._any(not is_finite, self.stop_asked)
        if any_non_finite:
            self._skip(losses)
            return
        self.non_finite = 0
        self._write_metrics(losses, data_time)
        self.complete = None
        if self.clip_norm is not None:
            self.grad_scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self._trained_parameters(), self.clip_norm)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def after_step(self) -> None:
        """Runs the hooks, for which the step is complete."""
        self.complete = self.iter
        super().after_step()

    def state_dict(self) -> dict[str, Any]:
        """Adds the scaler's state, and the steps in a row that were skipped."""
        return super().state_dict() | {
            "grad_scaler": self.grad_scaler.state_dict(),
            "non_finite": self.non_finite,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads what :meth:`state_dict` gives, also of Detectron2's trainers."""
        optimizer = sharded_state(self.optimizer, state_dict["optimizer"])
        super().load_state_dict({**state_dict, "optimizer": optimizer})
        if state_dict.get("grad_scaler"):
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
        self.non_finite = state_dict.get("non_finite", 0)
        self.complete = self.iter

    def _losses(self, part: Any) -> dict[str, Tensor]:
        """The losses of a part; Detectron2's detectors end if what they propose is not finite."""
        try:
            losses = self.model(part)
        except FloatingPointError as error:
            # Other processes already wait for this one's gradients.
            if comm.get_world_size() > 1:
                raise UserError(self._diverged(str(error), [self._names()])) from error
            losses = torch.full((), torch.nan, requires_grad=True)
        return {"total_loss": losses} if isinstance(losses, Tensor) else losses

    def _parts(self, batch: Any) -> Iterator[tuple[Any, float, bool]]:
        """Cuts a batch, a list of images or tensors, into parts with their shares of it."""
        if self.accumulate == 1:
            yield batch, 1.0, True
            return
        is_list = isinstance(batch, list) and not isinstance(batch[0], Tensor)
        size = len(batch) if is_list else len(batch[0])
        parts = min(self.accumulate, size)
        cuts = [size * number // parts for number in range(parts + 1)]
        for first, end in itertools.pairwise(cuts):
            part = batch[first:end] if is_list else [each[first:end] for each in batch]
            yield part, (end - first) / size, end == size

    def _reducing_gradients(self, is_last: bool) -> AbstractContextManager[None]:
        """Lets processes exchange gradients once for each batch."""
        wrapped = getattr(self.model, "network", self.model)
        if isinstance(wrapped, FSDPModule):
            wrapped.set_requires_gradient_sync(is_last)
        if is_last or not isinstance(wrapped, nn.parallel.DistributedDataParallel):
            return nullcontext()
        return wrapped.no_sync()

    def _trained_parameters(self) -> list[nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.precision is None:
            return nullcontext()
        return torch.autocast(self._device.type, dtype=self.precision)

    def _any(self, *flags: bool) -> list[bool]:
        """Whether a flag is set in any of the processes, for each flag."""
        if comm.get_world_size() == 1:
            return list(flags)
        found = torch.tensor(flags, dtype=torch.uint8, device=self._device)
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return [bool(flag) for flag in found.tolist()]

    def _skip(self, losses: dict[str, Tensor]) -> None:
        values = ", ".join(f"{name} {loss.item():g}" for name, loss in losses.items())
        found = comm.all_gather((values, self._names()))
        line = self._diverged("; ".join(values for values, _ in found), [n for _, n in found])
        self.non_finite += 1
        if self.non_finite > self.max_non_finite:
            raise UserError(line)
        logger.warning("Skipped a step: %s", line)

    def _names(self) -> list[str]:
        return self.data_loader.names if isinstance(self.data_loader, TrainLoader) else []

    def _diverged(self, values: str, names: list[list[str]]) -> str:
        images = ", ".join(name for some in names for name in some[:8]) or "unknown"
        return (
            f"training diverged: the loss of iteration {self.iter} is not finite "
            f"({' '.join(values.split())}), of images {images}; lower optimizer.lr, or allow some "
            f"in a row by train.max_non_finite_steps"
        )
