"""Attention kernels against plain operations; on the CPU in Triton's interpreter."""

from dataclasses import dataclass

import pytest
import torch
from h100 import (  # noqa: F401
    DEVICE,
    HAS_GPU,
    NEEDS_KERNELS,
    ON_GPU,
    SHARED_MEMORY,
    compiled_for_an_h100,
    poison,
    round_to_nearest,
    within_tensors,
)
from marks import long_but
from plain_attention import plain_attention
from torch import Tensor

pytest.importorskip("triton", minversion="3.4", reason="the kernels need Triton 3.4")

from mvitv2_det.fused.shape import AttentionShape
from mvitv2_det.fused.triton import attention_backward as backward
from mvitv2_det.fused.triton.attention_arguments import extended_tiles
from mvitv2_det.fused.triton.attention_forward import attention_forward
from mvitv2_det.fused.triton.axis_tables import AxisTable
from mvitv2_det.fused.triton.launch import channel_tiles
from projects.backbone_benchmark.tiles.choosing import KERNELS
from projects.backbone_benchmark.tiles.shapes import chosen

pytestmark = NEEDS_KERNELS
IN_INTERPRETER = pytest.mark.skipif(HAS_GPU, reason="float64 is for Triton's interpreter")
# Candidates of the search for the fastest, one of each size: warps are nothing to the interpreter.
ALL_BLOCKS = {
    name: {(blocks.queries, blocks.keys): blocks for blocks in kernel.candidates}.values()
    for name, kernel in KERNELS.items()
    if not name.startswith("pool")
}
NAMES = ("output", "grad q", "grad k", "grad v", "grad rel_h", "grad rel_w")


@dataclass(frozen=True)
class Case:
    """Maps and windows of an attention, and what belongs to it."""

    q: tuple[int, int]
    kv: tuple[int, int]
    window_q: tuple[int, int]
    window_kv: tuple[int, int]
    heads: int = 1
    channels: int = 8
    batch: int = 1
    rel: bool = True
    residual: bool = True
    mask: bool = False

    @property
    def shape(self) -> AttentionShape:
        scale = self.channels**-0.5
        windows = self.window_q, self.window_kv
        return AttentionShape(self.heads, scale, *windows, self.residual, self.mask)


def whole(q: tuple[int, int], kv: tuple[int, int], **options) -> Case:
    """Attention of whole maps."""
    return Case(q, kv, q, kv, **options)


WINDOWS = Case((5, 7), (3, 4), (4, 4), (2, 2))
MASKED = Case((5, 7), (3, 4), (4, 4), (2, 2), mask=True)
CASES = {
    "windows": Case((5, 7), (3, 4), (4, 4), (2, 2), heads=2, batch=2),
    "masked padding": MASKED,
    "no positions": Case((5, 7), (5, 7), (4, 4), (4, 4), heads=3, rel=False),
    "no residual": Case((4, 5), (4, 5), (3, 3), (3, 3), residual=False),
    "windows larger than the map": Case((3, 2), (3, 2), (4, 4), (4, 4)),
    "many keys": whole((6, 7), (7, 11), heads=2, channels=24),
    "splits of queries": whole((9, 11), (3, 5), channels=16, batch=2, residual=False),
    "one row": whole((1, 5), (1, 3), rel=False, residual=False),
    "more keys of columns": whole((4, 3), (2, 33)),
    "96 channels": Case((5, 4), (5, 4), (3, 3), (3, 3), channels=96),
    "72 channels": Case((5, 4), (3, 2), (4, 4), (2, 2), channels=72, heads=2),
    "40 channels, masked": Case((5, 4), (5, 4), (3, 3), (3, 3), channels=40, mask=True),
}
IN_LOW_PRECISION = {
    "windows": Case((5, 7), (5, 7), (4, 4), (4, 4)),
    "many keys": whole((9, 8), (11, 13), channels=24),
    "96 channels, masked": Case((5, 4), (5, 4), (3, 3), (3, 3), channels=96, mask=True),
}
# MViTv2-T on 800×1088: windows of all stages, a block of whole maps in three of them.
LARGE = {
    "stage 1": Case((200, 272), (50, 68), (56, 56), (14, 14), channels=96),
    "stage 1, whole": whole((200, 272), (25, 34), channels=96),
    "stage 2": Case((100, 136), (50, 68), (28, 28), (14, 14), heads=2, channels=96),
    "stage 2, masked": Case((100, 136), (50, 68), (28, 28), (14, 14), 2, 96, mask=True),
    "stage 2, first block": Case((50, 68), (50, 68), (28, 28), (28, 28), heads=2, channels=96),
    "stage 3, first block": Case((25, 34), (50, 68), (14, 14), (28, 28), heads=4, channels=96),
    "stage 3": Case((50, 68), (50, 68), (14, 14), (14, 14), heads=4, channels=96),
    "stage 3, whole": whole((50, 68), (25, 34), heads=4, channels=96),
    "stage 4": Case((25, 34), (25, 34), (7, 7), (7, 7), heads=8, channels=96),
    "stage 4, whole": whole((25, 34), (25, 34), heads=8, channels=96),
    "72 channels": Case((50, 68), (50, 68), (14, 14), (14, 14), heads=8, channels=72),
    "64 channels": Case((50, 68), (50, 68), (14, 14), (14, 14), heads=8, channels=64),
    "no positions": whole((50, 68), (25, 34), heads=4, channels=96, rel=False),
}


