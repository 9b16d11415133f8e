"""Operations that take the most time, of Detectron2's backbone and of ours."""

import os
from collections import defaultdict
from collections.abc import Callable

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from projects.backbone_benchmark.networks import STEPS, Setting, both_networks
from projects.common.memory import OutOfMemory, attempt, synchronize

TOP = 15  # operations of each pass that are listed
_LONGEST_NAME = 90  # characters; templates make the names of a GPU's kernels long


def measure(setting: Setting, rounds: int, report: Callable[[str], None] = print) -> list[dict]:
    """Profiles one inference and one training step of both networks.

    Args:
        rounds: not used, because the profiler sees one pass after one to warm up.

    Returns:
        for each pass a row of all operations, and a row for each of the longest. Times of an
        operation on a GPU are those of its kernel, and on a CPU exclude the operations it calls.
    """
    rows = []
    for network, model in both_networks(setting).items():
        for step, make in STEPS.items():
            report(f"profile {setting.name} {network} {step}")
            taken = attempt(lambda m=model, make=make: _profiled(make(m, setting), setting.device))
            if isinstance(taken, OutOfMemory):
                continue
            everything = [seconds for calls in taken.values() for seconds in calls]
            longest = sorted(taken.items(), key=lambda item: -sum(item[1]))[:TOP]
            rows += [
                {
                    **setting.columns,
                    "network": network,
                    "step": step,
                    "operation": name[:_LONGEST_NAME],
                    "calls": str(len(calls)),
                    "ms": f"{1e3 * sum(calls):.3f}",
                    "%": f"{100 * sum(calls) / sum(everything):.1f}",
                }
                for name, calls in [("all", everything), *longest]
            ]
    return rows


def profiler(device: str) -> profile:
    """Makes PyTorch's profiler, without the lines that its library would print."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    gpu = [ProfilerActivity.CUDA] if torch.device(device).type == "cuda" else []
    return profile(activities=[ProfilerActivity.CPU, *gpu])


def _profiled(step: Callable[[], object], device: str) -> dict[str, list[float]]:
    """Records the seconds of each call by operation, after a pass to warm up."""
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
