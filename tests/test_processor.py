"""What PyTorch says of the CPU."""

import pytest

from mvitv2_det import processor


@pytest.mark.parametrize(
    ("able", "expected"),
    [
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
        ({"avx512_f": True}, False),
        ({}, False),
    ],
    ids=str,
)
def test_products_of_bfloat16(able, expected, monkeypatch):
    monkeypatch.setattr(processor, "capabilities", lambda: able)
    processor.multiplies_bfloat16.cache_clear()
    try:
        assert processor.multiplies_bfloat16() is expected
    finally:
        processor.multiplies_bfloat16.cache_clear()
