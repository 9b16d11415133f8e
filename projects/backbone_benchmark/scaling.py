"""Growth of time and memory with the area of the image."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from projects.backbone_benchmark.networks import Setting, both_networks, inference
from projects.backbone_benchmark.tables import COLOURS, gib, save, seconds_cell
from projects.common.memory import GIB, OutOfMemory, attempt, peak_memory
from projects.common.timing import Timing, interleave, resident

SIDES = (224, 320, 448, 640, 896, 1024, 1280, 1536, 2048)


@dataclass(frozen=True)
class Point:
    """Seconds and peak bytes of one network's inference on a square image."""

    network: str
    side: int
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
    points = []
    for side in sides:
        here = replace(setting, size=(side, side))
        tasks = {name: resident(inference(model, here)) for name, model in both.items()}
        peaks = {
            name: attempt(lambda task=task: peak_memory(task, setting.device, iterations=1))
            for name, task in tasks.items()
        }
        fitting = {n: task for n, task in tasks.items() if not isinstance(peaks[n], OutOfMemory)}
        times = interleave(fitting, rounds=rounds, device=setting.device)
        points += [Point(name, side, times.get(name, peaks[name]), peaks[name]) for name in both]
        report(f"scaling {setting.variant} {side}×{side}")
    return points


def exponent(points: Sequence[Point], network: str, kind: str, smallest: int = 448) -> float:
    """Fits b of cost = a · areaᵇ from ``smallest`` on; on smaller images overheads dominate."""
    found = [(p.side**2, p.number(kind)) for p in points if p.network == network]
    pairs = [(area, n) for area, n in found if n is not None and area >= smallest**2]
    area, value = np.log(np.array(pairs, dtype=float)).T
    return float(np.polyfit(area, value, 1)[0])


def table(points: Sequence[Point]) -> list[dict]:
    """Makes a row for each network and side."""
    return [
        {
            "network": point.network,
            "image": f"{point.side}×{point.side}",
            "inference s": seconds_cell(point.seconds),
            "peak GiB above the weights": gib(point.peak),
        }
        for point in points
    ]


def exponents(points: Sequence[Point]) -> str:
    """Says how cost grows with the area."""
    parts = [
        f"{network}: time ∝ area^{exponent(points, network, 'seconds'):.2f}, "
        f"memory ∝ area^{exponent(points, network, 'peak'):.2f}"
        for network in dict.fromkeys(point.network for point in points)
    ]
    return "Fitted from 448×448 on. " + "; ".join(parts) + "."


def draw(points: Sequence[Point], path: Path) -> None:
    """Draws time and memory against the area, both logarithmic."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5))
    for axis, kind, unit, label in (
        (axes[0], "seconds", 1, "inference, s"),
        (axes[1], "peak", GIB, "peak memory above the weights, GiB"),
    ):
        for network in ("Detectron2", "ours"):
            own = [p for p in points if p.network == network and p.number(kind) is not None]
            axis.loglog(
                [p.side**2 / 1e6 for p in own],
                [p.number(kind) / unit for p in own],
                "o-",
                color=COLOURS[network],
                label=f"{network}, area^{exponent(points, network, kind):.2f}",
            )
        axis.set(xlabel="image area, megapixels", ylabel=label)
        axis.grid(True, which="both", alpha=0.3)
        axis.legend()
    save(figure, path)
