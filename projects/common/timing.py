"""Times of networks that take turns in one process, so that they can be compared with each other.

Whatever else the machine does hits all of them alike. They are compared by the median of the ratios
within each round.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mvitv2_det.errors import UserError
from projects.common.memory import OutOfMemory, attempt, synchronize

Step = Callable[[], Any]
Clock = Callable[[], float]
# Opens a context for one turn, which gives the step to be timed and cleans up at its end.
Task = Callable[[], AbstractContextManager[Step]]


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of repeated measurements."""

    median: float
    lower: float
    upper: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        """Summarises one or more values."""
        lower, median, upper = np.percentile(list(values), (25, 50, 75))
        return cls(float(median), float(lower), float(upper))


@dataclass(frozen=True)
class Timing:
    """Seconds of one iteration, in each round."""

    seconds: tuple[float, ...]

    @property
    def spread(self) -> Spread:
        """Median and quartiles over the rounds."""
        return Spread.of(self.seconds)

    def speed_over(self, base: "Timing") -> Spread:
        """Computes how many times faster this is than ``base``, round by round."""
        return Spread.of(b / s for s, b in zip(self.seconds, base.seconds, strict=True))


def resident(step: Step) -> Task:
    """Makes a task of a step that needs no preparation before its turn and no clean-up after."""
    return lambda: nullcontext(step)


def cpu_clock() -> Clock:
    """Chooses CPU time with one thread, so that other programs do not count; otherwise wall time.

    With several threads CPU time would count those that wait for each other.
    """
    return time.process_time if torch.get_num_threads() == 1 else time.perf_counter


def interleave(
    tasks: Mapping[str, Task],
    *,
    rounds: int,
    iterations: int = 1,
    warmup: int = 1,
    device: torch.device | str = "cpu",
    clock: Clock = time.perf_counter,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Timing | OutOfMemory]:
    """Times tasks in turns: in each round every task has one turn.

    Args:
        tasks: by name. The context of a task is entered at the start of its turn and left at
            its end.
        rounds: number of turns of each task.
        iterations: number of timed steps in each turn; their mean is the time of the round.
        warmup: number of steps before those in each turn, which are not timed.
        device: its queue of work is awaited before the clock is read.
        clock: gives seconds since any time.
        progress: called with a line of text after each turn.

    Returns:
        the times of each task by name, or :class:`OutOfMemory`: such a task gets no more turns.

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
            result = attempt(lambda task=task: _take_turn(task, warmup, iterations, device, clock))
            if isinstance(result, OutOfMemory):
                failures[name] = result
                progress(f"round {number}/{rounds}  {name}: out of memory")
            else:
                seconds[name].append(result)
                progress(f"round {number}/{rounds}  {name}: {result:.3f} s")
    return {name: failures.get(name) or Timing(tuple(seconds[name])) for name in tasks}


def _take_turn(
    task: Task, warmup: int, iterations: int, device: torch.device | str, clock: Clock
) -> float:
    """Measures the mean seconds of an iteration."""
    with task() as step:
        for _ in range(warmup):
            step()
        synchronize(device)
        start = clock()
        for _ in range(iterations):
            step()
        synchronize(device)
        return (clock() - start) / iterations
