"""Logs of a run: Detectron2's, with colours for terminals alone."""

import argparse
import logging
import re

from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from omegaconf import DictConfig

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def set_up_run(cfg: DictConfig, args: argparse.Namespace) -> None:
    """Does what Detectron2 does at the start of a run, and opens the logs, of this package too.

    Detectron2 colours the config's text, and tables, wherever they go. Here they are coloured on
    terminals: not in ``log.txt``, nor in what standard output is sent to.

    Args:
        cfg: the config.
        args: the command line.
    """
    place = cfg.train.output_dir, comm.get_rank()
    loggers = [
        # Exactly as default_setup calls it, which is then given these loggers.
        setup_logger(place[0], distributed_rank=place[1], name="fvcore"),
        setup_logger(place[0], distributed_rank=place[1]),
        setup_logger(place[0], distributed_rank=place[1], name="mvitv2_det"),
    ]
    for handler in {handler for logger in loggers for handler in logger.handlers}:
        stream = handler.stream  # of an earlier run in this process, perhaps, and closed
        is_terminal = not stream.closed and stream.isatty()
        if not is_terminal and not isinstance(handler.formatter, _Plain):
            handler.setFormatter(_Plain(handler.formatter))
    default_setup(cfg, args)


class _Plain(logging.Formatter):
    """What another formatter makes, without colours."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        return _COLOURS.sub("", self._inner.format(record))
