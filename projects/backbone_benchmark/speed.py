"""Speed and memory of the backbone against Detectron2's, timm's and compiled ones."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import matplotlib.pyplot as plt
import torch
from torch import nn

from projects.backbone_benchmark import networks
from projects.backbone_benchmark.networks import STEPS, Setting
from projects.backbone_benchmark.tables import (
    COLOURS,
    gib,
    memory_over,
    ratio,
    save,
    seconds_cell,
    speed_over,
)
from projects.common.memory import (
    OutOfMemory,
    attempt,
    peak_memory,
    saved_for_backward,
    synchronize,
)
from projects.common.timing import Spread, Timing, interleave, resident

REFERENCE = "Detectron2"
OURS = "ours"
_GPU_ITERATIONS = 3  # in each turn, because passes on a GPU are short


@dataclass(frozen=True)
class Options:
    """Choice of networks.

    Attributes:
        backends: attention backends of ours, each of which is a network.
        compiled: whether Detectron2's network is also measured under ``torch.compile``.
        timm: whether timm's network is measured.
        threads: of a CPU; None keeps PyTorch's number.
        names_backends: whether the backends that ours took are looked up.
    """

    backends: Sequence[str] = ("auto",)
    compiled: bool = False
    timm: bool = False
    threads: int | None = None
    names_backends: bool = True


@dataclass(frozen=True)
class Candidate:
    """A network to measure, and the name of the one that it is compared with."""

    name: str
    base: str
    model: nn.Module
    trains: bool = True


@dataclass
class Result:
    """Measurements of one network at one setting; None stands for what is not measured.

    Attributes:
        backends: names of what computed the attention of ours.
        error: largest difference of a feature map from the reference's, over its largest value;
            of networks that compute the same.
        inference, training: seconds of a pass over the batch.
        peak: bytes of tensors while training, weights and their gradients included.
        saved: bytes of activations saved for the backward pass, without weights.
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


class Side(Protocol):
    """Networks that are measured on request, in this process or in another one."""

    def call(self, method: str, *arguments: str) -> object:
        """Calls a method of :class:`Networks`."""


class Networks:
    """All networks of one setting, in this process."""

    def __init__(self, setting: Setting, options: Options) -> None:
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        self.setting, self.options = setting, options
        self.candidates = {c.name: c for c in _candidates(setting, options)}
        self._steps = {}

    def call(self, method: str, *arguments: str) -> object:
        """Calls a method by its name."""
        return getattr(self, method)(*arguments)

    def names(self) -> list[tuple[str, str, bool]]:
        """Returns each network's name, the name of its base, and whether it is trained."""
        return [(c.name, c.base, c.trains) for c in self.candidates.values()]

    def compare(self, name: str) -> tuple[float | None, str]:
        """Returns the error and the backends of a network, as in :class:`Result`."""
        model = self.candidates[name].model
        error = self._error(model)
        if not self.options.names_backends:
            return error, ""
        return error, ", ".join(networks.backends_of(model, self.setting))

    def memory(self, name: str) -> tuple[int | OutOfMemory | None, int | OutOfMemory]:
        """Returns the bytes that a network saves for backward, and its peak while training."""
        model, setting = self.candidates[name].model, self.setting
        held = list(model.parameters())
        saved = None  # of a recorded pass, whose memory is a part of the peak
        if "forward" not in vars(model):
            forward = networks.forward_for_backward(model, setting)
            saved = attempt(lambda: saved_for_backward(forward, exclude=held))
        step = resident(networks.training(model, setting))
        return saved, attempt(lambda: peak_memory(step, setting.device, iterations=1, held=held))

    def run(self, kind: str, name: str) -> None:
        """Runs a step, one of :data:`STEPS`, of a network."""
        if (kind, name) not in self._steps:
            self._steps[kind, name] = STEPS[kind](self.candidates[name].model, self.setting)
        self._steps[kind, name]()
        synchronize(self.setting.device)

    def _error(self, model: nn.Module) -> float | None:
        reference = self.candidates[REFERENCE].model
        if model is reference:
            return 0.0
        actual, expected = (networks.inference(m, self.setting)() for m in (model, reference))
        return max(
            ((actual[name] - expected[name]).abs().max() / expected[name].abs().max()).item()
            for name in expected
        )


def _candidates(setting: Setting, options: Options) -> Iterator[Candidate]:
    reference = networks.detectron2_network(setting)
    yield Candidate(REFERENCE, REFERENCE, reference)
    for backend in options.backends:
        name = OURS if backend == "auto" else f"{OURS}, {backend}"
        yield Candidate(name, REFERENCE, networks.our_network(setting, reference, backend))
    if setting.device == "cuda":
        from mvitv2_det import replay_graphs  # an older checkout has none

        replayed = networks.our_network(setting, reference, options.backends[0])
        replay_graphs(replayed, training=True)
        yield Candidate(f"{OURS}, CUDA graphs", REFERENCE, replayed)
    if options.compiled:
        # Blocks, modes and hooks reach the default limit, beyond which nothing is compiled.
        torch._dynamo.config.recompile_limit = 256
        compiled = torch.compile(reference, dynamic=False)
        yield Candidate(f"{REFERENCE}, compiled", REFERENCE, compiled)
    if options.timm and setting.variant in networks.TIMM_NAMES:
        theirs = networks.TimmBackbone(setting).to(setting.device)
        yield Candidate("timm", "timm", theirs, trains=False)
        ours = networks.our_network(setting, reference, "auto", **networks.AS_TIMM)
        yield Candidate(f"{OURS}, without windows as timm", "timm", ours, trains=False)


