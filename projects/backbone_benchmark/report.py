"""Writes what was measured: CSV and Markdown of every part, and the pictures."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from tabulate import tabulate

from projects.backbone_benchmark import compiling, detector, scaling, speed
from projects.backbone_benchmark.compiling import Compiled
from projects.backbone_benchmark.detector import Detector
from projects.backbone_benchmark.floors import FAMILIES
from projects.backbone_benchmark.kept import KeptByBlock
from projects.backbone_benchmark.kernels import KernelTimes
from projects.backbone_benchmark.loss_curves import Curves
from projects.backbone_benchmark.networks import Setting
from projects.backbone_benchmark.profiling import Operation
from projects.backbone_benchmark.scaling import Point
from projects.backbone_benchmark.speed import Result
from projects.backbone_benchmark.stages import Stage
from projects.common.memory import GIB, OutOfMemory
from projects.common.timing import Spread, Timing

Table = list[dict[str, object]]
_LONGEST_NAME = 90  # of a GPU's kernel, which C++ templates make long
OURS_COLOUR, OTHER_COLOUR, THIRD_COLOUR = "tab:blue", "tab:gray", "tab:orange"


def write(
    folder: Path,
    name: str,
    title: str,
    head: Mapping[str, str],
    table: Table,
    *notes: str,
    shown: bool = True,
) -> None:
    """``name.csv`` and ``name.md``, each with what it was measured on; printed where ``shown``."""
    with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
        for key, value in head.items():
            file.write(f"# {key}: {value}\n")
        writer = csv.DictWriter(file, fieldnames=list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    lines = [f"# {title}", "", *(f"- {key}: {value}" for key, value in head.items()), ""]
    lines += [tabulate(table, headers="keys", tablefmt="github", disable_numparse=True), ""]
    for note in notes:
        lines += [note, ""]
    text = "\n".join(lines)
    (folder / f"{name}.md").write_text(text, encoding="utf-8")
    if shown:
        print(f"\n{text}", flush=True)


def _seconds(value: Timing | OutOfMemory | None) -> str:
    if value is None:
        return ""
    if isinstance(value, OutOfMemory):
        return "out of memory"
    spread = value.spread
    digits = 3 if spread.median >= 0.1 else 5
    return f"{spread.median:.{digits}f} ({spread.lower:.{digits}f} to {spread.upper:.{digits}f})"


def _ratio(value: Spread | float | None) -> str:
    if value is None:
        return ""
    if isinstance(value, Spread):
        return f"{value.median:.2f} ({value.lower:.2f} to {value.upper:.2f})"
    return f"{value:.3f}"


def _gib(value: int | OutOfMemory | None) -> str:
    if value is None:
        return ""
    return "out of memory" if isinstance(value, OutOfMemory) else f"{value / GIB:.3f}"


def speed_table(results: Sequence[Result]) -> Table:
    """One row for each network at each setting; ratios are to the row's base."""
    return [
        {
            **result.setting.columns,
            "network": result.network,
            "attention by": result.backends,
            "compared with": result.base,
            "largest difference": "" if result.error is None else f"{result.error:.1e}",
            "inference s": _seconds(result.inference),
            "inference speed-up": _ratio(speed.speed_up(result, results, "inference")),
            "training step s": _seconds(result.training),
            "training speed-up": _ratio(speed.speed_up(result, results, "training")),
            "saved for backward GiB": _gib(result.saved),
            "of the base's": _ratio(speed.memory_ratio(result, results, "saved")),
            "peak training GiB": _gib(result.peak),
            "peak of the base's": _ratio(speed.memory_ratio(result, results, "peak")),
        }
        for result in results
    ]


def draw_speed(results: Sequence[Result], path: Path) -> None:
    """Bars of what ours gains over Detectron2's at each setting."""
    ours = [result for result in results if result.network == speed.OURS]
    figure, axes = plt.subplots(1, 3, figsize=(12, 1.2 + 0.6 * len(ours)), sharey=True)
    names = [result.setting.full_name for result in ours]
    for axis, kind in zip(axes, ("inference", "training"), strict=False):
        spreads = [speed.speed_up(result, results, kind) for result in ours]
        medians = [0 if s is None else s.median for s in spreads]
        errors = [
            [0 if s is None else s.median - s.lower for s in spreads],
            [0 if s is None else s.upper - s.median for s in spreads],
        ]
        bars = axis.barh(names, medians, xerr=errors, color=OURS_COLOUR, capsize=3)
        axis.bar_label(bars, [f"{m:.2f}×" for m in medians], label_type="center", color="white")
        axis.axvline(1, color=OTHER_COLOUR, linestyle="--")
        axis.set_title(f"{kind} speed over Detectron2's MViT")
    ratios = [speed.memory_ratio(result, results, "saved") or 0 for result in ours]
    bars = axes[2].barh(names, ratios, color=OURS_COLOUR)
    axes[2].bar_label(bars, [f"{r:.2f}" for r in ratios], label_type="center", color="white")
    axes[2].axvline(1, color=OTHER_COLOUR, linestyle="--")
    axes[2].set_title("bytes kept for backward, of Detectron2's")
    axes[0].invert_yaxis()
    _save(figure, path)


