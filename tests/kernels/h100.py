"""Where tests of kernels run, and what the kernels become for an H100, with or without one."""

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
