"""Blocks of the networks whose kernels are tuned, and the launches of single kernels on them.

Axes: B images, H × W tokens, C channels.
"""

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from triton.runtime.jit import JITFunction

from mvitv2_det import VARIANTS, MViT
from mvitv2_det.fused.triton.launch import Blocks
from mvitv2_det.fused.triton.tile_table import Case
from projects.backbone_benchmark.kernels import Triton
from projects.backbone_benchmark.networks import Setting
from projects.backbone_benchmark.roofline import Work, block_of, works
from projects.backbone_benchmark.tiles.choosing import Kernel, Task
from projects.common.results import DTYPES


class Launch(NamedTuple):
    """A launch that can be repeated."""

    function: JITFunction
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    compiled: Any  # Triton's kernel

    def __call__(self) -> None:
        """Launches again."""
        self.function.run(*self.arguments, **self.options)


@contextmanager
def chosen(kernel: Kernel, choose: Callable[[torch.device, Case], Blocks]) -> Iterator[None]:
    """Lets another function choose a kernel's blocks."""
    with patch(f"{kernel.choose.__module__}.{kernel.choose.__name__}", choose):
        yield


@contextmanager
def launches_of(kernel: Kernel, *, compile_only: bool = False) -> Iterator[list[Launch]]:
    """Notes a kernel's launches; with ``compile_only`` it compiles these, and runs nothing."""
    found: list[Launch] = []
    run = JITFunction.run

    def noted(function: JITFunction, *arguments: Any, **options: Any) -> Any:
        wanted = function.fn.__name__ == kernel.function
        if compile_only and not wanted:
            return None
        compiled = run(function, *arguments, **options | {"warmup": compile_only})
        if wanted:
            found.append(Launch(function, arguments, options, compiled))
        return compiled

    with patch.object(JITFunction, "run", noted):
        yield found


_works = cache(works)


@cache
def _network(variant: str, device: str) -> MViT:
    with torch.device(device):
        return MViT(**VARIANTS[variant].backbone_arguments() | {"drop_path_rate": 0.0})


def pieces_of(setting: Setting, work: Work) -> Triton:
    """Makes a block's pooling and attention; on the device ``meta`` without data.

    All of a block's parameters are random: position logits are about 1, as a model has.
    """
    meta = setting.device == "meta"
    network = _network(setting.variant, "meta" if meta else "cpu")
    attention = copy.deepcopy(block_of(network, setting, work).attn)
    shape = (work.batch, *work.size, 3 * work.channels)
    dtype = DTYPES[setting.precision]
    if meta:
        # Autocast knows no such device.
        with patch.object(torch, "autocast", lambda *_, **__: nullcontext()):
            return Triton(attention, torch.empty(shape, dtype=dtype, device="meta"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in attention.named_parameters():
            mean = float("norm" in name and name.endswith("weight"))
            parameter.normal_(mean, 0.1, generator=generator)
    torch.manual_seed(0)
    return Triton(
        attention.to(setting.device), torch.randn(shape, dtype=dtype, device=setting.device)
    )


def setting_of(settings: Iterable[Setting], work: Work, device: str) -> Setting:
    """A setting whose network has a block that does this work, on a device."""
    found = next(s for s in settings if s.batch == work.batch and work in _works(s))
    return Setting(found.variant, found.size, found.batch, found.precision, device)


def tasks_of(settings: Sequence[Setting], kernels: Iterable[Kernel]) -> list[Task]:
    """Makes a task of each class of shapes that the networks ask a kernel's blocks for."""
    counts: Counter[Work] = Counter()
    for setting in settings:
        counts += _works(setting)
    made = []
    for kernel in kernels:
        by_case: dict[Case, dict[Work, int]] = {}
        for work, count in counts.items():
            case = case_of(kernel, setting_of(settings, work, "meta"), work)
            by_case.setdefault(case, {})[work] = count
        made += [Task(kernel, case, found) for case, found in by_case.items()]
    return made


def case_of(kernel: Kernel, setting: Setting, work: Work) -> Case:
    """What an operation on a shape asks a kernel's blocks for; found without running it."""
    asked: list[Case] = []

    def note(device: torch.device, case: Case) -> Blocks:
        asked.append(case)
        return kernel.rule_of(case)

    with torch.no_grad(), patch.object(JITFunction, "run", lambda *_, **__: None):
        operation = pieces_of(setting, work).run(kernel.family)
        with chosen(kernel, note):
            operation()
    (case,) = set(asked)
    return case
