"""Every attention kind against the slow version, outputs and gradients, in float64."""

import pytest
import torch
from detectron2.modeling.backbone.swin import BasicLayer
from models import randomize
from reference.attention import Axis, seen_keys, slow_attention
from torchvision.models.swin_transformer import shifted_window_attention

from mvitv2_det.attention.multiscale import MultiScaleAttention
from mvitv2_det.attention.spec import AttentionSpec

PLAIN = {"pool_q": False, "pool_kv": False, "residual_pooling": False}
WINDOWS = {"window_size": 4}
STRIDED = {"stride_q": 2, "stride_kv": 4}

# On maps of 6 × 9 tokens windows of 4 need padding along both axes.
KINDS = {
    "full": PLAIN,
    "fixed windows": PLAIN | WINDOWS,
    "fixed windows, no bias": PLAIN | WINDOWS | {"qkv_bias": False},
    "shifted windows": PLAIN | WINDOWS | {"shift": 2},
    "shifted windows, masked padding": PLAIN | WINDOWS | {"shift": 2, "mask_window_padding": True},
    "pooling": {"stride_kv": 2},
    "pooling of strided queries": {"stride_q": 2, "stride_kv": 1},
    "pooling + fixed": WINDOWS | {"stride_kv": 2},
    "pooling + shifted": WINDOWS | {"stride_kv": 2, "shift": 2},
    "pooling + shifted, masked padding": WINDOWS
    | {"stride_kv": 2, "shift": 2, "mask_window_padding": True},
    "pooling + fixed, masked padding": WINDOWS | STRIDED | {"mask_window_padding": True},
    "strided queries + shifted": {"window_size": 8, "shift": 4} | STRIDED,
    "no residual": {"stride_kv": 2, "residual_pooling": False},
    "residual of queries without pooling": {"pool_q": False, "stride_kv": 2},
    "without positions": {"use_rel_pos": False, "stride_kv": 2},
}
POSITIONS = {
    f"{kind} on {'+'.join(terms)}": {"rel_pos_kind": kind, "rel_pos_terms": terms}
    for kind in ("decomposed", "joint")
    for terms in map(tuple, ("q", "k", "qk", "v", "qv", "qkv"))
}


def build(**options) -> MultiScaleAttention:
    torch.manual_seed(0)
    spec = AttentionSpec(**{"dim": 4, "dim_out": 6, "num_heads": 2, "table_size": 8} | options)
    attention = MultiScaleAttention(spec)
    return randomize(attention).double()


def check(
    attention: MultiScaleAttention,
    size: tuple[int, ...] = (6, 9),
    batch: int = 1,
    *,
    class_token: bool = False,
) -> None:
    """Outputs and the gradients of the inputs and of every parameter."""
    x = torch.randn(batch, *size, 4, dtype=torch.float64, requires_grad=True)
    inputs = [x]
    if class_token:
        inputs.append(torch.randn(batch, 1, 4, dtype=torch.float64, requires_grad=True))
    actual, expected = attention(*inputs), slow_attention(attention, *inputs)
    if not class_token:
        actual, expected = (actual,), (expected,)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
    seed = [torch.randn_like(part) for part in actual]
    inputs += attention.parameters()
    actual = torch.autograd.grad(actual, inputs, seed)
    expected = torch.autograd.grad(expected, inputs, seed)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_kinds(kind):
    has_windows = "window_size" in KINDS[kind]
    check(build(**KINDS[kind]), size=(6, 9) if has_windows else (4, 6))


@pytest.mark.parametrize("positions", POSITIONS)
def test_positions(positions):
    check(build(**POSITIONS[positions], stride_kv=2), size=(4, 6))


CLIPS = {"pool_kernel": (3, 3, 3), "stride_q": (1, 2, 2), "stride_kv": (2, 1, 2)}


@pytest.mark.parametrize("token", [False, True], ids=["", "class token"])
@pytest.mark.parametrize("kind", ["decomposed", "joint", "joint_space", "space", "time"])
def test_clips(kind, token):
    """All rows of Table A.6, with terms of queries, keys and values, tables resized."""
    options = CLIPS | {"rel_pos_kind": kind, "rel_pos_terms": ("q", "k", "v")}
    check(build(**options, table_size=(4, 8, 8)), size=(2, 4, 5), class_token=token)


@pytest.mark.parametrize(
    "options",
    [
        {"stride_q": 2},
        {"stride_kv": 2, "rel_pos_terms": ("q", "v")},
        {"stride_kv": 2, "residual_class_token": False},
        {"stride_kv": 2, "residual_pooling": False, "rel_pos_kind": "joint"},
        PLAIN,
    ],
    ids=str,
)
def test_class_token(options):
    check(build(**options), size=(4, 5), batch=2, class_token=True)


def test_a_class_token_needs_whole_maps():
    attention = build(**WINDOWS)
    with pytest.raises(ValueError, match="a class token needs attention over the whole map"):
        attention(torch.randn(1, 4, 4, 4).double(), torch.randn(1, 1, 4).double())


@pytest.mark.parametrize("positions", ["decomposed on q+k+v", "joint on q+k+v"])
def test_positions_in_shifted_windows(positions):
    options = POSITIONS[positions] | WINDOWS | {"stride_kv": 2, "shift": 2}
    check(build(**options), size=(5, 6))


def test_batch():
    check(build(**WINDOWS, stride_kv=2, shift=2), size=(5, 5), batch=2)


