"""What computes a block, why, and what is never bypassed."""

import logging

import pytest
import torch
from fused.blocks import KINDS, assert_same, block, outputs_and_gradients
from models import TINY
from packaging.version import Version
from torch import nn
from torch.nn.utils import parametrize, prune

from mvitv2_det import MViT, processor
from mvitv2_det.fused import (
    BACKENDS,
    accelerate,
    choice,
    compile_blocks,
    compiling,
    explain,
)

CLIPS = {"pool_kernel": (3, 3, 3), "stride_q": 1, "stride_kv": 1, "table_size": 14}
X = torch.linspace(-1, 1, 9 * 14 * 12).reshape(1, 9, 14, 12)


def chosen(module: nn.Module, x: torch.Tensor = X) -> str:
    return str(module.choose(x))


def test_what_auto_takes(caplog):
    module = block("auto")
    assert chosen(module) == "tiled, fused norms and MLP"
    with (
        torch.autocast("cpu", dtype=torch.float16),
        caplog.at_level(logging.INFO, "mvitv2_det"),
    ):
        choice._say_once.cache_clear()
        for _ in range(2):
            assert chosen(module) == "sdpa, fused norms and MLP"
    assert caplog.text.count("tiled is not taken: it computes in float32, float64 or bf") == 1
    assert chosen(module, X.half()) == "sdpa, fused norms and MLP"
    assert chosen(module, X.to("meta")) == "reference"


@pytest.mark.parametrize("able", [True, False])
def test_bfloat16_is_tiled_where_the_cpu_multiplies_it(able, monkeypatch):
    monkeypatch.setattr(processor, "multiplies_bfloat16", lambda: able)
    module, expected = block("auto"), "tiled" if able else "sdpa"
    for has_gradients in (True, False):
        with torch.set_grad_enabled(has_gradients), torch.autocast("cpu", torch.bfloat16):
            assert chosen(module) == f"{expected}, fused norms and MLP"
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert chosen(block("tiled")) == "tiled, fused norms and MLP"
    with torch.no_grad(), torch.autocast("cpu", torch.float16):
        assert chosen(module) == "sdpa, fused norms and MLP"


@pytest.mark.parametrize(
    "options",
    [
        {"window_size": 4, "shift": 2},
        {"window_size": 4, "mask_window_padding": True},
        {"rel_pos_kind": "joint"},
        {"rel_pos_terms": ("q", "k")},
    ],
    ids=str,
)
def test_options_without_a_fast_attention_have_fused_mlps(options):
    assert chosen(block("auto", **options)) == "reference, fused norms and MLP"


