"""Sums over rows against PyTorch; on the CPU in Triton's interpreter."""

import pytest
import torch
from h100 import (  # noqa: F401
    DEVICE,
    NEEDS_KERNELS,
    compiled_for_an_h100,
    poison,
    round_to_nearest,
    within_tensors,
)

pytest.importorskip("triton", minversion="3.4", reason="the kernels need Triton 3.4")

from mvitv2_det.fused.triton.sums import row_sums

pytestmark = NEEDS_KERNELS
SHAPES = [(130, 45), (1, 300), (257, 33), (0, 5)]


def matrices(count: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    return [torch.randn(shape, dtype=dtype, device=DEVICE) for shape in SHAPES[:count]]


@pytest.mark.parametrize("count", range(1, 5))
def test_row_sums(count):
    given = matrices(count)
    for found, matrix in zip(row_sums(given), given, strict=True):
        torch.testing.assert_close(found, matrix.sum(0), rtol=0, atol=1e-12)


def test_few_rows():
    given = [torch.randn(4, 700, dtype=torch.float64, device=DEVICE) for _ in range(2)]
    for found, matrix in zip(row_sums(given), given, strict=True):
        torch.testing.assert_close(found, matrix.sum(0), rtol=0, atol=1e-12)


def test_sums_in_another_type():
    (matrix,) = matrices(1, torch.float32)
    (found,) = row_sums([matrix], torch.bfloat16)
    assert torch.equal(found, row_sums([matrix])[0].bfloat16())
    torch.testing.assert_close(found.float(), matrix.sum(0), rtol=1e-2, atol=1e-2)


def test_taps_are_turned():
    """Nine taps and two rows of five channels, in the first three matrices alone."""
    given = [torch.randn(20, 55, dtype=torch.float64, device=DEVICE) for _ in range(4)]
    *turned, last = row_sums(given, turned=(9, 5))
    for found, matrix in zip(turned, given[:3], strict=True):
        taps, rest = matrix.sum(0).split([45, 10])
        expected = torch.cat([taps.view(9, 5).T.flatten(), rest])
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(last, given[3].sum(0), rtol=0, atol=1e-12)


COMPILE = """
from mvitv2_det.fused.triton.sums import row_sums

few, many = torch.empty(4, 2048), torch.empty(528, 1056)
row_sums([few, few], torch.bfloat16)
row_sums([many, many, many], turned=(9, 96))
row_sums([many, few])
"""


@pytest.mark.long
def test_compiles_for_an_h100():
    binaries = compiled_for_an_h100(COMPILE)
    assert len(binaries) == 3 and all(binary.stack == 0 for binary in binaries)
