"""Classifiers of images and clips: sizes, initialisation, stochastic depth, errors."""

import pytest
import torch
from models import randomize
from recognition.networks import MVITV1, NARROW
from torch import nn

from mvitv2_det import MViT, Recognizer, ViT
from mvitv2_det.variants import VARIANTS, Variant

DEEP = Variant(embed_dim=8, blocks=(1, 2, 2, 1), num_heads=1, drop_path_rate=0.5)


def narrow_image(**options) -> Recognizer:
    return Recognizer.image(NARROW, num_classes=5, image_size=64, **options)


def narrow_video(**options) -> Recognizer:
    return Recognizer.video(NARROW, frames=4, num_classes=5, image_size=64, **options)


@pytest.mark.parametrize("class_token", [False, True])
@pytest.mark.parametrize("size", [(64, 64), (45, 83), (128, 32)])
def test_any_size_of_images(size, class_token):
    logits = narrow_image(class_token=class_token, use_abs_pos=True)(torch.randn(2, 3, *size))
    assert logits.shape == (2, 5)


@pytest.mark.parametrize("class_token", [False, True])
@pytest.mark.parametrize("size", [(4, 64, 64), (7, 33, 81), (1, 32, 64)])
def test_any_size_of_clips(size, class_token):
    model = narrow_video(class_token=class_token, use_abs_pos=True)
    assert model(torch.randn(2, 3, *size)).shape == (2, 5)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (narrow_image, (3, 64, 64)),
        (narrow_image, (1, 4, 64, 64)),
        (narrow_image, (1, 3, 4, 64, 64)),
        (narrow_video, (1, 3, 64, 64)),
        (narrow_video, (1, 1, 4, 64, 64)),
    ],
)
def test_input_of_another_kind(make, shape):
    with pytest.raises(ValueError, match=r"Recognizer expects .* of shape \(B, 3, .*, got"):
        make()(torch.randn(shape))


@pytest.mark.parametrize(
    ("make", "options", "words"),
    [
        (Recognizer.image, {"variant": "X"}, "variant must be one of T, S, B, L, H, got 'X'"),
        (Recognizer.image, {"num_classes": 0}, "num_classes must be at least 1, got 0"),
        (Recognizer.image, {"image_size": 31}, "input_size must be at least 8 patch strides = 32"),
        (Recognizer.video, {"frames": 1}, "input_size must be at least 1 patch strides = 2"),
        (Recognizer.image, {"initialization": "zeros"}, "mvit or pyslowfast, got 'zeros'"),
        (Recognizer.image, {"rel_pos_kind": "space"}, "rel_pos_kind must be decomposed or joint"),
        (Recognizer.video, {"adaptive_window_size": 56}, "windows need maps of 2 axes"),
        (
            Recognizer.image,
            {"class_token": True, "adaptive_window_size": 56},
            "a class token would have to be in all windows",
        ),
        (Recognizer.image, {"patch_stride": (2, 4, 4)}, "a number for each axis of input_size"),
    ],
)
def test_wrong_options(make, options, words):
    with pytest.raises(ValueError, match=words), torch.device("meta"):
        make(**options)


def test_tables_round_down_and_maps_up():
    """Maps of 312² are 78, 39, 20 and 10 tokens wide, the released L's tables for 78, 39, 19 and 9
    (``slowfast/models/video_model_builder.py`` halves with ``//``)."""
    with torch.device("meta"):
        model = Recognizer.video("L", frames=40, image_size=312)
        clips = torch.empty(1, 3, 40, 312, 312)
    # The first block of the last stage has keys of the stage before, at stride 1.
    tables = [block.attn.rel_pos_h.shape[0] for block in model.blocks]
    assert tables == [155] * 2 + [77] * 6 + [37] * 37 + [17] * 3
    assert {len(block.attn.rel_pos_t) for block in model.blocks} == {2 * 20 - 1}
    maps = []
    for block in model.blocks:
        block.register_forward_hook(lambda block, inputs, output: maps.append(output[0].shape))
    model(clips)
    assert [size[1:4] for size in maps] == [
        (20, side, side) for side in [78] * 2 + [39] * 6 + [20] * 36 + [10] * 4
    ]


@pytest.mark.parametrize("name", ["mvit", "pyslowfast"])
def test_initialization(name):
    """Moments of the released networks' initial weights: 0.02 wide, biases 0, or 0.02."""
    torch.manual_seed(0)
    model = narrow_video(initialization=name, class_token=True)
    bias = 0.02 if name == "pyslowfast" else 0.0
    linear = [m for m in model.modules() if isinstance(m, nn.Linear)]
    weights = torch.cat([m.weight.flatten() for m in linear])
    assert weights.std().item() == pytest.approx(0.02, rel=0.05)
    assert all((m.bias == bias).all() for m in linear if m is not model.head.projection)
    assert (model.head.projection.bias == bias).all()
    norms = [m for m in model.modules() if isinstance(m, nn.LayerNorm)]
    assert all((m.bias == bias).all() and (m.weight == 1).all() for m in norms)
    patches = model.patch_embed.proj.weight.std().item()
    uniform = (3 * 3 * 7 * 7) ** -0.5 / 3**0.5  # PyTorch's own
    assert patches == pytest.approx(0.02 if name == "pyslowfast" else uniform, rel=0.05)
    assert model.blocks[0].attn.rel_pos_t.std() > 0
    assert model.cls_token.std() > 0


