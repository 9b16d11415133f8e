"""What one call measures, in which order, and how long each part may take."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

from projects.backbone_benchmark.networks import Setting

SIZES = ((800, 1088), (1024, 1024))
GPU_MINUTES = 9.0


@dataclass(frozen=True)
class Step:
    """One part at some settings.

    Attributes:
        part: of the benchmark.
        name: of the files that it writes.
        settings: the most important first.
        share: of the time of the whole call; what a step leaves over is for those after it.
    """

    part: str
    name: str
    settings: tuple[Setting, ...]
    share: float


def equal_steps(parts: Sequence[str], settings: Sequence[Setting]) -> list[Step]:
    """Every part at all settings, each with the same share of the time."""
    return [Step(part, part, tuple(settings), 1 / len(parts)) for part in parts]


def gpu_steps(device: str = "cuda") -> list[Step]:
    """What has to be known of a large GPU, in under ten minutes.

    Speed and memory of T and B come first, at both sizes, with one image and with eight.
    """
    low = _settings(SIZES, (1, 8), "bf16", device)
    first = _settings(SIZES[:1], (1, 8), "bf16", device)
    small = tuple(setting for setting in first if setting.variant == "T")
    full = _settings(SIZES[:1], (1,), "fp32", device)
    return [
        Step("speed", "speed", low, 0.45),
        Step("kernels", "kernels", low, 0.17),
        Step("profile", "profile", small, 0.06),
        Step("detector", "detector", first, 0.20),
        Step("speed", "speed_fp32", full, 0.12),
    ]


def _settings(
    sizes: Sequence[tuple[int, int]], batches: Sequence[int], precision: str, device: str
) -> tuple[Setting, ...]:
    return tuple(
        Setting(variant, size, batch, precision, device)
        for size, batch, variant in product(sizes, batches, ("T", "B"))
    )


PRESETS: dict[str, Callable[[], list[Step]]] = {"gpu": gpu_steps}