@pytest.mark.parametrize("mask_padding", [False, True])
def test_no_token_sees_another_region(mask_padding):
    """Whom each output of shifted windows depends on, token by token, is whom it should see."""
    attention = build(**PLAIN, **WINDOWS, shift=2, mask_window_padding=mask_padding)
    size = (7, 9)
    x = torch.randn(1, *size, 4, dtype=torch.float64, requires_grad=True)
    out = attention(x)
    grids = [Axis.of(attention.spec, axis, side, side) for axis, side in enumerate(size)]
    for i in range(size[0]):
        for j in range(size[1]):
            (gradient,) = torch.autograd.grad(out[0, i, j].sum(), x, retain_graph=True)
            expected = torch.zeros(size, dtype=torch.bool)
            for row, column in seen_keys(grids, (i, j)):
                if row < size[0] and column < size[1]:
                    expected[row, column] = True
            assert torch.equal(gradient[0].abs().sum(-1) > 0, expected)


def test_padding_alone_in_a_window_makes_no_nan():
    """Where a padded query sees no key at all, its dropped output must not poison gradients."""
    attention = build(**WINDOWS, stride_kv=4, mask_window_padding=True)
    x = torch.randn(1, 5, 6, 4, dtype=torch.float64, requires_grad=True)
    attention(x).sum().backward()
    assert x.grad.isfinite().all()
    assert all(weight.grad.isfinite().all() for weight in attention.parameters())


@pytest.mark.parametrize("size", [(8, 12), (9, 13), (5, 8)])
def test_shifted_windows_equal_those_of_detectron2s_swin(size):
    """Without positions, on maps of whole windows and of others; float64, within 1e-9."""
    height, width = size
    torch.manual_seed(0)
    layer = randomize(BasicLayer(dim=8, depth=2, num_heads=2, window_size=4)).double()
    x = torch.randn(2, height * width, 8, dtype=torch.float64)
    expected = {}
    for name, block in zip(("fixed", "shifted"), layer.blocks, strict=True):
        block.attn.relative_position_bias_table.data.zero_()
        block.norm1.register_forward_hook(lambda _, __, out, n=name: expected.update({n: [out]}))
        # What comes out of the attention, after the windows are put together.
        block.drop_path.register_forward_hook(
            lambda _, inputs, __, n=name: len(expected[n]) < 2 and expected[n].append(inputs[0])
        )
    for block in layer.blocks:
        block.drop_path.__class__ = torch.nn.Identity
    layer(x, *size)
    for name, block in zip(("fixed", "shifted"), layer.blocks, strict=True):
        shift = 2 if name == "shifted" else 0
        spec = AttentionSpec(8, 8, 2, window_size=4, shift=shift, use_rel_pos=False, **PLAIN)
        attention = MultiScaleAttention(spec).double()
        weights = block.attn.state_dict()
        attention.load_state_dict({key: weights[key] for key in attention.state_dict()})
        normed, attended = expected[name]
        actual = attention(normed.reshape(2, *size, 8))
        torch.testing.assert_close(actual, attended.reshape(actual.shape), rtol=1e-9, atol=1e-9)


# Whole windows, more, fewer, and one window along an axis, which then is not shifted.
@pytest.mark.parametrize("size", [(8, 12), (9, 14), (7, 11), (3, 10), (4, 5)])
@pytest.mark.parametrize("shift", [0, 2])
def test_windows_equal_those_of_torchvisions_swin(size, shift):
    """Without positions, outputs and gradients; float64, within 1e-9."""
    attention = build(dim=6, **PLAIN, **WINDOWS, shift=shift, use_rel_pos=False)
    x = torch.randn(2, *size, 6, dtype=torch.float64, requires_grad=True)
    actual = attention(x)
    expected = shifted_window_attention(
        x,
        attention.qkv.weight,
        attention.proj.weight,
        relative_position_bias=torch.zeros(1, 1, dtype=torch.float64),
        window_size=[4, 4],
        num_heads=2,
        shift_size=[shift, shift],
        qkv_bias=attention.qkv.bias,
        proj_bias=attention.proj.bias,
    )
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
    inputs, seed = [x, *attention.parameters()], torch.randn_like(actual)
    found = [torch.autograd.grad(out, inputs, seed) for out in (actual, expected)]
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pool_q": False, "stride_q": 2}, "stride_q = .2, 2. needs pool_q=True"),
        ({"pool_kv": False, "stride_kv": 2}, "stride_kv = .2, 2. needs pool_kv=True"),
        ({"pool_kernel": (3,)}, "pool_kernel must have 2 or 3 sides, got .3,."),
        ({"stride_q": (1, 2, 2)}, "stride_q must have one number for each of 2 axes"),
        (WINDOWS | {"stride_kv": (1, 2)}, "windows need maps of 2 axes with the same stride"),
        (WINDOWS | CLIPS, "windows need maps of 2 axes with the same stride"),
        ({"rel_pos_kind": "relative"}, "must be decomposed or joint, got 'relative'"),
        ({"rel_pos_terms": ("q", "x")}, "some of q, k, v, each once, got .'q', 'x'."),
        ({"rel_pos_terms": ()}, "use_rel_pos=False goes without"),
        ({"num_heads": 4}, "dim_out must be divisible by num_heads, got 6 and 4"),
    ],
    ids=str,
)
def test_wrong_options_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        build(**options)
