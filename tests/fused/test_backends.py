"""Every backend against the plain model and against Detectron2's MViT."""

import copy
import pickle

import pytest
import torch
from detectron2.modeling import MViT as ReferenceMViT
from fused.blocks import KINDS, TOLERANCE, assert_same, block, outputs_and_gradients
from models import TINY, narrow, randomize, relative_error
from torch import nn

from mvitv2_det import MViT
from mvitv2_det.attention.position import relative_index
from mvitv2_det.backbone.block import MultiScaleBlock
from mvitv2_det.fused import accelerate, choice, tokens
from mvitv2_det.fused.sdpa import one_hot_places

FAST = ("tiled", "sdpa")


@pytest.mark.parametrize("size", [(9, 14), (25, 13)])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", FAST)
def test_equals_the_plain_block(backend, kind, size):
    """float32, batches of 2, up to 25×13 tokens."""
    fast, plain = block(backend, **KINDS[kind]), block(None, **KINDS[kind])
    x = torch.randn(2, *size, 12)
    expected = outputs_and_gradients(plain, x)
    assert_same(outputs_and_gradients(fast, x), expected)
    with torch.inference_mode():
        assert relative_error(fast(x), expected["output"]) < TOLERANCE


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"dim_out": 12, "block_dim_out": 24},
        {"dim": 24},
        {"act_layer": lambda: nn.GELU(approximate="tanh")},
        {"act_layer": nn.ReLU},
        {"drop_path": 0.5},
    ],
    ids=lambda changes: "-".join(changes) or "widens in attention",
)
@pytest.mark.parametrize("backend", ["auto", "sdpa", "reference"])
def test_equals_the_plain_block_in_float64(backend, changes):
    """What is left there is no rounding: 1e-12 on 9×14 tokens, all paths of three images."""
    fast, plain = (
        block(name, **KINDS["windows"], **changes).double().train() for name in (backend, None)
    )
    x = torch.randn(3, 9, 14, plain.spec.attention.dim, dtype=torch.float64)
    assert_same(outputs_and_gradients(fast, x), outputs_and_gradients(plain, x), 1e-12)


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """``auto`` takes on the CPU what it takes on a GPU: ``sdpa``, and norms and MLP fused."""
    monkeypatch.setitem(choice._AUTOMATIC, "cpu", (choice.SDPA,))


@pytest.mark.parametrize("size", [(9, 14), (25, 13)])
@pytest.mark.parametrize("kind", KINDS)
def test_sdpa_with_fused_norms_equals_the_plain_block(as_on_a_gpu, kind, size):
    """Output and all gradients in float64, to 1e-12."""
    fast, plain = (block(name, **KINDS[kind]).double() for name in ("auto", None))
    x = torch.randn(2, *size, 12, dtype=torch.float64)
    assert str(fast.choose(x)) == "sdpa, fused norms and MLP"
    assert_same(outputs_and_gradients(fast, x), outputs_and_gradients(plain, x), 1e-12)


def test_norms_of_low_precision_tokens_as_on_a_gpu(as_on_a_gpu, monkeypatch):
    """CUDA's LayerNorm takes no bfloat16 tokens with a float32 weight; CPU's does."""
    seen = []

    def strict(x, shape, weight, bias, eps):
        assert x.dtype == weight.dtype
        seen.append(x.dtype)
        return native_layer_norm(x, shape, weight, bias, eps)

    native_layer_norm = torch.native_layer_norm
    fast, plain = (block(name, **KINDS["windows"]) for name in ("auto", None))
    x = torch.randn(2, 9, 14, 12).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = outputs_and_gradients(fast, x)
        monkeypatch.setattr(tokens, "_MIXED_NORMS", ())
        monkeypatch.setattr(torch, "native_layer_norm", strict)
        found = outputs_and_gradients(fast, x)
    assert seen and set(seen) == {torch.float32}
    assert {name: one.dtype for name, one in found.items()} == {
        name: one.dtype for name, one in mixed.items()
    }
    assert_same(found, outputs_and_gradients(plain.double(), x.double()), 0.1)


def test_sdpa_with_fused_norms_saves_few_bytes(as_on_a_gpu):
    arguments = narrow("T") | {"embed_dim": 32, "use_abs_pos": False}
    assert saved_bytes(MViT(**arguments)) < 0.4 * saved_bytes(ReferenceMViT(**arguments))


@pytest.mark.parametrize("rows", [1, 3])
def test_tiles_of_few_rows(monkeypatch, rows):
    """Maps of more logits than fit into one tile."""
    monkeypatch.setattr("mvitv2_det.fused.cpu.tiles._LOGITS", rows * 2 * 3 * 14 * 35)
    for kind in ("global", "windows", "more keys than queries"):
        fast, plain = block("tiled", **KINDS[kind]), block(None, **KINDS[kind])
        x = torch.randn(2, 9, 14, 12)
        assert_same(outputs_and_gradients(fast, x), outputs_and_gradients(plain, x))


@pytest.mark.parametrize("kind", KINDS)
def test_without_gradients(kind):
    """Float64, to 1e-12."""
    fast, plain = (block(name, **KINDS[kind]).double() for name in ("tiled", None))
    x = torch.randn(2, 25, 14, 12, dtype=torch.float64)
    with torch.no_grad():
        assert relative_error(fast(x), plain(x)) < 1e-12


@pytest.mark.parametrize("size", [(224, 224), (33, 50)])
@pytest.mark.parametrize("variant", ["T", "L"])
@pytest.mark.parametrize("backend", ["reference", *FAST])
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


