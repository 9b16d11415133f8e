"""For all tests of kernels: memory that shows where nothing was written, and true rounding."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _poison():
    """What is not written is NaN."""
    assert torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(3).isnan().all() and torch.ones(2).new_empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def _round_to_nearest(monkeypatch):
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
