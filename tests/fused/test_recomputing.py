"""Products that are computed again in backward: the same bits as saved ones give, in fewer bytes.

With the Triton kernels they are tested in ``triton/test_recomputed_products.py``.
"""

import weakref

import pytest
import torch
from fused.blocks import KINDS, block, outputs_and_gradients
from models import TINY, narrow, randomize
from torch import Tensor, nn

from mvitv2_det import MViT, Recognizer, ViT
from mvitv2_det.attention.spec import AttentionSpec
from mvitv2_det.backbone.block import MultiScaleBlock
from mvitv2_det.backbone.schedule import BlockSpec
from mvitv2_det.config import apply_overrides, get_config
from mvitv2_det.fused import accelerate, choice, mlp, norm_linear, tokens
from mvitv2_det.variants import Variant

NARROW = Variant(embed_dim=8, blocks=(1, 1, 1, 1), num_heads=1, drop_path_rate=0.5)


@pytest.fixture(params=["tiled", "sdpa"])
def attend(request, monkeypatch):
    """What ``auto`` takes: ``tiled``, and ``sdpa`` with fused norms, as on most GPUs."""
    monkeypatch.setitem(choice._AUTOMATIC, "cpu", (request.param,))
    return request.param


@pytest.fixture(params=[7, 4096], ids=["many chunks", "one chunk"])
def _chunk_size(request, monkeypatch):
    monkeypatch.setattr(tokens, "_CPU_CHUNK", request.param)


def assert_recomputing_changes_nothing(module: nn.Module, run) -> None:
    """``run`` gives tensors by their names; all bits of them, saved and computed again."""
    found = []
    for recomputes in (False, True):
        accelerate(module, "auto", recompute_products=recomputes)
        module.zero_grad()
        torch.manual_seed(1)  # the same paths are dropped
        found.append(run(module))
    for name, expected in found[0].items():
        assert torch.equal(found[1][name], expected), name


