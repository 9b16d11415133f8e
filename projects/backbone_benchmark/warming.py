"""Compiles what a GPU needs before anything is measured: in several processes at once.

Triton compiles a kernel when it is first launched, each shape on its own, a second or so at a time.
Compiled kernels are kept on disk, where the process that measures finds them.

Axes: B images, H × W tokens, C channels.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch

from mvitv2_det import VARIANTS, MViT
from projects.backbone_benchmark.floors import Work, stages_of, work_of, works
from projects.backbone_benchmark.networks import DTYPES, NORM, Setting
from projects.common.memory import synchronize

PROCESSES = 8  # each holds half a gigabyte of the GPU, and what one block needs


def warm(settings: Iterable[Setting], report: Callable[[str], None] = print) -> None:
    """Runs one block of each kind once, forward and backward; what fails is reported alone."""
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
    """Inference and a training step of the first block that does this work."""
    arguments = VARIANTS[setting.variant].backbone_arguments() | {"drop_path_rate": 0.0}
    model = MViT(**arguments, norm_layer=NORM)
    stages = stages_of(setting.variant)
    block = next(
        block
        for stage, block in zip(stages, model.blocks, strict=True)
        if work_of(block.attn, stage, work.batch, work.size) == work
    ).to(setting.device)
    shape = (work.batch, *work.size, block.attn.qkv.in_features)
    # Tokens have the type of the products of the blocks before.
    tokens = torch.randn(shape, device=setting.device, dtype=DTYPES[setting.precision])
    with torch.inference_mode(), setting.autocast():
        block.eval()(tokens)
    with setting.autocast():
        output = block.train()(tokens.requires_grad_())
    output.float().square().mean().backward()
    synchronize(setting.device)
