"""Pooling kernels against ``HeadPool``; on the CPU in Triton's interpreter."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

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
from torch import Tensor
from torch.autograd.function import once_differentiable

pytest.importorskip("triton", minversion="3.4", reason="the kernels need Triton 3.4")

from mvitv2_det.fused.head_pool import HeadPool
from mvitv2_det.fused.triton import pool as kernels
from projects.backbone_benchmark.tiles.choosing import KERNELS

pytestmark = NEEDS_KERNELS
EPS = 1e-6

# Images, height, width, heads, channels of a head; strides of q, k and v, 0 where they are not
# pooled; the kernel's height and width. Larger than a strip, smaller, and no multiple of either.
CASES = {
    "one token": ((1, 1, 1, 1, 72), (1, 2, 8), (3, 3)),
    "stage 1": ((1, 5, 7, 1, 96), (1, 8, 8), (3, 3)),
    "stage 2, first block": ((1, 9, 4, 1, 24), (2, 4, 4), (3, 3)),
    "stride 1": ((1, 9, 10, 1, 8), (1, 1, 0), (3, 3)),
    "stride 3": ((1, 25, 5, 1, 8), (3, 2, 0), (3, 3)),
    "heads and images": ((2, 5, 7, 3, 8), (1, 0, 4), (3, 3)),
    "queries alone": ((1, 4, 9, 1, 8), (2, 0, 0), (3, 3)),
    "keys and values alone": ((1, 9, 4, 1, 24), (0, 1, 2), (3, 3)),
    "kernel of 5": ((1, 7, 5, 1, 8), (1, 4, 2), (5, 5)),
    "kernel of 1": ((1, 5, 7, 1, 8), (1, 2, 4), (1, 1)),
    "flat kernel": ((1, 5, 7, 1, 8), (1, 2, 2), (1, 3)),
}
# 800×1088, by stage: T's inner blocks and first ones, L's and H's head widths.
LARGE = [
    ((200, 272, 1, 96), (1, 4, 4)),
    ((200, 272, 2, 96), (2, 4, 4)),
    ((100, 136, 4, 72), (1, 2, 2)),
    ((50, 68, 4, 96), (1, 2, 2)),
    ((25, 34, 8, 96), (1, 1, 1)),
    ((101, 67, 3, 64), (1, 8, 8)),
]


def pools(
    heads: int,
    channels: int,
    strides: Sequence[int],
    kernel: Sequence[int] = (3, 3),
    dtype: torch.dtype = torch.float64,
    affine: bool = True,
) -> list[HeadPool]:
    """Pools of q, k and v with weights of their own."""
    made = []
    for stride in strides:
        weight, norm_weight, norm_bias = (
            torch.randn(channels, 1, *kernel),
            1 + 0.3 * torch.randn(channels),
            torch.randn(channels),
        )
        parameters = (weight, *((norm_weight, norm_bias) if affine else (None, None)))
        parameters = [None if x is None else x.to(DEVICE, dtype) for x in parameters]
        padding = tuple(side // 2 for side in kernel)
        made.append(
            HeadPool(heads, (stride, stride), padding, EPS, *parameters)
            if stride
            else HeadPool.of(None, None, heads)
        )
    return made


def projection(size: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Tensor:
    """(B, H, W, 3·h·d), far from normalised."""
    *outer, heads, channels = size
    x = 2 * torch.randn(*outer, 3 * heads * channels, dtype=torch.float64) + 0.5
    return x.to(DEVICE, dtype)


def found(pool: HeadPool) -> list[Tensor]:
    return [x for x in pool.parameters if x is not None]


def gradients(qkv: Tensor, pools: Sequence[HeadPool]) -> list[Tensor]:
    """Some of the outputs, the same in every type."""
    generator = torch.Generator().manual_seed(3)
    channels = qkv.shape[-1] // 3
    sizes = [(len(qkv), *pool.output_size(qkv.shape[1:3]), channels) for pool in pools]
    return [torch.randn(size, generator=generator).to(qkv) for size in sizes]


def eager(qkv: Tensor, pools: Sequence[HeadPool]) -> list[Tensor]:
    """Outputs, the projection's gradient, and those of all parameters."""
    leaf = qkv.detach().requires_grad_()
    parameters = [
        [None if x is None else x.detach().requires_grad_() for x in pool.parameters]
        for pool in pools
    ]
    parts = leaf.chunk(3, dim=-1)
    outputs = [
        pool.with_parameters(*own)(part)
        for pool, part, own in zip(pools, parts, parameters, strict=True)
    ]
    leaves = [leaf, *(x for own in parameters for x in own if x is not None)]
    grads = torch.autograd.grad(outputs, leaves, gradients(qkv, pools))
    return [*(output.detach() for output in outputs), *grads]