def features_and_gradients(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    outputs = model(images)
    outputs = outputs if isinstance(outputs, dict) else {"logits": outputs}
    sum(output.float().square().mean() for output in outputs.values()).backward()
    return outputs | {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.usefixtures("_chunk_size")
@pytest.mark.parametrize(
    "changes",
    [
        *KINDS.values(),
        {"act_layer": lambda: nn.GELU(approximate="tanh")},
        {"dim_out": 12, "block_dim_out": 24},
        {"window_size": 8, "drop_path": 0.5},
    ],
    ids=[*KINDS, "tanh", "wider in the MLP", "dropped paths"],
)
def test_blocks(attend, changes):
    """float32, batches of 3, windows that reach over the border."""
    module, x = block("auto", **changes).train(), torch.randn(3, 9, 14, 12)
    assert_recomputing_changes_nothing(module, lambda module: outputs_and_gradients(module, x))


@pytest.mark.parametrize("size", [(6, 5), (3, 6, 5)], ids=["images", "clips"])
@pytest.mark.parametrize("pools", [True, False], ids=["pooled", "not pooled"])
@pytest.mark.parametrize("has_token", [True, False], ids=["class token", "no class token"])
def test_clips_and_class_tokens(attend, has_token, pools, size):
    """float64, two of 3 frames of 6×5 tokens, and dropped paths."""
    axes, frames = len(size), (1,) * (len(size) - 2)
    table = (*frames, 14, 14)
    spec = AttentionSpec(
        dim=12, dim_out=24, num_heads=3, pool_kernel=(3,) * axes, table_size=table,
        stride_q=(1,) * axes, stride_kv=(*frames, 2, 2) if pools else (1,) * axes,
        pool_q=pools, pool_kv=pools, residual_pooling=pools,
    )  # fmt: skip
    module = randomize(MultiScaleBlock(BlockSpec(2, spec, 24, drop_path=0.5))).double().train()
    inputs = [torch.randn(2, *size, 12), *([torch.randn(2, 1, 12)] if has_token else [])]
    inputs = [x.double().requires_grad_() for x in inputs]

    def run(module: nn.Module) -> dict[str, Tensor]:
        outputs = module(*inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        parameters = dict(module.named_parameters())
        loss = sum(output.square().sum() for output in outputs)
        found = torch.autograd.grad(loss, [*inputs, *parameters.values()], allow_unused=True)
        names = [*(f"input {n}" for n in range(len(inputs))), *parameters]
        return {name: one for name, one in zip(names, found, strict=True) if one is not None}

    assert_recomputing_changes_nothing(module, run)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("use_act_checkpoint", [False, True])
def test_networks(attend, use_act_checkpoint, dtype):
    """A backbone that drops paths; bfloat16 is autocast's, and backward runs outside of it."""
    options = TINY | {"drop_path_rate": 0.5, "use_act_checkpoint": use_act_checkpoint}
    model, images = randomize(MViT(**options)).train(), torch.randn(3, 3, 64, 96)
    if dtype == torch.float64:
        model, images = model.double(), images.double()

    def run(model: nn.Module) -> dict[str, Tensor]:
        with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
            features = model(images)
        sum(feature.float().square().mean() for feature in features.values()).backward()
        return features | {name: p.grad.clone() for name, p in model.named_parameters()}

    assert_recomputing_changes_nothing(model, run)


@pytest.mark.parametrize("use_act_checkpoint", [False, True])
def test_clip_recognizers(attend, use_act_checkpoint):
    """With a class token and dropped paths, clips of 4 frames."""
    options = {"image_size": 64, "use_act_checkpoint": use_act_checkpoint}
    model = randomize(Recognizer.video(NARROW, 4, 5, **options, drop_path_rate=0.5)).train()
    clips = torch.randn(2, 3, 4, 64, 64)
    assert_recomputing_changes_nothing(model, lambda model: features_and_gradients(model, clips))


def test_plain_networks(attend):
    """Windows completed by the projection's bias."""
    size = {"embed_dim": 16, "depth": 4, "num_heads": 2, "window_size": 3}
    model = randomize(ViT(img_size=80, pretrain_img_size=80, **size, use_rel_pos=True))
    images = torch.randn(2, 3, 80, 80)
    assert_recomputing_changes_nothing(model, lambda model: features_and_gradients(model, images))


def test_two_backward_passes_through_one_graph(attend):
    module, x = block("auto", **KINDS["windows"]), torch.randn(2, 9, 14, 12)
    accelerate(module, "auto", recompute_products=True)
    loss = module(x).square().sum()
    first, second = (
        torch.autograd.grad(loss, [*module.parameters()], retain_graph=True) for _ in range(2)
    )
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("frozen", ["attn.qkv", "attn.pool_q", "norm1", "norm2", "mlp"])
@pytest.mark.parametrize("needs_input", [False, True])
def test_frozen_parts(attend, needs_input, frozen):
    module, x = block("auto", **KINDS["windows"]), torch.randn(2, 9, 14, 12)
    module.get_submodule(frozen).requires_grad_(False)
    x.requires_grad_(needs_input)

    def run(module: nn.Module) -> dict[str, Tensor]:
        x.grad = None
        module(x).square().sum().backward()
        gradients = {name: p.grad for name, p in module.named_parameters()} | {"x": x.grad}
        return {name: grad.clone() for name, grad in gradients.items() if grad is not None}

    assert_recomputing_changes_nothing(module, run)


@pytest.fixture
def made(monkeypatch):
    """Weak references to q, k and v as projected, and to hidden channels; counts of both."""
    maps, hidden = [], []

    def products(*arguments):
        found = of_norm_linear(*arguments)
        maps.append([weakref.ref(one) for one in found])
        return found

    def dense(x, weight, *others):
        found = of_mlp(x, weight, *others)
        if len(weight) == 4 * x.shape[1] and weight.is_contiguous():
            hidden.append(weakref.ref(found))
        return found

    of_norm_linear, of_mlp = norm_linear._products, mlp.dense
    monkeypatch.setattr(norm_linear, "_products", products)
    monkeypatch.setattr(mlp, "dense", dense)
    return maps, hidden


@pytest.mark.parametrize("recomputes", [False, True])
def test_products_live_until_backward_or_are_made_once_more(made, recomputes):
    maps, hidden = made
    module = block("tiled", window_size=8, stride_kv=1, dim_out=12)
    accelerate(module, "tiled", recompute_products=recomputes)
    x = 2 * torch.randn(2, 9, 14, 12, requires_grad=True)
    z, given = module(x), weakref.ref(x)
    del x
    alive = [one() is not None for refs in maps for one in refs] + [hidden[0]() is not None]
    assert (len(maps), len(hidden), len(alive)) == (1, 1, 4)
    assert alive == [not recomputes] * 4
    z.sum().backward()
    times = 2 if recomputes else 1
    assert (len(maps), len(hidden)) == (times, times)
    assert all(one() is None for one in [given, *hidden, *(one for refs in maps for one in refs)])


def test_frozen_blocks_compute_nothing_again(made):
    """Without gradients on the way, nothing is saved or computed again."""
    maps, hidden = made
    model = MViT(**TINY, freeze_at=3, recompute_products=True)
    features = model(torch.randn(1, 3, 64, 64))
    forward = len(maps), len(hidden)
    sum(feature.sum() for feature in features.values()).backward()
    again = len(maps) - forward[0], len(hidden) - forward[1]
    assert again == (2, 2)  # scale4 and scale5


@pytest.mark.parametrize("name", ["norm1.bias", "attn.qkv.weight", "attn.qkv.bias", "mlp.fc1.bias"])
@pytest.mark.parametrize("kind", ["windows", "global"])
def test_weights_that_change_before_backward_are_noticed(kind, name):
    module = block("tiled", **KINDS[kind])
    accelerate(module, "tiled", recompute_products=True)
    z = module(torch.randn(2, 9, 14, 12))
    with torch.no_grad():
        module.get_parameter(name).add_(1.0)
    with pytest.raises(RuntimeError, match=r"modified (by an )?inplace"):
        z.sum().backward()


def saved_bytes(model: nn.Module) -> int:
    """Bytes saved for backward, weights left out."""
    storages = {}

    def record(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
        features = model(torch.randn(1, 3, 224, 224))
    del features
    weights = {tensor.untyped_storage().data_ptr() for tensor in model.parameters()}
    return sum(s.nbytes() for address, s in storages.items() if address not in weights)


def test_fewer_bytes_are_saved(attend):
    """Of what the default saves; less yet by checkpoints, which keep the input of each block."""
    options = narrow("T") | {"embed_dim": 32}
    default, recomputing, checkpoints = (
        saved_bytes(MViT(**options, **keywords))
        for keywords in ({}, {"recompute_products": True}, {"use_act_checkpoint": True})
    )
    both = saved_bytes(MViT(**options, recompute_products=True, use_act_checkpoint=True))
    assert recomputing < 0.45 * default
    assert both == checkpoints < recomputing


@pytest.mark.parametrize("backend", ["sdpa", "reference"])
def test_backends_that_fuse_no_layers_refuse(backend):
    words = f"recompute_products is for fused layers: .* auto, tiled or triton, got '{backend}'"
    with pytest.raises(ValueError, match=words):
        MViT(**TINY, attention_backend=backend, recompute_products=True)


def test_an_override_reaches_the_blocks():
    cfg = get_config("mask_rcnn_mvitv2_t_3x")
    apply_overrides(cfg, ["model.backbone.bottom_up.recompute_products=true"])
    assert cfg.model.backbone.bottom_up.recompute_products is True
    for model in (MViT(**TINY, recompute_products=True), Recognizer.image("T", 5)):
        is_backbone = isinstance(model, MViT)
        assert {block.recomputes for block in model.blocks} == {is_backbone}
