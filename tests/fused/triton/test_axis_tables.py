"""Tables that kernels look R up in, and their gradients, against the plain model's embedding."""

import pytest
import torch
from h100 import DEVICE, NEEDS_KERNELS, poison, round_to_nearest, within_tensors  # noqa: F401
from marks import long_but

pytest.importorskip("triton", minversion="3.4", reason="the kernels need Triton 3.4")

from mvitv2_det.attention.position import relative_embedding
from mvitv2_det.fused.triton.axis_tables import AxisTable, table_gradients

# Queries and keys of an axis: those of windows, whole maps whose sides are no multiples, a clip's
# more keys than queries; 40 need two blocks of readers.
SIDES = [(56, 14), (25, 13), (40, 11), (7, 7), (4, 9), (13, 40), (1, 1)]


@pytest.mark.parametrize(("queries", "keys"), SIDES)
@pytest.mark.parametrize("length", [None, 27])
def test_rows_are_those_of_the_embedding(queries, keys, length):
    table = torch.randn(length or 2 * max(queries, keys) - 1, 6, dtype=torch.float64, device=DEVICE)
    table.requires_grad_()
    rel = AxisTable.of(table, queries, keys)
    expected = relative_embedding(table, queries, keys)
    torch.testing.assert_close(rel.table[rel.rows], expected, rtol=0, atol=1e-12)
    grad = torch.randn_like(expected)
    found = (
        torch.autograd.grad((e * grad).sum(), table)[0] for e in (rel.table[rel.rows], expected)
    )
    torch.testing.assert_close(*found, rtol=0, atol=1e-11)


@pytest.mark.parametrize(("queries", "keys"), SIDES)
def test_readers_are_all_places_once(queries, keys):
    rel = AxisTable.of(torch.randn(3, 2, device=DEVICE), queries, keys)
    places = rel.readers[rel.readers >= 0]
    assert places.sort().values.tolist() == list(range(queries * keys))
    row_of_place = torch.arange(len(rel.table), device=DEVICE)[:, None].expand_as(rel.readers)
    assert torch.equal(rel.rows.flatten()[places.long()].long(), row_of_place[rel.readers >= 0])


@NEEDS_KERNELS
@pytest.mark.parametrize("dtype", long_but([torch.float64], [torch.float64, torch.float32]))
def test_gradients(dtype):
    """Sums of three programs' parts; the channels are no power of two."""
    tables = [torch.randn(2 * max(side) - 1, 6, dtype=dtype) for side in SIDES[2:4]]
    leaves = [table.to(DEVICE).requires_grad_() for table in tables]
    rel = [AxisTable.of(leaf, *side) for leaf, side in zip(leaves, SIDES[2:4], strict=True)]
    partial = torch.randn(3, sum(r.rows.numel() for r in rel), 6, dtype=dtype, device=DEVICE)
    found = table_gradients(partial, *rel)
    read = torch.cat([r.table[r.rows].flatten(0, 1) for r in rel])
    expected = torch.autograd.grad((read * partial.sum(0)).sum(), leaves)
    for own, exact in zip(found, expected, strict=True):
        assert own.dtype == dtype
        torch.testing.assert_close(own, exact, rtol=0, atol=1e-11 if dtype.itemsize == 8 else 1e-5)
    assert all(
        torch.equal(*pair) for pair in zip(found, table_gradients(partial, *rel), strict=True)
    )
