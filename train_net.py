#!/usr/bin/env python3
"""Trains or evaluates an MViTv2 detector from a LazyConfig.

    python train_net.py --config-file configs/mask_rcnn/mask_rcnn_mvitv2_t_3x.py --num-gpus 8
    python train_net.py --config-file CONFIG --eval-only train.init_checkpoint=model.pth
    python train_net.py --config-file CONFIG --resume train.device=cpu train.max_iter=100

Everything after the options is a ``key=value`` override of the config, in Hydra's syntax. One's
own data in COCO's format need four:

    dataset.train_json=train.json dataset.train_images=train/
    dataset.val_json=val.json dataset.val_images=val/
"""

import argparse
import sys

import torch.distributed as dist
from detectron2.engine import default_argument_parser, default_setup, launch
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from omegaconf import DictConfig
from torch.multiprocessing import ProcessRaisedException

from mvitv2_det.config import apply_overrides, load_config
from mvitv2_det.data import prepare_datasets
from mvitv2_det.engine import check_run, evaluate_checkpoint, train
from mvitv2_det.errors import UserError, one_line


def read_config(args: argparse.Namespace) -> DictConfig:
    """The config with its overrides, checked against this machine and the data."""
    if not args.config_file:
        raise UserError("--config-file is missing: the configs are in configs/")
    cfg = apply_overrides(load_config(args.config_file), args.opts)
    cfg.train.strict = args.strict or cfg.train.get("strict", False)
    check_run(cfg, training=not args.eval_only)
    prepare_datasets(cfg, training=not args.eval_only)
    return cfg


def run(args: argparse.Namespace, cfg: DictConfig) -> None:
    """One process of the job."""
    # Catalogs of data sets are not shared between processes.
    prepare_datasets(cfg, training=not args.eval_only, check=False)
    default_setup(cfg, args)
    setup_logger(cfg.train.output_dir, distributed_rank=comm.get_rank(), name="mvitv2_det")
    if args.eval_only:
        evaluate_checkpoint(cfg)
    else:
        train(cfg, resume=args.resume)
    if dist.is_initialized():
        # A worker that exits while the others still need its connections would abort the job:
        # only the first one evaluates and writes.
        comm.synchronize()
        dist.destroy_process_group()


def main(arguments: list[str] | None = None) -> int:
    """Runs the job; returns the exit status, 2 where the user has something to put right."""
    parser = default_argument_parser(epilog=__doc__)
    parser.add_argument(
        "--strict",
        action="store_true",
        help="stop if a tensor of the weights or of the model is left over that should not be",
    )
    args = parser.parse_args(arguments)
    try:
        cfg = read_config(args)
        launch(
            run,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(args, cfg),
        )
    except (UserError, ProcessRaisedException) as error:
        line = one_line(error)
        if line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