def stage_table(stages: Sequence[Stage]) -> Table:
    """One row for each stage: measured seconds, and how many floors they are."""
    rows = []
    for stage in stages:
        row = {
            **stage.setting.columns,
            "stage": stage.name,
            "multiply-adds G": f"{stage.multiply_adds / 1e9:.1f}",
            "least bytes GB": f"{stage.bytes / 1e9:.3f}",
            "floor s": f"{stage.floor:.4f}",
        }
        for name, seconds in stage.seconds.items():
            row[f"{name} s"] = f"{seconds:.4f}"
            row[f"{name} over the floor"] = f"{seconds / stage.floor:.1f}"
        rows.append(row)
    return rows


def kept_table(blocks: Sequence[KeptByBlock]) -> Table:
    """One row for each block: megabytes kept for backward."""
    rows = []
    for block in blocks:
        height, width = block.tokens
        row = {
            **block.setting.columns,
            "block": block.number,
            "tokens in": f"{height}×{width}",
            "channels out": block.channels,
        }
        row |= {f"{name} MB": f"{kept / 1e6:.0f}" for name, kept in block.kept.items()}
        theirs, ours = block.kept.values()
        rows.append(row | {"ratio": f"{ours / theirs:.2f}"})
    return rows


def scaling_table(points: Sequence[Point]) -> Table:
    """One row for each network and side."""
    return [
        {
            "network": point.network,
            "image": f"{point.side}×{point.side}",
            "inference s": _seconds(point.seconds),
            "peak GiB above the weights": _gib(point.peak),
        }
        for point in points
    ]


def exponents(points: Sequence[Point]) -> str:
    """A sentence on how cost grows with the area."""
    parts = [
        f"{network}: time ∝ area^{scaling.exponent(points, network, 'seconds'):.2f}, "
        f"memory ∝ area^{scaling.exponent(points, network, 'peak'):.2f}"
        for network in dict.fromkeys(point.network for point in points)
    ]
    return "Fitted from 448×448 on. " + "; ".join(parts) + "."


def draw_scaling(points: Sequence[Point], path: Path) -> None:
    """Time and memory against the area, both logarithmic."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5))
    colours = {"Detectron2": OTHER_COLOUR, "ours": OURS_COLOUR}
    for axis, kind, label in (
        (axes[0], "seconds", "inference, s"),
        (axes[1], "peak", "peak memory above the weights, GiB"),
    ):
        for network, colour in colours.items():
            own = [p for p in points if p.network == network]
            own = [p for p in own if not isinstance(getattr(p, kind), OutOfMemory)]
            values = [p.seconds.spread.median if kind == "seconds" else p.peak / GIB for p in own]
            slope = scaling.exponent(points, network, kind)
            axis.loglog(
                [p.side**2 / 1e6 for p in own],
                values,
                "o-",
                color=colour,
                label=f"{network}, area^{slope:.2f}",
            )
        axis.set(xlabel="image area, megapixels", ylabel=label)
        axis.grid(True, which="both", alpha=0.3)
        axis.legend()
    _save(figure, path)


def compile_table(results: Sequence[Compiled]) -> Table:
    """One row for each step and size, in the order they came."""
    return [
        {
            "step": result.step,
            "image": f"{height}×{width}",
            "first pass s": f"{seconds:.1f}",
            "graphs compiled so far": str(number),
        }
        for result in results
        for (height, width), seconds, number in zip(
            result.sizes, result.seconds, result.graphs, strict=True
        )
    ]


def compile_note(results: Sequence[Compiled]) -> str:
    """What compiling gains where it is done."""
    return " ".join(map(_compile_sentence, results))


def _compile_sentence(result: Compiled) -> str:
    height, width = result.sizes[0]
    times = result.times
    found = [f"{network} {_seconds(timing)} s" for network, timing in times.items()]
    gains = [
        f"{_ratio(_speed_over(times[compiling.COMPILED], times[base]))} over {base}"
        for base in (compiling.EAGER, compiling.REFERENCE)
    ]
    return (
        f"Later passes of {result.step} at {height}×{width}: {', '.join(found)}; speed-up by "
        f"compilation {', '.join(gains)}."
    )


def detector_table(results: Sequence[Detector]) -> Table:
    """One row for each detector; speed-ups are over the one with Detectron2's backbone."""
    base = {r.setting: r for r in results if r.network == "Detectron2"}
    return [
        {
            **r.setting.columns,
            "backbone": r.network,
            "images/s": _per_second(r.inference, r.setting.batch),
            "inference speed-up": _ratio(_speed_over(r.inference, base[r.setting].inference)),
            "training images/s": _per_second(r.training, r.setting.batch),
            "training speed-up": _ratio(_speed_over(r.training, base[r.setting].training)),
            **{f"{part} %": f"{r.parts[part]:.0f}" if r.parts else "" for part in detector.PARTS},
        }
        for r in results
    ]


