"""What training of classifiers of images, of clips and of actions has in common.

Each project's ``prepare_datasets`` completes its config by these.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.config import instantiate
from omegaconf import DictConfig, OmegaConf

from mvitv2_det.engine import epoch_length, scaled_rate
from mvitv2_det.errors import UserError
from mvitv2_det.recognition.description import ENTRY, Description
from mvitv2_det.weights.files import read_checkpoint

logger = logging.getLogger(f"mvitv2_det.{__name__}")


class StoredDescription:
    """The entry of checkpoints by which they say what they are; see :class:`Description`.

    Args:
        content: what :meth:`Description.to_dict` gives.
    """

    def __init__(self, content: Mapping[str, Any]) -> None:
        self.content = Description.from_dict(plain(content)).to_dict()

    def state_dict(self) -> dict[str, Any]:
        """Returns the entry that a checkpoint stores."""
        return self.content

    def load_state_dict(self, stored: Mapping[str, Any]) -> None:
        """Checks that a run that is resumed is of the same network and classes.

        Raises:
            UserError: it is not.
        """
        old, new = list(stored["classes"]), self.content["classes"]
        if old != new:
            raise UserError(
                f"the run to resume was of {len(old)} classes ({', '.join(old[:3])}, …), the data "
                f"are of {len(new)} ({', '.join(new[:3])}, …): name another train.output_dir"
            )


def plain(node: Any) -> Any:
    """A config's node as plain values."""
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def trained_description(cfg: DictConfig, training: bool) -> Description | None:
    """What weights that are to be evaluated say of themselves; None if they say nothing."""
    weights = cfg.train.init_checkpoint
    # Of a classifier of which the first outputs are taken, others may be the data's classes.
    if training or cfg.train.load.classes == "first" or not os.path.isfile(weights):
        return None
    entry = read_checkpoint(weights)[1].get(ENTRY)
    return None if entry is None else Description.from_dict(entry)


def set_num_classes(cfg: DictConfig, classes: Sequence[str]) -> None:
    """Sets the network's outputs.

    Raises:
        UserError: another number is given, there or in ``task``, or there is nothing to tell apart.
    """
    given = cfg.model.num_classes
    if len(classes) < 2:
        raise UserError(
            f"{cfg.dataset.train} has the class {', '.join(map(repr, classes))} alone: expected "
            f"two or more to tell apart"
        )
    if given not in (None, len(classes)):
        raise UserError(
            f"model.num_classes is {given}, but {cfg.dataset.train} has {len(classes)} classes: "
            f"leave it out, and the data decide"
        )
    cfg.model.num_classes = len(classes)
    task = cfg.get("task") or {}
    mixed = (task.get("mixup") or {}).get("num_classes", len(classes))
    if mixed != len(classes):
        raise UserError(
            f"task.mixup.num_classes is {mixed}, but there are {len(classes)} classes: leave it out"
        )
    first = task.get("first_outputs")
    if first is not None and not 1 <= first <= len(classes):
        raise UserError(
            f"task.first_outputs must be from 1 to the {len(classes)} classes, got {first}"
        )


def describe(cfg: DictConfig, constructor: str) -> Description:
    """Describes the config's network and preprocessing in plain values.

    Args:
        cfg: the config, whose data have been found.
        constructor: of :class:`~mvitv2_det.recognition.description.Description`.
    """
    arguments = plain(cfg.model)
    arguments.pop("_target_")
    if isinstance(arguments["variant"], dict):
        arguments["variant"].pop("_target_")
    return Description(constructor, arguments, tuple(cfg.dataset.classes), instantiate(cfg.input))


def check_pairs(cfg: DictConfig, processes: int) -> None:
    """Refuses batches that mixup cannot pair, which each process does with its share."""
    batch = cfg.dataloader.train.total_batch_size
    if cfg.task.get("mixup") and batch // processes % 2:
        each = f" in each of {processes} processes" if processes > 1 else ""
        raise UserError(
            f"dataloader.train.total_batch_size must be even{each}, as mixup takes pairs, got "
            f"{batch}; task.mixup=null does without"
        )


def set_schedule(cfg: DictConfig, count: int, what: str) -> None:
    """Sets what is given in epochs or for a batch of 256, and was not given otherwise.

    Args:
        cfg: the config.
        count: samples of an epoch.
        what: they are.

    Raises:
        UserError: a batch has more samples than there are, or mixup gets an odd number.
    """
    batch, recipe = cfg.dataloader.train.total_batch_size, cfg.recipe
    check_pairs(cfg, processes=1)
    epoch = epoch_length(count, batch, what)
    if recipe.warmup_epochs >= recipe.epochs:
        logger.warning(
            "recipe.warmup_epochs is %g of %g recipe.epochs: the learning rate will only rise",
            recipe.warmup_epochs,
            recipe.epochs,
        )
    if cfg.optimizer.lr is None:
        cfg.optimizer.lr = scaled_rate(recipe.lr_per_256, batch, 256)
    defaults = {
        "train.max_iter": recipe.epochs * epoch,
        "train.eval_period": recipe.eval_epochs * epoch,
        "train.checkpointer.period": recipe.eval_epochs * epoch,
    }
    for key, value in defaults.items():
        if OmegaConf.select(cfg, key) is None:
            OmegaConf.update(cfg, key, value)
