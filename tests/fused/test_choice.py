"""Every attention backend against the reference path and against Detectron2's MViT."""

import copy
import logging
import pickle

import pytest
import torch
from detectron2.modeling import MViT as ReferenceMViT
from models import TINY, narrow, randomize, relative_error
from torch import nn

from mvitv2_det import MViT
from mvitv2_det.attention import MultiScaleAttention
from mvitv2_det.attention.position import relative_index
from mvitv2_det.fused import choice as backends
from mvitv2_det.fused.residual_linear import Skip
from mvitv2_det.fused.sdpa import one_hot_places

FAST = ("strips", "sdpa")
TOLERANCE = 1e-4

# One of each kind of block: window and stride that (dis)agree with (9, 14) or (25, 13) tokens.
KINDS = {
    "windows": {"window_size": 8, "stride_kv": 4},
    "strided queries": {"window_size": 8, "stride_q": 2, "stride_kv": 2},
    "more keys than queries": {"window_size": 8, "stride_q": 2},
    "global": {"stride_kv": 2},
    "global, strided queries": {"stride_q": 2, "stride_kv": 4},
    "no positions": {"use_rel_pos": False, "window_size": 4},
    "no residual": {"residual_pooling": False, "stride_kv": 2},
    "no bias": {"qkv_bias": False, "window_size": 4},
    "kernel of 5": {"pool_kernel": (5, 5), "stride_kv": 2},
    "kernel of 1": {"pool_kernel": (1, 1), "stride_kv": 2},
    "no pooling": {"pool_q": False, "pool_kv": False, "residual_pooling": False},
    "no pooling, windows": {"pool_q": False, "pool_kv": False, "window_size": 4},
    "no pooling of queries": {"pool_q": False, "window_size": 8, "stride_kv": 2},
}


def attention(backend: str, **changes) -> MultiScaleAttention:
    arguments = {"dim": 12, "dim_out": 24, "num_heads": 3, "table_size": 14} | changes
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the same weights for every backend
        return randomize(MultiScaleAttention(**arguments, attention_backend=backend))


def outputs_and_gradients(
    module: nn.Module, x: torch.Tensor, norm: nn.Module | None = None
) -> dict[str, torch.Tensor]:
    x = x.clone().requires_grad_()
    z = module(x) if norm is None else module(x, norm)
    generator = torch.Generator().manual_seed(1)
    parts = (module,) if norm is None else (module, norm)
    for part in parts:
        part.zero_grad()
    (z * torch.randn(z.shape, generator=generator).to(z)).sum().backward()
    found = {"output": z.detach(), "input": x.grad}
    for part in parts:
        found |= {name: tensor.grad.clone() for name, tensor in part.named_parameters()}
    return found


def assert_same(actual: dict, expected: dict, tolerance: float = TOLERANCE) -> None:
    # A shift of all keys alike changes no attention: where no key is padding, the gradient of
    # norm_k.bias is rounding.
    rounding = 1e-6 * max(tensor.abs().max() for tensor in expected.values())
    for name, tensor in expected.items():
        difference = (actual[name] - tensor).abs().max()
        assert difference < tolerance * tensor.abs().max() + rounding, name


@pytest.mark.parametrize("size", [(9, 14), (25, 13)])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", FAST)
def test_equals_the_reference(backend, kind, size):
    """float32, batches of 2, up to 25×13 tokens."""
    fast, plain = attention(backend, **KINDS[kind]), attention("reference", **KINDS[kind])
    x = torch.randn(2, *size, 12)
    norm = randomize(nn.LayerNorm(12))
    expected = outputs_and_gradients(plain, x, norm)
    assert_same(outputs_and_gradients(fast, x, norm), expected)
    with torch.inference_mode():
        assert relative_error(fast(x, norm), expected["output"]) < TOLERANCE


@pytest.mark.parametrize("backend", FAST)
def test_equals_the_reference_in_float64(backend):
    """What is left there is no rounding: 1e-12 on 9×14 tokens."""
    fast, plain = (attention(name, **KINDS["windows"]).double() for name in (backend, "reference"))
    x = torch.randn(2, 9, 14, 12, dtype=torch.float64)
    assert_same(outputs_and_gradients(fast, x), outputs_and_gradients(plain, x), 1e-12)


@pytest.mark.parametrize("rows", [1, 3])
def test_strips_of_few_rows(monkeypatch, rows):
    """Maps of more scores than fit into one strip."""
    monkeypatch.setattr("mvitv2_det.fused.cpu.tiles._SCORES", rows * 2 * 3 * 14 * 35)
    for kind in ("global", "windows", "more keys than queries"):
        fast, plain = attention("strips", **KINDS[kind]), attention("reference", **KINDS[kind])
        x = torch.randn(2, 9, 14, 12)
        assert_same(outputs_and_gradients(fast, x), outputs_and_gradients(plain, x))


