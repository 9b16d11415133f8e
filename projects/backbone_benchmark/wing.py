"""What each file of ``mvitv2_det/fused`` gains on a CPU, against the plain way in its place."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

from torch import Tensor, nn

from mvitv2_det.attention.pooling import pool_map
from mvitv2_det.fused import attention, block, choice, products, tokens
from projects.backbone_benchmark.networks import STEPS, Setting, detectron2_network, our_network
from projects.backbone_benchmark.tables import ratio, seconds_cell, speed_over
from projects.common.timing import Step, Task, cpu_clock, interleave

ALL = "all"


def _norm_linear(
    x: Tensor, norm: nn.Module, linear: nn.Module, kernels: object, parts: int = 1, casts=None
) -> list[Tensor]:
    return list(linear(norm(x)).chunk(parts, dim=-1))


def _norm_product(x: Tensor, norm: nn.Module, weight: Tensor, bias: Tensor | None, kernels: object):
    return nn.functional.linear(norm(x), weight, bias)


def _norm_mlp(x: Tensor, norm: nn.Module, mlp: nn.Module, skip, path_scale, kernels, *_) -> Tensor:
    path = mlp(norm(x))
    return (x if skip is None else skip) + (path if path_scale is None else path_scale * path)


# For each file, (module, name, what takes its place) of what it gives to the others.
WITHOUT: dict[str, list[tuple[object, str, object]]] = {
    ALL: [],
    "mlp.py": [(block, "norm_mlp", _norm_mlp)],
    "norm_linear.py": [
        (attention, "norm_linear", _norm_linear),
        (attention, "norm_product", _norm_product),
    ],
    "residual.py": [
        (attention, "linear_and_skip", lambda z, linear, skip, casts=None: skip.add(linear(z))),
    ],
    "skip_pool.py": [(attention, "pool_skip", lambda x, pool, frames=1: pool_map(x, pool))],
    "products.py": [(products, "_has_onednn", lambda _: False)],
    "tokens.py: chunks": [(tokens, "_CPU_CHUNK", 2**40)],
    "cpu/folded_pooling.py": [(attention, "folding_saves_work", lambda pools: False)],
    # These compute tiles together; SDPA takes their place, and then plain attention.
    "cpu/tiled.py, tiles.py, position_logits.py": [(choice, "_AUTOMATIC", {"cpu": (choice.SDPA,)})],
    "… and sdpa.py": [(choice, "_AUTOMATIC", {})],
    "all of them": [(choice, "_fastest", lambda *_: choice.Choice(choice.REFERENCE))],
}


@contextmanager
def without(file: str, step: Step = lambda: None) -> Iterator[Step]:
    """Has what ``file`` computes be computed plainly; ``step`` is what a turn runs."""
    with ExitStack() as stack:
        for module, name, plain in WITHOUT[file]:
            stack.enter_context(patch.object(module, name, plain))
        yield step


def measure(setting: Setting, rounds: int, report: Callable[[str], None] = print) -> list[dict]:
    """Times an inference and a training step of the same network without each of the files.

    Returns:
        a row for each: how many times as fast the network is with it.
    """
    model = our_network(setting, detectron2_network(setting), "auto")
    times = {}
    for kind, make in STEPS.items():
        step = make(model, setting)
        tasks: dict[str, Task] = {
            file: lambda file=file, step=step: without(file, step) for file in WITHOUT
        }
        times[kind] = interleave(
            tasks,
            rounds=rounds,
            clock=cpu_clock(),
            progress=lambda line, kind=kind: report(f"wing {setting.full_name} {kind} {line}"),
        )
    rows_of_table = []
    for file in WITHOUT:
        row = {**setting.columns, "without": "nothing" if file == ALL else file}
        for kind, of_kind in times.items():
            row[f"{kind} s"] = seconds_cell(of_kind[file])
            row[f"{kind}: with it, times as fast"] = ratio(speed_over(of_kind[ALL], of_kind[file]))
        rows_of_table.append(row)
    return rows_of_table
