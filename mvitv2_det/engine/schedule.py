"""A run's length and learning rate, where they are given in epochs or for another batch."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from detectron2.config import instantiate
from omegaconf import DictConfig

from ..errors import UserError
from .validate import setting

logger = logging.getLogger(__name__)


def warmup_fraction(iterations: int, max_iter: int) -> float:
    """Computes the share of a run that is warm-up, for ``WarmupParamScheduler``.

    The warm-up so keeps its length in iterations if the run is shortened or lengthened.

    Args:
        iterations: length of the warm-up.
        max_iter: length of the run.

    Returns:
        a number in [0, 1]; 1 where the run ends before the warm-up does.
    """
    return min(iterations / max_iter, 1.0)


def scaled_rate(rate: float, batch: int, reference_batch: int) -> float:
    """Scales a learning rate in proportion to the batch (Goyal et al., 1706.02677), and says so.

    Args:
        rate: that of ``reference_batch``.
        batch: images of all processes together.
        reference_batch: likewise.
    """
    scaled = rate * batch / reference_batch
    logger.info("optimizer.lr %.6g = %.6g × %d/%d", scaled, rate, batch, reference_batch)
    return scaled


def epoch_length(count: int, batch: int, what: str) -> int:
    """Computes the iterations of an epoch, without the rest that fills no batch.

    Args:
        count: samples of an epoch.
        batch: samples of all processes together.
        what: they are.

    Raises:
        UserError: a batch has more samples than there are.
    """
    if batch > count:
        raise UserError(
            f"dataloader.train.total_batch_size is {batch}, but there are {count} {what} to "
            f"train on: make it smaller"
        )
    return count // batch


def set_schedule(cfg: DictConfig) -> None:
    """Sets what ``train.reference_batch``, ``train.epochs`` and ``train.eval_epochs`` ask for.

    A config whose recipe is made for a total batch (the reference) is so trained with another one:
    the learning rate in proportion, iterations in inverse proportion, as Detectron2's
    ``SOLVER.REFERENCE_WORLD_SIZE`` does. Epochs, where they are given, count instead of iterations.
    The reference then is the batch itself: what is saved is not scaled again.

    Args:
        cfg: the config, whose data are prepared. It is changed in place.

    Raises:
        UserError: a batch has more images than there are, or the config has a recipe of its own.
    """
    batch, train = cfg.dataloader.train.total_batch_size, cfg.train
    reference, epochs = setting(cfg, "train.reference_batch"), setting(cfg, "train.epochs")
    eval_epochs = setting(cfg, "train.eval_epochs")
    if reference is None and epochs is None and eval_epochs is None:
        return
    if cfg.get("recipe"):
        raise UserError(
            "this config has its epochs and learning rate in recipe: set recipe.epochs, "
            "recipe.eval_epochs and recipe.lr_per_256, not those of train"
        )
    periods = (train, "eval_period"), (train.checkpointer, "period")
    if reference not in (None, batch):
        cfg.optimizer.lr = scaled_rate(cfg.optimizer.lr, batch, reference)
        for node, key in ((train, "max_iter"), *periods):
            if node[key]:  # 0 switches a period off, and null is for the epochs
                _set(node, key, node[key] * reference / batch, f"× {reference}/{batch}")
        train.reference_batch = batch
    if epochs is None and eval_epochs is None:
        return
    count = len(instantiate(cfg.dataloader.train.dataset))
    epoch = epoch_length(count, batch, "images")
    how = f"epochs of {count} images in batches of {batch}"
    if epochs is not None:
        _set(train, "max_iter", epochs * epoch, f"{epochs:g} {how}")
    if eval_epochs is not None:
        for node, key in periods:
            _set(node, key, eval_epochs * epoch, f"{eval_epochs:g} {how}")


@contextmanager
def collecting_notes() -> Iterator[list[str]]:
    """Collects what this module says, as long as there is no log to say it in."""
    notes: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: notes.append(record.getMessage())  # type: ignore[method-assign]
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield notes
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def _set(node: DictConfig, key: str, iterations: float, why: str) -> None:
    node[key] = max(round(iterations), 1)
    logger.info("%s is %d: %s", node._get_full_key(key), node[key], why)
