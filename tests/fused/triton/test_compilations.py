"""How often Triton compiles over the sizes of COCO's images; no GPU and no compiler runs."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", minversion="3.4", reason="the kernels need Triton 3.4")

# Runs the blocks of T, forward and backward, on tensors without data, and counts what Triton would
# compile: what it looks a kernel up by.
COUNT = """
import inspect, sys
from collections import Counter
from dataclasses import replace
from functools import cache
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

class Driver:
    get_current_target = lambda self: GPUTarget("cuda", 90, 32)
    get_current_device = lambda self: 0
    get_current_stream = lambda self, device: 0

triton.runtime.driver.set_active(Driver())
kernels, run = Counter(), JITFunction.run

def count(self, key, signature, device, *_):
    kernels[self.fn.__name__] += 1
    self.device_caches[device][0][key] = object()
    return object()

JITFunction._do_compile = count
JITFunction.run = lambda self, *a, grid, warmup, **o: run(self, *a, grid=grid, warmup=True, **o)

from mvitv2_det import VARIANTS, MViT
from mvitv2_det.fused.choice import TRITON, Choice
from mvitv2_det.fused.triton import (
    attention_backward, attention_forward, logits, norm_gelu, pool,
)

torch.is_autocast_enabled = lambda *_: False  # not every version of torch knows this device
class NoAutocast:
    def __init__(self, *_, **__): pass
    __enter__ = __exit__ = lambda *_: None

torch.autocast = NoAutocast
choice = Choice(TRITON, norm_gelu)
if ALL_MEASURED:  # the table has other blocks for each class of shapes
    numbers = iter(range(32, 256))
    for kernel in (
        attention_forward.forward_blocks, attention_backward.query_blocks,
        attention_backward.key_blocks, logits.extend_blocks, logits.backward_blocks,
        pool.forward_tile, pool.backward_tile, pool.gather_tile,
    ):
        rule = inspect.unwrap(kernel)
        def measured(device, case, rule=rule):
            return replace(rule(case), registers=next(numbers))
        setattr(sys.modules[kernel.__module__], kernel.__name__, cache(measured))
with torch.device("meta"):
    model = MViT(**VARIANTS["T"].backbone_arguments() | {"drop_path_rate": 0.0}).bfloat16()
for height, width in SIZES:
    tokens = torch.empty(2, height // 4, width // 4, 96, device="meta", dtype=torch.bfloat16)
    tokens.requires_grad_()
    for block in model.blocks:
        tokens = block.compute(tokens, choice, (None, None))
    tokens.backward(torch.empty_like(tokens))
print(kernels.total(), dict(kernels))
"""
# Of the 240 padded sizes of the detection recipe's multi-scale training, those that add a kernel
# (all 240 take minutes here), and some more.
SIZES = [
    (640, 640), (640, 672), (640, 1056), (640, 1344), (672, 1088), (704, 896), (736, 1344),
    (800, 800), (800, 1088), (800, 1344), (1056, 640), (1088, 800), (1344, 640), (1344, 800),
]  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("all_measured", [False, True], ids=["rules", "table"])
def test_few_kernels_are_compiled_for_all_sizes(all_measured):
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "ignore",
            "-c",
            f"SIZES, ALL_MEASURED = {SIZES}, {all_measured}\n{COUNT}",
        ],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    count, *_ = done.stdout.split()
    assert 20 < int(count) <= 40, done.stdout
