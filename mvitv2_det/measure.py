"""Time and memory of networks, measured so that they can be compared with each other.

All run in one process and take turns, so that whatever else the machine does hits them alike, and
are compared by the median of the ratios within each round. What runs out of memory is reported
instead of ending the measurement.
"""

import gc
import os
import platform
import shlex
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import detectron2
import numpy as np
import torch
import torchvision
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile

import mvitv2_det

from .errors import UserError

try:
    import resource
except ImportError:  # Windows has no such limits.
    resource = None

Result = TypeVar("Result")
Step = Callable[[], Any]
# Gives what is timed, and puts away what it needed when its turn ends.
Task = Callable[[], AbstractContextManager[Step]]

GIB = 2**30
# What a CPU allocator says: PyTorch's, C++'s, oneDNN's.
_OUT_OF_MEMORY_WORDS = (
    "out of memory", "can't allocate memory", "not enough memory", "bad_alloc",
    "could not create a memory",
)  # fmt: skip


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of repeated measurements."""

    median: float
    lower: float
    upper: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        """The spread of one value or more."""
        lower, median, upper = np.percentile(list(values), (25, 50, 75))
        return cls(float(median), float(lower), float(upper))


@dataclass(frozen=True)
class Timing:
    """Seconds of one iteration, in each round."""

    seconds: tuple[float, ...]

    @property
    def spread(self) -> Spread:
        """Seconds over the rounds."""
        return Spread.of(self.seconds)

    def speed_over(self, base: "Timing") -> Spread:
        """How many times faster than ``base``, compared round by round."""
        return Spread.of(b / s for s, b in zip(self.seconds, base.seconds, strict=True))


@dataclass(frozen=True)
class OutOfMemory:
    """Stands for the result of what did not fit; the message is the allocator's."""

    message: str


def resident(step: Step) -> Task:
    """A task that has nothing to prepare before its turn, nor to put away after."""
    return lambda: nullcontext(step)


def interleave(
    tasks: Mapping[str, Task],
    *,
    rounds: int,
    iterations: int = 1,
    warmup: int = 1,
    device: torch.device | str = "cpu",
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Timing | OutOfMemory]:
    """Times tasks in turns: all of them once, then all of them again, round after round.

    Args:
        tasks: by name. A task is entered at the start of its turn and left at its end.
        rounds: turns of each task.
        iterations: timed in each turn; the mean of them is the round's time.
        warmup: iterations before those, not timed, in each turn.
        device: whose queue is awaited before a clock is read.
        progress: called with a line of text after each turn.

    Returns:
        a time for each task, or :class:`OutOfMemory`; such a task gets no more turns.

    Raises:
        UserError: a number is too small.
    """
    for name, value, least in (
        ("rounds", rounds, 1), ("iterations", iterations, 1), ("warmup", warmup, 0)
    ):  # fmt: skip
        if value < least:
            raise UserError(f"{name} must be at least {least}, got {value}")
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    failures: dict[str, OutOfMemory] = {}
    for number in range(1, rounds + 1):
        for name, task in tasks.items():
            if name in failures:
                continue
            result = attempt(lambda task=task: _take_turn(task, warmup, iterations, device))
            if isinstance(result, OutOfMemory):
                failures[name] = result
                progress(f"round {number}/{rounds}  {name}: out of memory")
            else:
                seconds[name].append(result)
                progress(f"round {number}/{rounds}  {name}: {result:.3f} s")
    return {name: failures.get(name) or Timing(tuple(seconds[name])) for name in tasks}


def _take_turn(task: Task, warmup: int, iterations: int, device: torch.device | str) -> float:
    """Mean seconds of an iteration."""
    with task() as step:
        for _ in range(warmup):
            step()
        synchronize(device)
        start = time.perf_counter()
        for _ in range(iterations):
            step()
        synchronize(device)
        return (time.perf_counter() - start) / iterations


def attempt(run: Callable[[], Result]) -> Result | OutOfMemory:
    """What ``run`` returns, or :class:`OutOfMemory`. Every other error passes."""
    try:
        return run()
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        failure = OutOfMemory(" ".join(str(error).split())[:200] or type(error).__name__)
    # After the handler: until its end the stack trace keeps the failed step's tensors alive.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return failure


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or a CPU."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(
        words in str(error) for words in _OUT_OF_MEMORY_WORDS
    )


