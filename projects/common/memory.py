"""Memory that networks need, and what happens where it does not suffice.

A step that runs out of memory gives a result like any other instead of ending the measurement.
"""

import gc
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile

try:
    import resource
except ImportError:  # Windows has no such limits.
    resource = None

Result = TypeVar("Result")
GIB = 2**30
# Messages of PyTorch's, C++'s and oneDNN's CPU allocators.
_OUT_OF_MEMORY_WORDS = (
    "out of memory", "can't allocate memory", "not enough memory", "bad_alloc",
    "could not create a memory",
)  # fmt: skip


@dataclass(frozen=True)
class OutOfMemory:
    """Result of a measurement that ran out of memory, with the allocator's message."""

    message: str


def attempt(run: Callable[[], Result]) -> Result | OutOfMemory:
    """Returns what ``run`` returns, or :class:`OutOfMemory`. All other errors are passed on."""
    try:
        return run()
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        failure = OutOfMemory(" ".join(str(error).split())[:200] or type(error).__name__)
    # Only here, after the handler, has the stack trace let go of the failed step's tensors.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return failure


def is_out_of_memory(error: BaseException) -> bool:
    """Tells whether an error says that memory ran out, on a GPU or a CPU."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(
        words in str(error) for words in _OUT_OF_MEMORY_WORDS
    )


def synchronize(device: torch.device | str) -> None:
    """Waits until a GPU has finished all work given to it; a CPU always has."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(
    task: Callable[[], AbstractContextManager[Callable[[], Any]]],
    device: torch.device | str,
    *,
    iterations: int = 2,
    held: Iterable[Tensor] = (),
) -> int:
    """Measures the most bytes of tensors that exist at the same time while a task runs.

    On a GPU this is ``torch.cuda.max_memory_allocated``. On a CPU all allocations of PyTorch's
    allocator are summed, temporaries within operators included; memory that other libraries
    allocate by themselves is not seen.

    Args:
        task: as for :func:`~projects.common.timing.interleave`.
        device: the device that it runs on.
        iterations: number of steps. Training with an optimizer needs two, because the optimizer
            makes its state at the end of the first.
        held: tensors of the task that exist before it, such as weights. They are counted where
            they are on ``device`` at the start.

    Returns:
        bytes.
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
    # Silences the lines that the profiler's library would print.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    totals = np.cumsum([0] + [size for _, size in changes], dtype=np.int64)
    return int(totals.max())


def saved_for_backward(forward: Callable[[], Any], exclude: Iterable[Tensor] = ()) -> int:
    """Measures the bytes that ``forward`` saves for its backward pass, each storage once.

    Args:
        forward: runs a forward pass with gradients.
        exclude: tensors whose storages are not counted, such as parameters.
    """
    excluded = {tensor.untyped_storage().data_ptr() for tensor in exclude}
    saved = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        # References prevent that the address of a freed storage is used again.
        saved[storage.data_ptr()] = storage
        # An operation that saves its own output would keep itself alive by it for ever.
        return tensor.detach()

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    del result
    return sum(s.nbytes() for address, s in saved.items() if address not in excluded)


def _bytes_of(tensors: Iterable[Tensor]) -> int:
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


@contextmanager
def limited_memory(device: torch.device | str, limit: int | None = None) -> Iterator[int | None]:
    """Makes allocations beyond a limit fail, before the system would end the process.

    Args:
        device: a GPU, or the CPU (on Linux alone).
        limit: bytes in addition to those in use now. By default nine tenths of the free memory
            on a CPU, and all memory on a GPU.

    Yields:
        the limit in bytes, or None where there is no limit.
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
    """Returns the free bytes of the CPU's memory, or None where the system does not say."""
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
    """Reads a number in bytes from a file with lines such as ``MemAvailable:  23033736 kB``."""
    for line in Path(file).read_text().splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0]) * 1024
    raise KeyError(key)
