#!/usr/bin/env python3
r"""Trains or evaluates a yacs config with Detectron2's DefaultTrainer and AdamW.

    python projects/yacs/train_net.py --config-file configs/yacs/mask_rcnn_mvitv2_t_3x.yaml \
        --num-gpus 8

Overrides follow as ``KEY VALUE`` pairs, as in Detectron2: ``MODEL.DEVICE cpu``. ``MODEL.WEIGHTS``
takes what ``train.init_checkpoint`` takes: a name of ``mvitv2-det models``, a path, a URL, timm://…
"""

import argparse
import sys
import weakref

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import (
    DefaultTrainer,
    HookBase,
    default_argument_parser,
    default_setup,
    launch,
)
from detectron2.evaluation import COCOEvaluator
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping

from mvitv2_det import add_mvitv2_config, load_weights
from mvitv2_det.backbone.trunk import NO_WEIGHT_DECAY
from mvitv2_det.engine.checkpoint import RunCheckpointer
from mvitv2_det.errors import UserError, one_line
from mvitv2_det.weights import LoadReport


class Trainer(DefaultTrainer):
    """DefaultTrainer with the optimizer of the MViTv2 recipe and COCO evaluation."""

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
        """AdamW without weight decay for norms and positions (appendix B.3)."""
        parameters = get_default_optimizer_params(
            model,
            base_lr=cfg.SOLVER.BASE_LR,
            weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
            overrides={name: {"weight_decay": 0.0} for name in NO_WEIGHT_DECAY},
        )
        adamw = maybe_add_gradient_clipping(cfg, torch.optim.AdamW)
        return adamw(parameters, lr=cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY)

    def build_hooks(self) -> list[HookBase]:
        """Detectron2's hooks, whose checkpoints are whole and run nothing when they are read."""
        self.checkpointer = RunCheckpointer(
            self._trainer.model, self.cfg.OUTPUT_DIR, trainer=weakref.proxy(self)
        )
        return super().build_hooks()

    def resume_or_load(self, resume: bool = True) -> None:
        """Goes on from the last checkpoint, or loads ``MODEL.WEIGHTS``; see :func:`load`."""
        if resume and self.checkpointer.has_checkpoint():
            super().resume_or_load(resume)
        else:
            load(self.cfg, self.model)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> COCOEvaluator:
        """pycocotools' COCO evaluation."""
        return COCOEvaluator(dataset_name, output_dir=cfg.OUTPUT_DIR, use_fast_impl=False)


def load(cfg: CfgNode, model: torch.nn.Module) -> LoadReport | None:
    """Loads ``MODEL.WEIGHTS``, all that ``train.init_checkpoint`` takes, unless it is empty.

    Raises:
        UserError: the weights cannot be read or do not fit.
    """
    return load_weights(model, cfg.MODEL.WEIGHTS) if cfg.MODEL.WEIGHTS else None


def setup(args: argparse.Namespace) -> CfgNode:
    """The config file with its overrides."""
    cfg = get_cfg()
    add_mvitv2_config(cfg)
    # Detectron2's default also reads YAML that runs code.
    cfg.merge_from_file(args.config_file, allow_unsafe=False)
    cfg.merge_from_list(args.opts)
    cfg.freeze()
    default_setup(cfg, args)
    return cfg


def main(args: argparse.Namespace) -> dict:
    """One process of the job; returns its COCO results."""
    cfg = setup(args)
    if args.eval_only:
        model = Trainer.build_model(cfg)
        report = load(cfg, model)
        if report is None:
            raise UserError("MODEL.WEIGHTS is empty: evaluation needs trained weights")
        report.check_complete()
        return Trainer.test(cfg, model)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


if __name__ == "__main__":
    arguments = default_argument_parser().parse_args()
    try:
        launch(
            main,
            arguments.num_gpus,
            num_machines=arguments.num_machines,
            machine_rank=arguments.machine_rank,
            dist_url=arguments.dist_url,
            args=(arguments,),
        )
    except Exception as error:
        if (line := one_line(error)) is None:
            raise
        sys.exit(f"error: {line}")
