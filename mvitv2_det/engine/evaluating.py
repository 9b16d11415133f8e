"""Evaluation of a config's model on its test split, in one process or several."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from detectron2.config import instantiate
from detectron2.engine import create_ddp_model
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.utils import comm
from omegaconf import DictConfig
from torch import nn

from ..caching import constant_weights
from ..runtimes import TORCH, run_exported
from ..stop_signals import unheard_by_children
from .building import (
    build_model,
    compile_model,
    ddp_options,
    load_checkpoint,
    replay_model,
    with_task,
)
from .peers import PeerWatch
from .sharding import whole_parameters
from .validate import setting


def evaluate(
    cfg: DictConfig, model: nn.Module, between_batches: Callable[[], None] | None = None
) -> Mapping[str, Mapping[str, float]]:
    """Computes what the config's evaluator does of a model on the test split: COCO's results.

    Args:
        cfg: the config.
        model: the model.
        between_batches: is called before each.

    Returns:
        ``{"bbox": {"AP": …, "AP50": …, …}, "segm": {…}}`` in percent; empty on all processes but
        the main one.
    """
    loader = instantiate(cfg.dataloader.test)
    if between_batches:
        loader = _Calling(loader, between_batches)
    with whole_parameters(model), constant_weights(model):
        results = inference_on_dataset(model, loader, instantiate(cfg.dataloader.evaluator))
    if comm.is_main_process():
        print_csv_format(results)
    return results


def evaluate_checkpoint(
    cfg: DictConfig, peers: PeerWatch | None = None
) -> Mapping[str, Mapping[str, float]]:
    """Evaluates the weights in ``train.init_checkpoint``; see :func:`evaluate`.

    If the config has a ``multi_scale_test``, that is evaluated, with the model inside.

    Raises:
        UserError: the weights are not those of the whole model.
    """
    advance = peers.advance if peers else None
    model = build_model(cfg)
    if report := load_checkpoint(cfg, model):
        report.check_complete()
    compile_model(cfg, model)
    replay_model(cfg, model)
    runtime = setting(cfg, "train.runtime")
    if runtime != TORCH:
        exported = run_exported(
            model,
            cfg.model,
            cfg.train.init_checkpoint,
            runtime=runtime,
            precision=setting(cfg, "train.runtime_precision"),
        )
        return evaluate(cfg, exported, advance)
    if cfg.get("multi_scale_test"):
        cfg.multi_scale_test.model = model
        model = instantiate(cfg.multi_scale_test)
    return evaluate(cfg, with_task(cfg, create_ddp_model(model, **ddp_options(cfg))), advance)


class _Calling:
    """A loader that calls a function before each batch."""

    def __init__(self, loader: Any, function: Callable[[], None]) -> None:
        self.loader, self.function = loader, function

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        with unheard_by_children():
            batches = iter(self.loader)
        for batch in batches:
            self.function()
            yield batch