@pytest.mark.parametrize("tokens", [2 * 14, 2 * 14 * 5, 2 * 14 * 9])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_any_number_without_gradients(monkeypatch, kind, tokens):
    """Strips of 1, 5 and 9 rows of 25×14 tokens, float64: what the whole map gives, to 1e-12."""
    monkeypatch.setattr("mvitv2_det.fused.cpu.row_tiles._TOKENS", tokens)
    fast, plain = (attention(name, **KINDS[kind]).double() for name in ("strips", "reference"))
    x = torch.randn(2, 25, 14, 12, dtype=torch.float64)
    norm = randomize(nn.LayerNorm(12)).double()
    with torch.no_grad():
        expected = plain(x, norm)
        assert relative_error(fast(x, norm), expected) < 1e-12
        skip = Skip(torch.randn_like(expected), torch.rand(2, 1, 1, 1, dtype=torch.float64))
        summed = skip.tokens + skip.path_scale * expected
        assert relative_error(fast(x, norm, skip), summed) < 1e-12


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("backend", FAST)
def test_sum_with_the_skip_connection(backend, scaled):
    """Output and all gradients of ``skip + scale · attention``, float64, to 1e-12."""
    x = torch.randn(2, 9, 14, 12, dtype=torch.float64)
    scale = torch.rand(2, 1, 1, 1, dtype=torch.float64) if scaled else None
    tokens = torch.randn(2, 9, 14, 24, dtype=torch.float64, requires_grad=True)
    results = []
    for name in (backend, "reference"):
        module = attention(name, **KINDS["windows"]).double()
        tokens.grad = None
        output = module(x, None, Skip(tokens, scale))
        output.square().sum().backward()
        found = {name: tensor.grad for name, tensor in module.named_parameters()}
        results.append(found | {"output": output.detach(), "skip": tokens.grad})
    assert_same(*results, 1e-12)
    path = attention("reference", **KINDS["windows"]).double()(x)
    expected = tokens + (path if scale is None else scale * path)
    assert relative_error(results[1]["output"], expected) < 1e-12


@pytest.mark.parametrize("size", [(224, 224), (33, 50)])
@pytest.mark.parametrize("variant", ["T", "L"])
@pytest.mark.parametrize("backend", FAST)
def test_equals_detectron2(backend, variant, size):
    reference = randomize(ReferenceMViT(**narrow(variant)))
    ours = MViT(**narrow(variant), attention_backend=backend)
    ours.load_state_dict(reference.state_dict())
    images = torch.randn(1, 3, *size)
    results = []
    for model in (reference, ours):
        features = model(images)
        sum(feature.square().mean() for feature in features.values()).backward()
        gradients = {name: tensor.grad for name, tensor in model.named_parameters()}
        results.append((features, gradients))
    (features, gradients), (our_features, our_gradients) = results
    for name, feature in features.items():
        assert relative_error(our_features[name], feature) < TOLERANCE, name
    assert_same(our_gradients, gradients)


@pytest.mark.parametrize("backend", ["auto", "sdpa", "reference"])
def test_bfloat16_is_no_worse_than_detectron2s(backend):
    """autocast to bfloat16, 96×130: at most twice the error that the reference has there."""
    reference = randomize(ReferenceMViT(**TINY)).eval()
    ours = MViT(**TINY, attention_backend=backend).eval()
    ours.load_state_dict(reference.state_dict())
    images = torch.randn(2, 3, 96, 130)
    with torch.no_grad():
        exact = reference(images)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded, our_rounded = reference(images), ours(images)
    for name, feature in exact.items():
        allowed = 2 * (rounded[name] - feature).norm()
        assert (our_rounded[name] - feature).norm() < allowed, name


def test_gradients_in_bfloat16_stay_near():
    model = randomize(MViT(**TINY))
    images = torch.randn(1, 3, 64, 96)
    gradients = []
    for enabled in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss = sum(feature.float().square().mean() for feature in model(images).values())
        loss.backward()
        gradients.append(torch.cat([tensor.grad.flatten() for tensor in model.parameters()]))
    assert (gradients[1] - gradients[0]).norm() < 0.05 * gradients[0].norm()