def _per_second(value: Timing | OutOfMemory, batch: int) -> str:
    return (
        "out of memory" if isinstance(value, OutOfMemory) else f"{batch / value.spread.median:.2f}"
    )


def _speed_over(own: Timing | OutOfMemory, base: Timing | OutOfMemory) -> Spread | None:
    if isinstance(own, OutOfMemory) or isinstance(base, OutOfMemory):
        return None
    return own.speed_over(base)


def kernel_table(results: Sequence[KernelTimes]) -> Table:
    """One row for each family of kernels on each kind of block, then all blocks together."""
    rows = [
        _kernel_row(r.setting, f"{r.count} × {r.work.name}", r.family, [replace(r, count=1)])
        for r in results
    ]
    for setting in dict.fromkeys(r.setting for r in results):
        own = [r for r in results if r.setting == setting]
        for family in FAMILIES:
            of_family = [r for r in own if r.family == family]
            rows.append(_kernel_row(setting, "all blocks", family, of_family))
        rows.append(_kernel_row(setting, "all blocks", "all", own))
    return rows


def _kernel_row(
    setting: Setting, blocks: str, family: str, parts: Sequence[KernelTimes]
) -> dict[str, object]:
    """Sums over blocks; the floor is the longer one of bytes and products, block by block."""
    bytes_alone = sum(part.count * part.byte_floor for part in parts)
    floor = sum(part.count * max(part.byte_floor, part.product_floor) for part in parts)
    row = {
        **setting.columns,
        "blocks": blocks,
        "kernels": family,
        "least MB": f"{sum(part.count * part.least_bytes for part in parts) / 1e6:.1f}",
        "byte floor ms": f"{1e3 * bytes_alone:.4f}",
        "floor ms": f"{1e3 * floor:.4f}",
    }
    for name in parts[0].seconds:
        times = [part.seconds[name] for part in parts]
        if any(isinstance(time, OutOfMemory) for time in times):
            row |= dict.fromkeys((f"{name} over byte floor", f"{name} over floor"), "")
            row[f"{name} ms"] = "out of memory"
            continue
        total = sum(part.count * time for part, time in zip(parts, times, strict=True))
        row[f"{name} ms"] = f"{1e3 * total:.4f}"
        row[f"{name} over byte floor"] = f"{total / bytes_alone:.2f}"
        row[f"{name} over floor"] = f"{total / floor:.2f}"
    return row


def profile_table(operations: Sequence[Operation]) -> Table:
    """One row for each operation, the longest first."""
    return [
        {
            **o.setting.columns,
            "network": o.network,
            "step": o.step,
            "operation": o.name[:_LONGEST_NAME],
            "calls": str(o.calls),
            "ms": f"{1e3 * o.seconds:.3f}",
            "%": f"{100 * o.share:.1f}",
        }
        for o in operations
    ]


def loss_table(curves: Curves, every: int = 25) -> Table:
    """Losses at some steps, and how far each training is from the first so far."""
    base, *others = curves.losses
    rows = []
    for step in [*range(0, len(curves.losses[base]), every), len(curves.losses[base]) - 1]:
        row = {"step": str(step + 1), base: f"{curves.losses[base][step]:.6f}"}
        for name in others:
            row[name] = f"{curves.losses[name][step]:.6f}"
            row[f"{name}: largest relative difference so far"] = (
                f"{max(_differences(curves, name)[: step + 1]):.1e}"
            )
        rows.append(row)
    return rows


def _differences(curves: Curves, name: str) -> list[float]:
    base = next(iter(curves.losses.values()))
    return [abs(a - b) / abs(b) for a, b in zip(curves.losses[name], base, strict=True)]


def draw_losses(curves: Curves, path: Path) -> None:
    """The losses, and how far they are from those of Detectron2's backbone."""
    figure, (above, below) = plt.subplots(2, 1, figsize=(9, 7), sharex=True)
    base, *others = curves.losses
    colours = dict(zip(curves.losses, (OTHER_COLOUR, THIRD_COLOUR, OURS_COLOUR), strict=True))
    for name, losses in curves.losses.items():
        width, style = (3, "-") if name == base else (1.2, "--" if name == others[0] else "-")
        above.plot(losses, label=name, color=colours[name], linewidth=width, linestyle=style)
    for name in others:
        differences = [max(d, 1e-9) for d in _differences(curves, name)]
        below.semilogy(differences, label=name, color=colours[name], linewidth=1)
    above.set(ylabel="total loss")
    below.set(xlabel="step", ylabel=f"relative difference from\n{base}")
    for axis in (above, below):
        axis.legend()
        axis.grid(True, alpha=0.3)
    _save(figure, path)


def _save(figure: plt.Figure, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