def inputs(case: Case, dtype: torch.dtype = torch.float64) -> list[Tensor | None]:
    """q, k, v, both R, and a gradient of the output; k and v lie in one map, apart from q."""
    total = case.heads * case.channels
    options = {"dtype": torch.float64, "device": DEVICE}
    q = torch.randn(case.batch, *case.q, total, **options)
    _, k, v = torch.randn(case.batch, *case.kv, 3 * total, **options).chunk(3, -1)
    rel = [None, None]
    if case.rel:
        sides = zip(case.window_q, case.window_kv, strict=True)
        rel = [0.3 * torch.randn(*side, case.channels, **options) for side in sides]
    found = (q, k, v, *rel, torch.randn_like(q))
    return [None if tensor is None else tensor.to(dtype) for tensor in found]


def as_table(rel: Tensor | None) -> AxisTable | None:
    """R (Q, K, d) as a table that has a row of its own for each query and key."""
    if rel is None:
        return None
    places = torch.arange(rel[..., 0].numel(), dtype=torch.int32, device=rel.device)
    table = rel.flatten(0, 1).contiguous()
    return AxisTable(table, places.view(rel.shape[:2]), places[:, None])


def ours(case: Case, q, k, v, rel_h, rel_w, grad) -> list[Tensor]:
    """The output and all gradients."""
    given = q, k, v, as_table(rel_h), as_table(rel_w)
    out, lse = attention_forward(*given, case.shape)
    *grads, grad_h, grad_w = backward.attention_backward(grad, *given, out, lse, case.shape)
    if rel_h is None:
        return [out, *grads]
    return [out, *grads, grad_h.view(rel_h.shape), grad_w.view(rel_w.shape)]


def plain(case: Case, *tensors: Tensor | None) -> list[Tensor]:
    """The same by autograd."""
    *tensors, grad = (None if x is None else x.detach().requires_grad_() for x in tensors)
    out = plain_attention(*tensors, case.shape)
    found = torch.autograd.grad(out, [x for x in tensors if x is not None], grad.detach())
    return [out.detach(), *found]


def error(actual: Tensor, expected: Tensor) -> float:
    """Relative, in the 2-norm; NaN where anything is."""
    norm = (actual.double() - expected).norm()
    return (norm / expected.norm().clamp_min(1e-9)).item()


def assert_within_budget(case: Case, dtype: torch.dtype) -> None:
    """At most twice the error of the plain code of that dtype, and of one rounding of float32."""
    tensors = inputs(case, dtype)
    doubles = [None if x is None else x.double() for x in tensors]
    found = zip(ours(case, *tensors), plain(case, *tensors), plain(case, *doubles), strict=True)
    for name, (own, eager, exact) in zip(NAMES, found, strict=False):
        assert own.dtype == dtype and own.is_contiguous()
        budget = 2 * error(eager, exact) + torch.finfo(torch.float32).eps
        assert error(own, exact) <= budget, name


@IN_INTERPRETER
@pytest.mark.parametrize(
    "case",
    long_but([CASES[n] for n in ("windows", "masked padding", "96 channels")], CASES.values()),
    ids=CASES,
)
def test_equals_plain_attention_in_float64(case):
    tensors = inputs(case)
    for name, own, exact in zip(NAMES, ours(case, *tensors), plain(case, *tensors), strict=False):
        assert own.shape == exact.shape
        assert error(own, exact) < 1e-10, name