def ours(qkv: Tensor, pools: Sequence[HeadPool]) -> list[Tensor]:
    outputs = kernels.pool_forward(qkv, pools)
    grad_qkv, grad_parameters, _ = kernels.pool_backward(qkv, pools, gradients(qkv, pools))
    for pool, grads in zip(pools, grad_parameters, strict=True):
        assert [x is None for x in grads] == [x is None for x in pool.parameters]
    return [*outputs, grad_qkv, *(x for grads in grad_parameters for x in grads if x is not None)]


def cast(pools: Sequence[HeadPool], dtype: torch.dtype) -> list[HeadPool]:
    return [
        pool.with_parameters(*(None if x is None else x.to(dtype) for x in pool.parameters))
        for pool in pools
    ]


def error(actual: Tensor, expected: Tensor) -> float:
    """Relative, in the 2-norm; NaN where anything is."""
    return ((actual.double() - expected).norm() / expected.norm()).item()


def assert_within_budget(qkv: Tensor, made: Sequence[HeadPool]) -> None:
    """At most twice the error of the plain code, and of one rounding of float32."""
    exact = eager(qkv.double(), cast(made, torch.float64))
    plain = eager(qkv, cast(made, qkv.dtype))
    for own, other, true in zip(ours(qkv, made), plain, exact, strict=True):
        assert own.shape == true.shape
        assert error(own, true) <= 2 * error(other, true) + torch.finfo(torch.float32).eps