@pytest.mark.parametrize("make", [narrow_image, narrow_video])
@pytest.mark.parametrize("class_token", [False, True])
def test_every_parameter_has_a_gradient(make, class_token):
    """Training on several processes waits for the gradient of each."""
    model = make(class_token=class_token, use_abs_pos=True)
    model(torch.randn(1, 3, *(4,) * (model.axes - 2), 64, 64)).sum().backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []


@pytest.mark.parametrize("make", [narrow_image, narrow_video])
def test_activation_checkpoints_change_nothing(make):
    plain, saving = (make(class_token=True, use_act_checkpoint=use).double() for use in (0, 1))
    saving.load_state_dict(randomize(plain).state_dict())
    images = torch.randn(2, 3, *(4,) * (plain.axes - 2), 64, 64, dtype=torch.float64)
    plain.head.dropout.p = saving.head.dropout.p = 0.0
    for model in (plain, saving):
        model(images).square().sum().backward()
    for (name, one), other in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad), name


def test_a_dropped_path_drops_map_and_token():
    """One draw a block and image: an image whose paths are all dropped goes straight through."""
    torch.manual_seed(0)
    model = randomize(Recognizer.image(DEEP, 5, class_token=True, image_size=64)).train()
    x, token = torch.randn(200, 4, 4, 16), torch.randn(200, 1, 16)
    out, out_token = model.blocks[2](x, token)
    kept = (out != x).flatten(1).any(1)
    assert kept.any() and not kept.all()
    assert torch.equal(kept, (out_token != token).flatten(1).any(1))


def test_dropout_of_the_head_is_for_training():
    model = narrow_video(head_dropout=0.5)
    clips = torch.randn(1, 3, 4, 64, 64)
    model.blocks.eval()
    assert not torch.equal(model(clips), model(clips))
    model.eval()
    assert torch.equal(model(clips), model(clips))


def test_defaults_of_each_size():
    """Drop path of appendix B.2 and of the public configs of SlowFast; L widens in its MLPs."""
    with torch.device("meta"):
        images = {name: Recognizer.image(name) for name in VARIANTS}
        clips = {name: Recognizer.video(name) for name in "SBL"}
    rates = {name: model.blocks[-1].drop_path.drop_prob for name, model in images.items()}
    # In steps of float32, as PyTorch's linspace and Detectron2 have them.
    assert rates == pytest.approx({"T": 0.1, "S": 0.1, "B": 0.3, "L": 0.5, "H": 0.8}, rel=1e-7)
    rates = {name: model.blocks[-1].drop_path.drop_prob for name, model in clips.items()}
    assert rates == pytest.approx({"S": 0.2, "B": 0.3, "L": 0.75}, rel=1e-7)
    assert {model.head.dropout.p for model in clips.values()} == {0.5}


def test_the_wing_takes_clips_and_class_tokens():
    from mvitv2_det import explain  # the other tests pass without the wing

    images = torch.randn(1, 3, 64, 64)
    for model, inputs in (
        (narrow_image(class_token=True), images),
        (narrow_video(class_token=False), images[:, :, None].expand(-1, -1, 4, -1, -1)),
    ):
        for explanation in explain(model, inputs):
            assert str(explanation.choice) == "tiled, fused norms and MLP"
    with pytest.raises(ValueError, match="fast"):
        narrow_image(attention_backend="fast")


@pytest.mark.parametrize("window", [0, 4])
def test_plain_is_the_detection_backbone_with_a_head(window):
    """Plain ViT, as ``mvitv2_det.ViT`` computes it, with windows and without, float64 to 1e-9."""
    size = {"embed_dim": 16, "depth": 4, "num_heads": 2, "window_size": window}
    ours = randomize(Recognizer.plain(5, 128, **size)).double().eval()
    backbone = ViT(
        img_size=128, pretrain_img_size=128, pretrain_use_cls_token=False, **size
    ).double()
    check_against_features(ours, backbone, "scale4", torch.randn(1, 3, 128, 128).double())


@pytest.mark.parametrize("options", [{}, MVITV1, {"adaptive_window_size": (4, 4, 4, 4)}])
def test_multiscale_is_the_detection_backbone_with_a_head(options):
    """``mvitv2_det.MViT`` with the same options, float64 to 1e-9."""
    ours = randomize(Recognizer.multiscale(DEEP, 5, (128, 128), **options)).double().eval()
    backbone = MViT(
        **DEEP.backbone_arguments()
        | {"adaptive_window_size": 0, "img_size": 128, "pretrain_img_size": 128}
        | {"global_kv_stride_factor": 1, "pretrain_use_cls_token": False}
        | {"out_features": ["scale5"]}
        | options
    ).double()
    check_against_features(ours, backbone, "scale5", torch.randn(1, 3, 128, 128).double())


def check_against_features(ours, backbone, feature, images):
    weights = dict(ours.state_dict())
    for kind in ("weight", "bias"):
        weights[f"{feature}_norm.{kind}"] = weights.pop(f"norm.{kind}")
    projection = {kind: weights.pop(f"head.projection.{kind}") for kind in ("weight", "bias")}
    backbone.load_state_dict(weights)
    getattr(backbone, f"{feature}_norm").eps = 1e-6
    for module in backbone.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-6
    mean = backbone.eval()(images)[feature].mean(dim=(2, 3))
    expected = nn.functional.linear(mean, projection["weight"], projection["bias"])
    torch.testing.assert_close(ours(images), expected, rtol=1e-9, atol=1e-9)
