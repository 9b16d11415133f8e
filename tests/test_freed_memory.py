"""Freed memory is kept: passes after the first take no pages from the system."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, torch
from mvitv2_det.freed_memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24).add(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
before, keeps = faults(), keep_freed_memory()
for _ in range(10):
    faults()
print(int(keeps), before, faults())
"""


def run(**environment: str) -> list[int]:
    done = subprocess.run(
        [sys.executable, "-c", FAULTS],
        env={"PATH": "", "PYTHONPATH": ":".join(sys.path)} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return [int(word) for word in done.stdout.split()]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="this is of glibc alone")
def test_later_passes_take_no_pages():
    keeps, before, after = run()
    assert keeps and before > 10_000 and after < 100  # of 32,768 for two tensors of 64 MB


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="this is of glibc alone")
def test_what_the_user_has_set_stays():
    keeps, _, after = run(MALLOC_TRIM_THRESHOLD_="131072")
    assert not keeps and after > 10_000
