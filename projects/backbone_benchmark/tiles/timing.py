"""Runs kernels with given blocks on a GPU, and times them by replayed CUDA graphs."""

from collections.abc import Callable, Iterator, Sequence
from statistics import median

import torch
from torch import Tensor

from mvitv2_det.fused.triton.launch import Blocks
from projects.backbone_benchmark.networks import Setting
from projects.backbone_benchmark.roofline import Work
from projects.backbone_benchmark.tiles.choosing import Kernel, Trial
from projects.backbone_benchmark.tiles.shapes import chosen, launches_of, pieces_of, setting_of

_ROUNDS = 5
_GRAPH_SECONDS = 2e-4  # of a graph of several launches: longer than a clock's step
_MOST_LAUNCHES = 48


class GpuBench:
    """A :class:`.choosing.Bench` on a GPU."""

    def __init__(self, settings: Sequence[Setting]) -> None:
        self._settings = settings
        self._key: tuple[str, Work] | None = None
        self._operation: Callable[[], object] = lambda: None

    @torch.no_grad()
    def run(self, kernel: Kernel, work: Work, blocks: Blocks) -> Trial:
        """Runs a kernel's operation once."""
        if (kernel.family, work) != self._key:  # the last one only: memory
            pieces = pieces_of(setting_of(self._settings, work, "cuda"), work)
            self._key, self._operation = (kernel.family, work), pieces.run(kernel.family)
        operation = self._operation
        with chosen(kernel, lambda *_: blocks), launches_of(kernel) as launches:
            outputs = list(_tensors(operation()))
        torch.cuda.synchronize()

        def whole() -> None:
            with chosen(kernel, lambda *_: blocks):
                operation()

        def alone() -> None:
            for launch in launches:
                launch()

        spills = max(launch.compiled.n_spills for launch in launches)
        return Trial(outputs, spills, alone if kernel.alone else whole)

    @torch.no_grad()
    def seconds(self, trials: Sequence[Trial]) -> list[float]:
        """Replays each one's graph of launches, in turns: the median of a launch's time."""
        once = _replay_seconds(captured(trials[0].again, 1))
        number = min(max(round(_GRAPH_SECONDS / once), 1), _MOST_LAUNCHES)
        graphs = [captured(trial.again, number) for trial in trials]
        rounds = [[_replay_seconds(graph) for graph in graphs] for _ in range(_ROUNDS)]
        return [median(times) / number for times in zip(*rounds, strict=True)]


def captured(run: Callable[[], object], number: int) -> torch.cuda.CUDAGraph:
    """Captures some runs in a graph.

    ``torch.cuda.graph`` would do the same, but collects garbage each time: a tenth of a second.
    """
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        graph.capture_begin()
        try:
            for _ in range(number):
                run()
        finally:
            graph.capture_end()
    graph.replay()
    torch.cuda.synchronize()
    return graph


def _replay_seconds(graph: torch.cuda.CUDAGraph) -> float:
    """Times a replay; another one before it keeps the GPU busy until all is launched."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    graph.replay()
    start.record()
    graph.replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000


def _tensors(outputs: object) -> Iterator[Tensor]:
    if isinstance(outputs, Tensor):
        yield outputs
    elif isinstance(outputs, (list, tuple)):
        for output in outputs:
            yield from _tensors(output)
