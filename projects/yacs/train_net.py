#!/usr/bin/env python3
r"""Trains or evaluates a yacs config with Detectron2's DefaultTrainer and AdamW.

    python projects/yacs/train_net.py --config-file configs/yacs/mask_rcnn_mvitv2_t_3x.yaml \
        --num-gpus 8

Overrides follow as ``KEY VALUE`` pairs, as in Detectron2: ``MODEL.DEVICE cpu``.
"""

import argparse
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

from mvitv2_det import add_mvitv2_config
from mvitv2_det.backbone.trunk import NO_WEIGHT_DECAY
from mvitv2_det.engine.checkpoint import RunCheckpointer


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

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> COCOEvaluator:
        """pycocotools' COCO evaluation."""
        return COCOEvaluator(dataset_name, output_dir=cfg.OUTPUT_DIR, use_fast_impl=False)


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
        RunCheckpointer(model).load(cfg.MODEL.WEIGHTS)
        return Trainer.test(cfg, model)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


if __name__ == "__main__":
    arguments = default_argument_parser().parse_args()
    launch(
        main,
        arguments.num_gpus,
        num_machines=arguments.num_machines,
        machine_rank=arguments.machine_rank,
        dist_url=arguments.dist_url,
        args=(arguments,),
    )
