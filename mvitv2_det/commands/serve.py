"""Serves a web page to try a detector: drop a picture, see instances, look at attention.

    mvitv2-det serve --config output/RUN/config.yaml --weights output/RUN/model_final.pth

On the page the score threshold can be moved, and a place clicked to see what it attends to. The
network sees an image once, as evaluation does, but never at several scales. Only this machine can
open the page unless --host says otherwise; nothing is asked of other machines, and what was
uploaded is forgotten in the end. Needs pip install 'mvitv2_det[serve]'.
"""

import argparse
import logging
from pathlib import Path

from .entry import add_config_arguments, add_device_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument("--config", required=True, help="file or name of a LazyConfig")
    parser.add_argument(
        "--weights",
        required=True,
        help="of a trained detector: a name of mvitv2-det models, a path, a URL, detectron2://…",
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address of this machine that the page is at (default: 127.0.0.1); 0.0.0.0 lets "
        "the whole network in, without a password",
    )
    parser.add_argument("--port", type=int, help="(default: the first from 7860 on that is free)")
    parser.add_argument(
        "--score-threshold", type=float, default=0.5, help="at first (default: 0.5)"
    )
    add_device_arguments(parser)
    add_config_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Serves the page until Ctrl-C."""
    logging.getLogger("mvitv2_det.weights").setLevel(logging.ERROR)
    from ..predict.predictor import Predictor
    from ..serving.viewer import Viewer
    from ..serving.web_page import require_gradio, serve
    from ..trained import read_config

    require_gradio()  # before the weights are read
    cfg = read_config(args.config, args.opts, args.trust)
    cfg.pop("multi_scale_test", None)
    predictor = Predictor(cfg, args.weights, device=args.device, precision=args.precision)
    # Whoever opens the page need not know all folders of this machine.
    weights, config = ("/".join(Path(name).parts[-2:]) for name in (args.weights, args.config))
    heading = f"{weights}, {config}"
    serve(
        Viewer(predictor),
        heading,
        threshold=args.score_threshold,
        host=args.host,
        port=args.port,
    )
    return 0
