"""What MViT does that Detectron2's does not, and what must not change its outputs."""

import pytest
import torch
from marks import long_but
from models import SHAPES, TINY, narrow, randomize

from mvitv2_det import VARIANTS, MViT
from mvitv2_det.variants import MVITV1_ARGUMENTS


def test_feature_maps_of_the_smallest_image():
    features = MViT(**TINY)(torch.randn(2, 3, 32, 32))
    sides = {name: tuple(feature.shape) for name, feature in features.items()}
    assert sides == {
        "scale2": (2, 8, 8, 8),
        "scale3": (2, 16, 4, 4),
        "scale4": (2, 32, 2, 2),
        "scale5": (2, 64, 1, 1),
    }


def test_output_shape_says_strides_and_channels():
    shapes = MViT(**VARIANTS["T"].backbone_arguments()).output_shape()
    assert [(shape.channels, shape.stride) for shape in shapes.values()] == [
        (96, 4),
        (192, 8),
        (384, 16),
        (768, 32),
    ]


@pytest.mark.parametrize("variant", long_but("TS", SHAPES))
@pytest.mark.parametrize("expand_in_attention", [True, False])
def test_every_parameter_gets_a_gradient(variant, expand_in_attention):
    arguments = narrow(variant, expand_in_attention=expand_in_attention, use_abs_pos=True)
    model = randomize(MViT(**arguments))
    # 72 tokens are no whole number of windows, so that keys are padded.
    features = model(torch.randn(1, 3, 72, 104))
    assert all(feature.isfinite().all() for feature in features.values())
    sum(feature.square().mean() for feature in features.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


def test_expansion_in_the_mlp_widens_one_block_earlier():
    model = MViT(**narrow("T", expand_in_attention=False))
    assert [shape.channels for shape in model.output_shape().values()] == [16, 32, 64, 64]
    assert model.blocks[0].mlp.fc2.out_features == 16
    assert model.blocks[1].attn.qkv.in_features == 16


def test_activation_checkpointing_changes_nothing():
    model = randomize(MViT(**TINY | {"drop_path_rate": 0.5}))
    images = torch.randn(4, 3, 64, 96)
    results = []
    for model.use_act_checkpoint in (False, True):
        model.zero_grad()
        torch.manual_seed(1)  # the same paths are dropped
        features = model(images)
        sum(feature.square().mean() for feature in features.values()).backward()
        gradients = [parameter.grad for parameter in model.parameters()]
        results.append([*features.values(), *gradients])
    for plain, recomputed in zip(*results, strict=True):
        assert torch.equal(plain, recomputed)


def test_activation_checkpointing_keeps_fewer_bytes():
    images = torch.randn(1, 3, 64, 96)
    saved = []
    for use_act_checkpoint in (False, True):
        model = MViT(**TINY, use_act_checkpoint=use_act_checkpoint)
        sizes = []

        def record(tensor, sizes=sizes):
            sizes.append(tensor.numel() * tensor.element_size())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(record, lambda tensor: tensor):
            model(images)
        saved.append(sum(sizes))
    assert saved[1] < 0.3 * saved[0]


def test_stochastic_depth_drops_whole_paths_in_training_alone():
    model = randomize(MViT(**TINY | {"drop_path_rate": 0.9}))
    images = torch.randn(1, 3, 64, 64)
    outputs = [model.train()(images)["scale5"] for _ in range(8)]
    assert any(not torch.equal(outputs[0], output) for output in outputs[1:])
    model.eval()
    assert torch.equal(model(images)["scale5"], model(images)["scale5"])


@pytest.mark.parametrize("set_to_train", [False, True])
@pytest.mark.parametrize("freeze_at", range(6))
def test_freezing_by_stage(freeze_at, set_to_train):
    model = MViT(**narrow("T", freeze_at=freeze_at, use_abs_pos=True, drop_path_rate=0.5))
    if set_to_train:
        model.eval().train()
    blocks_of_stage = [range(0), range(1), range(1, 3), range(3, 8), range(8, 10)]
    frozen_blocks = [index for blocks in blocks_of_stage[:freeze_at] for index in blocks]
    for index, block in enumerate(model.blocks):
        frozen = index in frozen_blocks
        assert all(parameter.requires_grad is not frozen for parameter in block.parameters())
        assert block.training is not frozen
    stem = [model.pos_embed, *model.patch_embed.parameters()]
    assert all(parameter.requires_grad is (freeze_at == 0) for parameter in stem)
    assert model.scale2_norm.weight.requires_grad


def test_frozen_stages_keep_no_activations():
    model = MViT(**TINY, freeze_at=5)
    for name in ("scale2_norm", "scale3_norm", "scale4_norm", "scale5_norm"):
        getattr(model, name).requires_grad_(False)
    assert not model(torch.randn(1, 3, 64, 64))["scale5"].requires_grad


def test_class_token_positions_are_dropped():
    """The first of the absolute positions belongs to the class token: it changes nothing."""
    model = MViT(**TINY, use_abs_pos=True, pretrain_use_cls_token=True)
    images = torch.randn(1, 3, 64, 64)
    before = model(images)["scale2"]
    with torch.no_grad():
        model.pos_embed[:, 0] += 1000 * torch.randn(8)
    assert torch.equal(model(images)["scale2"], before)
    with torch.no_grad():
        model.pos_embed[:, 1] += torch.randn(8)  # of all channels alike, a norm would remove it
    assert not torch.allclose(model(images)["scale2"], before)


def test_activation_of_the_mlps_is_the_one_given():
    """Detectron2's MViT takes this keyword and passes it to no block."""
    model = MViT(**TINY, act_layer=torch.nn.ReLU)
    assert all(isinstance(block.mlp.act, torch.nn.ReLU) for block in model.blocks)


def test_stages_after_the_last_feature_are_not_computed():
    model = MViT(**TINY, out_features=("scale3",))
    with torch.no_grad():
        model.blocks[2].mlp.fc1.weight.fill_(float("nan"))
    assert model(torch.randn(1, 3, 64, 64))["scale3"].isfinite().all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_heads": 3}, "embed_dim must be divisible by num_heads, got 8 and 3"),
        ({"depth": 5}, "the last of last_block_indexes must be depth - 1 = 4, got 3"),
        ({"last_block_indexes": (0, 2, 1, 3)}, "must rise from 0 on, got 1 after 2"),
        ({"last_block_indexes": (0, 1, 3)}, "the last block of 4 stages, got 3"),
        ({"adaptive_window_size": 14}, "window 14 and stride 4"),
        (
            {
                "adaptive_window_size": 7,
                "adaptive_kv_stride": 1,
                "depth": 5,
                "last_block_indexes": (0, 1, 3, 4),
            },
            "must be divisible by 2 to be halved for scale4, got 7",
        ),
        ({"adaptive_kv_stride": 0}, "adaptive_kv_stride must be at least 1, got 0"),
        ({"drop_path_rate": 1.5}, "drop_path_rate must be in .0, 1., got 1.5"),
        ({"out_features": ("scale2", "p3")}, "some of scale2, .* got 'p3'"),
        ({"out_features": ()}, "got none"),
        ({"freeze_at": 7}, "freeze_at must be between 0 and 5, got 7"),
        ({"patch_stride": (4, 2)}, "same for both axes, got 4 and 2"),
        ({"img_size": 16}, "img_size must be at least 8 patch strides = 32, got 16"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_wrong_sizes_are_refused_with_both_numbers(changes, words):
    with pytest.raises(ValueError, match=words):
        MViT(**TINY | changes)


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 4, 64, 64)])
def test_wrong_images_are_refused(shape):
    with pytest.raises(ValueError, match=r"expects images of shape \(B, 3, H, W\), got "):
        MViT(**TINY)(torch.randn(shape))


