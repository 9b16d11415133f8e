"""Starting the processes of a run: by ``--num-gpus``, or as torchrun or SLURM has started them."""

import logging
import multiprocessing
import os
import re
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn
from urllib.parse import urlparse

import torch
import torch.distributed as dist
from detectron2.engine import launch as launch_processes
from detectron2.utils import comm
from torch.multiprocessing.spawn import ProcessExitedException

from ..errors import UserError
from ..stop_signals import STOP_SIGNALS
from .peers import PEER_LOST
from .signals import INTERRUPTED, PREEMPTED, Preempted, report


@dataclass(frozen=True)
class Place:
    """One process among those of a run.

    Attributes:
        rank, processes: its number, from 0 on, and how many there are.
        local_rank, local_processes: the same on its machine.
        url: where they meet; see ``torch.distributed.init_process_group``.
    """

    rank: int
    processes: int
    local_rank: int
    local_processes: int
    url: str


def find_place(environment: Mapping[str, str]) -> Place | None:
    """Reads what torchrun or SLURM's srun tell a process about itself.

    Returns:
        the place; None if neither has started this process, or as the only one.

    Raises:
        UserError: a variable is missing or no number, or machines differ in their processes.
    """
    try:
        if "RANK" in environment and "WORLD_SIZE" in environment:
            place = _of_torchrun(environment)
        elif int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
            # srun sets this one; a batch script has the variables of a job, but is one process.
            place = _of_slurm(environment)
        else:
            return None
    except KeyError as error:
        raise UserError(
            f"the environment has a rank, but no {error.args[0]}: start with torchrun or srun, or "
            f"unset RANK and WORLD_SIZE"
        ) from error
    except ValueError as error:
        raise UserError(f"the environment's numbers of processes are wrong: {error}") from error
    if not (0 <= place.rank < place.processes and 0 <= place.local_rank < place.local_processes):
        raise UserError(
            f"the environment says that this is process {place.rank} of {place.processes}, and "
            f"{place.local_rank} of {place.local_processes} on this machine, from 0 on"
        )
    if place.processes % place.local_processes:
        raise UserError(
            f"all machines must have as many processes: there are {place.processes}, of which "
            f"{place.local_processes} are on this one"
        )
    return place if place.processes > 1 else None


def _of_torchrun(environment: Mapping[str, str]) -> Place:
    address, port = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
    return Place(
        int(environment["RANK"]),
        int(environment["WORLD_SIZE"]),
        int(environment["LOCAL_RANK"]),
        int(environment["LOCAL_WORLD_SIZE"]),
        # torchrun has a store there already, which env:// finds.
        "env://" if "TORCHELASTIC_RUN_ID" in environment else f"tcp://{address}:{port}",
    )


def _of_slurm(environment: Mapping[str, str]) -> Place:
    # 2(x3),1: three machines with two processes, then one with one.
    counts: list[int] = []
    for count, times in re.findall(
        r"(\d+)(?:\(x(\d+)\))?", environment["SLURM_STEP_TASKS_PER_NODE"]
    ):
        counts += int(times or 1) * [int(count)]
    first = re.match(r"([^,\[]+)(?:\[(\d+))?", environment["SLURM_STEP_NODELIST"])
    host = environment.get("MASTER_ADDR") or (f"{first[1]}{first[2] or ''}" if first else "")
    # The same in all processes, and another one for each job.
    port = environment.get("MASTER_PORT") or 15000 + int(environment["SLURM_JOB_ID"]) % 20000
    node = int(environment["SLURM_NODEID"])
    if len(set(counts)) != 1 or node >= len(counts):
        raise ValueError(f"SLURM_STEP_TASKS_PER_NODE is {counts}, of which this is number {node}")
    return Place(
        int(environment["SLURM_PROCID"]),
        int(environment["SLURM_STEP_NUM_TASKS"]),
        int(environment["SLURM_LOCALID"]),
        counts[node],
        f"tcp://{host}:{int(port)}",
    )


