"""With which blocks each Triton kernel is fastest: the candidates, and how one of them is chosen.

What measures is given (:class:`Bench`): ``timing`` does on a GPU.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from mvitv2_det.fused.triton import attention_backward, attention_forward, logits, pool
from mvitv2_det.fused.triton.launch import Blocks
from mvitv2_det.fused.triton.tile_table import Case, Rule
from projects.backbone_benchmark.roofline import Work

LEAST_GAIN = 0.03  # of the time by the rule, over all shapes
MOST_LOSS = 0.03  # on any shape: what two measurements of a small one differ by
# Between two results in the 2-norm: each rounds to bfloat16 here and there, which takes 3e-3.
TOLERANCE = 2e-2


@dataclass(frozen=True)
class Kernel:
    """A kernel whose blocks are chosen.

    Attributes:
        name: in the table.
        choose: what chooses its blocks.
        function: name of the function that Triton compiles.
        family: of :data:`roofline.FAMILIES`: the operation that launches it.
        alone: whether its launches are timed alone. Else the whole operation is: where blocks also
            decide how many partial sums are added after the kernel.
        candidates: blocks to try.
    """

    name: str
    choose: Callable[[torch.device, Case], Blocks]
    function: str
    family: str
    alone: bool
    candidates: tuple[Blocks, ...]

    def rule_of(self, case: Case) -> Blocks:
        """What the rule chooses, whatever the table says."""
        rule: Rule = inspect.unwrap(self.choose)
        return rule(case)


def _attention() -> Iterator[Blocks]:
    """Tiles of 64 to 128 queries, with as many warps as have registers for them."""
    tiles = (
        (32, 64, 4), (64, 32, 4), (64, 64, 4), (64, 64, 8), (64, 128, 4), (64, 128, 8),
        (128, 32, 4), (128, 32, 8), (128, 64, 4), (128, 64, 8),
    )  # fmt: skip
    for tile, stages in product(tiles, (1, 2, 3)):
        yield Blocks(*tile, stages)
    for stages in (1, 2):  # three do not fit into an H100's shared memory
        yield Blocks(128, 128, 8, stages)
    # Registers for three programs of four warps on a processor, or two of eight.
    for stages in (1, 2, 3):
        yield Blocks(64, 64, 4, stages, registers=168)
        yield Blocks(64, 32, 4, stages, registers=168)
        yield Blocks(64, 64, 8, stages, registers=128)


def _pooling() -> Iterator[Blocks]:
    """Strips of which a thread has one or two columns of four channels, of 128 padded ones."""
    for rows, (columns, warps) in product(
        (8, 16, 32, 64), ((2, 2), (4, 4), (8, 8), (16, 16), (4, 2), (8, 4), (16, 8))
    ):
        yield Blocks(rows, columns, warps, stages=1)
    # Registers for three programs of eight warps on a processor.
    yield Blocks(32, 8, 8, stages=1, registers=80)


def _logits(stages: Sequence[int]) -> Iterator[Blocks]:
    """Blocks of queries; ``stages`` where the kernel has a loop."""
    for queries, warps, stage in product((16, 32, 64, 128), (4, 8), stages):
        yield Blocks(queries, 0, warps, stage)


def _kernels() -> Iterator[Kernel]:
    attention, pooling = tuple(_attention()), tuple(_pooling())
    forward, backward = "attention forward", "attention backward"
    # The order is that of their times in training and inference on an H100.
    yield Kernel("pool_backward", pool.backward_tile, "pool_backward_kernel",
                 "pooling backward", False, pooling)  # fmt: skip
    yield Kernel("attention_forward", attention_forward.forward_blocks, "_forward_kernel",
                 forward, True, attention)  # fmt: skip
    yield Kernel("pool_forward", pool.forward_tile, "pool_forward_kernel",
                 "pooling forward", True, pooling)  # fmt: skip
    yield Kernel("attention_over_queries", attention_backward.key_blocks,
                 "_over_queries_kernel", backward, False, attention)  # fmt: skip
    yield Kernel("attention_over_keys", attention_backward.query_blocks, "_over_keys_kernel",
                 backward, True, attention)  # fmt: skip
    yield Kernel("extend", logits.extend_blocks, "_extend_kernel",
                 forward, True, tuple(_logits((1,))))  # fmt: skip
    yield Kernel("logits_backward", logits.backward_blocks, "_logits_backward_kernel",
                 backward, True, tuple(_logits((1, 2))))  # fmt: skip
    yield Kernel("pool_gather", pool.gather_tile, "pool_gather_kernel",
                 "pooling backward", True, pooling)  # fmt: skip


KERNELS = {kernel.name: kernel for kernel in _kernels()}


@dataclass(frozen=True)
class Task:
    """A row of the table to be: a kernel, a class of shapes, and the shapes to try.

    Attributes:
        works: how often the networks have each kind of block.
    """

    kernel: Kernel
    case: Case
    works: Mapping[Work, int]


class Trial(NamedTuple):
    """A kernel's run with some blocks on one shape.

    Attributes:
        outputs: of the operation that launched it.
        spills: values of a thread that registers did not hold.
        again: what is timed.
    """

    outputs: list[Tensor]
    spills: int
    again: Callable[[], object]


class Bench(Protocol):
    """What runs and times kernels."""

    def run(self, kernel: Kernel, work: Work, blocks: Blocks) -> Trial:
        """Runs a kernel; raises whatever a compiler or a launch raises."""

    def seconds(self, trials: Sequence[Trial]) -> list[float]:
        """Times all of them in turns."""


@dataclass
class Verdict:
    """What was found for a task.

    Attributes:
        complete: whether all shapes were tried; else there is nothing to choose by.
        seconds: of the networks' launches of the kernel, by blocks that are left.
        failed: why blocks do not compile or run, or that they compute something else.
        spilled: those that spill.
        slower: those that lose on a shape.
    """

    task: Task
    rule: Blocks
    complete: bool = False
    seconds: dict[Blocks, float] = field(default_factory=dict)
    failed: dict[Blocks, str] = field(default_factory=dict)
    spilled: set[Blocks] = field(default_factory=set)
    slower: set[Blocks] = field(default_factory=set)

    @property
    def fastest(self) -> Blocks:
        """The fastest blocks of those that are left, the rule's among them."""
        return min(self.seconds, key=self.seconds.__getitem__)

    @property
    def gain(self) -> float:
        """Share of the rule's time that the fastest blocks save."""
        return 1 - self.seconds[self.fastest] / self.seconds[self.rule]

    @property
    def row(self) -> Blocks | None:
        """Blocks for the table; None where the rule stays."""
        return self.fastest if self.complete and self.gain >= LEAST_GAIN else None