@pytest.mark.parametrize("case", CASES)
def test_float64(case):
    size, strides, kernel = CASES[case]
    qkv, made = projection(size), pools(*size[3:], strides, kernel)
    for actual, expected in zip(ours(qkv, made), eager(qkv, made), strict=True):
        assert actual.shape == expected.shape and actual.dtype == expected.dtype
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def test_high_strips(monkeypatch):
    """Those of large maps, two below each other; results are those of lower ones but for sums."""
    size = (1, 35, 3, 1, 8)
    qkv, made = projection(size), pools(1, 8, (1, 2, 4))
    low = ours(qkv, made)
    monkeypatch.setattr(kernels, "ENOUGH_PROGRAMS", 0)
    high = ours(qkv, made)
    assert all(torch.equal(*pair) for pair in zip(high[:4], low[:4], strict=True))
    for actual, expected in zip(high, eager(qkv, made), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.long
def test_strips_of_all_sizes_that_are_tried_on_a_gpu(monkeypatch):
    size = (1, 35, 3, 1, 8)
    qkv, made = projection(size), pools(1, 8, (1, 2, 0))
    expected = eager(qkv, made)
    tiles = {(blocks.queries, blocks.keys): blocks for blocks in KERNELS["pool_forward"].candidates}
    monkeypatch.setattr(kernels, "ENOUGH_PROGRAMS", 0)
    for blocks in tiles.values():
        for choice in ("forward_tile", "backward_tile", "gather_tile"):
            monkeypatch.setattr(kernels, choice, lambda *_, blocks=blocks: blocks)
        for actual, exact in zip(ours(qkv, made), expected, strict=True):
            torch.testing.assert_close(actual, exact, rtol=1e-10, atol=1e-10)


@pytest.mark.skipif(HAS_GPU, reason="counts what the interpreter loads")
def test_three_loads_an_output(monkeypatch):
    """A 3×3 convolution of stride 1 would load nine; strips load two rows more than they make."""
    from triton.runtime.interpreter import InterpreterBuilder

    load, empty_like = InterpreterBuilder.create_masked_load, torch.empty_like
    loads, made_tensors = Counter(), []

    def counted(self, pointers, mask, *rest):
        for i, tensor in enumerate([qkv, *made_tensors]):
            at = pointers.data.astype("int64") - tensor.data_ptr()
            loads[i] += int((mask.data & (at >= 0) & (at < tensor.nbytes)).sum())
        return load(self, pointers, mask, *rest)

    def noted(x, **options):
        made_tensors.append(empty_like(x, **options))
        return made_tensors[-1]

    size = (1, 64, 24, 1, 8)
    qkv, made = projection(size, torch.float32), pools(1, 8, (1, 0, 0), dtype=torch.float32)
    grads = gradients(qkv, made)
    monkeypatch.setattr(InterpreterBuilder, "create_masked_load", counted)
    monkeypatch.setattr(torch, "empty_like", noted)
    monkeypatch.setattr(kernels, "ENOUGH_PROGRAMS", 0)
    outputs = grads[0].numel()
    kernels.pool_forward(qkv, made)
    assert 2.9 < loads[0] / outputs < 3.02
    kernels.pool_backward(qkv, made, grads)
    assert 2.9 < loads[0] / outputs - 3 < 3.04
    assert 2.9 < loads[1] / outputs < 3.1  # gradients of the convolution's outputs


@pytest.mark.parametrize("case", [*CASES, "no pooling"])
def test_sum_of_the_gradient(case):
    """That of the bias before pooling, without a rounding of the gradient in between."""
    size, strides, kernel = CASES.get(case, ((2, 5, 7, 3, 8), (0, 0, 0), (3, 3)))
    qkv, made = projection(size), pools(*size[3:], strides, kernel)
    grads = gradients(qkv, made)
    grad, _, total = kernels.pool_backward(qkv, made, grads, bias_type=torch.float64)
    torch.testing.assert_close(total, grad.sum((0, 1, 2)), rtol=0, atol=1e-10)
    assert torch.equal(grad, kernels.pool_backward(qkv, made, grads)[0])


def test_norm_without_parameters():
    size = (1, 5, 7, 1, 8)
    qkv, made = projection(size), pools(1, 8, (1, 2, 4), affine=False)
    for actual, expected in zip(ours(qkv, made), eager(qkv, made), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def test_no_padding():
    """Strips begin where the map does, and rows at its end may be read by no place."""
    qkv = projection((1, 10, 8, 1, 8))
    made = [replace(pool, padding=(0, 0)) for pool in pools(1, 8, (1, 2, 4))]
    for actual, expected in zip(ours(qkv, made), eager(qkv, made), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def test_norm_without_eps_and_constant_channels():
    """Places of a tile outside of the map are not divided by their variance, which is zero."""
    size = (1, 5, 7, 1, 8)
    made = [replace(pool, eps=0.0) for pool in pools(1, 8, (1, 2, 4))]
    qkv = projection(size)
    for actual, expected in zip(ours(qkv, made), eager(qkv, made), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-8)


def test_parts_that_are_not_pooled_are_views():
    qkv, made = projection((1, 3, 2, 1, 8)), pools(1, 8, (0, 2, 0))
    q, k, v = kernels.pool_forward(qkv, made)
    assert q.data_ptr() == qkv.data_ptr() and v.data_ptr() == qkv[..., 16:].data_ptr()
    assert k.is_contiguous()
    made = pools(1, 8, (0, 0, 0))
    for actual, expected in zip(ours(qkv, made), eager(qkv, made), strict=True):
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_budget(dtype):
    size = (1, 9, 4, 1, 24)
    assert_within_budget(projection(size, dtype), pools(1, 24, (1, 2, 4), dtype=dtype))


def test_budget_with_parameters_in_float32():
    """As under autocast; their gradients are float32, too."""
    size = (1, 5, 7, 1, 8)
    qkv, made = projection(size, torch.float16), pools(1, 8, (1, 2, 2), dtype=torch.float32)
    assert_within_budget(qkv, made)
    assert {x.dtype for x in ours(qkv, made)[4:]} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize(
    ("size", "strides"), [pytest.param(*large, marks=ON_GPU) for large in LARGE]
)
def test_budget_at_full_size(size, strides, batch, dtype):
    qkv = projection((batch, *size), dtype)
    assert_within_budget(qkv, pools(*size[2:], strides, dtype=dtype))


class _Pooling(torch.autograd.Function):
    @staticmethod
    def forward(ctx, made, qkv, *parameters):
        rest = iter(parameters)
        ctx.made = [
            pool.with_parameters(*(None if x is None else next(rest) for x in pool.parameters))
            for pool in made
        ]
        ctx.save_for_backward(qkv)
        return kernels.pool_forward(qkv, ctx.made)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        (qkv,) = ctx.saved_tensors
        grad_qkv, grad_parameters, _ = kernels.pool_backward(qkv, ctx.made, grads)
        found = (x for grads in grad_parameters for x in grads if x is not None)
        return None, grad_qkv, *found


@pytest.mark.long
def test_gradcheck():
    made = pools(1, 3, (1, 2, 0))
    inputs = [projection((1, 2, 3, 1, 3)), *(x for pool in made for x in found(pool))]
    inputs = [x.detach().requires_grad_() for x in inputs]
    assert torch.autograd.gradcheck(lambda *x: _Pooling.apply(made, *x), inputs, fast_mode=True)


def test_layouts():
    """A projection and gradients with strides of their own give the same bits."""
    size = (2, 3, 4, 1, 8)
    qkv, made = projection(size, torch.float32), pools(1, 8, (1, 2, 0), dtype=torch.float32)
    grads = gradients(qkv, made)
    expected = [*kernels.pool_forward(qkv, made), kernels.pool_backward(qkv, made, grads)[0]]
    qkv = torch.stack([qkv.transpose(1, 2), qkv.transpose(1, 2)], dim=1)[:, 1].transpose(1, 2)
    grads = [torch.cat([grad, grad], dim=-1)[..., :8] for grad in grads]
    found = [*kernels.pool_forward(qkv, made), kernels.pool_backward(qkv, made, grads)[0]]
    assert found[3].is_contiguous()
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


@pytest.mark.parametrize("size", [(1, 3, 2, 1, 8), pytest.param((2, 99, 67, 4, 96), marks=ON_GPU)])
def test_same_bits_each_time(size):
    qkv = projection(size, torch.float32)
    made = pools(*size[3:], (1, 2, 2), dtype=torch.float32)
    assert all(torch.equal(*pair) for pair in zip(ours(qkv, made), ours(qkv, made), strict=True))


def test_no_images():
    qkv, made = projection((0, 3, 2, 1, 8)), pools(1, 8, (1, 2, 2))
    *outputs, grad_qkv, weight, _, bias = ours(qkv, made)[:7]
    assert [len(x) for x in (*outputs, grad_qkv)] == [0] * 4
    assert not weight.any() and not bias.any()


def test_pools_that_differ():
    qkv = projection((1, 3, 2, 1, 8))
    mixed = [*pools(1, 8, (1, 1)), *pools(1, 8, (1,), (5, 5))]
    with pytest.raises(ValueError, match="must be pooled alike but for their strides"):
        kernels.pool_forward(qkv, mixed)
    first, *rest = pools(1, 8, (1, 1, 1))
    uneven = replace(first, stride=(1, 2))
    with pytest.raises(ValueError, match="must be the same along both axes"):
        kernels.pool_forward(qkv, [uneven, *rest])


COMPILE = """
from mvitv2_det.fused.head_pool import HeadPool
from mvitv2_det.fused.triton.pool import pool_backward, pool_forward

parameters = torch.empty(96, 1, 3, 3), torch.empty(96), torch.empty(96)
pools = [HeadPool(1, (stride, stride), (1, 1), 1e-6, *parameters) for stride in (1, 4, 4)]
for size in ((200, 272), (101, 16)):
    qkv = torch.empty(1, *size, 3 * 96, dtype=torch.bfloat16)
    pool_backward(qkv, pools, pool_forward(qkv, pools), bias_type=torch.float32)
"""


@pytest.mark.long
def test_compiles_for_an_h100():
    """Nothing is spilled, two programs are on a multiprocessor, for images of all sizes.

    Rows are loaded 8 bytes at a time: forward three of the first row and three in the loop, and
    one store. Gathering has a loop for q with as many, and for k and v, of stride 4, one with two
    loads and four stores each.
    """
    binaries = [one for one in compiled_for_an_h100(COMPILE) if one.kernel.startswith("pool_")]
    assert len(binaries) == 6 and len({binary.hash for binary in binaries}) == 3
    for binary in binaries:
        assert 256 * binary.registers <= 65536 // 2 and binary.stack == 0
        assert binary.shared <= SHARED_MEMORY // 2
    assert [binary.halves for binary in binaries[:3]] == [7, 5, 19]
    # Of 1,624 straight instructions for 32 values before, with 158 to 221 registers.
    forward, backward, gather = (binary.loop for binary in binaries[:3])
    assert 0 < forward <= 4 * 46 and backward <= 4 * 80 and gather <= 4 * 32
