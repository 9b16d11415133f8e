"""Compilation of all Triton kernels before a measurement, in several processes at once.

Triton compiles a kernel for each shape when it is first launched, which takes about a second.
Compiled kernels are stored on disk, where the process that measures finds them.

Axes: B images, H × W tokens, C channels.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch

from mvitv2_det import VARIANTS, MViT
from projects.backbone_benchmark.networks import NORM, Setting
from projects.backbone_benchmark.roofline import Work, block_of, works
from projects.common.memory import synchronize
from projects.common.results import DTYPES

PROCESSES = 8  # each of which takes half a gigabyte of the GPU, besides one block's tensors


def warm(settings: Iterable[Setting], report: Callable[[str], None] = print) -> None:
    """Runs one block of each kind once, forward and backward, and reports those that fail."""
    found = {
        (setting.precision, work): (setting, work)
        for setting in settings
        for work in works(setting)
    }
    report(f"compiling for {len(found)} kinds of blocks")
    start = get_context("spawn")
    with ProcessPoolExecutor(PROCESSES, start, torch.set_num_threads, (1,)) as pool:
        tasks = [pool.submit(run_block, *task) for task in found.values()]
        for (_, work), task in zip(found, tasks, strict=True):
            if error := task.exception():
                report(f"{work.name}: {type(error).__name__}: {error}")
    report("compiled")


def run_block(setting: Setting, work: Work) -> None:
    """Runs inference and a training step of the first block that does this work."""
    arguments = VARIANTS[setting.variant].backbone_arguments() | {"drop_path_rate": 0.0}
    block = block_of(MViT(**arguments, norm_layer=NORM), setting, work).to(setting.device)
    shape = (work.batch, *work.size, block.attn.qkv.in_features)
    # Tokens have the precision that the products of earlier blocks give them.
    tokens = torch.randn(shape, device=setting.device, dtype=DTYPES[setting.precision])
    with torch.inference_mode(), setting.autocast():
        block.eval()(tokens)
    with setting.autocast():
        output = block.train()(tokens.requires_grad_())
    output.float().square().mean().backward()
    synchronize(setting.device)
