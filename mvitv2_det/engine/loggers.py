"""Weights & Biases and MLflow, as Detectron2's writers of metrics.

Each package is needed only where ``train.loggers`` names it. What a service or its package does
wrong does not end a training.
"""

import importlib.util
import json
import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.utils.events import EventWriter, get_event_storage
from omegaconf import DictConfig, OmegaConf

from ..errors import UserError
from ..whole_files import written_whole

logger = logging.getLogger(__name__)

_WINDOW = 20  # values of whose medians Detectron2's writers log
_RUNS = "loggers.json"  # in the run's folder: the service's name of the run, by logger


class ServiceWriter(EventWriter, ABC):
    """Logs what is new since the last time.

    Args:
        folder: of the run.
        run: the service's name of a run that goes on; None for a new one.
        settings: the config, flat and plain.
    """

    def __init__(self, folder: Path, run: str | None, settings: dict[str, Any]) -> None:
        self._last = -1
        self.run = self._open(folder, run, settings)

    def write(self) -> None:
        """Logs each metric that has been put since, with its iteration."""
        latest = get_event_storage().latest_with_smoothing_hint(_WINDOW)
        metrics: dict[int, dict[str, float]] = {}
        for name, (value, iteration) in latest.items():
            if iteration > self._last:
                metrics.setdefault(iteration, {})[name] = float(value)
        for iteration in sorted(metrics):
            self._log(metrics[iteration], iteration)
            self._last = iteration

    @abstractmethod
    def _open(self, folder: Path, run: str | None, settings: dict[str, Any]) -> str:
        """Starts or goes on with a run; returns its name."""

    @abstractmethod
    def _log(self, metrics: dict[str, float], iteration: int) -> None:
        """Logs values by name, of one iteration."""


class WandbWriter(ServiceWriter):
    """Weights & Biases. ``WANDB_PROJECT``, ``WANDB_MODE=offline`` and the like are its own."""

    def _open(self, folder: Path, run: str | None, settings: dict[str, Any]) -> str:
        import wandb

        self._run = wandb.init(
            dir=str(folder), name=folder.resolve().name, id=run, resume="allow", config=settings
        )
        return str(self._run.id)

    def _log(self, metrics: dict[str, float], iteration: int) -> None:
        self._run.log(metrics, step=iteration)

    def close(self) -> None:
        """Ends the run."""
        self._run.finish()


class MLflowWriter(ServiceWriter):
    """MLflow. ``MLFLOW_TRACKING_URI`` and ``MLFLOW_EXPERIMENT_NAME`` are its own."""

    def _open(self, folder: Path, run: str | None, settings: dict[str, Any]) -> str:
        import mlflow

        self._mlflow = mlflow
        name = None if run else folder.resolve().name
        self._run = self._mlflow.start_run(run_id=run, run_name=name)
        if not run:
            # Long values, and names of other characters, are refused.
            names = {key: re.sub(r"[^\w./ -]", "_", key) for key in settings}
            self._mlflow.log_params({names[k]: str(v)[:500] for k, v in settings.items()})
        return str(self._run.info.run_id)

    def _log(self, metrics: dict[str, float], iteration: int) -> None:
        self._mlflow.log_metrics(metrics, step=iteration)

    def close(self) -> None:
        """Ends the run."""
        self._mlflow.end_run()


LOGGERS = {"wandb": WandbWriter, "mlflow": MLflowWriter}


def check_loggers(names: Sequence[str]) -> None:
    """Checks that what loggers need is installed.

    Raises:
        UserError: it is not; the message says how to get it.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f"train.loggers names {name}, which is not installed: pip install "
                f"'mvitv2_det[{name}]'"
            )


def open_loggers(names: Sequence[str], cfg: DictConfig, *, resumed: bool) -> list[EventWriter]:
    """Opens loggers, of which those that fail are left out with a warning.

    Args:
        names: of the loggers, keys of ``LOGGERS``.
        cfg: the config, which they show.
        resumed: whether they go on with what they have logged of this run.
    """
    if not names:
        return []
    folder = Path(cfg.train.output_dir)
    settings = _flat(OmegaConf.to_container(cfg, resolve=False))  # type: ignore[arg-type]
    runs = _read_runs(folder / _RUNS) if resumed else {}
    writers: list[EventWriter] = []
    for name in names:
        try:
            writer = LOGGERS[name](folder, runs.get(name), settings)
        except Exception as error:  # each service has errors of its own
            reason = " ".join(str(error).split())[:300]
            logger.warning("%s cannot log (%s): training goes on without", name, reason)
            continue
        runs[name] = writer.run
        writers.append(writer)
    with written_whole(folder / _RUNS) as unfinished:
        unfinished.write_text(json.dumps(runs), encoding="utf-8")
    return writers


def _read_runs(file: Path) -> dict[str, str]:
    try:
        runs = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    is_plain = isinstance(runs, dict) and all(isinstance(run, str) for run in runs.values())
    return runs if is_plain else {}


def _flat(node: Mapping[Any, Any]) -> dict[str, Any]:
    """A config's values by their keys, as ``train/max_iter``; functions by their names."""
    flat: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}/{name}": found for name, found in _flat(value).items()}
        else:
            flat[str(key)] = _plain(value)
    return flat


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return str([_plain(item) for item in value])
    is_plain = value is None or isinstance(value, bool | int | float | str)
    return value if is_plain else getattr(value, "__name__", type(value).__name__)
