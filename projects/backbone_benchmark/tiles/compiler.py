"""Compiles kernels with given blocks in processes that need no GPU.

They do so on tensors without data, for the GPU that they are told of. Triton stores what it
compiled on disk, where the process that measures finds it.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent import futures
from concurrent.futures.process import BrokenProcessPool
from itertools import product
from multiprocessing import get_context
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget

from mvitv2_det.fused.triton.launch import Blocks
from projects.backbone_benchmark.networks import Setting
from projects.backbone_benchmark.roofline import Work
from projects.backbone_benchmark.tiles.choosing import KERNELS, Task
from projects.backbone_benchmark.tiles.shapes import chosen, launches_of, pieces_of, setting_of

SHARED_MEMORY = 227 * 1024  # bytes that a program can have on an H100


class Driver:
    """Tells Triton of a GPU that need not be there."""

    def __init__(self, capability: tuple[int, int]) -> None:
        self._target = GPUTarget("cuda", 10 * capability[0] + capability[1], 32)

    def get_current_target(self) -> GPUTarget:
        """What to compile for."""
        return self._target

    def get_current_device(self) -> int:
        """The only one."""
        return 0

    def get_current_stream(self, device: int) -> int:
        """The only one."""
        return 0


def become_compiler(capability: tuple[int, int]) -> None:
    """Makes of this process one that compiles for a GPU of a capability, and uses none."""
    torch.set_num_threads(1)
    triton.runtime.driver.set_active(Driver(capability))


def compile_blocks(setting: Setting, kernel_name: str, work: Work, blocks: Blocks) -> list[int]:
    """Compiles a kernel's launches on a shape, in a process that :func:`become_compiler` made.

    Returns:
        bytes of shared memory of each.

    Raises:
        ValueError: the kernel needs more shared memory than a processor has.
    """
    kernel = KERNELS[kernel_name]
    operation = pieces_of(setting, work).run
    with torch.no_grad(), launches_of(kernel, compile_only=True) as launches:
        run = operation(kernel.family)
        launches.clear()  # of the preparation, with other blocks
        with chosen(kernel, lambda *_: blocks):
            run()
    shared = [launch.compiled.metadata.shared for launch in launches]
    if max(shared) > SHARED_MEMORY:
        raise ValueError(f"needs {max(shared)} bytes of shared memory")
    return shared


class Compiler:
    """Compiles the candidates of all tasks, in several processes at once, in the tasks' order."""

    def __init__(
        self, settings: Sequence[Setting], capability: tuple[int, int], processes: int
    ) -> None:
        context = get_context("spawn")
        self._pool = futures.ProcessPoolExecutor(processes, context, become_compiler, (capability,))
        self._pool.submit(int)  # the processes start, and import, while others plan
        self._settings = settings
        self._begun: dict[tuple[Any, ...], futures.Future[list[int]]] = {}

    def begin(self, tasks: Sequence[Task]) -> None:
        """Puts all in the queue; first what the rules choose, which other kernels' tasks run."""
        for task in tasks:
            self._submit(task, (task.kernel.rule_of(task.case),))
        for task in tasks:
            self._submit(task, task.kernel.candidates)

    def _submit(self, task: Task, candidates: Iterable[Blocks]) -> None:
        for blocks, work in product(candidates, task.works):
            key = self._key(task, work, blocks)
            if key not in self._begun:
                setting = setting_of(self._settings, work, "meta")
                self._begun[key] = self._pool.submit(
                    compile_blocks, setting, task.kernel.name, work, blocks
                )

    def failures(self, task: Task, seconds: Callable[[], float]) -> dict[Blocks, str]:
        """Waits until a task's candidates are compiled; says why some are not.

        Args:
            seconds: that are left.
        """
        failed = {}
        for blocks in task.kernel.candidates:
            for work in task.works:
                try:
                    self._begun[self._key(task, work, blocks)].result(max(seconds(), 0))
                except BrokenProcessPool:
                    continue  # by another candidate: this one is compiled when it runs
                except futures.TimeoutError:
                    failed[blocks] = "not compiled in time"
                except Exception as error:  # whatever a compiler raises
                    failed[blocks] = " ".join(str(error).split())[:120] or repr(error)
        return failed

    def close(self) -> None:
        """Ends the processes, after what each is compiling."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    @staticmethod
    def _key(task: Task, work: Work, blocks: Blocks) -> tuple[Any, ...]:
        """What the binary depends on; strides are constants of the gathering kernel alone."""
        strides = (work.stride_q, work.stride_kv) if task.kernel.name == "pool_gather" else None
        return task.kernel.name, task.case._replace(few_keys=False), strides, blocks