def synchronize(device: torch.device | str) -> None:
    """Waits until a GPU has done all that was asked of it; a CPU already has."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(
    task: Task,
    device: torch.device | str,
    *,
    iterations: int = 2,
    held: Iterable[Tensor] = (),
) -> int:
    """Most bytes of tensors that exist at once while a task runs.

    On a GPU these are ``torch.cuda.max_memory_allocated``. On a CPU they are the sum of
    everything that PyTorch's allocator hands out and takes back, temporaries within operators
    included; what other libraries allocate by themselves is not seen.

    Args:
        task: what to run, as for :func:`interleave`.
        device: where it runs.
        iterations: of it. Training needs two: an optimizer makes its state at the end of the
            first.
        held: tensors that belong to the task and exist before it, such as weights; those that
            are on ``device`` at the start are counted.
    """
    device = torch.device(device)
    before = _bytes_of(tensor for tensor in held if tensor.device.type == device.type)

    def run() -> None:
        with task() as step:
            for _ in range(iterations):
                step()
            synchronize(device)

    measure = _peak_on_gpu if device.type == "cuda" else _peak_on_cpu
    return before + measure(run, device)


def _peak_on_gpu(run: Callable[[], None], device: torch.device) -> int:
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    return torch.cuda.max_memory_allocated(device) - before


def _peak_on_cpu(run: Callable[[], None], device: torch.device) -> int:
    # Else the profiler's library writes lines of its own among the user's.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    totals = np.cumsum([0] + [size for _, size in changes], dtype=np.int64)
    return int(totals.max())


def saved_for_backward(forward: Callable[[], Any], exclude: Iterable[Tensor] = ()) -> int:
    """Bytes that ``forward`` keeps for its backward pass, each storage once.

    Args:
        forward: the pass to run, with gradients.
        exclude: tensors whose storages do not count: the parameters, which exist anyway.
    """
    excluded = {tensor.untyped_storage().data_ptr() for tensor in exclude}
    saved = {}

    def pack(tensor: Tensor) -> Tensor:
        # Kept until the end: the address of a storage that is freed would be used again.
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    kept = [tensor for address, tensor in saved.items() if address not in excluded]
    del result
    return sum(tensor.untyped_storage().nbytes() for tensor in kept)


def _bytes_of(tensors: Iterable[Tensor]) -> int:
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


@contextmanager
def limited_memory(device: torch.device | str, limit: int | None = None) -> Iterator[int | None]:
    """Makes allocations beyond a limit fail, instead of having the system end the process.

    Args:
        device: a GPU, whose memory is limited for this process, or the CPU (on Linux).
        limit: bytes more than are in use now. By default nine tenths of what is free on a CPU,
            and no limit but its own on a GPU.

    Yields:
        the limit in bytes; None where there is none.
    """
    device = torch.device(device)
    if device.type == "cuda":
        with _limited_gpu(device, limit):
            yield limit
        return
    available = available_memory()
    if limit is None and available is not None:
        limit = int(0.9 * available)
    if limit is None or resource is None or not Path("/proc/self/status").exists():
        yield None
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(
        resource.RLIMIT_DATA, (_bytes_in("/proc/self/status", "VmData") + limit, hard)
    )
    try:
        yield limit
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


@contextmanager
def _limited_gpu(device: torch.device, limit: int | None) -> Iterator[None]:
    if limit is None:
        yield
        return
    index = torch.cuda.current_device() if device.index is None else device.index
    total = torch.cuda.get_device_properties(index).total_memory
    share = (torch.cuda.memory_reserved(index) + limit) / total
    torch.cuda.set_per_process_memory_fraction(min(share, 1.0), index)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, index)


def available_memory() -> int | None:
    """Bytes that the CPU can still hand out, or None where the system does not say."""
    if not Path("/proc/meminfo").exists():
        return None
    amounts = [_bytes_in("/proc/meminfo", "MemAvailable")]
    group = Path("/sys/fs/cgroup")
    group_files = group / "memory.max", group / "memory.current"
    if all(file.exists() for file in group_files):
        most, used = (file.read_text().strip() for file in group_files)
        if most.isdigit():
            amounts.append(int(most) - int(used))
    return min(amounts)


def _bytes_in(file: str, key: str) -> int:
    """A number of a file of lines such as ``MemAvailable:  23033736 kB``, in bytes."""
    for line in Path(file).read_text().splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0]) * 1024
    raise KeyError(key)


def check_measurable(device: str, precision: str, **counts: int | None) -> None:
    """Refuses what this machine cannot measure.

    Args:
        device: ``"cpu"`` or ``"cuda"``.
        precision: ``"fp32"``, ``"fp16"`` or ``"bf16"``.
        counts: options that must be at least 1 where they are given, by name.

    Raises:
        UserError: an option does not fit this machine or the others.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: this machine has no GPU that torch can use; give cpu")
    if device == "cpu" and precision == "fp16":
        raise UserError("--precision fp16 needs a GPU: a CPU measures fp32 or bf16")
    for name, value in counts.items():
        if value is not None and value < 1:
            raise UserError(f"--{name} must be at least 1, got {value}")


def describe_machine(device: torch.device | str) -> dict[str, str]:
    """Hardware and versions, for the head of a result; nothing that names the machine."""
    device = torch.device(device)
    threads = torch.get_num_threads()
    hardware = {"CPU": f"{_cpu_model()}, {threads} thread{'s' if threads > 1 else ''}"}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        gpu = f"{properties.name}, {properties.total_memory / GIB:.0f} GiB"
        hardware["GPU"] = f"{gpu}, driver {_gpu_driver()}, CUDA {torch.version.cuda}"
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "detectron2": detectron2.__version__,
        "mvitv2_det": mvitv2_det.__version__,
    }
    return {
        **hardware,
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def command_line(script: str, arguments: Iterable[str]) -> str:
    """A command to show with its results; the last parts alone of paths of this machine."""
    shown = [Path(word).name if Path(word).is_absolute() else word for word in arguments]
    return f"python {script} {shlex.join(shown)}".strip()


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return " ".join(line.partition(":")[2].split())
    return platform.processor() or platform.machine()


def _gpu_driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return answer.stdout.split()[0] if answer.stdout.split() else "unknown"
