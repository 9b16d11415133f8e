"""Blocks by Triton kernels: in the interpreter where there is no GPU, at real sizes on one."""

from copy import deepcopy

import pytest
import torch
from fused.blocks import assert_same, block, outputs_and_gradients
from h100 import round_to_nearest, within_tensors  # noqa: F401
from marks import long_but
from models import randomize, relative_error

from mvitv2_det import VARIANTS, MViT
from mvitv2_det.fused.triton import available

pytest.importorskip("triton", minversion="3.4", reason="the kernels need Triton 3.4")

HAS_GPU = torch.cuda.is_available()
DEVICE = "cuda" if HAS_GPU else "cpu"

needs_kernels = pytest.mark.skipif(
    not (HAS_GPU or available.interpreted()), reason="needs a GPU or TRITON_INTERPRET=1"
)
KINDS = {
    "windows": {"window_size": 4, "stride_kv": 2},
    "strided queries": {"window_size": 4, "stride_q": 2, "stride_kv": 4},
    "global": {"stride_kv": 2},
    "masked padding": {"window_size": 4, "stride_kv": 2, "mask_window_padding": True},
    "no positions, no bias": {"use_rel_pos": False, "qkv_bias": False, "window_size": 4},
    "no pooling of queries": {"pool_q": False, "window_size": 4, "stride_kv": 2},
    "no pooling": {"pool_q": False, "pool_kv": False, "residual_pooling": False},
    "dropped paths": {"pool_q": False, "pool_kv": False, "window_size": 4, "drop_path": 0.5},
    "no pooling, windows": {"pool_q": False, "pool_kv": False, "window_size": 4},
}
# Heads of 8 channels in the interpreter, and of 64, the fewest that go, on a GPU.
WIDTH = 8 if HAS_GPU else 1
SMALL = {"dim": 8 * WIDTH, "dim_out": 16 * WIDTH, "num_heads": 2, "table_size": 8}
KINDS["wider in the MLP"] = {
    "stride_kv": 2,
    "dim_out": SMALL["dim"],
    "num_heads": 1,
    "block_dim_out": SMALL["dim_out"],
}


@needs_kernels
@pytest.mark.parametrize("kind", long_but(("windows", "no pooling"), KINDS))
def test_equals_the_plain_block(kind):
    """Output and all gradients: 6×5 tokens, windows that reach over the border.

    To 1e-10 in float64 in the interpreter, to 1e-3 in float32 on a GPU.
    """
    dtype, tolerance = (torch.float32, 1e-3) if HAS_GPU else (torch.float64, 1e-10)
    fast, plain = (
        block(name, **SMALL | KINDS[kind]).to(DEVICE, dtype) for name in ("triton", None)
    )
    x = torch.randn(1, 6, 5, SMALL["dim"], dtype=dtype, device=DEVICE)
    assert_same(outputs_and_gradients(fast, x), outputs_and_gradients(plain, x), tolerance)


@needs_kernels
@pytest.mark.skipif(HAS_GPU, reason="float64 is the interpreter's")
@pytest.mark.long
def test_gradcheck():
    from mvitv2_det.fused.head_pool import HeadPool
    from mvitv2_det.fused.shape import AttentionShape
    from mvitv2_det.fused.triton.axis_tables import AxisTable
    from mvitv2_det.fused.triton.triton_attention import triton_attention

    def attend(qkv, table_h, table_w, *parameters):
        pools = [
            HeadPool(1, (stride, stride), (1, 1), 1e-6, *parameters[3 * i : 3 * i + 3])
            for i, stride in enumerate((1, 2, 2))
        ]
        shape = AttentionShape(1, 0.5, (2, 2), (1, 1), True)
        tables = [AxisTable.of(table, 2, 1) for table in (table_h, table_w)]
        return triton_attention(qkv, pools, tables, shape)

    shapes = [(1, 3, 2, 6), (3, 2), (3, 2), *(((2, 1, 3, 3), (2,), (2,)) * 3)]
    leaves = [torch.randn(shape, dtype=torch.float64).requires_grad_() for shape in shapes]
    assert torch.autograd.gradcheck(attend, leaves, fast_mode=True)


@needs_kernels
def test_what_is_saved_for_backward():
    """The projection, the output and a number for each query; no pooled map, no logits."""
    module = block("triton", **SMALL, **KINDS["windows"]).to(DEVICE)
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: sizes.append(tuple(tensor.shape)) or tensor, lambda tensor: tensor
    ):
        module(torch.randn(1, 6, 5, SMALL["dim"], device=DEVICE, requires_grad=True))
    maps = [shape for shape in sizes if len(shape) == 4 and shape[0] == 1]
    channels = [WIDTH * c for c in (8, 16, 48)]
    assert sorted(set(maps)) == [(1, 2, 6, 5), *((1, 6, 5, c) for c in channels)]


@needs_kernels
@pytest.mark.parametrize(
    "dtype",
    [
        torch.bfloat16,
        *(pytest.param(d, marks=pytest.mark.long) for d in (torch.float16, torch.float32)),
    ],
)
def test_the_self_check_passes(dtype, monkeypatch):
    from mvitv2_det.fused.triton import self_check

    self_check.fault.cache_clear()
    if not HAS_GPU:  # a minute in the interpreter
        monkeypatch.delitem(self_check._WINDOWS, "windowed attention (28×28 keys)")
    assert self_check.fault(torch.device(DEVICE, 0 if HAS_GPU else None), dtype, 96) is None