def measure(
    setting: Setting,
    sides: Mapping[str, Side],
    rounds: int,
    report: Callable[[str], None] = print,
) -> list[Result]:
    """Compares the networks of all sides, which take turns with each other.

    Args:
        sides: by a label that is added to the names of the side's networks.
    """
    report(setting.full_name)
    found, trained = [], []
    for label, side in sides.items():
        for name, base, trains in side.call("names"):
            result = Result(setting, name + label, base + label)
            found.append((result, side, name))
            if trains:
                trained.append(found[-1])
            if base == REFERENCE:
                compared = attempt(lambda s=side, n=name: s.call("compare", n))
                if not isinstance(compared, OutOfMemory):
                    result.error, result.backends = compared
    # Inference comes first, because memory that a training step has mapped makes later passes
    # faster, which a process that only infers does not have.
    _measure_times(found, "inference", rounds, report)
    for result, side, name in trained:
        result.saved, result.peak = side.call("memory", name)
        report(f"  memory    {result.network}")
    _measure_times(trained, "training", rounds, report)
    return [result for result, _, _ in found]


def _measure_times(
    found: Sequence[tuple[Result, Side, str]],
    kind: str,
    rounds: int,
    report: Callable[[str], None],
) -> None:
    tasks = {
        result.network: resident(lambda s=side, n=name: s.call("run", kind, n))
        for result, side, name in found
    }
    device = found[0][0].setting.device
    timings = interleave(
        tasks,
        rounds=rounds,
        iterations=_GPU_ITERATIONS if device == "cuda" else 1,
        device=device,
        progress=lambda line: report(f"  {kind:9} {line}"),
    )
    for result, _, _ in found:
        setattr(result, kind, timings[result.network])


def _find(results: Sequence[Result], network: str, setting: Setting) -> Result | None:
    return next((r for r in results if (r.network, r.setting) == (network, setting)), None)


def table(results: Sequence[Result], label: str = "") -> list[dict]:
    """Makes a row for each network at each setting, with ratios to the network's base.

    Args:
        label: of the side of another checkout, if there is one. This checkout's networks are then
            compared with it as well; the ratio of the two references, which are equal, is noise.
    """
    rows = []
    for r in results:
        base = _find(results, r.base, r.setting)
        rows.append(
            {
                **r.setting.columns,
                "network": r.network,
                "attention by": r.backends,
                "compared with": r.base,
                "largest difference": "" if r.error is None else f"{r.error:.1e}",
                "inference s": seconds_cell(r.inference),
                "inference speed-up": ratio(speed_over(r.inference, base.inference)),
                "training step s": seconds_cell(r.training),
                "training speed-up": ratio(speed_over(r.training, base.training)),
                "saved activations GiB": gib(r.saved),
                "saved activations ratio": ratio(memory_over(r.saved, base.saved)),
                "peak training GiB": gib(r.peak),
                "peak training ratio": ratio(memory_over(r.peak, base.peak)),
            }
        )
        if label:
            other = _find(results, r.network + label, r.setting)
            for kind in STEPS:
                own, theirs = getattr(r, kind), getattr(other, kind, None)
                rows[-1][f"{kind} speed over{label}"] = ratio(speed_over(own, theirs))
    return rows


def draw(results: Sequence[Result], path: Path) -> None:
    """Draws bars of the gains of ours over Detectron2's at each setting."""
    ours = [result for result in results if result.network == OURS]
    bases = [_find(results, result.base, result.setting) for result in ours]
    names = [result.setting.full_name for result in ours]
    figure, axes = plt.subplots(1, 3, figsize=(12, 1.2 + 0.6 * len(ours)), sharey=True)
    panels = {
        f"{kind} speed over Detectron2's MViT": [
            speed_over(getattr(own, kind), getattr(base, kind)) or Spread(0, 0, 0)
            for own, base in zip(ours, bases, strict=True)
        ]
        for kind in STEPS
    }
    panels["saved activations over Detectron2's"] = [
        Spread.of([memory_over(own.saved, base.saved) or 0])
        for own, base in zip(ours, bases, strict=True)
    ]
    for axis, (title, spreads) in zip(axes, panels.items(), strict=True):
        errors = [[s.median - s.lower for s in spreads], [s.upper - s.median for s in spreads]]
        medians = [s.median for s in spreads]
        bars = axis.barh(names, medians, xerr=errors, color=COLOURS["ours"], capsize=3)
        axis.bar_label(bars, [f"{m:.2f}×" for m in medians], label_type="center", color="white")
        axis.axvline(1, color=COLOURS["Detectron2"], linestyle="--")
        axis.set_title(title)
    axes[0].invert_yaxis()
    save(figure, path)
