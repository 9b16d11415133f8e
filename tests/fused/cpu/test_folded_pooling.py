"""Projection and pooling in one convolution against one after the other."""

import pytest
import torch
from models import randomize, relative_error
from torch import nn

from mvitv2_det.attention.pooling import head_pool
from mvitv2_det.fused.cpu.folded_pooling import folded_projection, folding_saves_work
from mvitv2_det.fused.head_pool import HeadPool

HEADS, CHANNELS = 3, 4


def head_pools(stride: int, kernel: int = 3, count: int = 2) -> list[HeadPool]:
    """The pooling of k and of v, each with weights of its own, in float64."""
    return [
        HeadPool.of(
            randomize(head_pool(CHANNELS, (kernel, kernel), (stride, stride))).double(),
            randomize(nn.LayerNorm(CHANNELS)).double(),
            HEADS,
        )
        for _ in range(count)
    ]


def plain(x, norm, weight, bias, pools) -> list[torch.Tensor]:
    """The projection of each, then its convolution, without the pool's norm."""
    projected = nn.functional.linear(norm(x), weight, bias).chunk(len(pools), dim=-1)
    pooled = []
    for part, pool in zip(projected, pools, strict=True):
        kernel = pool.kernel.repeat(HEADS, 1, 1, 1)
        part = nn.functional.conv2d(
            part.permute(0, 3, 1, 2), kernel, None, pool.stride, pool.padding, groups=len(kernel)
        )
        pooled.append(part.permute(0, 2, 3, 1))
    return pooled


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [(16, 24), (9, 14), (3, 5)])
def test_outputs_and_gradients(size, bias, affine):
    """Borders that kernels reach over on one side or both; float64, to 1e-12, all gradients."""
    pools = head_pools(stride=4)
    norm = randomize(nn.LayerNorm(6, elementwise_affine=affine)).double()
    linear = randomize(nn.Linear(6, 2 * HEADS * CHANNELS, bias=bias)).double()
    x = torch.randn(2, *size, 6, dtype=torch.float64, requires_grad=True)
    inputs = [x, *norm.parameters(), *linear.parameters(), *(p.kernel for p in pools)]
    results = []
    for compute in (folded_projection, plain):
        outputs = compute(x, norm, linear.weight, linear.bias, pools)
        weighted = sum((output * output.detach().cos()).sum() for output in outputs)
        results.append([*outputs, *torch.autograd.grad(weighted, inputs)])
    for actual, expected in zip(*results, strict=True):
        assert actual.shape == expected.shape
        assert relative_error(actual, expected) < 1e-12


def test_where_folding_saves_work():
    """Where a kernel reads fewer tokens than there are."""
    assert folding_saves_work(head_pools(stride=4))
    assert not folding_saves_work(head_pools(stride=3)) and not folding_saves_work(
        head_pools(stride=2)
    )
    assert not folding_saves_work(head_pools(stride=4, kernel=5))
    assert not folding_saves_work([*head_pools(stride=4, count=1), *head_pools(stride=8, count=1)])
    assert not folding_saves_work([HeadPool.of(None, None, HEADS)] * 2)


def test_what_is_left_of_a_pool_is_its_norm():
    pool = head_pools(stride=4, count=1)[0]
    x = torch.randn(2, 9, 14, HEADS * CHANNELS, dtype=torch.float64)
    norm = pool.without_convolution()
    kernel = pool.kernel.repeat(HEADS, 1, 1, 1)
    convolved = nn.functional.conv2d(x.permute(0, 3, 1, 2), kernel, None, 4, 1, groups=len(kernel))
    assert relative_error(norm(convolved.permute(0, 2, 3, 1)), pool(x)) < 1e-12