def launch(
    function: Callable[..., None],
    *args: Any,
    num_gpus: int,
    num_machines: int,
    machine_rank: int,
    dist_url: str,
    timeout: float,
) -> int:
    """Runs a function in each process of a run, and waits for all of this machine.

    Args:
        function, args: what is called.
        num_gpus, num_machines, machine_rank, dist_url: as for Detectron2's ``launch``; unless the
            environment says that the processes are started already.
        timeout: seconds in which processes must meet in a collective.

    Returns:
        the exit status: 0, or that of a run that a signal or the loss of a process has ended.

    Raises:
        UserError: the environment and the arguments contradict each other or are wrong.
    """
    place = find_place(os.environ)
    if place and (num_gpus > 1 or num_machines > 1):
        raise UserError(
            f"--num-gpus {num_gpus} and --num-machines {num_machines} would start processes, but "
            f"torchrun or srun have started {place.processes}: leave these options out"
        )
    if place:
        _join(place, timedelta(seconds=timeout))
        return _call(function, args)
    if num_gpus * num_machines == 1:
        return _call(function, args)
    try:
        with _forwarding_signals():
            launch_processes(
                _call_and_exit,
                num_gpus,
                num_machines=num_machines,
                machine_rank=machine_rank,
                dist_url=dist_url,
                args=(function, args),
                timeout=timedelta(seconds=timeout),
            )
    except ProcessExitedException as error:
        if error.exit_code in (PREEMPTED, INTERRUPTED, PEER_LOST):
            return error.exit_code
        rank = machine_rank * num_gpus + error.error_index
        how = f"was killed by {error.signal_name}" if error.signal_name else "has ended"
        print(
            f"error: process {rank} of {num_gpus * num_machines} {how}; the others were ended, and "
            f"--resume goes on (status {error.exit_code})",
            file=sys.stderr,
        )
        return PEER_LOST
    return 0


def meeting_host(dist_url: str) -> str:
    """Finds the address of the first process's machine, for all of a run."""
    if comm.get_local_size() == comm.get_world_size():
        return "127.0.0.1"
    place = find_place(os.environ)
    url = place.url if place else dist_url
    host = os.environ.get("MASTER_ADDR") if url == "env://" else urlparse(url).hostname
    return host or socket.gethostname()


def _join(place: Place, timeout: timedelta) -> None:
    """Meets the other processes that torchrun or srun have started."""
    has_gpu = torch.cuda.is_available()
    if has_gpu and place.local_rank >= torch.cuda.device_count():
        raise UserError(
            f"this is process {place.local_rank} of its machine, from 0 on, which has "
            f"{torch.cuda.device_count()} GPUs: start as many processes as there are GPUs"
        )
    dist.init_process_group(
        "nccl" if has_gpu else "gloo",
        init_method=place.url,
        world_size=place.processes,
        rank=place.rank,
        timeout=timeout,
    )
    comm.create_local_process_group(place.local_processes)
    if has_gpu:
        torch.cuda.set_device(place.local_rank)
    comm.synchronize()


def _call(function: Callable[..., None], args: tuple[Any, ...]) -> int:
    try:
        function(*args)
    except Preempted as error:
        return report(error) if comm.is_main_process() else error.status
    return 0


def _call_and_exit(function: Callable[..., None], args: tuple[Any, ...]) -> NoReturn:
    """What a process that was started here does: its exit status tells how it has ended.

    All is closed and written by then, so the process ends as forked ones do, without Python's own
    clean-up: of some twenty, one aborted there in a thread that was not Python's ("terminate
    called without an active exception"), and a complete run counted as lost.
    """
    try:
        status = _call(function, args)
    except KeyboardInterrupt:
        status = INTERRUPTED
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


@contextmanager
def _forwarding_signals() -> Iterator[None]:
    """Lets the signals that end a run reach the processes which run it."""

    def forward(number: int, _: Any) -> None:
        for process in multiprocessing.active_children():
            if process.pid:
                os.kill(process.pid, number)

    before = {number: signal.signal(number, forward) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
