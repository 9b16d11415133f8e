"""Clips and class tokens by the fast backends, against the plain model."""

import pytest
import torch
from models import randomize
from torch import Tensor, nn

from mvitv2_det.attention.spec import AttentionSpec
from mvitv2_det.backbone.block import MultiScaleBlock
from mvitv2_det.backbone.schedule import BlockSpec
from mvitv2_det.fused import accelerate

KINDS = {
    "all pooled": {"stride_kv": (1, 2, 2)},
    "strided queries": {"stride_q": (1, 2, 2), "stride_kv": (1, 4, 4)},
    "wider MLP": {"stride_kv": (1, 2, 2), "dim_out": 12, "block_dim_out": 24},
    "space alone": {"stride_kv": (1, 2, 2), "rel_pos_kind": "space"},
    "no positions": {"use_rel_pos": False, "stride_kv": (1, 2, 2)},
    "no residual of the token": {"stride_kv": (1, 2, 2), "residual_class_token": False},
    "no pooling": {"pool_q": False, "pool_kv": False, "residual_pooling": False},
    "kernel of one frame": {"pool_kernel": (1, 3, 3), "stride_kv": (1, 2, 2)},
}
IMAGES = {"pool_kernel": (3, 3), "stride_kv": (2, 2), "table_size": (14, 14)}


def block(backend: str | None, changes: dict) -> MultiScaleBlock:
    options = {
        "dim": 12, "dim_out": 24, "num_heads": 3, "pool_kernel": (3, 3, 3),
        "table_size": (4, 14, 14), "stride_q": (1,) * 3, "stride_kv": (1,) * 3,
    }  # fmt: skip
    if "table_size" in changes:
        options["stride_q"] = (1, 1)
    options |= changes
    dim_out = options.pop("block_dim_out", options["dim_out"])
    spec = BlockSpec(2, AttentionSpec(**options), dim_out, drop_path=0.5)
    torch.manual_seed(0)
    module = randomize(MultiScaleBlock(spec)).double()
    if backend is not None:
        accelerate(module, backend)
    return module


def found(module: nn.Module, x: Tensor, token: Tensor | None) -> dict[str, Tensor]:
    """Outputs and gradients of what goes in and of all parameters; paths are dropped."""
    x = x.clone().requires_grad_()
    token = None if token is None else token.clone().requires_grad_()
    torch.manual_seed(1)
    outputs = module.train()(x) if token is None else module.train()(x, token)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    generator = torch.Generator().manual_seed(2)
    sum((z * torch.randn(z.shape, generator=generator).to(z)).sum() for z in outputs).backward()
    named = {name: p.grad for name, p in module.named_parameters()} | {"x": x.grad}
    if token is not None:
        named["token"] = token.grad
    with torch.no_grad():
        module.eval()
        inferred = module(x) if token is None else module(x, token)
    inferred = inferred if isinstance(inferred, tuple) else (inferred,)
    return named | {f"output {n}": z.detach() for n, z in enumerate((*outputs, *inferred))}


@pytest.mark.parametrize("backend", ["auto", "tiled", "sdpa"])
@pytest.mark.parametrize("has_token", [True, False], ids=["class token", "no class token"])
@pytest.mark.parametrize("kind", [*KINDS, "images"])
def test_equals_the_plain_model(kind, has_token, backend):
    """To 1e-10 of each tensor's largest value in float64: 3 frames of 6×5 tokens."""
    changes = KINDS.get(kind, IMAGES)
    size = (6, 5) if kind == "images" else (3, 6, 5)
    x = torch.randn(2, *size, 12, dtype=torch.float64)
    token = torch.randn(2, 1, 12, dtype=torch.float64) if has_token else None
    fast = block(backend, changes)
    choice = fast.choose(x, token)
    assert choice.attention == ("tiled" if backend == "auto" else backend) and not choice.is_plain
    actual, expected = found(fast, x, token), found(block(None, changes), x, token)
    largest = max(tensor.abs().max() for tensor in expected.values())
    assert set(actual) == set(expected)
    for name, tensor in expected.items():
        difference = (actual[name] - tensor).abs().max()
        assert difference <= 1e-10 * tensor.abs().max() + 1e-13 * largest, name


@pytest.mark.parametrize("backend", ["tiled", "sdpa"])
@pytest.mark.parametrize("has_token", [True, False], ids=["class token", "no class token"])
@pytest.mark.parametrize("kind", ["all pooled", "strided queries", "no pooling"])
def test_bfloat16_is_no_worse_than_the_plain_models(kind, has_token, backend):
    """Outputs and gradients under autocast: at most twice the plain model's error."""
    x = torch.randn(2, 3, 6, 5, 12)
    token = torch.randn(2, 1, 12) if has_token else None
    exact = found(block(None, KINDS[kind]).float(), x, token)

    def error(module: nn.Module) -> float:
        with torch.autocast("cpu", torch.bfloat16):
            rounded = found(module.float(), x, token)
        differences = [(rounded[name].float() - exact[name]).flatten() for name in exact]
        return torch.cat(differences).norm().item()

    assert 0 < error(block(backend, KINDS[kind])) < 2 * error(block(None, KINDS[kind]))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stride_kv": (2, 2, 2)}, "its frames are strided"),
        ({"rel_pos_kind": "joint_space"}, "its relative positions are joint_space"),
    ],
)
def test_what_is_the_plain_attentions(changes, words):
    x, token = torch.randn(1, 4, 6, 5, 12).double(), torch.randn(1, 1, 12).double()
    module = block("auto", changes)
    choice = module.choose(x, token)
    assert choice.attention == "reference" and words in dict(choice.passed_over)["tiled"]
    actual, expected = found(module, x, token), found(block(None, changes), x, token)
    for name, tensor in expected.items():
        assert torch.allclose(actual[name], tensor, rtol=1e-9, atol=1e-11), name


@pytest.mark.parametrize("backend", ["tiled", "sdpa"])
def test_positions_of_all_pairs_of_frames_are_not_saved(backend):
    """R of 3·6 rows of queries and 3·3 of keys is 9 times as large as what it is made of."""
    saved = []

    def record(tensor: Tensor) -> Tensor:
        saved.append(tensor.shape)
        return tensor

    module, x = block(backend, KINDS["all pooled"]), torch.randn(2, 3, 6, 5, 12).double()
    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        module(x)
    assert saved and (3 * 6, 3 * 3, 8) not in saved
