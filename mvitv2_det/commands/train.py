"""Trains or evaluates an MViTv2 detector from a LazyConfig.

    mvitv2-det train --config-file mask_rcnn_mvitv2_t_3x --num-gpus 8
    mvitv2-det train --config-file CONFIG --eval-only train.init_checkpoint=model.pth
    mvitv2-det train --config-file CONFIG --resume train.device=cpu train.max_iter=100

CONFIG is a file, or the name of a config of this project; train.init_checkpoint takes the names of
released weights, too: 'mvitv2-det models' lists both. Everything of the form key=value is an
override of the config, in Hydra's syntax. Your own data need one, the path of a file or folder in
COCO's format, YOLO's, Pascal VOC's, LabelMe's or CVAT's:

    dataset.train=my_data/
"""

import argparse
import logging
import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError
from .entry import add_trust_argument

if TYPE_CHECKING:
    from omegaconf import DictConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of Detectron2's own training script, and ``--strict``."""
    parser.add_argument(
        "--config-file",
        "--config",
        default="",
        metavar="CONFIG",
        help="file or name of a LazyConfig",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on from the last checkpoint in train.output_dir, if there is one",
    )
    parser.add_argument("--eval-only", action="store_true", help="evaluate, do not train")
    parser.add_argument("--num-gpus", type=int, default=1, help="GPUs of each machine (default: 1)")
    parser.add_argument("--num-machines", type=int, default=1, help="default: 1")
    parser.add_argument(
        "--machine-rank", type=int, default=0, help="number of this machine, from 0 on"
    )
    parser.add_argument(
        "--dist-url",
        default=f"tcp://127.0.0.1:{_port()}",
        help="where the processes meet: any address of torch.distributed's init_method",
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="stop if a tensor of the weights or of the model is left over that should not be",
    )
    add_trust_argument(parser)
    parser.add_argument(
        "opts", nargs="*", metavar="KEY=VALUE", help="override of the config; any number"
    )


def run(args: argparse.Namespace) -> int:
    """Starts one process for each GPU, and waits until they have trained or evaluated.

    Returns:
        the exit status: 0; 75 if a signal has ended the run, which --resume goes on with; 76 if
        another process is lost; 130 after Ctrl-C.
    """
    cfg = _read_config(args)
    from ..engine.launch import launch
    from ..engine.validate import setting

    return launch(
        _run_process,
        args,
        cfg,
        num_gpus=args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        timeout=setting(cfg, "train.peer_timeout"),
    )


def _port() -> int:
    """A port that is the same for all runs of a user: processes left over from one are noticed."""
    user = os.getuid() if hasattr(os, "getuid") else 1
    return 2**15 + 2**14 + user % 2**14


def _read_config(args: argparse.Namespace) -> "DictConfig":
    """Reads the config with its overrides, and checks it against this machine and the data."""
    if not args.config_file:
        raise UserError("--config-file is missing: the configs are in configs/")
    from omegaconf import OmegaConf

    from ..config import config_files
    from ..engine import check_run
    from ..engine.checkpoint import check_fresh
    from ..engine.schedule import collecting_notes, set_schedule
    from ..engine.validate import check_processes, check_settings, setting
    from ..trained import read_config

    cfg = read_config(args.config_file, args.opts, args.trust)
    # Detectron2's set-up copies the file into the log.
    args.config_file = str(config_files().get(args.config_file, args.config_file))
    if args.strict:
        OmegaConf.update(cfg, "train.strict", True, force_add=True)
    training = not args.eval_only
    check_run(cfg, training=training, complete=False)
    if training and not args.resume and not setting(cfg, "train.dry_run"):
        check_fresh(cfg.train.output_dir)
    with collecting_notes() as args.notes:
        _prepare(cfg)(cfg, training=training)
        if training:
            set_schedule(cfg)
    check_settings(cfg, training=training)
    check_processes(
        cfg,
        num_gpus=args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        training=training,
    )
    return cfg


def _prepare(cfg: "DictConfig") -> Callable[..., None]:
    """What prepares the data: the function that the config names, or that for COCO's format."""
    from detectron2.utils.registry import locate

    from ..data import prepare_datasets

    name = (cfg.get("dataset") or {}).get("prepare")
    return locate(name) if name else prepare_datasets


def _run_process(args: argparse.Namespace, cfg: "DictConfig") -> None:
    """Trains or evaluates in one process of the job."""
    import torch.distributed as dist
    from detectron2.utils import comm

    from ..engine import evaluate_checkpoint, train
    from ..engine.checkpoint import only_run_in
    from ..engine.dry_run import dry_run, shortened
    from ..engine.faults import naming_faults
    from ..engine.launch import meeting_host
    from ..engine.logs import set_up_run
    from ..engine.peers import PeerWatch
    from ..engine.validate import setting

    # A log that cannot be written is no reason to print stack traces, and none to stop.
    logging.raiseExceptions = False
    # The processes do not share Detectron2's catalogs of data sets.
    _prepare(cfg)(cfg, training=not args.eval_only, check=False)
    alone = nullcontext() if args.eval_only else only_run_in(cfg.train.output_dir)
    with alone, naming_faults():
        whole = cfg
        is_dry = not args.eval_only and setting(cfg, "train.dry_run")
        if is_dry:
            cfg = shortened(cfg)
        set_up_run(cfg, args)
        for note in args.notes:
            logging.getLogger(__name__).info(note)
        peers = None
        if comm.get_world_size() > 1:
            peers = PeerWatch(meeting_host(args.dist_url), setting(cfg, "train.peer_timeout"))
        with naming_faults(peers=peers):
            if args.eval_only:
                evaluate_checkpoint(cfg, peers)
            elif is_dry:
                dry_run(whole, cfg, peers)
            else:
                train(cfg, resume=args.resume, peers=peers)
        if comm.is_main_process() and setting(cfg, "train.report") and not is_dry:
            from ..report.ending import conclude

            conclude(Path(cfg.train.output_dir), trained=not args.eval_only, trust=args.trust)
        if peers:
            # A worker that exits while the others still need its connections would abort the job:
            # only the first one evaluates and writes.
            comm.synchronize()
            peers.stop()
            comm.synchronize()
            dist.destroy_process_group()
