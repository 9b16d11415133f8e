"""Products by oneDNN and by MKL, and which of them is taken."""

import pytest
import torch
from fused.blocks import KINDS, assert_same, block, outputs_and_gradients
from models import relative_error

from mvitv2_det.fused import products

ROUNDING = 2e-6  # float32, sums of up to 300 products


@pytest.fixture(params=[True, False], ids=["oneDNN", "MKL"])
def taken(request, monkeypatch):
    """As on a CPU where oneDNN's products are the faster ones, of any size, or are not."""
    monkeypatch.setattr(products, "_outruns_mkl", lambda: request.param)
    monkeypatch.setattr(products, "_is_worth_a_call", lambda a, b: True)
    return request.param


def matrices(rows: int, columns: int, transposed: bool) -> torch.Tensor:
    """(3, rows, columns), as they are or as the transpose of what is in memory."""
    if transposed:
        return torch.randn(3, columns, rows).transpose(1, 2)
    return torch.randn(3, rows, columns)


@pytest.mark.parametrize(("m", "n"), [(40, 24), (24, 40), (300, 280)])
@pytest.mark.parametrize("other_transposed", [True, False])
@pytest.mark.parametrize("transposed", [True, False])
def test_products(taken, transposed, other_transposed, m, n):
    """Of m×300 and 300×n matrices in any layout: written, added, and written over NaN."""
    a, b = matrices(m, 300, transposed), matrices(300, n, other_transposed)
    total, expected = torch.randn(3, m, n), a.double() @ b.double()
    out = torch.full_like(total, torch.nan)
    products.write_products(a, b, out)
    assert relative_error(out, expected) < ROUNDING
    out.fill_(torch.nan)
    products.add_products(out, a, b, beta=0)
    assert relative_error(out, expected) < ROUNDING
    out = total.clone()
    products.add_products(out, a, b)
    assert relative_error(out, total + expected) < ROUNDING
    found = products.added_product(None, a[0], b[0], torch.float32)
    assert found.is_contiguous() and relative_error(found, expected[0]) < ROUNDING
    again = products.added_product(found, a[0], b[0], torch.float32)
    assert again is found and relative_error(found, 2 * expected[0]) < ROUNDING


@pytest.mark.parametrize("kind", KINDS)
def test_blocks(taken, kind):
    """Outputs and gradients are the plain block's; float32, two maps of 9×14 tokens."""
    x = torch.randn(2, 9, 14, 12)
    fast, plain = block("tiled", **KINDS[kind]), block(None, **KINDS[kind])
    assert_same(outputs_and_gradients(fast, x), outputs_and_gradients(plain, x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_are_left_to_pytorch(monkeypatch, dtype):
    monkeypatch.setattr(products, "_outruns_mkl", lambda: True)
    monkeypatch.setattr(products, "_onednn_product", None)
    a = torch.randn(2, 700, 700, dtype=dtype)
    products.write_products(a, a, torch.empty_like(a))
    products.added_product(None, a[0], a[1], dtype)


@pytest.mark.parametrize(
    ("threads", "worth"), [(1, [True, False, False]), (4, [False, False, False])]
)
def test_small_products_are_one_call(monkeypatch, threads, worth):
    """784×196, 196×196 and 49×49 logits of 96 channels: a call has a cost of its own."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    pairs = [(784, 196), (196, 196), (49, 49)]
    found = [
        products._is_worth_a_call(torch.empty(1, q, 96), torch.empty(1, 96, k)) for q, k in pairs
    ]
    assert found == worth


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"cpu_name": "AMD EPYC", "avx512_f": True}, True),
        ({"cpu_name": "AMD EPYC", "avx512_f": False}, False),
        ({"cpu_name": "Intel(R) Xeon(R)", "avx512_f": True}, False),
        ({"avx512_f": True}, False),  # as older versions, which do not name the CPU
        ({}, False),
    ],
    ids=str,
)
def test_where_onednn_is_ahead(monkeypatch, capabilities, expected):
    monkeypatch.setattr(products, "capabilities", lambda: capabilities)
    products._outruns_mkl.cache_clear()
    try:
        assert products._outruns_mkl() is expected
    finally:
        products._outruns_mkl.cache_clear()
