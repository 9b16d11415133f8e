"""The chunked LayerNorm, linear layers and MLP against PyTorch's modules."""

import pytest
import torch
from models import randomize, relative_error
from timm.layers import Mlp
from torch import nn

from mvitv2_det.attention.pooling import pool_map, skip_pool
from mvitv2_det.backbone.block import MultiScaleBlock
from mvitv2_det.backbone.schedule import BlockSpec
from mvitv2_det.fused import mlp as fused_mlp
from mvitv2_det.fused import norm_linear as fused_linear
from mvitv2_det.fused.skip_pool import pool_skip_map

TOLERANCE = 1e-4  # float32, up to 90 tokens of 12 channels


@pytest.fixture(params=[7, 4096], ids=["many chunks", "one chunk"], autouse=True)
def _chunk_size(request, monkeypatch):
    monkeypatch.setattr(fused_linear, "_CPU_CHUNK", request.param)


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
def test_normed_linear(parts, bias, affine):
    norm = randomize(nn.LayerNorm(12, elementwise_affine=affine))
    linear = randomize(nn.Linear(12, 18, bias=bias))
    x = torch.randn(2, 5, 9, 12, requires_grad=True)
    outputs = fused_linear.normed_linear(x, norm, linear, parts)
    assert len(outputs) == parts and all(output.is_contiguous() for output in outputs)
    inputs = [x, *norm.parameters(), *linear.parameters()]
    assert_same(torch.cat(outputs, dim=-1), linear(norm(x)), inputs)


@pytest.mark.parametrize("act", [nn.GELU, lambda: nn.GELU(approximate="tanh")])
@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("skips_itself", [True, False])
def test_normed_mlp(act, scaled, skips_itself):
    norm = randomize(nn.LayerNorm(12))
    mlp = randomize(Mlp(12, 40, 12 if skips_itself else 20, act_layer=act))
    x = torch.randn(2, 5, 9, 12, requires_grad=True)
    skip = x if skips_itself else torch.randn(2, 5, 9, 20, requires_grad=True)
    scale = torch.tensor([0.0, 1.25]).view(2, 1, 1, 1) if scaled else None
    expected = skip + (1 if scale is None else scale) * mlp(norm(x))
    inputs = [x, *norm.parameters(), *mlp.parameters(), *([] if skips_itself else [skip])]
    for given in (None, skip) if skips_itself else (skip,):
        assert_same(fused_mlp.normed_mlp(x, norm, mlp, given, scale), expected, inputs)
        with torch.no_grad():
            actual = fused_mlp.normed_mlp(x, norm, mlp, given, scale)
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
    assert_same(fused_mlp.normed_mlp(x, norm, mlp, x), x + mlp(norm(x)), trained)


@pytest.mark.parametrize(
    ("norm", "act", "words"),
    [
        (nn.Identity(), nn.GELU, "must be a LayerNorm of channels, got Identity"),
        (nn.LayerNorm(12), nn.ReLU, "must be a GELU, got ReLU"),
    ],
)
def test_says_why_it_cannot_run(norm, act, words):
    assert words in fused_mlp.why_not(torch.ones(1, 12), norm, Mlp(12, act_layer=act))


def block(**changes) -> MultiScaleBlock:
    numbers = {"dim": 12, "dim_attention": 12, "dim_out": 12, "stride_q": 1, "drop_path": 0.0}
    act_layer = changes.pop("act_layer", nn.GELU)
    spec = BlockSpec(
        stage=2,
        num_heads=2,
        stride_kv=2,
        window_size=4,
        table_size=8,
        ends_stage=False,
        **numbers | changes,
    )
    return randomize(MultiScaleBlock(spec, act_layer=act_layer))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"dim_attention": 24, "dim_out": 24, "stride_q": 2},
        {"dim_out": 24},
        {"act_layer": nn.ReLU},
        {"drop_path": 0.5},
    ],
    ids=lambda changes: "-".join(changes) or "plain",
)
def test_blocks(changes):
    """A block against its definition in plain modules."""
    module, x = block(**changes), torch.randn(3, 9, 10, 12, requires_grad=True)
    torch.manual_seed(1)  # the same paths are dropped
    actual = module(x)
    torch.manual_seed(1)
    normed = module.norm1(x)
    skip = module.proj(normed) if module.widens_in_attention else x
    attended = module.drop_path(module.attn.reference(normed))
    middle = pool_map(skip, module.pool_skip) + attended
    normed = module.norm2(middle)
    skip = module.proj(normed) if module.widens_in_mlp else middle
    expected = skip + module.drop_path(module.mlp(normed))
    assert relative_error(actual, expected) < TOLERANCE
    inputs = [x, *module.parameters()]
    largest = max(tensor.abs().max() for tensor in gradients(expected, inputs))
    for ours, plain in zip(gradients(actual, inputs), gradients(expected, inputs), strict=True):
        assert (ours - plain).abs().max() < 1e-4 * plain.abs().max() + 1e-6 * largest


def test_skip_pooling():
    pool, x = skip_pool(2), torch.randn(2, 9, 14, 12, requires_grad=True)
    actual, expected = pool_skip_map(x, pool), pool_map(x, pool)
    assert torch.equal(actual, expected)
    assert torch.equal(*(gradients(output, [x])[0] for output in (actual, expected)))
