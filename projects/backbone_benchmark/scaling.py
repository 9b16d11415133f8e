"""How time and memory grow with the area of the image."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from projects.backbone_benchmark import networks
from projects.backbone_benchmark.networks import Setting
from projects.common.memory import OutOfMemory, attempt, peak_memory
from projects.common.timing import Timing, interleave, resident

SIDES = (224, 320, 448, 640, 896, 1024, 1280, 1536, 2048)


@dataclass(frozen=True)
class Point:
    """One network on a square image; seconds and bytes of inference, or what ran out."""

    network: str
    side: int
    seconds: Timing | OutOfMemory
    peak: int | OutOfMemory


def measure(
    setting: Setting,
    rounds: int,
    sides: Sequence[int] = SIDES,
    report: Callable[[str], None] = print,
) -> list[Point]:
    """Inference of Detectron2's network and of ours on square images."""
    reference = networks.detectron2_network(setting)
    both = {
        "Detectron2": reference,
        "ours": networks.our_network(setting, reference, "auto"),
    }
    points = []
    for side in sides:
        here = replace(setting, size=(side, side))
        steps = {name: networks.inference(model, here) for name, model in both.items()}
        peaks = {
            name: attempt(
                lambda step=step: peak_memory(resident(step), setting.device, iterations=1)
            )
            for name, step in steps.items()
        }
        tasks = {
            name: resident(step)
            for name, step in steps.items()
            if not isinstance(peaks[name], OutOfMemory)
        }
        times = interleave(tasks, rounds=rounds, device=setting.device)
        for name in both:
            points.append(Point(name, side, times.get(name, peaks[name]), peaks[name]))
        report(f"scaling {setting.variant} {side}×{side}")
    return points


def exponent(points: Sequence[Point], network: str, kind: str, smallest: int = 448) -> float:
    """b of cost = a · areaᵇ, fitted from ``smallest`` on: below it, overheads rule."""
    pairs = []
    for point in points:
        value = getattr(point, kind)
        value = value.spread.median if isinstance(value, Timing) else value
        if (
            point.network == network
            and point.side >= smallest
            and not isinstance(value, OutOfMemory)
        ):
            pairs.append((point.side**2, value))
    area, value = np.log(np.array(pairs, dtype=float)).T
    return float(np.polyfit(area, value, 1)[0])
