"""Whether kernels say why they cannot run."""

import pytest
import torch

from mvitv2_det.fused.triton import available

triton = pytest.importorskip("triton")


@pytest.mark.parametrize(("found", "refused"), [("3.3.1", True), ("3.4.0", False)])
def test_triton_without_named_tuples_is_refused(monkeypatch, found, refused):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(triton, "__version__", found)
    available._triton_lacks.cache_clear()
    reason = available.why_unavailable(torch.device("cpu"), torch.float32)
    available._triton_lacks.cache_clear()
    assert (reason == "it needs Triton 3.4 or later, got 3.3.1") == refused
    assert refused or reason is None
