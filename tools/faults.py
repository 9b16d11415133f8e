#!/usr/bin/env python3
"""Injects faults into small trainings, and writes a table of what came of them.

    python tools/faults.py --output tools/faults.md
    python tools/faults.py --only kills --count 200

Everything follows from --seed but the moments at which processes are killed. The whole takes about
half an hour of one core. Linux only; a full tmpfs needs the right to mount one.
"""

import argparse
import os
import random
import resource
import sys
import tempfile
import time
from pathlib import Path

from fault_inputs import Inputs
from fault_runs import prepare_runs

COUNTS = {
    "kills": 160, "kills_in_writes": 60, "signals": 40, "group_signals": 40, "full_disks": 20,
    "full_tmpfs": 20, "folders": 60, "dead_peers": 10, "frozen_peers": 4, "configs": 500,
    "annotations": 2000, "images": 504, "predicted_images": 504,
}  # fmt: skip
GOOD = (
    "equal", "named", "one line", "passed", "trained", "predicted", "not allowed here"
)  # fmt: skip


def main() -> int:
    """Runs the campaign; returns 1 if something was lost, unequal, run or said in a trace."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=COUNTS, default=list(COUNTS))
    parser.add_argument("--count", type=int, help="trials of each kind, instead of those of a kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="table in Markdown, beside printing it")
    parser.add_argument("--keep", action="store_true", help="keep the files of the runs")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import torch

    # Forked processes must have no threads of torch.
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    prepare_runs(folder)
    campaign = Inputs(folder, random.Random(args.seed))
    rows, is_good = ["| fault | trials | what came of it |", "|---|---|---|"], True
    for kind in args.only:
        begun = time.monotonic(), _processor_time()
        campaign.rng = random.Random(f"{args.seed} {kind}")  # the same whatever came before
        found = getattr(campaign, kind)(args.count or COUNTS[kind])
        what = " ".join((getattr(Inputs, kind).__doc__ or "").split())
        came = ", ".join(f"{number} {result}" for result, number in found.most_common())
        rows.append(f"| {what} | {sum(found.values())} | {came} |")
        took = time.monotonic() - begun[0], _processor_time() - begun[1]
        print(f"{rows[-1]} {took[0]:.0f} s, {took[1]:.0f} s of processors", flush=True)
        is_good &= all(result.startswith(GOOD) and "trace" not in result for result in found)
        if args.output:
            head = f"# Faults\n\n`python tools/faults.py --seed {args.seed}`, on a CPU.\n\n"
            text = head + "\n".join(rows) + "\n"
            args.output.write_text(text, encoding="utf-8")
    if args.keep or not is_good:
        print(f"files are in {folder}")
    else:
        import shutil

        shutil.rmtree(folder)
    return 0 if is_good else 1


def _processor_time() -> float:
    """Seconds that ended processes and this one have computed."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


if __name__ == "__main__":
    sys.exit(main())
