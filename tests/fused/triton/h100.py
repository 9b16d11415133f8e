"""Where tests of kernels run, and what the kernels become for an H100, with or without one.

Tests of kernels import :func:`poison` and :func:`round_to_nearest`, which then apply by themselves.
"""

import os
import subprocess
import sys

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


def numbers_of_compiler(script: str) -> list[list[int]]:
    """The numbers of each line that a script prints, which compiles kernels without interpreter."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return [[int(word) for word in line.split()] for line in done.stdout.splitlines()]


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
