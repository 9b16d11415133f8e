"""Where the time goes: the operations that take the most, of Detectron2's backbone and of ours."""

import os
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from projects.backbone_benchmark import networks
from projects.backbone_benchmark.networks import Setting
from projects.common.memory import OutOfMemory, attempt, synchronize

TOP = 15  # operations of a table


@dataclass(frozen=True)
class Operation:
    """One operation of one pass.

    Attributes:
        step: inference or training.
        calls, seconds: of all calls in the pass; on a GPU those of a kernel, on a CPU without
            what it calls in turn.
        share: of the time of all operations.
    """

    setting: Setting
    network: str
    step: str
    name: str
    calls: int
    seconds: float
    share: float


def measure(setting: Setting, report: Callable[[str], None] = print) -> list[Operation]:
    """Both networks, each with one inference and one training step."""
    reference = networks.detectron2_network(setting)
    found = []
    for name, model in (
        ("Detectron2", reference),
        ("ours", networks.our_network(setting, reference, "auto")),
    ):
        for step, make in (("inference", networks.inference), ("training", networks.training)):
            report(f"profile {setting.name} {name} {step}")
            taken = attempt(lambda m=model, make=make: _profiled(make(m, setting), setting.device))
            if not isinstance(taken, OutOfMemory):
                found += _top(setting, name, step, taken)
    return found


def profiler(device: str) -> profile:
    """PyTorch's, without the lines that its library writes among the user's."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    gpu = [ProfilerActivity.CUDA] if torch.device(device).type == "cuda" else []
    return profile(activities=[ProfilerActivity.CPU, *gpu])


def _profiled(step: Callable[[], object], device: str) -> dict[str, list[float]]:
    """Seconds of each call, by operation, after a pass to warm up."""
    step()
    synchronize(device)
    on_gpu = torch.device(device).type == "cuda"
    with profiler(device) as recorded:
        step()
        synchronize(device)
    kind = DeviceType.CUDA if on_gpu else DeviceType.CPU
    seconds = defaultdict(list)
    for event in recorded.events():
        if event.device_type == kind and not getattr(event, "is_user_annotation", False):
            own = event.time_range.elapsed_us() if on_gpu else event.self_cpu_time_total
            seconds[event.name].append(own / 1e6)
    return seconds


def _top(
    setting: Setting, network: str, step: str, taken: dict[str, list[float]]
) -> list[Operation]:
    everything = [seconds for calls in taken.values() for seconds in calls]
    longest = sorted(taken.items(), key=lambda item: -sum(item[1]))[:TOP]
    return [
        Operation(
            setting, network, step, name, len(calls), sum(calls), sum(calls) / sum(everything)
        )
        for name, calls in [("all", everything), *longest]
    ]
