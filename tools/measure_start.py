#!/usr/bin/env python3
"""Measures how long it takes to import the package, and to ask each command for help.

    python tools/measure_start.py --output tools/measure_start.md

Each is done five times in processes of their own. Seconds of the process are those in which it
computed, which other programs on the machine lengthen less than those of a clock.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from mvitv2_det.commands.entry import COMMANDS

ROOT = Path(__file__).parents[1]
IMPORTS = ("import mvitv2_det", "from mvitv2_det import MViT", "from mvitv2_det import Predictor")
# What libraries alone take of those.
OTHERS = ("import torch, torchvision", "import detectron2.modeling, detectron2.data")


def measure(arguments: list[str], times: int) -> tuple[float, float]:
    """Medians of the seconds of a clock and of the process, in which Python runs with arguments."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    rows = []
    for _ in range(times):
        before, start = os.times(), time.perf_counter()
        subprocess.run(
            [sys.executable, "-W", "ignore", *arguments],
            env=environment,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        after = os.times()
        computed = after.children_user + after.children_system
        computed -= before.children_user + before.children_system
        rows.append((time.perf_counter() - start, computed))
    clock, process = zip(*rows, strict=True)
    return statistics.median(clock), statistics.median(process)


def main() -> int:
    """Reads the command line, measures, and writes a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=5, help="of which the median is taken")
    parser.add_argument("--output", type=Path, help="file of the table")
    args = parser.parse_args()
    tasks = {code: ["-c", code] for code in (*IMPORTS, *OTHERS)}
    tasks |= {
        f"mvitv2-det {name} --help": ["-m", "mvitv2_det", name, "--help"] for name in COMMANDS
    }
    lines = [
        "# Seconds to start",
        "",
        f"`python tools/measure_start.py`, Python {platform.python_version()}, medians of "
        f"{args.times}; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores at the start.",
        "",
        "| what | clock | process |",
        "|---|---|---|",
    ]
    for name, arguments in tasks.items():
        clock, process = measure(arguments, args.times)
        lines.append(f"| `{name}` | {clock:.2f} | {process:.2f} |")
        print(lines[-1], flush=True)
    if args.output:
        args.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
