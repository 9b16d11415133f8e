"""Growth of time and memory with the size of the input: the area of an image, or a clip's axes."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from projects.backbone_benchmark.networks import Setting, both_networks, inference
from projects.backbone_benchmark.tables import COLOURS, gib, save, seconds_cell
from projects.common.memory import GIB, OutOfMemory, attempt, peak_memory
from projects.common.timing import Step, Timing, interleave, resident

SIDES = (224, 320, 448, 640, 896, 1024, 1280, 1536, 2048)


@dataclass(frozen=True)
class Point:
    """Seconds and peak bytes of one network's inference on an input.

    Attributes:
        network: its name.
        label: of the input, as in tables.
        size: of the input, of which costs are a power: its area, for instance.
        seconds, peak: as measured.
    """

    network: str
    label: str
    size: float
    seconds: Timing | OutOfMemory
    peak: int | OutOfMemory

    def number(self, kind: str) -> float | None:
        """Returns median seconds or bytes, or None where memory ran out."""
        value = getattr(self, kind)
        if isinstance(value, OutOfMemory):
            return None
        return value.spread.median if isinstance(value, Timing) else value


def measure(
    setting: Setting,
    rounds: int,
    sides: Sequence[int] = SIDES,
    report: Callable[[str], None] = print,
) -> list[Point]:
    """Measures inference of Detectron2's network and of ours on square images."""
    both = both_networks(setting)

    def inputs() -> Iterable[tuple[str, float, Mapping[str, Step]]]:
        for side in sides:
            here = replace(setting, size=(side, side))
            steps = {name: inference(model, here) for name, model in both.items()}
            yield f"{side}×{side}", side**2, steps

    return measure_inputs(inputs(), rounds, setting.device, report)


def measure_inputs(
    inputs: Iterable[tuple[str, float, Mapping[str, Step]]],
    rounds: int,
    device: str,
    report: Callable[[str], None] = print,
) -> list[Point]:
    """Measures networks on inputs of several sizes.

    Args:
        inputs: label and size of each, and the step of each network on it.
        rounds: turns of each network.
        device: ``cpu`` or ``cuda``.
        report: takes a line for each input.
    """
    points = []
    for label, size, steps in inputs:
        tasks = {name: resident(step) for name, step in steps.items()}
        peaks = {
            name: attempt(lambda task=task: peak_memory(task, device, iterations=1))
            for name, task in tasks.items()
        }
        fitting = {n: task for n, task in tasks.items() if not isinstance(peaks[n], OutOfMemory)}
        times = interleave(fitting, rounds=rounds, device=device)
        points += [
            Point(name, label, size, times.get(name, peaks[name]), peaks[name]) for name in steps
        ]
        report(f"scaling {label}")
    return points


def exponent(points: Sequence[Point], network: str, kind: str, smallest: float = 448**2) -> float:
    """Fits b of cost = a · sizeᵇ from ``smallest`` on; for smaller inputs overheads dominate."""
    found = [(p.size, p.number(kind)) for p in points if p.network == network]
    pairs = [(size, n) for size, n in found if n is not None and size >= smallest]
    size, value = np.log(np.array(pairs, dtype=float)).T
    return float(np.polyfit(size, value, 1)[0])


def table(points: Sequence[Point]) -> list[dict]:
    """Makes a row for each network and input."""
    return [
        {
            "network": point.network,
            "input": point.label,
            "inference s": seconds_cell(point.seconds),
            "peak GiB above the weights": gib(point.peak),
        }
        for point in points
    ]


def exponents(points: Sequence[Point], of: str = "area", smallest: float = 448**2) -> str:
    """Says how cost grows with what ``of`` names."""
    parts = [
        f"{network}: time ∝ {of}^{exponent(points, network, 'seconds', smallest):.2f}, "
        f"memory ∝ {of}^{exponent(points, network, 'peak', smallest):.2f}"
        for network in dict.fromkeys(point.network for point in points)
    ]
    first = min((point for point in points if point.size >= smallest), key=lambda p: p.size)
    return f"Fitted from {first.label} on. " + "; ".join(parts) + "."


def draw(points: Sequence[Point], path: Path) -> None:
    """Draws time and memory of images against the area, both logarithmic."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5))
    for axis, kind, unit, label in (
        (axes[0], "seconds", 1, "inference, s"),
        (axes[1], "peak", GIB, "peak memory above the weights, GiB"),
    ):
        for network in ("Detectron2", "ours"):
            own = [p for p in points if p.network == network and p.number(kind) is not None]
            axis.loglog(
                [p.size / 1e6 for p in own],
                [p.number(kind) / unit for p in own],
                "o-",
                color=COLOURS[network],
                label=f"{network}, area^{exponent(points, network, kind):.2f}",
            )
        axis.set(xlabel="image area, megapixels", ylabel=label)
        axis.grid(True, which="both", alpha=0.3)
        axis.legend()
    save(figure, path)
