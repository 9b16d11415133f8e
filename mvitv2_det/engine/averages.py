"""A moving average of a model's weights, which is evaluated and saved beside them."""

from collections.abc import Mapping
from typing import Any

from detectron2.engine import HookBase
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from .checkpoint import RunCheckpointer

# The entry of checkpoints, the file at the end of a run, and what its metrics begin with.
AVERAGE = "model_ema"


class WeightAverage:
    """timm's average of all parameters and of all buffers that are not integers.

    After each step, ``average = decay · average + (1 - decay) · weights``.

    Args:
        model: not wrapped for several processes, each of which keeps the same average.
        decay: in [0, 1).
        warmup: let the decay grow with the iteration i, as ``1 - (1 + i)^(-2/3)``, as far as
            ``decay``: so a short run forgets the weights that it began with.
    """

    def __init__(self, model: nn.Module, *, decay: float, warmup: bool) -> None:
        self._ema = ModelEmaV3(model, decay=decay, use_warmup=warmup)
        self._ema.requires_grad_(False)
        self._warmup = warmup

    @property
    def model(self) -> nn.Module:
        """The model with the averaged weights."""
        return self._ema.module

    def start(self, model: nn.Module) -> None:
        """Begins with a model's weights."""
        self._ema.set(model)

    def update(self, model: nn.Module, iteration: int) -> None:
        """Takes the weights after an iteration, counted from 0 on."""
        self._ema.update(model, step=iteration + 1 if self._warmup else None)

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged weights by the model's names, as a checkpoint stores them."""
        return self.model.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Goes on with a checkpoint's average."""
        self.model.load_state_dict(state_dict)

    def save(self, folder: str, parts: Mapping[str, Any]) -> None:
        """Writes ``model_ema.pth``, weights as any other for all that takes some.

        Args:
            folder: of the run.
            parts: what else a checkpoint has to hold to be used, by its entry.

        Raises:
            UserError: it cannot be written.
        """
        RunCheckpointer(self.model, folder, **parts).save(AVERAGE)


class Averaging(HookBase):
    """Updates an average after each step that has changed the weights.

    Args:
        average: to update.
        model: whose weights it takes.
    """

    def __init__(self, average: WeightAverage, model: nn.Module) -> None:
        self.average, self.model = average, model

    def after_step(self) -> None:
        """Takes the weights, unless the step was skipped as its loss is not finite."""
        if not self.trainer.non_finite:
            self.average.update(self.model, self.trainer.iter)
