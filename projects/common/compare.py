"""Measures a network of ours beside another library's on the same weights, in turns."""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from projects.backbone_benchmark.tables import ratio, seconds_cell, speed_over
from projects.common.memory import GIB, saved_for_backward
from projects.common.results import DTYPES
from projects.common.timing import interleave, resident


def compare(
    networks: Mapping[str, nn.Module],
    x: Tensor,
    name: str,
    rounds: int,
    precision: str,
    report: Callable[[str], None],
) -> list[dict[str, object]]:
    """The rows of a table: inference, then a training step (forward and backward).

    Args:
        networks: by name. The first is ours; the second is what all are compared with. All map
            ``x`` to logits, and are on its device.
        x: a batch.
        name: of the network.
        rounds: turns of each.
        precision: ``fp32``, or the autocast to measure with.
        report: takes lines of progress.
    """
    device = x.device.type
    ours, theirs = list(networks)[:2]
    autocast = partial(torch.autocast, device, DTYPES[precision], enabled=precision != "fp32")

    @torch.no_grad()
    def infer(network: nn.Module) -> Tensor:
        with autocast():
            return network(x)

    def loss(network: nn.Module) -> Tensor:
        with autocast():
            return network(x).square().mean()

    def train(network: nn.Module) -> None:
        loss(network).backward()
        network.zero_grad()

    rows = []
    for task, step in (("inference", infer), ("training step", train)):
        for network in networks.values():
            network.train(step is train)
        found = interleave(
            {which: resident(partial(step, network)) for which, network in networks.items()},
            rounds=rounds,
            device=device,
            progress=lambda line, task=task: report(f"{name} {task}, {line}"),
        )
        row: dict[str, object] = {"network": name, "task": task}
        row |= {f"{which} (s)": seconds_cell(timing) for which, timing in found.items()}
        row |= {
            f"{which}: times as fast": ratio(speed_over(timing, found[theirs]))
            for which, timing in found.items()
            if which != theirs
        }
        rows.append(row)
    saved = {}
    for which in (ours, theirs):
        network = networks[which]
        saved[which] = saved_for_backward(partial(loss, network), [*network.parameters()])
        rows[1][f"{which} saves (GiB)"] = f"{saved[which] / GIB:.3f}"
    rows[1]["ratio saved"] = f"{saved[ours] / saved[theirs]:.2f}"
    for network in networks.values():
        network.eval()
    expected = infer(networks[theirs]).float()
    difference = (infer(networks[ours]).float() - expected).abs().max() / expected.abs().max()
    rows[0]["largest difference"] = f"{difference.item():.1e}"
    columns = dict.fromkeys(column for row in reversed(rows) for column in row)
    return [{column: row.get(column, "") for column in columns} for row in rows]
