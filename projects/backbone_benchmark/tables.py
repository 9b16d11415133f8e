"""Cells of tables, and what the pictures share."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from projects.common.memory import GIB, OutOfMemory
from projects.common.timing import Spread, Timing

COLOURS = {"ours": "tab:blue", "Detectron2": "tab:gray", "third": "tab:orange"}
_NO_MEMORY = "out of memory"


def seconds_cell(value: Timing | OutOfMemory | None) -> str:
    """Formats median and quartiles; empty where nothing was measured."""
    if not isinstance(value, Timing):
        return _word(value)
    spread = value.spread
    digits = 3 if spread.median >= 0.1 else 5
    return f"{spread.median:.{digits}f} ({spread.lower:.{digits}f} to {spread.upper:.{digits}f})"


def gib(value: int | OutOfMemory | None) -> str:
    """Formats bytes in GiB; empty where nothing was measured."""
    return f"{value / GIB:.3f}" if isinstance(value, int) else _word(value)


def per_second(value: Timing | OutOfMemory, batch: int) -> str:
    """Formats images per second."""
    return f"{batch / value.spread.median:.2f}" if isinstance(value, Timing) else _word(value)


def ratio(value: Spread | float | None) -> str:
    """Formats a ratio, with quartiles where it has them; empty where it is None."""
    if isinstance(value, Spread):
        return f"{value.median:.2f} ({value.lower:.2f} to {value.upper:.2f})"
    return "" if value is None else f"{value:.3f}"


def speed_over(own: object, base: object) -> Spread | None:
    """Computes how many times faster than ``base``; None where one of both has no time."""
    return own.speed_over(base) if isinstance(own, Timing) and isinstance(base, Timing) else None


def memory_over(own: object, base: object) -> float | None:
    """Computes the ratio of bytes; None where one of both has no number."""
    return own / base if isinstance(own, int) and isinstance(base, int) else None


def save(figure: plt.Figure, path: Path) -> None:
    """Writes a picture and frees its memory."""
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _word(value: OutOfMemory | None) -> str:
    return "" if value is None else _NO_MEMORY