def test_fewer_bytes_are_kept_for_backward():
    """The tiny narrow network at 224×224: at most 0.4 of what Detectron2's keeps."""

    def kept(model: nn.Module) -> int:
        weights = {tensor.untyped_storage().data_ptr() for tensor in model.parameters()}
        storages = {}

        def record(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                storages[storage.data_ptr()] = storage
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
            features = model(torch.randn(1, 3, 224, 224))  # kept alive: storages are not reused
        del features
        return sum(storage.nbytes() for storage in storages.values())

    arguments = narrow("T") | {"embed_dim": 32, "use_abs_pos": False}
    allowed = 0.4 * kept(ReferenceMViT(**arguments))
    for backend in ("auto", *FAST):
        assert kept(MViT(**arguments, attention_backend=backend)) < allowed, backend


@pytest.mark.parametrize("backend", FAST)
def test_inference_mode_then_training(backend):
    """Tensors kept from inference can be used in training."""
    for cached in (relative_index, one_hot_places):
        cached.made.clear()
    module, x = attention(backend, **KINDS["global"]), torch.randn(1, 9, 14, 12)
    with torch.inference_mode():
        before = module(x)
    assert_same({"output": outputs_and_gradients(module, x)["output"]}, {"output": before})


def test_constants_are_made_once(monkeypatch):
    module, x = attention("sdpa", **KINDS["global"]), torch.randn(1, 9, 14, 12)
    expected = module(x)

    def refuse(*_, **__):
        raise AssertionError("made again")

    for name in ("arange", "eye"):
        monkeypatch.setattr(torch, name, refuse)
    assert torch.equal(module(x), expected)


def test_fake_tensors_are_not_kept():
    from torch._subclasses.fake_tensor import FakeTensorMode

    for cached in (relative_index, one_hot_places):
        cached.made.clear()
    with FakeTensorMode():
        module = MultiScaleAttention(12, 24, 3, table_size=14, attention_backend="sdpa")
        assert module(torch.randn(1, 9, 14, 12)).shape == (1, 9, 14, 24)
    assert attention("sdpa")(torch.randn(1, 9, 14, 12)).isfinite().all()


@pytest.mark.parametrize("backend", FAST)
def test_activation_checkpointing_and_use_twice(backend):
    model = randomize(MViT(**TINY, attention_backend=backend))
    images = torch.randn(2, 3, 64, 96)
    gradients = []
    for model.use_act_checkpoint in (False, True):
        model.zero_grad()
        features = [model(images)["scale5"], model(images.flip(-1))["scale5"]]
        sum(feature.square().mean() for feature in features).backward()
        gradients.append(torch.cat([tensor.grad.flatten() for tensor in model.blocks.parameters()]))
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("backend", FAST)
def test_frozen_parts_get_no_gradient(backend):
    plain, fast = (attention(name, **KINDS["windows"]) for name in ("reference", backend))
    for module in (plain, fast):
        for part in (module.pool_k, module.norm_v, module.qkv):
            part.requires_grad_(False)
        module.rel_pos_w.requires_grad_(False)
        module(torch.ones(1, 9, 14, 12)).sum().backward()
    for expected, actual in zip(plain.parameters(), fast.parameters(), strict=True):
        assert (actual.grad is None) == (expected.grad is None)


def test_copies_and_pickles_are_independent_of_the_backend():
    module, x = attention("auto", **KINDS["windows"]), torch.randn(1, 9, 14, 12)
    expected = module(x)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(other(x), expected)
    assert list(module.state_dict()) == list(attention("reference").state_dict())


def test_what_auto_takes(caplog):
    module, x = attention("auto"), torch.randn(1, 9, 14, 12)
    assert backends.choose("auto", module, x).name == "strips"
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        caplog.at_level(logging.INFO, "mvitv2_det"),
    ):
        backends._say_once.cache_clear()
        for _ in range(2):
            assert backends.choose("auto", module, x).name == "sdpa"
    assert caplog.text.count("strips is not taken: it has no mixed precision") == 1
    assert backends.choose("auto", module, x.to("meta")).name == "reference"
    module.norm_k = nn.Identity()
    assert backends.choose("auto", module, x).name == "reference"


@pytest.mark.parametrize(
    ("backend", "change", "words"),
    [
        ("strips", lambda module, x: (module, x.to("meta")), "made for the CPU, got .* meta"),
        ("strips", lambda module, x: (module, x.bfloat16()), "float32 or float64, got .*bfloat16"),
        ("sdpa", lambda module, x: (module, x.to("meta")), "counted one by one"),
        (
            "sdpa",
            lambda module, x: (setattr(module, "norm_q", nn.Identity()), (module, x))[1],
            "norm_q must be a LayerNorm, got Identity",
        ),
        (
            "strips",
            lambda module, x: (setattr(module, "pool_v", nn.MaxPool2d(3)), (module, x))[1],
            "pool_v must be a convolution without bias, got MaxPool2d",
        ),
        (
            "sdpa",
            lambda module, x: (setattr(module, "proj", nn.Identity()), (module, x))[1],
            "proj must be a plain linear layer, got Identity",
        ),
        ("sdpa", {"window_size": 4, "shift": 2}, "its windows are shifted"),
        (
            "strips",
            {"window_size": 4, "mask_window_padding": True},
            "padding of its windows is masked",
        ),
        ("strips", {"rel_pos_kind": "joint"}, "positions are joint, not decomposed"),
        ("sdpa", {"rel_pos_terms": ("q", "k")}, "positions are on q, k, not on q alone"),
    ],
)
def test_a_named_backend_says_why_it_cannot_run(backend, change, words):
    x = torch.randn(1, 9, 14, 12)
    if isinstance(change, dict):
        module = attention(backend, **change)
    else:
        module, x = change(attention(backend), x)
    with pytest.raises(ValueError, match=f"'{backend}' cannot run here: .*{words}"):
        module(x)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"must be one of auto, .*reference, got 'flash'"):
        MViT(**TINY, attention_backend="flash")