def test_autocast_to_bfloat16_stays_near():
    model = randomize(MViT(**TINY)).eval()
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        exact = model(images)["scale5"]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = model(images)["scale5"]
    assert (rounded - exact).norm() < 0.05 * exact.norm()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("variant", ["T", "L"])
def test_gpu_equals_cpu(variant):
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    model = randomize(MViT(**narrow(variant))).eval()
    images = torch.randn(1, 3, 200, 300)
    with torch.no_grad():
        expected = model(images)
        actual = model.cuda()(images.cuda())
    for name, feature in expected.items():
        torch.testing.assert_close(actual[name].cpu(), feature, rtol=1e-3, atol=1e-3)


MECHANISMS = {
    "fixed": {"window_layout": "fixed"},
    "shifted": {"window_layout": "shifted"},
    "global": {"adaptive_window_size": 0},
    "K/V stride 8": {"adaptive_window_size": 0, "adaptive_kv_stride": 8},
    "masked padding": {"mask_window_padding": True},
    "no positions": {"use_rel_pos": False},
    "absolute": {"use_rel_pos": False, "use_abs_pos": True},
    "joint": {"rel_pos_kind": "joint"},
    "absolute + decomposed": {"use_abs_pos": True},
    "q + k + v": {"rel_pos_terms": ("q", "k", "v")},
    "MViTv1": MVITV1_ARGUMENTS,
}


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_mechanisms_train(mechanism):
    """Finite outputs of the right shapes, gradients everywhere, whole and checkpointed alike."""
    arguments = TINY | {"adaptive_window_size": 16, "depth": 8, "last_block_indexes": (1, 3, 5, 7)}
    model = randomize(MViT(**arguments | MECHANISMS[mechanism])).train()
    images = torch.randn(2, 3, 100, 130)
    features = model(images)
    channels = [shape.channels for shape in model.output_shape().values()]
    sizes = [(25, 33), (13, 17), (7, 9), (4, 5)]
    assert [tuple(feature.shape) for feature in features.values()] == [
        (2, c, *s) for c, s in zip(channels, sizes, strict=True)
    ]
    sum(feature.square().mean() for feature in features.values()).backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None and weight.grad.isfinite().all(), name
    model.use_act_checkpoint = True
    for name, feature in model(images).items():
        assert torch.equal(feature, features[name])
