"""Speed and memory of the backbone against Detectron2's, timm's and compiled ones."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import nn

from projects.backbone_benchmark import networks
from projects.backbone_benchmark.networks import Setting
from projects.common.memory import OutOfMemory, attempt, peak_memory, saved_for_backward
from projects.common.timing import Spread, Timing, interleave, resident

REFERENCE = "Detectron2"
OURS = "ours"
_GPU_ITERATIONS = 3  # of a turn: those of a GPU are short


@dataclass
class Result:
    """One network at one setting; None is not measured.

    Attributes:
        backends: what computed its attention, of ours.
        error: largest difference of a feature map from the reference's, over its largest value;
            of networks that compute the same.
        inference, training: seconds of a pass over the batch.
        peak: bytes of tensors while training, weights and their gradients included.
        saved: bytes kept for backward, weights not counted.
        trains: whether training is measured as well.
    """

    setting: Setting
    network: str
    base: str
    backends: str = ""
    error: float | None = None
    inference: Timing | OutOfMemory | None = None
    training: Timing | OutOfMemory | None = None
    peak: int | OutOfMemory | None = None
    saved: int | OutOfMemory | None = None
    model: nn.Module | None = field(default=None, repr=False)
    trains: bool = True


@dataclass(frozen=True)
class Candidate:
    """A network to measure, and the one that it is compared with."""

    name: str
    base: str
    build: Callable[[], nn.Module]
    is_exact: bool = True
    trains: bool = True


def candidates(setting: Setting, *, backends: list[str], with_compiled: bool, with_timm: bool):
    """What is compared at a setting, the reference first."""
    reference = networks.detectron2_network(setting)
    yield Candidate(REFERENCE, REFERENCE, lambda: reference)
    for backend in backends:
        name = OURS if backend == "auto" else f"{OURS}, {backend}"
        yield Candidate(
            name, REFERENCE, lambda b=backend: networks.our_network(setting, reference, b)
        )
    if with_compiled:
        yield Candidate(f"{REFERENCE}, compiled", REFERENCE, lambda: _compiled(reference))
    if with_timm and setting.variant in networks.TIMM_NAMES:
        yield Candidate("timm", "timm", lambda: networks.timm_network(setting), trains=False)
        yield Candidate(
            f"{OURS}, without windows as timm",
            "timm",
            lambda: networks.our_network(setting, reference, "auto", **networks.AS_TIMM),
            is_exact=False,
            trains=False,
        )


def _compiled(model: nn.Module) -> nn.Module:
    """``model`` compiled for its sizes alone, with a graph for each kind of block and mode."""
    # Past the limit, which blocks, modes and hooks reach, some of it would run uncompiled.
    torch._dynamo.config.recompile_limit = 256
    return torch.compile(model, dynamic=False)


def measure(
    setting: Setting,
    found: Iterator[Candidate],
    rounds: int,
    report: Callable[[str], None] = print,
) -> list[Result]:
    """Compares the candidates, in turns."""
    report(setting.full_name)
    results = []
    for candidate in found:
        result = Result(setting, candidate.name, candidate.base)
        result.model = candidate.build()
        results.append(result)
        if candidate.base == REFERENCE:
            with networks.noted_backends(result.model) as taken:
                error = attempt(lambda r=result: _error(r.model, results[0].model, setting))
            result.error = None if isinstance(error, OutOfMemory) else error
            result.backends = ", ".join(sorted(taken))
        result.trains = candidate.trains
    # Inference before training: memory that a training step has mapped serves what comes after.
    _measure_times(results, "inference", networks.inference, rounds, report)
    for result in results:
        if result.trains:
            _measure_memory(result)
            report(f"  memory    {result.network}")
    trained = [result for result in results if result.saved is not None]
    _measure_times(trained, "training", networks.training, rounds, report)
    for result in results:
        result.model = None
    return results


def _error(model: nn.Module, reference: nn.Module, setting: Setting) -> float:
    if model is reference:
        return 0.0
    actual = networks.inference(model, setting)()
    expected = networks.inference(reference, setting)()
    return max(
        ((actual[name] - expected[name]).abs().max() / expected[name].abs().max()).item()
        for name in expected
    )


def _measure_memory(result: Result) -> None:
    model, setting = result.model, result.setting
    held = list(model.parameters())
    forward = networks.forward_for_backward(model, setting)
    result.saved = attempt(lambda: saved_for_backward(forward, exclude=held))
    step = resident(networks.training(model, setting))
    result.peak = attempt(lambda: peak_memory(step, setting.device, iterations=1, held=held))


def _measure_times(
    results: list[Result],
    kind: str,
    make: Callable[[nn.Module, Setting], Callable],
    rounds: int,
    report: Callable[[str], None],
) -> None:
    tasks = {r.network: resident(make(r.model, r.setting)) for r in results}
    device = results[0].setting.device
    timings = interleave(
        tasks,
        rounds=rounds,
        iterations=_GPU_ITERATIONS if device == "cuda" else 1,
        warmup=1,
        device=device,
        progress=lambda line: report(f"  {kind:9} {line}"),
    )
    for result in results:
        setattr(result, kind, timings[result.network])


def speed_up(result: Result, results: list[Result], kind: str) -> Spread | None:
    """How many times faster than its base, round by round."""
    base = next(r for r in results if r.network == result.base and r.setting == result.setting)
    own, other = getattr(result, kind), getattr(base, kind)
    if not (isinstance(own, Timing) and isinstance(other, Timing)):
        return None
    return own.speed_over(other)


def memory_ratio(result: Result, results: list[Result], kind: str) -> float | None:
    """Bytes over its base's."""
    base = next(r for r in results if r.network == result.base and r.setting == result.setting)
    own, other = getattr(result, kind), getattr(base, kind)
    return own / other if isinstance(own, int) and isinstance(other, int) else None