@IN_INTERPRETER
@pytest.mark.long
@pytest.mark.parametrize("name", ALL_BLOCKS)
def test_blocks_of_all_sizes_that_are_tried_on_a_gpu(name):
    """Those of one kernel beside the others' own: none relies on another's."""
    case = whole((5, 7), (3, 40), channels=16)
    tensors = inputs(case)
    exact = plain(case, *tensors)
    for blocks in ALL_BLOCKS[name]:
        with chosen(KERNELS[name], lambda *_, blocks=blocks: blocks):
            found = ours(case, *tensors)
        errors = [error(*pair) for pair in zip(found, exact, strict=True)]
        assert max(errors) < 1e-10, blocks


@pytest.mark.parametrize(
    "dtype", long_but([torch.bfloat16], [torch.float32, torch.float16, torch.bfloat16])
)
@pytest.mark.parametrize("case", IN_LOW_PRECISION.values(), ids=IN_LOW_PRECISION)
def test_error_is_at_most_twice_that_of_plain_code(case, dtype):
    assert_within_budget(case, dtype)


@pytest.mark.parametrize("batch", [pytest.param(1, marks=ON_GPU), pytest.param(8, marks=ON_GPU)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("case", LARGE.values(), ids=LARGE)
def test_error_at_sizes_of_detection(case, dtype, batch):
    assert_within_budget(Case(**{**case.__dict__, "batch": batch}), dtype)


@pytest.mark.long
@IN_INTERPRETER
def test_gradcheck():
    """Against differences of the kernels' own forward pass, unlike all other tests."""
    case = Case((3, 2), (4, 3), (2, 2), (3, 3))

    class Attention(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *tensors):
            out, _ = attention_forward(*tensors[:3], *map(as_table, tensors[3:]), case.shape)
            ctx.save_for_backward(*tensors)
            return out

        @staticmethod
        def backward(ctx, grad):
            return tuple(ours(case, *ctx.saved_tensors, grad.contiguous())[1:])

    tensors = [x.detach().requires_grad_() for x in inputs(case)[:5]]
    assert torch.autograd.gradcheck(Attention.apply, tensors, fast_mode=True)


@IN_INTERPRETER
def test_lse_is_of_the_logits_in_base_2():
    case = Case((3, 2), (3, 2), (3, 2), (3, 2), heads=2, rel=False)
    q, k, v, *_ = inputs(case)
    _, lse = attention_forward(q, k, v, None, None, case.shape)
    split = [x.unflatten(3, (2, 8)) for x in (q, k)]
    logits = torch.einsum("byxhd,bijhd->bhyxij", *split) * case.shape.scale
    expected = logits.flatten(4).logsumexp(-1) * torch.tensor(2.0).double().log().reciprocal()
    torch.testing.assert_close(lse, expected, rtol=1e-10, atol=1e-10)


def test_logits_of_hundreds_do_not_overflow():
    q, k, v, *rest = inputs(WINDOWS, torch.float32)
    own, exact = (run(WINDOWS, 30 * q, 30 * k, v, *rest) for run in (ours, plain))
    assert all(tensor.isfinite().all() for tensor in own)
    assert error(own[0], exact[0]) < 1e-4


def test_maps_may_lie_anyhow_but_for_their_channels():
    case = Case((3, 5), (3, 5), (3, 3), (3, 3), heads=2)
    q, k, v, rel_h, rel_w, grad = inputs(case, torch.float32)
    expected = ours(case, q, k, v, rel_h, rel_w, grad)
    side_by_side = torch.cat([q, k, v, grad], -1).transpose(1, 2).contiguous().transpose(1, 2)
    q, k, v, grad = side_by_side.chunk(4, -1)
    rel = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in (rel_h, rel_w)]
    actual = ours(case, q, k, v, *rel, grad.mT.contiguous().mT)
    assert all(torch.equal(*pair) for pair in zip(actual, expected, strict=True))


@pytest.mark.parametrize(
    "case", long_but([WINDOWS], [WINDOWS, whole((9, 11), (3, 5))]), ids=["windows", "splits"]
)
def test_two_runs_give_the_same_bits(case):
    tensors = inputs(case, torch.float32)
    first, second = (ours(case, *tensors) for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))