def tune(
    bench: Bench,
    task: Task,
    failed: Mapping[Blocks, str],
    has_time: Callable[[], bool] = lambda: True,
) -> Verdict:
    """Tries all candidates on all shapes, that of the most work first.

    Candidates leave when they fail, compute something else than the rule's blocks, or lose more
    than :data:`MOST_LOSS` to them on a shape: what is left gains on the whole and loses nowhere.

    Args:
        failed: why some candidates do not compile.
        has_time: whether to go on.
    """
    rule = task.kernel.rule_of(task.case)
    verdict = Verdict(task, rule, failed=dict(failed))
    verdict.seconds = {
        blocks: 0.0 for blocks in (rule, *task.kernel.candidates) if blocks not in failed
    }
    verdict.seconds.setdefault(rule, 0.0)
    for work in sorted(task.works, key=lambda work: -task.works[work] * _size(work)):
        trials: dict[Blocks, Trial] = {}
        for blocks in list(verdict.seconds):
            if not has_time():
                return verdict
            try:
                trials[blocks] = bench.run(task.kernel, work, blocks)
            except Exception as error:  # whatever a compiler, a driver or a launch raises
                if blocks == rule:
                    raise
                verdict.failed[blocks] = " ".join(str(error).split())[:120] or repr(error)
                continue
            if trials[blocks].spills:
                verdict.spilled.add(blocks)
            off = largest_error(trials[blocks].outputs, trials[rule].outputs)
            if off > TOLERANCE:
                verdict.failed[blocks] = f"other outputs than the rule's, by {off:.0e}"
                del trials[blocks]
        found = dict(zip(trials, bench.seconds(list(trials.values())), strict=True))
        for blocks in list(verdict.seconds):
            if blocks not in found:
                del verdict.seconds[blocks]
            elif found[blocks] > (1 + MOST_LOSS) * found[rule]:
                verdict.slower.add(blocks)
                del verdict.seconds[blocks]
            else:
                verdict.seconds[blocks] += task.works[work] * found[blocks]
    verdict.complete = True
    return verdict


def largest_error(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """Largest relative error of a tensor in the 2-norm; infinite where anything is NaN."""
    errors = [
        ((a.float() - b.float()).norm() / b.float().norm().clamp(min=1e-30)).item()
        for a, b in zip(found, wanted, strict=True)
    ]
    return max(error if error == error else float("inf") for error in errors)


def _size(work: Work) -> int:
    return work.batch * work.size[0] * work.size[1] * work.channels
