"""Trains, evaluates and applies MViTv2 detectors, and applies classifiers.

The exit status is 0; 2 if there is something for the user to put right, which is then said in one
line on standard error; 130 after Ctrl-C. 'mvitv2-det COMMAND --help' describes a command.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType

from .. import __version__
from ..errors import one_line
from ..freed_memory import keep_freed_memory
from ..third_party_warnings import silence_third_party_warnings

COMMANDS = (
    "train",
    "predict",
    "serve",
    "classify",
    "export",
    "convert",
    "check",
    "convert-data",
    "count",
    "models",
    "draw",
    "report",
    "look-inside",
)

_INTERRUPTED = 130  # what a shell gives for a process that Ctrl-C ended: 128 + SIGINT
_BROKEN_PIPE = 141  # the same for SIGPIPE


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs ``mvitv2-det COMMAND …``.

    Args:
        arguments: the command line; by default that of this process.

    Returns:
        the exit status.

    Raises:
        SystemExit: after ``--help`` and ``--version``, or if argparse refuses the command line.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] in COMMANDS:
        return run_command(arguments[0], arguments[1:])
    # What remains is the list of commands, the version, or a mistake.
    parser = argparse.ArgumentParser(
        prog="mvitv2-det",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name in COMMANDS:
        commands.add_parser(name, help=_summary(_module(name)), add_help=False)
    parser.parse_args(arguments)
    parser.error("name the command first")


def run_command(
    name: str, arguments: Sequence[str] | None = None, *, prog: str | None = None
) -> int:
    """Reads the command line of one command, runs it, and reports errors in one line.

    Args:
        name: one of :data:`COMMANDS`.
        arguments: the command line after the command's name; by default that of this process.
        prog: what ``--help`` calls the program, if not ``mvitv2-det NAME``.

    Returns:
        the exit status.

    Raises:
        SystemExit: after ``--help``, or if argparse refuses the command line.
    """
    command = _module(name)
    parser = argparse.ArgumentParser(
        prog=prog or f"mvitv2-det {name}",
        description=command.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_arguments(parser)
    # Intermixed: files and overrides may stand before, between and after options.
    args = parser.parse_intermixed_args(arguments)
    silence_third_party_warnings()
    keep_freed_memory()
    try:
        status = command.run(args)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has closed the pipe, as head does. Python flushes once more as it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return _INTERRUPTED
    except Exception as error:
        line = one_line(error)
        if line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        return 2
    return status


def add_trust_argument(parser: argparse.ArgumentParser) -> None:
    """Adds ``--trust NAME`` to a command that reads configs; see :func:`mvitv2_det.load_config`."""
    parser.add_argument(
        "--trust",
        action="append",
        default=[],
        metavar="NAME",
        help="function or class, such as mypackage.MyHead, that a YAML config may call although "
        "it is none of those that it may by itself; any number",
    )


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds ``--trust`` and ``--opts`` to a command that takes a config by name."""
    add_trust_argument(parser)
    parser.add_argument(
        "--opts", nargs="+", default=[], metavar="KEY=VALUE", help="overrides of the config"
    )


def add_device_arguments(parser: argparse.ArgumentParser, *, more: str = "") -> None:
    """Adds the device and the precision of a network; ``more`` is said of the precision."""
    parser.add_argument("--device", help="such as cpu or cuda:1 (default: a GPU if there is one)")
    parser.add_argument(
        "--precision",
        default="fp32",
        metavar="{fp32,fp16,bf16}",
        help=f"fp16 and bf16 are by autocast{more} (default: fp32)",
    )


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what says how data are read: their format, and what is done with what is odd."""
    parser.add_argument(
        "--format",
        help="coco (LVIS as well), panoptic, yolo, voc, labelme or cvat; found out by default",
    )
    parser.add_argument(
        "--odd",
        default="repair",
        metavar="{repair,drop,refuse}",
        help="what is done with annotations that are odd: put right or else left out (the "
        "default); left out, as well as those that are wrong; or taken as wrong",
    )


def _module(name: str) -> ModuleType:
    return import_module(f".{name.replace('-', '_')}", __package__)


def _summary(command: ModuleType) -> str:
    """The first line of a command's docstring, as a line in the list of commands."""
    first = (command.__doc__ or "").splitlines()[0]
    return first[0].lower() + first[1:].rstrip(".:")


def exit_status(process: Callable[[], int], output: Path) -> int:
    """Runs what works through many inputs, and says what was left undone.

    Args:
        process: returns the number of inputs that could not be read.
        output: folder that the results are written to.

    Returns:
        0; 1 if some input could not be read; 130 after Ctrl-C.
    """
    try:
        failures = process()
    except KeyboardInterrupt:
        print(f"interrupted; {output} holds what was found until then", file=sys.stderr)
        return _INTERRUPTED
    if failures:
        print(f"error: {failures} of the inputs could not be read, see above", file=sys.stderr)
    return 1 if failures else 0
