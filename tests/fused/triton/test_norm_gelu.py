"""LayerNorm and GELU kernels against PyTorch; on the CPU in Triton's interpreter."""

import pytest
import torch
import torch.nn.functional as F
from h100 import (  # noqa: F401
    DEVICE,
    NEEDS_KERNELS,
    ON_GPU,
    SHARED_MEMORY,
    compiled_for_an_h100,
    poison,
    round_to_nearest,
    within_tensors,
)
from torch import Tensor

pytest.importorskip("triton", minversion="3.4", reason="the kernels need Triton 3.4")

from mvitv2_det.fused import tokens as plain_kernels
from mvitv2_det.fused.tokens import SkipSum
from mvitv2_det.fused.triton import norm_gelu as kernels
from mvitv2_det.fused.triton.sums import row_sums

pytestmark = NEEDS_KERNELS
EPS = 1e-5
SIZES = [(1, 5), (7, 72), (130, 96), (130, 200)]
# Tokens of 800×1088 in each stage, of one image and of eight.
LARGE = [
    pytest.param(size, marks=ON_GPU)
    for size in [(54_400, 96), (8 * 54_400, 96), (13_600, 192), (8 * 850, 768), (3_401, 1152)]
]


def values(tokens: int, channels: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Tokens far from normalised, a gradient of them, and a weight and bias far from trivial."""
    x = 3 * torch.randn(tokens, channels, dtype=torch.float64) + torch.randn(tokens, 1)
    parameters = torch.randn(3, channels, dtype=torch.float64)
    found = x, torch.randn_like(x), 1 + parameters[0], parameters[1]
    return [tensor.to(DEVICE, dtype) for tensor in found]


def eager_norm(x: Tensor, grad: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> tuple:
    """The normalised tokens in ``dtype``, and the gradients of all."""
    x, weight, bias = (tensor.detach().requires_grad_() for tensor in (x, weight, bias))
    normed = F.layer_norm(x, x.shape[1:], weight, bias, EPS).to(dtype)
    return normed.detach(), *torch.autograd.grad(normed, (x, weight, bias), grad)


def our_norm(x: Tensor, grad: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> tuple:
    normed, mean, rstd = kernels.layer_norm_forward(x, weight, bias, EPS, dtype)
    return normed, *kernels.layer_norm_backward(grad, x, mean, rstd, weight, True)[:3]


def eager_gelu(x: Tensor, grad: Tensor, approximate: str) -> tuple:
    """GELU, its gradient and the sum of that."""
    x = x.detach().requires_grad_()
    activated = F.gelu(x, approximate=approximate)
    (result,) = torch.autograd.grad(activated, x, grad)
    return activated.detach(), result, result.sum(0)


def summed(found: tuple) -> tuple:
    """What GELU's backward pass gives, its partial sums added."""
    return *found[:2], row_sums(found[2:])[0]


def error(actual: Tensor, expected: Tensor) -> float:
    """Relative, in the 2-norm; NaN where anything is."""
    return ((actual.double() - expected).norm() / expected.norm()).item()


def assert_within_budget(actual: tuple, eager: tuple, exact: tuple) -> None:
    """At most twice the error of the plain code, and of one rounding of float32."""
    for own, plain, true in zip(actual, eager, exact, strict=True):
        assert own.dtype == plain.dtype or plain.ndim == 1
        assert error(own, true) <= 2 * error(plain, true) + torch.finfo(torch.float32).eps


@pytest.mark.parametrize("programs", [528, 2])  # the latter take several tiles each
@pytest.mark.parametrize("size", SIZES)
def test_norm_in_float64(size, programs, monkeypatch):
    monkeypatch.setattr(kernels, "_PROGRAMS", programs)
    args = values(*size)
    for actual, expected in zip(
        our_norm(*args, torch.float64), eager_norm(*args, torch.float64), strict=True
    ):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def test_norm_statistics():
    x = values(7, 72)[0]
    _, mean, rstd = kernels.layer_norm_forward(x, None, None, EPS, torch.float32)
    torch.testing.assert_close(mean, x.mean(1), rtol=1e-10, atol=1e-10)
    expected = (x.var(1, unbiased=False) + EPS).rsqrt()
    torch.testing.assert_close(rstd, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("has_weight", "has_bias"), [(True, False), (False, False)])
def test_norm_without_parameters(has_weight, has_bias):
    x, grad, weight, bias = values(7, 96)
    weight, bias = weight if has_weight else None, bias if has_bias else None
    normed, mean, rstd = kernels.layer_norm_forward(x, weight, bias, EPS, x.dtype)
    torch.testing.assert_close(
        normed, F.layer_norm(x, (96,), weight, bias, EPS), rtol=0, atol=1e-10
    )
    grads = kernels.layer_norm_backward(grad, x, mean, rstd, weight, has_bias)[:3]
    assert [g is not None for g in grads] == [True, has_weight, has_bias]
    x = x.requires_grad_()
    (expected,) = torch.autograd.grad(F.layer_norm(x, (96,), weight, bias, EPS), x, grad)
    torch.testing.assert_close(grads[0], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("with_path", [True, False])
@pytest.mark.parametrize("with_shift", [True, False])
def test_norm_of_a_sum(with_path, with_shift):
    x, path, weight, bias = values(7, 96)
    shift = 3 * bias if with_shift else None
    given = torch.cat((path, path), dim=1)[:, :96] if with_path else None
    total = x + path if with_path else x
    for keeps in (True, False):
        found = kernels.add_layer_norm_forward(x, given, shift, weight, bias, EPS, x.dtype, keeps)
        assert (found[0] is None) != keeps
        if keeps:
            assert torch.equal(found[0], total)
        assert found[1].data_ptr() not in (x.data_ptr(), path.data_ptr())
        torch.testing.assert_close(found[1], total + (shift if with_shift else 0), rtol=0, atol=0)
        expected = F.layer_norm(total, (96,), weight, bias, EPS)
        torch.testing.assert_close(found[2], expected, rtol=0, atol=1e-10)


def test_the_norm_of_a_sum_is_that_of_what_is_kept():
    """A sum is rounded before it is normalised, as backward will normalise it again."""
    x, path, weight, bias = values(7, 96, torch.bfloat16)
    given = path, bias, weight, bias, EPS, x.dtype, True
    total, _, normed = kernels.add_layer_norm_forward(x, *given)
    assert total.dtype == torch.bfloat16 and torch.equal(total, x + path)
    again, *_ = kernels.layer_norm_forward(total, weight, bias, EPS, x.dtype)
    assert torch.equal(normed, again)


def test_norm_backward_adds_what_comes_around_it():
    x, grad, weight, bias = values(7, 96)
    _, mean, rstd = kernels.layer_norm_forward(x, weight, bias, EPS, x.dtype)
    alone, *parameters, _, _ = kernels.layer_norm_backward(grad, x, mean, rstd, weight, True)
    skip = torch.cat((3 * x, x), dim=1)[:, :96]
    found = kernels.layer_norm_backward(grad, x, mean, rstd, weight, True, skip)
    torch.testing.assert_close(found.tokens, alone + skip, rtol=0, atol=1e-12)
    assert all(torch.equal(*pair) for pair in zip(found[1:3], parameters, strict=True))


@pytest.mark.parametrize("module", [kernels, plain_kernels], ids=["triton", "pytorch"])
@pytest.mark.parametrize("scaled", [False, True])
def test_norm_backward_sums_what_is_beside_it(module, scaled):
    x, grad, weight, bias = values(130, 96)
    _, mean, rstd = module.layer_norm_forward(x, weight, bias, EPS, x.dtype)
    given = grad, x, mean.view(-1, 1), rstd.view(-1, 1), weight, True
    scale = torch.rand(130, 1, dtype=x.dtype, device=DEVICE) if scaled else None
    skip, partial = grad * x, torch.randn(3, 40, dtype=x.dtype, device=DEVICE)
    alone = module.layer_norm_backward(*given, skip)
    assert alone.skip_sum is None and alone.partial_sum is None
    found = module.layer_norm_backward(*given, skip, SkipSum(scale), partial)
    assert all(torch.equal(*pair) for pair in zip(found[:3], alone[:3], strict=True))
    expected = (skip * (scale if scaled else 1)).sum(0)
    torch.testing.assert_close(found.skip_sum, expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(found.partial_sum, partial.sum(0), rtol=0, atol=1e-12)


# The tokens' type and the product's: autocast keeps float32 tokens and multiplies in 16 bits.
MIXED = [
    (torch.float32, torch.float32), (torch.float32, torch.bfloat16),
    (torch.float32, torch.float16), (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float16),
]  # fmt: skip


@pytest.mark.parametrize(("dtype", "product"), MIXED)
@pytest.mark.parametrize("size", [(130, 96), *LARGE])
def test_norm_budget(size, dtype, product):
    x, grad, weight, bias = values(*size, dtype)
    grad = grad.to(product)
    exact = eager_norm(*(t.double() for t in (x, grad, weight, bias)), torch.float64)
    args = x, grad, weight, bias, product
    assert_within_budget(our_norm(*args), eager_norm(*args), exact)


@pytest.mark.parametrize("approximate", kernels.APPROXIMATIONS)
@pytest.mark.parametrize("programs", [528, 2])
@pytest.mark.parametrize("size", SIZES)
def test_gelu_in_float64(size, programs, approximate, monkeypatch):
    monkeypatch.setattr(kernels, "_PROGRAMS", programs)
    x, grad = values(*size)[:2]
    found = summed(kernels.gelu_backward(x, grad, approximate))
    for actual, expected in zip(found, eager_gelu(x, grad, approximate), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("approximate", kernels.APPROXIMATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [(130, 200), *LARGE])
def test_gelu_budget(size, dtype, approximate):
    x, grad = values(*size, dtype)[:2]
    exact = eager_gelu(x.double(), grad.double(), approximate)
    found = summed(kernels.gelu_backward(x, grad, approximate))
    assert_within_budget(found, eager_gelu(x, grad, approximate), exact)


def test_gelu_far_from_zero():
    """Neither form overflows, and both end at the identity and at zero."""
    x = torch.tensor([[-1e4, -60.0, 60.0, 1e4]], device=DEVICE)
    for approximate in kernels.APPROXIMATIONS:
        activated, slope, _ = kernels.gelu_backward(x, torch.ones_like(x), approximate)
        torch.testing.assert_close(activated, x.clamp(min=0), rtol=0, atol=0)
        assert slope.tolist() == [[0, 0, 1, 1]]


def test_gelu_in_place():
    x, grad = values(7, 72)[:2]
    expected = kernels.gelu_backward(x, grad, "none")
    found = kernels.gelu_backward(x, grad, "none", in_place=True)
    assert found[1] is grad
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    with pytest.raises(ValueError, match="must be contiguous to be written over"):
        kernels.gelu_backward(x, torch.randn(72, 7, device=DEVICE).T, "none", in_place=True)
    with pytest.raises(ValueError, match="must be none or tanh, got 'sigmoid'"):
        kernels.gelu_backward(x, grad, "sigmoid")


def test_layouts():
    """Rows apart from each other, and channels apart, which is copied."""
    args = values(7, 96)
    expected = our_norm(*args, torch.float64)
    gelu = kernels.gelu_backward(*args[:2], "none")
    apart = [torch.cat((tensor, tensor), dim=1)[:, :96] for tensor in args[:2]]
    turned = [tensor.T.contiguous().T for tensor in args[:2]]
    for x, grad in (apart, turned):
        for actual, same in zip(our_norm(x, grad, *args[2:], torch.float64), expected, strict=True):
            assert torch.equal(actual, same)
        for actual, same in zip(kernels.gelu_backward(x, grad, "none"), gelu, strict=True):
            assert torch.equal(actual, same)


def test_no_tokens():
    x, grad, weight, bias = values(0, 8)
    normed, *grads = our_norm(x, grad, weight, bias, torch.float32)
    assert normed.shape == grads[0].shape == (0, 8)
    assert grads[1].tolist() == grads[2].tolist() == [0] * 8
    assert summed(kernels.gelu_backward(x, grad, "none"))[2].tolist() == [0] * 8


def test_sums_are_the_same_each_time():
    args = values(130, 200, torch.float32)
    first, second = (our_norm(*args, torch.bfloat16) for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))
    first, second = (kernels.gelu_backward(*args[:2], "tanh") for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))


@pytest.mark.parametrize("channels", [1, 5, 72, 96, 1152, 40_000])
def test_programs_cover_all_tokens(channels):
    block, width, warps = kernels.norm_blocks(channels)
    assert width >= channels and 4 <= warps <= 32
    for tokens in (1, 7, 850, 54_400, 435_200):
        programs, tiles = kernels.token_programs(tokens, block)
        assert (programs - 1) * tiles * block < tokens <= programs * tiles * block
        assert programs <= 528
    with pytest.raises(ValueError, match="at most 65536 channels, got 70000"):
        kernels.norm_blocks(70_000)


COMPILE = """
from mvitv2_det.fused.triton.norm_gelu import gelu_backward, layer_norm_backward, layer_norm_forward

x, hidden = torch.empty(850, 96), torch.empty(850, 384, dtype=torch.bfloat16)
normed, mean, rstd = layer_norm_forward(x, x[0], x[0], 1e-6, torch.bfloat16)
layer_norm_backward(normed, x, mean, rstd, x[0], True)
gelu_backward(hidden, hidden, "none")
"""


@pytest.mark.long
def test_compiles_for_an_h100():
    binaries = compiled_for_an_h100(COMPILE)
    assert len(binaries) == 3
    assert all(binary.shared <= SHARED_MEMORY and binary.stack == 0 for binary in binaries)
