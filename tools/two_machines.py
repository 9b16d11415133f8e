#!/usr/bin/env python3
"""Trains across two network namespaces, as across two machines, and cuts the link between them.

    sudo python tools/two_machines.py

Two namespaces, joined by a pair of virtual interfaces, have nothing else of the network: all that
the processes say to each other goes over it. Needs root and Linux; prints a table in Markdown.
"""

import argparse
import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fault_kinds import PEER_LOST
from fault_runs import (
    FINISHED,
    PATIENCE,
    arguments,
    equal,
    make_data,
    prepare_runs,
    start,
    state,
    wait,
)

MACHINES = ("mvit_a", "mvit_b")
FIRST = "10.213.77.1"
PORT = 29511


@contextmanager
def two_machines() -> Iterator[None]:
    """Makes the namespaces and the link, and removes them."""

    def ip(*words: str) -> None:
        done = subprocess.run(["ip", *words], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"not allowed here: ip {' '.join(words)}: {done.stderr.strip()}")

    try:
        for name in MACHINES:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("link", "add", "cable", "netns", MACHINES[0], "type", "veth", "peer", "name", "cable",
           "netns", MACHINES[1])  # fmt: skip
        for number, name in enumerate(MACHINES, 1):
            ip("-n", name, "addr", "add", f"10.213.77.{number}/24", "dev", "cable")
            ip("-n", name, "link", "set", "cable", "up")
        yield
    finally:
        for name in MACHINES:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def set_link(up: bool) -> None:
    """Cuts or mends the cable."""
    for name in MACHINES:
        subprocess.run(
            ["ip", "-n", name, "link", "set", "cable", "up" if up else "down"], check=True
        )


def enter(machine: int) -> None:
    """Moves this process to a machine."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/var/run/netns/{MACHINES[machine]}") as namespace:
        if libc.setns(namespace.fileno(), 0x40000000):  # CLONE_NEWNET
            raise OSError(ctypes.get_errno(), "setns")
    os.environ["GLOO_SOCKET_IFNAME"] = "cable"


def started(
    data: Path, output: Path, environment: Callable[[int], dict[str, str]], *more: str
) -> tuple[list[int], list[Path]]:
    """Starts a process on each machine; returns their ids, and the files of what they say."""
    said = [output.with_suffix(f".{machine}.txt") for machine in range(2)]
    processes = [
        start(
            [*arguments(data, output), *(word.format(machine=machine) for word in more)],
            said[machine],
            prepare=lambda m=machine: enter(m),
            environment=environment(machine),
        )
        for machine in range(2)
    ]
    return processes, said


def of_torchrun(machine: int) -> dict[str, str]:
    """The variables that torchrun sets, on two machines of one process each."""
    return {
        "RANK": str(machine), "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": FIRST, "MASTER_PORT": str(PORT),
    }  # fmt: skip


def of_slurm(machine: int) -> dict[str, str]:
    """Variables of srun; the first machine has no name here, and is given by its address."""
    return {
        "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": str(machine), "SLURM_LOCALID": "0",
        "SLURM_NODEID": str(machine), "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
        "SLURM_STEP_NODELIST": "a,b", "SLURM_JOB_ID": "4711", "MASTER_ADDR": FIRST,
    }  # fmt: skip


def finished(processes: list[int], said: list[Path]) -> str:
    """Waits for both; says what went wrong, if anything did."""
    statuses = [wait(process) for process in processes]
    text = "".join(file.read_text() for file in said)
    if "Traceback" in text:
        return "trace"
    return "" if statuses == [FINISHED] * 2 else f"statuses {statuses}"


def torchrun(data: Path, output: Path) -> str:
    """Starts torchrun itself on each machine."""
    processes = [
        subprocess.Popen(
            ["ip", "netns", "exec", MACHINES[machine], sys.executable, "-m",
             "torch.distributed.run", "--nnodes", "2", "--node-rank", str(machine),
             "--master-addr", FIRST, "--master-port", str(PORT), "--nproc-per-node", "1",
             "-m", "mvitv2_det", *arguments(data, output)],
            env={**os.environ, "GLOO_SOCKET_IFNAME": "cable"},
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        for machine in range(2)
    ]  # fmt: skip
    try:
        statuses = [process.wait(2 * PATIENCE) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return "" if statuses == [0, 0] else f"statuses {statuses}"


def cut(data: Path, output: Path) -> str:
    """Cuts the link in the middle of a run, then mends it and resumes."""
    processes, said = started(data, output, of_torchrun)
    end = time.monotonic() + PATIENCE
    while not (output / "metrics.json").is_file() and time.monotonic() < end:
        time.sleep(0.005)
    set_link(False)
    begun = time.monotonic()
    statuses = [wait(process) for process in processes]
    took = time.monotonic() - begun
    set_link(True)
    named = all(f"process {1 - machine} of 2" in said[machine].read_text() for machine in range(2))
    if statuses != [PEER_LOST] * 2 or not named or took > 30:
        return f"statuses {statuses} after {took:.0f} s, named: {named}"
    return finished(*started(data, output, of_torchrun, "--resume"))


def main() -> int:
    """Returns 1 if something did not work."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import torch

    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="machines-"))
    prepare_runs(folder)
    data = folder / "data"
    make_data(data)
    here = {machine: {**of_torchrun(machine), "LOCAL_RANK": str(machine), "LOCAL_WORLD_SIZE": "2",
                      "MASTER_ADDR": "127.0.0.1"} for machine in range(2)}  # fmt: skip
    whole = folder / "whole"
    processes = [
        start(arguments(data, whole), folder / f"whole.{n}.txt", environment=here[n]) for n in here
    ]
    if any([wait(process) for process in processes]):
        raise SystemExit(f"two processes on one machine fail: see {folder}")
    expected = state(whole)
    url = ["--num-machines", "2", "--machine-rank", "{machine}", "--dist-url"]
    trials = {
        "torchrun's variables": lambda out: finished(*started(data, out, of_torchrun)),
        "srun's variables": lambda out: finished(*started(data, out, of_slurm)),
        "--num-machines 2 --machine-rank N --dist-url": lambda out: finished(
            *started(data, out, lambda _: {}, *url, f"tcp://{FIRST}:{PORT}")
        ),
        "torchrun --nnodes 2": lambda out: torchrun(data, out),
        "the link is cut, both are named within 30 s; `--resume`": lambda out: cut(data, out),
    }
    print("| two machines | what came of it |\n|---|---|")
    is_good = True
    with two_machines():
        for number, (name, trial) in enumerate(trials.items()):
            output = folder / f"run{number}"
            came = trial(output)
            if not came:
                came = "equal" if equal(state(output), expected) else "unequal"
            is_good &= came == "equal"
            print(f"| {name} | {came} |", flush=True)
    if is_good:
        shutil.rmtree(folder)
    else:
        print(f"files are in {folder}")
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
