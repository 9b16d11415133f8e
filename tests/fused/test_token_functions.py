"""The chunked LayerNorm, linear layers, MLP and skip connections against PyTorch's modules."""

import weakref

import pytest
import torch
from models import randomize, relative_error
from timm.layers import Mlp
from torch import nn

from mvitv2_det.attention.pooling import pool_map, skip_pool
from mvitv2_det.fused import tokens
from mvitv2_det.fused.mlp import norm_mlp
from mvitv2_det.fused.norm_linear import norm_linear, norm_linears_and_input
from mvitv2_det.fused.residual import Skip, linear_and_skip
from mvitv2_det.fused.skip_pool import pool_skip

TOLERANCE = 1e-4  # float32, up to 90 tokens of 12 channels


@pytest.fixture(params=[7, 4096], ids=["many chunks", "one chunk"], autouse=True)
def _chunk_size(request, monkeypatch):
    monkeypatch.setattr(tokens, "_CPU_CHUNK", request.param)


def gradients(output: torch.Tensor, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    weights = torch.arange(output.numel()).cos().view(output.shape)
    return torch.autograd.grad((output * weights).sum(), inputs, retain_graph=True)


def assert_same(actual, expected, inputs):
    assert relative_error(actual, expected) < TOLERANCE
    pairs = zip(gradients(actual, inputs), gradients(expected, inputs), strict=True)
    assert all(relative_error(*pair) < TOLERANCE for pair in pairs)


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_norm_linear(parts, bias, affine):
    norm = randomize(nn.LayerNorm(12, elementwise_affine=affine))
    linear = randomize(nn.Linear(12, 18, bias=bias))
    x = torch.randn(2, 5, 9, 12, requires_grad=True)
    outputs = norm_linear(x, norm, linear, tokens, parts)
    assert len(outputs) == parts and all(output.is_contiguous() for output in outputs)
    inputs = [x, *norm.parameters(), *linear.parameters()]
    assert_same(torch.cat(outputs, dim=-1), linear(norm(x)), inputs)


@pytest.mark.parametrize("trains_input", [True, False])
@pytest.mark.parametrize("used", [[0, 1, 2], [0, 2], [0, 1], [2]])
def test_norm_linears_and_input(used, trains_input):
    """Several layers of the same tokens, and what goes around them; some outputs have no use."""
    norm = randomize(nn.LayerNorm(12))
    linears = [randomize(nn.Linear(12, 18)), randomize(nn.Linear(12, 8, bias=False))]
    x = torch.randn(2, 5, 9, 12, requires_grad=trains_input)
    outputs = norm_linears_and_input(x, norm, linears, tokens, tokens.Casts.of(linears, x.dtype))
    expected = [*(linear(norm(x)) for linear in linears), x]
    assert all(output.is_contiguous() for output in outputs) and torch.equal(outputs[2], x)
    assert outputs[2].requires_grad == trains_input
    if used == [2]:
        inputs = [x] if trains_input else []
    else:
        inputs = [*([x] if trains_input else []), *norm.parameters()]
        inputs += [parameter for i in used if i < 2 for parameter in linears[i].parameters()]
    if inputs:
        joined = (torch.cat([found[i] for i in used], dim=-1) for found in (outputs, expected))
        assert_same(*joined, inputs)


@pytest.mark.parametrize("act", [nn.GELU, lambda: nn.GELU(approximate="tanh")])
@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("skips_itself", [True, False])
def test_norm_mlp(act, scaled, skips_itself):
    norm = randomize(nn.LayerNorm(12))
    mlp = randomize(Mlp(12, 40, 12 if skips_itself else 20, act_layer=act))
    x = torch.randn(2, 5, 9, 12, requires_grad=True)
    skip = x if skips_itself else torch.randn(2, 5, 9, 20, requires_grad=True)
    scale = torch.tensor([0.0, 1.25]).view(2, 1, 1, 1) if scaled else None
    expected = skip + (1 if scale is None else scale) * mlp(norm(x))
    inputs = [x, *norm.parameters(), *mlp.parameters(), *([] if skips_itself else [skip])]
    for given in (None, skip) if skips_itself else (skip,):
        assert_same(norm_mlp(x, norm, mlp, given, scale, tokens), expected, inputs)
        with torch.no_grad():
            actual = norm_mlp(x, norm, mlp, given, scale, tokens)
        assert relative_error(actual, expected) < TOLERANCE


@pytest.mark.parametrize("frozen", ["fc1", "fc2", "norm", "x"])
def test_frozen_parts_get_no_gradient(frozen):
    norm, mlp = randomize(nn.LayerNorm(12)), randomize(Mlp(12, 40))
    x = torch.randn(1, 5, 9, 12, requires_grad=True)
    part = {"fc1": mlp.fc1, "fc2": mlp.fc2, "norm": norm, "x": x}[frozen]
    part.requires_grad_(False)
    trained = [
        tensor for tensor in (x, *norm.parameters(), *mlp.parameters()) if tensor.requires_grad
    ]
    assert_same(norm_mlp(x, norm, mlp, x, None, tokens), x + mlp(norm(x)), trained)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("scaled", [True, False])
def test_linear_and_skip(scaled, bias):
    linear = randomize(nn.Linear(12, 20, bias=bias))
    z = torch.randn(2, 5, 9, 12, requires_grad=True)
    skip = torch.randn(2, 5, 9, 20, requires_grad=True)
    scale = torch.tensor([0.0, 1.25]).view(2, 1, 1, 1) if scaled else None
    expected = skip + (1 if scale is None else scale) * linear(z)
    actual = linear_and_skip(z, linear, Skip(skip, scale))
    assert_same(actual, expected, [z, skip, *linear.parameters()])


def test_skip_pooling():
    pool, x = skip_pool((2, 2)), torch.randn(2, 9, 14, 12, requires_grad=True)
    actual, expected = pool_skip(x, pool), pool_map(x, pool)
    assert torch.equal(actual, expected)
    assert torch.equal(*(gradients(output, [x])[0] for output in (actual, expected)))


def test_weights_are_cast_again_for_backward_together(monkeypatch):
    """One call casts those of all layers, each lives until it is taken; they may have changed."""
    cast, calls = tokens.cast, []
    monkeypatch.setattr(tokens, "cast", lambda *given: calls.append(len(given[0])) or cast(*given))
    layers = [nn.Linear(4, 4) for _ in range(2)]
    casts = tokens.Casts.of(layers, torch.bfloat16)
    again = [casts[layer].again for layer in layers]
    layers[0].weight.data.fill_(3)
    assert casts[layers[1]].weight.dtype == torch.bfloat16 and calls == [4]
    assert (again[0]() == 3).all() and calls == [4, 2]
    taken = weakref.ref(again[1]())
    assert taken() is None and calls == [4, 2]
    layers[1].weight.data.fill_(5)
    assert (again[1]() == 5).all() and calls == [4, 2, 2]