def test_queries_are_split_where_there_are_few_programs():
    tiles = 54_400 // 64
    assert backward.query_splits(7, tiles) == 32  # whole maps of stage 1: 850 keys of one head
    assert backward.query_splits(40, 49) == 6
    assert backward.query_splits(300, 49) == 1
    assert backward.query_splits(7, 3) == 3


def test_columns_and_channels_are_padded_little():
    assert extended_tiles(96, (14, 14)) == extended_tiles(96, (7, 7)) == ((128, 0), 16)
    assert extended_tiles(96, (25, 34)) == ((128, 32), 25)
    assert extended_tiles(96, (28, 28)) == ((128, 32), 32)
    assert extended_tiles(96, (25, 42)) == ((128, 64), 48)
    assert extended_tiles(64, (14, 14)) == ((64, 32), 16)
    assert extended_tiles(96, (0, 0)) == ((128, 0), 0)
    assert channel_tiles(96) == (64, 32)
    assert channel_tiles(72) == (64, 16)
    assert channel_tiles(112) == (128, 0)
    assert [channel_tiles(size) for size in (8, 64, 128)] == [(16, 0), (64, 0), (128, 0)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q, k, v, *rel: (q, k[..., :4], v, *rel), "k and v"),
        (lambda q, k, v, *rel: (q, k[:, :2], v[:, :2], *rel), "windows along axis 0"),
        (lambda q, k, v, *rel: (q, k, v, rel[0][:2], rel[1]), "R of axis 0"),
        (lambda q, k, v, *rel: (q, k, v, rel[0], None), "come together"),
        (lambda q, k, v, *rel: (q.float(), k, v, *rel), "one dtype"),
        (lambda q, k, v, *rel: (q.mT.contiguous().mT, k, v, *rel), "contiguous"),
    ],
)
def test_what_does_not_fit_together_is_refused(change, message):
    q, k, v, *rel = change(*inputs(WINDOWS)[:5])
    with pytest.raises(ValueError, match=message):
        attention_forward(q, k, v, *map(as_table, rel), WINDOWS.shape)


COMPILE = """
from mvitv2_det.fused.shape import AttentionShape
from mvitv2_det.fused.triton import attention_forward
from mvitv2_det.fused.triton.attention_backward import attention_backward
from mvitv2_det.fused.triton.axis_tables import AxisTable
from mvitv2_det.fused.triton.launch import Blocks

side, keys = 56, 14  # choice
shape = AttentionShape(1, 96**-0.5, (side, side), (keys, keys), True)
q = torch.empty(1, 200, 272, 96, dtype=torch.bfloat16)
_, k, v = torch.empty(1, 50, 68, 3 * 96, dtype=torch.bfloat16).chunk(3, -1)
rel = [AxisTable.of(torch.empty(2 * side - 1, 96), side, keys) for _ in range(2)]
out, lse = attention_forward.attention_forward(q, k, v, *rel, shape)
"""
COMPILE_BOTH = f"""{COMPILE}
attention_backward(torch.empty_like(q), q, k, v, *rel, out, lse, shape)
"""


@pytest.mark.long
@pytest.mark.parametrize("choice", ["", "side, keys = 200, 64"], ids=["14 rows", "64 rows"])
def test_kernels_compile_for_an_h100_without_one(choice):
    """In windows of so many rows of keys: they fit, use tensor cores and spill next to nothing."""
    found = compiled_for_an_h100(COMPILE_BOTH.replace("# choice", f"\n{choice}"))
    binaries = [one for one in found if one.kernel != "_row_sums"]
    assert len({binary.kernel for binary in binaries}) == 6
    for binary in binaries:
        assert binary.shared <= SHARED_MEMORY and binary.stack <= 64
        assert binary.products or binary.kernel == "_table_gradient_kernel"
        assert binary.wide


@pytest.mark.long
@pytest.mark.parametrize("blocks", ["64, 64, 4, 2", "128, 64, 8, 2"])
def test_the_loop_over_keys_is_short(blocks):
    """Windows of stage 1: two products and the softmax between, with nothing to place keys."""
    chosen = f"attention_forward.forward_blocks = lambda *_: Blocks({blocks})"
    *_, binary = compiled_for_an_h100(COMPILE.replace("# choice", f"\n{chosen}"))
    if not binary.loop:
        pytest.skip("this Triton has no disassembler")
    assert binary.kernel == "_forward_kernel" and binary.products
    assert binary.loop <= 450 and binary.stack == 0
