"""Where tests of kernels run, and what the kernels become for an H100, with or without one.

Tests of kernels import :func:`poison`, :func:`round_to_nearest` and :func:`within_tensors`, which
then apply by themselves.
"""

import os
import subprocess
import sys
from typing import NamedTuple

import numpy as np
import pytest
import torch

HAS_GPU = torch.cuda.is_available()
DEVICE = "cuda" if HAS_GPU else "cpu"
ON_GPU = [pytest.mark.gpu, pytest.mark.skipif(not HAS_GPU, reason="needs a GPU")]
# The variable decides when Triton is imported, so that it cannot be set here.
NEEDS_KERNELS = pytest.mark.skipif(
    not HAS_GPU and os.environ.get("TRITON_INTERPRET") != "1",
    reason="needs a GPU or Triton's interpreter",
)
SHARED_MEMORY = 227 * 1024  # bytes that a program can have on an H100


# Compiles for an H100 what the functions launch on tensors of the CPU, and runs none of it. Prints
# for each launch the kernel, its binary's hash, registers, bytes of stack (what is spilled) and of
# shared memory, accesses of 16 and of 8 bytes, products on tensor cores, and the longest loop's
# instructions, 0 where nothing disassembles it.
_COMPILE = """
import os, re, subprocess, tempfile
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

class Driver:
    get_current_target = lambda self: GPUTarget("cuda", 90, 32)
    get_current_device = lambda self: 0
    get_current_stream = lambda self, device: 0

triton.runtime.driver.set_active(Driver())
tool = os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin", "cuobjdump")
run = JITFunction.run

def compile_only(self, *arguments, grid, warmup, **options):
    compiled = run(self, *arguments, grid=grid, warmup=True, **options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [tool, "--dump-resource-usage", file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        sass = subprocess.run([tool, "-sass", file.name], capture_output=True, text=True).stdout
    registers, stack = re.search(r"REG:(\\d+) STACK:(\\d+)", said).groups()
    code = re.findall(r"/\\*([0-9a-f]{4,})\\*/\\s+(.*?);", sass)
    at = {int(address, 16): i for i, (address, _) in enumerate(code)}
    jumps = [(i, re.search(r"BRA.* 0x([0-9a-f]+)", line)) for i, (_, line) in enumerate(code)]
    loop = max((i + 1 - at[int(to[1], 16)] for i, to in jumps if to), default=0)
    ptx = compiled.asm["ptx"]
    wide = len(re.findall(r"(?:ld|st)\\.global\\S*\\.v4\\.b32", ptx))
    halves = len(re.findall(r"(?:ld|st)\\.global\\S*\\.v2\\.b32", ptx))
    products = len(re.findall(r"wgmma\\.mma|mma\\.sync", ptx))
    shared = compiled.metadata.shared
    print(compiled.name, compiled.hash, registers, stack, shared, wide, halves, products, loop)

JITFunction.run = compile_only
"""


class Binary(NamedTuple):
    """What a kernel is for an H100."""

    kernel: str
    hash: str
    registers: int
    stack: int
    shared: int
    wide: int
    halves: int
    products: int
    loop: int


def compiled_for_an_h100(script: str) -> list[Binary]:
    """The kernels that a script launches on the CPU's tensors, in order.

    Skips the test before Triton 3.6, with which attention spills registers: this tells what new
    code costs, not what old compilers do.
    """
    pytest.importorskip("triton", minversion="3.6", reason="registers are counted from 3.6 on")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", _COMPILE + script],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    return [Binary(*row[:2], *map(int, row[2:])) for row in rows]


@pytest.fixture(autouse=True)
def poison():
    """What is not written is NaN."""
    assert torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(3).isnan().all() and torch.ones(2).new_empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def round_to_nearest(monkeypatch):
    """The interpreter cuts bits of float32 off for bfloat16, where GPUs round to nearest."""
    if torch.cuda.is_available():
        return
    tl = pytest.importorskip("triton.language")
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    cut = InterpreterBuilder.create_fp_trunc

    def rounded(self, source, to):
        if source.dtype.scalar != tl.float32 or to.scalar != tl.bfloat16:
            return cut(self, source, to)
        bits = torch.from_numpy(source.data.copy()).to(torch.bfloat16).view(torch.int16)
        return TensorHandle(bits.numpy().view("uint16"), to.scalar)

    monkeypatch.setattr(InterpreterBuilder, "create_fp_trunc", rounded)


@pytest.fixture(autouse=True)
def within_tensors(monkeypatch):
    """In the interpreter, a kernel that reads or writes outside of its tensors fails.

    On a GPU that may be an illegal access, or go unseen.
    """
    if torch.cuda.is_available():
        return
    pytest.importorskip("triton")
    from triton.runtime.interpreter import GridExecutor, InterpreterBuilder

    call, load = GridExecutor.__call__, InterpreterBuilder.create_masked_load
    store = InterpreterBuilder.create_masked_store
    bounds = []  # starts and ends of the launch's storages, sorted; no two overlap

    def launched(self, *arguments, **constants):
        flat, _ = torch.utils._pytree.tree_flatten([arguments, constants])
        storages = [x.untyped_storage() for x in flat if isinstance(x, torch.Tensor)]
        spans = {(x.data_ptr(), x.data_ptr() + x.nbytes()) for x in storages if x.nbytes()}
        bounds[:] = np.array(sorted(spans), dtype=np.uint64).reshape(-1, 2).T
        return call(self, *arguments, **constants)

    def check(pointers, mask):
        at = pointers.data[np.broadcast_to(mask.data, pointers.data.shape).astype(bool)]
        starts, ends = bounds
        before = np.searchsorted(starts, at.astype(np.uint64), side="right")
        outside = at >= np.append(0, ends).astype(np.uint64)[before]  # none before: all are
        assert not outside.any(), f"{outside.sum()} of {at.size} accesses are outside of tensors"

    def loaded(self, pointers, mask, *rest):
        check(pointers, mask)
        return load(self, pointers, mask, *rest)

    def stored(self, pointers, value, mask, *rest):
        check(pointers, mask)
        return store(self, pointers, value, mask, *rest)

    monkeypatch.setattr(GridExecutor, "__call__", launched)
    monkeypatch.setattr(InterpreterBuilder, "create_masked_load", loaded)
    monkeypatch.setattr(InterpreterBuilder, "create_masked_store", stored)