def test_no_autograd_function_is_applied_without_gradients(monkeypatch):
    """Blocks of all kinds."""

    def fail(*_):
        raise AssertionError("applied")

    modules = [block("tiled", **options) for options in KINDS.values()]
    x = torch.randn(2, 9, 14, 12)
    monkeypatch.setattr(torch.autograd.Function, "apply", fail)
    with torch.no_grad():
        assert all(module(x).isfinite().all() for module in modules)
    with pytest.raises(AssertionError, match="applied"):
        modules[0](x)


def test_the_skip_connections_projection_may_train_alone():
    """Where channels double in the MLP, and all else is frozen; float32, to 1e-4."""
    arguments = TINY | {"expand_in_attention": False}
    plain = randomize(MViT(**arguments, attention_backend="reference")).requires_grad_(False)
    fast = MViT(**arguments, attention_backend="tiled").requires_grad_(False)
    fast.load_state_dict(plain.state_dict())
    images, gradients = torch.randn(1, 3, 64, 96), []
    for model in (plain, fast):
        proj = next(block.proj for block in model.blocks if block.widens_in_mlp)
        proj.requires_grad_()
        sum(feature.square().mean() for feature in model(images).values()).backward()
        gradients.append(proj.weight.grad)
    assert relative_error(gradients[1], gradients[0]) < 1e-4


@pytest.mark.parametrize("backend", ["auto", "tiled", "sdpa", "reference"])
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


@pytest.mark.parametrize("backend", ["tiled", "reference"])
def test_a_model_of_bfloat16_is_as_near_as_under_autocast(backend):
    """Weights of bfloat16, 96×130: at most twice the error that autocast gives the plain model."""
    model = randomize(MViT(**TINY, attention_backend="reference")).eval()
    low = MViT(**TINY, attention_backend=backend).eval()
    low.load_state_dict(model.state_dict())
    images = torch.randn(2, 3, 96, 130)
    with torch.no_grad():
        exact, found = model(images), low.bfloat16()(images.bfloat16())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = model(images)
    for name, feature in exact.items():
        assert found[name].dtype == torch.bfloat16
        assert (found[name] - feature).norm() < 2 * (rounded[name] - feature).norm(), name


@pytest.mark.parametrize("backend", ["tiled", "sdpa"])
def test_gradients_in_bfloat16_are_no_worse_than_detectron2s(backend):
    """All together, autocast to bfloat16, 96×130: at most 1.5 times the reference's error."""
    reference = randomize(ReferenceMViT(**TINY))
    ours = MViT(**TINY, attention_backend=backend)
    ours.load_state_dict(reference.state_dict())
    images = torch.randn(1, 3, 96, 130)

    def gradients(model: nn.Module, low: bool) -> torch.Tensor:
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=low):
            loss = sum(feature.float().square().mean() for feature in model(images).values())
        loss.backward()
        named = dict(model.named_parameters())
        return torch.cat([named[name].grad.flatten() for name in sorted(named)])

    exact, rounded = gradients(reference, False), gradients(reference, True)
    found = gradients(ours, True)
    assert 0 < (found - exact).norm() < 1.5 * (rounded - exact).norm()


def saved_bytes(model: nn.Module) -> int:
    """Bytes saved for backward, weights left out."""
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


@pytest.mark.parametrize(("backend", "share"), [("auto", 0.4), ("tiled", 0.4), ("sdpa", 0.6)])
def test_fewer_bytes_are_saved_for_backward(backend, share):
    """The tiny narrow network at 224×224, against what Detectron2's saves.

    ``sdpa`` changes the attention alone, and not the MLP.
    """
    arguments = narrow("T") | {"embed_dim": 32, "use_abs_pos": False}
    allowed = share * saved_bytes(ReferenceMViT(**arguments))
    assert saved_bytes(MViT(**arguments, attention_backend=backend)) < allowed


@pytest.mark.parametrize("backend", FAST)
def test_inference_mode_then_training(backend):
    """Tensors cached in inference can be used in training."""
    for cached in (relative_index, one_hot_places):
        cached.made.clear()
    module, x = block(backend, **KINDS["global"]), torch.randn(1, 9, 14, 12)
    with torch.inference_mode():
        before = module(x)
    assert_same({"output": outputs_and_gradients(module, x)["output"]}, {"output": before})


def test_constants_are_made_once(monkeypatch):
    module, x = block("sdpa", **KINDS["global"]), torch.randn(1, 9, 14, 12)
    expected = module(x)

    def refuse(*_, **__):
        raise AssertionError("made again")

    for name in ("arange", "eye"):
        monkeypatch.setattr(torch, name, refuse)
    assert torch.equal(module(x), expected)


def test_fake_tensors_are_not_cached():
    from torch._subclasses.fake_tensor import FakeTensorMode

    for cached in (relative_index, one_hot_places):
        cached.made.clear()
    spec = block(None, **KINDS["global"]).spec
    with FakeTensorMode():
        module = MultiScaleBlock(spec)
        accelerate(module, "auto")
        assert module(torch.randn(1, 9, 14, 12)).shape == (1, 9, 14, 24)
    assert block("sdpa")(torch.randn(1, 9, 14, 12)).isfinite().all()


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
    plain, fast = (block(name, **KINDS["windows"]) for name in (None, backend))
    for module in (plain, fast):
        for part in (module.attn.pool_k, module.attn.norm_v, module.attn.qkv, module.mlp.fc1):
            part.requires_grad_(False)
        module.attn.rel_pos_w.requires_grad_(False)
        module(torch.ones(1, 9, 14, 12)).sum().backward()
    for expected, actual in zip(plain.parameters(), fast.parameters(), strict=True):
        assert (actual.grad is None) == (expected.grad is None)


def test_copies_and_pickles_are_independent_of_the_backend():
    module, x = block("auto", **KINDS["windows"]), torch.randn(1, 9, 14, 12)
    expected = module(x)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(other(x), expected)
    assert list(module.state_dict()) == list(block(None).state_dict())