class OnGpu(torch.Tensor):
    """A tensor that says it is on a GPU, to ask what would compute it there."""

    device = torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("capability", "dtype", "channels", "taken"),
    [
        ((9, 0), torch.bfloat16, 96, "triton"),
        ((8, 0), torch.bfloat16, 96, "sdpa"),
        ((9, 0), torch.float32, 96, "sdpa"),
        ((9, 0), torch.bfloat16, 8, "sdpa"),
    ],
)
def test_kernels_are_taken_unasked_where_they_were_measured(
    monkeypatch, capability, dtype, channels, taken
):
    monkeypatch.setattr("mvitv2_det.fused.triton.available.why_unavailable", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    options = {"dim": 8, "dim_out": channels, "num_heads": 1}
    x = torch.randn(1, 6, 5, 8, dtype=dtype).as_subclass(OnGpu)
    assert chosen(block("auto", **options), x) == f"{taken}, fused norms and MLP"
    assert chosen(block("triton", **options), x) == "triton, fused norms and MLP"


@pytest.mark.parametrize(
    ("window_size", "grad", "taken"),
    [(28, True, "triton"), (56, True, "sdpa"), (56, False, "triton"), (0, True, "triton")],
)
def test_large_windows_are_not_trained_by_kernels_unasked(monkeypatch, window_size, grad, taken):
    monkeypatch.setattr("mvitv2_det.fused.triton.available.why_unavailable", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    options = {"dim": 8, "dim_out": 96, "num_heads": 1, "window_size": window_size, "stride_kv": 2}
    x = torch.randn(1, 6, 5, 8, dtype=torch.bfloat16).as_subclass(OnGpu)
    with torch.set_grad_enabled(grad):
        assert chosen(block("auto", **options), x) == f"{taken}, fused norms and MLP"
        assert chosen(block("triton", **options), x) == "triton, fused norms and MLP"


def test_sdpa_by_name_is_the_attention_alone():
    module = block("sdpa")
    assert chosen(module) == "sdpa"
    calls = []
    for part in (module.norm1, module.mlp, module.attn.qkv, module.attn.proj):
        part.register_forward_hook(lambda part, *_: calls.append(part))
    module(X)
    assert {module.norm1, module.mlp, module.attn.qkv, module.attn.proj} == set(calls)


def test_the_reference_by_name_is_the_plain_model(monkeypatch):
    def refuse(*_):
        raise AssertionError("not plain")

    module = block("reference", **KINDS["windows"])
    monkeypatch.setattr(type(module), "compute", refuse)
    assert torch.equal(module(X), block(None, **KINDS["windows"])(X))


@pytest.mark.parametrize(
    ("backend", "change", "words"),
    [
        ("tiled", lambda module: (module, X.to("meta")), "counted one by one"),
        ("tiled", lambda module: (module, X.as_subclass(OnGpu)), "made for the CPU, got .* cuda"),
        ("tiled", lambda module: (module, X.half()), "float64 or bfloat16, got .*float16"),
        ("sdpa", lambda module: (module, X.to("meta")), "counted one by one"),
        (
            "sdpa",
            lambda module: (setattr(module.attn, "norm_q", nn.Identity()), (module, X))[1],
            "attn.norm_q must be a plain LayerNorm, got Identity",
        ),
        (
            "tiled",
            lambda module: (setattr(module.attn, "pool_v", nn.MaxPool2d(3)), (module, X))[1],
            "attn.pool_v must be a plain Conv2d or Conv3d, got MaxPool2d",
        ),
        (
            "tiled",
            lambda module: (setattr(module.attn, "proj", nn.Identity()), (module, X))[1],
            "attn.proj must be a plain Linear, got Identity",
        ),
        (
            "tiled",
            lambda module: (setattr(module, "norm1", nn.LayerNorm((14, 12))), (module, X))[1],
            r"norm1 must normalise channels alone, got \(14, 12\)",
        ),
        ("sdpa", {"window_size": 4, "shift": 2}, "its windows are shifted"),
        (
            "tiled",
            {"window_size": 4, "mask_window_padding": True},
            "padding of its windows is masked",
        ),
        ("tiled", {"rel_pos_kind": "joint"}, "positions are joint, not decomposed"),
        ("sdpa", {"rel_pos_terms": ("q", "k")}, "positions are on q, k, not on q alone"),
        ("tiled", {"act_layer": nn.ReLU}, "mlp.act must be a plain GELU, got ReLU"),
        (
            "tiled",
            lambda module: (setattr(module.mlp.drop1, "p", 0.1), (module, X))[1],
            "mlp.drop1 drops values, at a rate of 0.1",
        ),
    ],
)
def test_a_named_backend_says_why_it_cannot_run(backend, change, words):
    x = X
    if isinstance(change, dict):
        module = block(backend, **change)
    else:
        module, x = change(block(backend))
    with pytest.raises(ValueError, match=f"'{backend}' cannot run here: .*{words}"):
        module(x)


BESIDE_IMAGES = pytest.mark.parametrize(
    ("options", "inputs", "words"),
    [
        (CLIPS, (X[:, :4, None],), "its maps have three axes"),
        ({}, (X, X[:, :1, 0]), "a class token travels beside its map"),
    ],
    ids=["clip", "class token"],
)


@BESIDE_IMAGES
def test_what_takes_no_clips_and_class_tokens_says_so(options, inputs, words, monkeypatch):
    """The Triton kernels and compiled code; other ways are tested in test_clips.py."""
    monkeypatch.setattr("mvitv2_det.fused.triton.available.why_unavailable", lambda *_: None)
    module = block("triton", **options)
    with pytest.raises(ValueError, match=f"'triton' cannot run here: {words}"):
        module(*inputs)
    accelerate(module, "auto")
    monkeypatch.setattr(compiling, "OLDEST_TORCH", Version("2"))  # nothing will be compiled
    compile_blocks(module, backend="eager")
    choice = module.choose(*inputs)
    assert choice.attention == "tiled" and not choice.compiled
    assert choice.passed_over == (("compiled", words_of(words)),)


def words_of(beginning: str) -> str:
    reasons = (
        "its maps have three axes, as those of clips",
        "a class token travels beside its map",
    )
    return next(reason for reason in reasons if reason.startswith(beginning))


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"must be one of auto, .*reference, got 'flash'"):
        MViT(**TINY, attention_backend="flash")
    model = MViT(**TINY)
    with pytest.raises(ValueError, match=r"got 'strips'"):
        accelerate(model, "strips")
    assert "strips" not in BACKENDS


# Every module in a block, by its name.
PARTS = [name for name, _ in block(None).named_modules() if name]


@pytest.mark.parametrize("backend", ["auto", "sdpa"])
@pytest.mark.parametrize("name", PARTS)
def test_hooks_fire(name, backend):
    """Forward hooks, and hooks before forward and of backward, on every module of a block.

    A backend by name says what it cannot do, where it would pass a hook over.
    """
    module, plain = block(backend), block(None)
    taken_apart = name == "attn" or name.startswith(("attn.pool", "attn.norm", "drop_path"))
    if backend == "sdpa" and taken_apart:
        module.get_submodule(name).register_forward_hook(lambda *_: None)
        with pytest.raises(ValueError, match=f"'sdpa' cannot run here: {name} has hooks"):
            module(X)
        return
    counts = []
    for one in (module, plain):
        fired = {"pre": 0, "post": 0, "backward": 0}
        part = one.get_submodule(name)

        def count(kind, fired=fired):
            fired[kind] += 1

        part.register_forward_pre_hook(lambda *_, count=count: count("pre"))
        part.register_forward_hook(lambda *_, count=count: count("post"))
        part.register_full_backward_hook(lambda *_, count=count: count("backward"))
        one(X.clone().requires_grad_()).sum().backward()
        counts.append(fired)
    assert counts[0] == counts[1]
    assert counts[0]["pre"] > 0


def test_hooks_for_all_modules_fire():
    module, seen = block("auto"), []
    hook = nn.modules.module.register_module_forward_hook(lambda part, *_: seen.append(part))
    try:
        module(X)
    finally:
        hook.remove()
    assert module.mlp.fc1 in seen and module.attn.qkv in seen
    assert chosen(module) == "tiled, fused norms and MLP"


class LowRank(nn.Module):
    """A wrapped linear layer, as of LoRA."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear
        self.down = nn.Linear(linear.in_features, 2, bias=False)
        self.up = nn.Linear(2, linear.out_features, bias=False)

    def forward(self, x):
        return self.linear(x) + self.up(self.down(x))


class Doubled(nn.Module):
    """A parametrisation."""

    def forward(self, weight):
        return 2 * weight


LINEAR = [name for name in PARTS if isinstance(block(None).get_submodule(name), nn.Linear)]


def replace_linear(module: nn.Module, name: str, kind: str) -> None:
    parent, _, leaf = name.rpartition(".")
    linear = module.get_submodule(name)
    torch.manual_seed(3)
    if kind == "wrapped":
        setattr(module.get_submodule(parent), leaf, LowRank(linear))
    elif kind == "parametrised":
        parametrize.register_parametrization(linear, "weight", Doubled())
    elif kind == "pruned":
        prune.l1_unstructured(linear, "weight", 0.5)
    else:
        forward = linear.forward
        linear.forward = lambda x: 2 * forward(x)


@pytest.mark.parametrize("kind", ["wrapped", "parametrised", "pruned", "own forward"])
@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("backend", ["auto", "sdpa"])
def test_changed_layers_are_not_bypassed(backend, name, kind):
    module, plain = block(backend, **KINDS["windows"]), block(None, **KINDS["windows"])
    for one in (module, plain):
        replace_linear(one, name, kind)
    actual, expected = (outputs_and_gradients(one, X) for one in (module, plain))
    assert_same(actual, expected)


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning")
def test_quantised_layers_are_not_bypassed():
    modules = [
        torch.ao.quantization.quantize_dynamic(block(name), {nn.Linear}).eval()
        for name in ("auto", None)
    ]
    actual, expected = (module(X) for module in modules)
    assert torch.equal(actual, expected)


def test_explain():
    model = MViT(
        **TINY | {"window_layout": "shifted", "depth": 5, "last_block_indexes": (0, 1, 3, 4)}
    )
    images = torch.randn(1, 3, 64, 64)
    lines = [str(line) for line in explain(model, images)]
    assert len(lines) == 5
    assert lines[0] == "blocks.0: tiled, fused norms and MLP"
    assert lines[3] == (
        "blocks.3: reference, fused norms and MLP; not tiled: its windows are shifted; "
        "not sdpa: its windows are shifted"
    )
    accelerate(model, "reference")
    assert {str(line.choice) for line in explain(model, images)} == {"reference"}
    assert not model.blocks[0]._forward_pre_hooks


@pytest.fixture
def one_process(tmp_path):
    """A process group of one, as FSDP2 needs it."""
    distributed = torch.distributed
    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize("sharded", ["", "mlp", "attn"])
def test_sharded_modules_are_not_bypassed(one_process, sharded):
    """FSDP2 around a block, and around a part of it, whose weights are gathered as it is called."""
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    if not hasattr(fsdp, "fully_shard"):
        pytest.skip("this torch has no FSDP2")
    mesh = torch.distributed.init_device_mesh("cpu", (1,))
    module, plain = block("auto", **KINDS["windows"]), block(None, **KINDS["windows"])
    fsdp.fully_shard(module.get_submodule(sharded), mesh=mesh)
    expected = outputs_and_gradients(plain, X)
    x = X.clone().requires_grad_()
    z = module(x)
    generator = torch.Generator().manual_seed(1)
    (z * torch.randn(z.shape, generator=generator)).sum().backward()
    found = {"output": z.detach(), "input": x.grad}
    for name, parameter in module.named_parameters():
        gradient = parameter.grad
        found[name] = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
    assert_same(found, expected)