@pytest.mark.long
@needs_kernels
def test_the_self_check_of_large_windows_passes():
    from mvitv2_det.fused.triton import self_check

    error = self_check._attention_error(torch.device(DEVICE), torch.bfloat16, 96, (56, 56))
    assert error < self_check._TOLERANCE[torch.bfloat16]


@pytest.mark.long
@needs_kernels
def test_the_self_check_finds_what_is_wrong(monkeypatch):
    from mvitv2_det.fused.triton import norm_gelu, self_check

    def broken(*arguments):
        normed, mean, rstd = forward(*arguments)
        return normed, mean, rstd * 1.5

    forward = norm_gelu.layer_norm_forward
    device = torch.device(DEVICE, 0 if HAS_GPU else None)
    self_check.fault.cache_clear()
    monkeypatch.setattr(norm_gelu, "layer_norm_forward", broken)
    assert "its LayerNorm and GELU kernels err by" in self_check.fault(device, torch.float32, 96)
    self_check.fault.cache_clear()
    monkeypatch.setattr(norm_gelu, "layer_norm_forward", lambda *arguments: 1 / 0)
    assert "its kernels do not run on" in self_check.fault(device, torch.float32, 96)
    self_check.fault.cache_clear()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dim_out": 144, "num_heads": 1}, "its heads have 144 channels, at most 128 go"),
        ({"pool_kernel": (7, 7)}, "its pooling kernels have 49 taps, at most 25 go"),
        ({"rel_pos_kind": "joint"}, "positions are joint, not decomposed"),
        ({"window_size": 4, "shift": 2}, "its windows are shifted"),
    ],
)
def test_it_says_what_it_cannot_run(monkeypatch, changes, words):
    monkeypatch.setattr(available, "why_unavailable", lambda *_: None)
    module = block("triton", **SMALL | changes)
    with pytest.raises(ValueError, match=f"'triton' cannot run here: .*{words}"):
        module(torch.randn(1, 6, 5, 8))


@pytest.mark.parametrize(
    ("installed", "device", "capability", "dtype", "words"),
    [
        (False, "cuda", (9, 0), torch.float32, "Triton is not installed"),
        (True, "cpu", (9, 0), torch.float32, "made for NVIDIA GPUs, got tensors on cpu"),
        (True, "cuda", (9, 0), torch.float64, "float16, bfloat16 or float32, got torch.float64"),
        (True, "cuda", (7, 5), torch.float32, "compute capability 8.0 or more, got 7.5"),
    ],
)
def test_where_there_is_no_use_for_kernels(
    monkeypatch, installed, device, capability, dtype, words
):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(available, "find_spec", lambda name: object() if installed else None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    available._gpu_lacks.cache_clear()
    assert words in available.why_unavailable(torch.device(device), dtype)


def test_narrow_heads_are_not_for_a_gpu(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    reason = available.why_unavailable(torch.device("cuda"), torch.bfloat16, channels=8)
    assert reason == "its heads have 8 channels, at least 64 go on a GPU"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", ["triton", "auto", "sdpa"])
@pytest.mark.parametrize("index", range(10))
@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="needs a GPU")
def test_blocks_of_t_on_a_gpu(index, backend, dtype):
    """Each block against float64: at most twice the plain one's error in its output and the input's
    gradient, four times in those of parameters, which are sums of roundings in another order.

    Maps have odd sides, so that windows reach over the border.
    """
    options = VARIANTS["T"].backbone_arguments() | {"drop_path_rate": 0.0}
    plain, fast = (
        MViT(**options, attention_backend=name).blocks[index].cuda()
        for name in ("reference", backend)
    )
    fast.load_state_dict(randomize(plain.cpu()).state_dict())
    plain.cuda()
    halvings = sum(index > first for first in (1, 3, 8))
    x = torch.randn(2, 101 >> halvings, 135 >> halvings, plain.attn.spec.dim, device="cuda")
    exact = outputs_and_gradients(deepcopy(plain).double(), x.double())
    with torch.autocast("cuda", dtype=dtype, enabled=dtype != torch.float32):
        eager, found = (outputs_and_gradients(module, x) for module in (plain, fast))
    rounding = 1e-3 * max(tensor.abs().max() for tensor in exact.values())
    for name, wanted in exact.items():
        theirs, ours = ((one[name].double() - wanted).abs().max() for one in (eager, found))
        least = 1e-6 if dtype == torch.float32 else 1e-3
        times = 2 if name in ("output", "input") else 4
        # A shift of all keys changes no attention: that gradient is rounding alone.
        times = 10 if name == "attn.norm_k.bias" else times
        assert ours <= times * theirs + least * wanted.abs().max() + least * rounding, name


@pytest.mark.parametrize("size", [(224, 224), (800, 1088), (333, 501)])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="needs a GPU")
def test_networks_on_a_gpu(dtype, batch, size):
    """Features of T: at most twice the plain path's error against float64."""
    options = VARIANTS["T"].backbone_arguments() | {"drop_path_rate": 0.0}
    plain = randomize(MViT(**options, attention_backend="reference")).cuda()
    fast = MViT(**options, attention_backend="triton").cuda()
    fast.load_state_dict(plain.state_dict())
    images = torch.randn(batch, 3, *size, device="cuda")
    with torch.no_grad():
        exact = plain.double()(images.double())
        plain.float()
        with torch.autocast("cuda", dtype=dtype, enabled=dtype != torch.float32):
            found, eager = fast(images), plain(images)
    for name, wanted in exact.items():
        budget = 2 * relative_error(eager[name].double(), wanted) + 1e-6
        assert relative_error(found[name].double(), wanted) <= budget, name
