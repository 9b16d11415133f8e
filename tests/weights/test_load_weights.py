"""Weights of every source into our models, and the report."""

import re

import pytest
import timm
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import MViT as Detectron2MViT
from marks import long_but
from models import TINY, randomize, relative_error
from safetensors.torch import save_file
from timm.models.mvitv2 import MultiScaleVit
from torch import nn
from torchvision.models.video import mvit_v2_s
from weight_files import (
    TIMM_NAMES,
    assert_same_weights,
    inflated,
    mvit_file,
    mvit_state,
    our_network,
    published,
    timm_network,
    without_windows,
)

from mvitv2_det import MViT, MViTFPN, UserError, load_weights
from mvitv2_det.attention.position import absolute_embedding, resize_table

TOLERANCE = 1e-4
OUTPUT_NORMS = {
    f"scale{stage}_norm.{leaf}" for stage in (2, 3, 4, 5) for leaf in ("weight", "bias")
}


def raw_maps(model: MViT, images: torch.Tensor) -> list[torch.Tensor]:
    """The map of every stage before its norm, which classification networks have not."""
    for stage in (2, 3, 4, 5):
        setattr(model, f"scale{stage}_norm", nn.Identity())
    return list(model(images).values())


def assert_same_features_and_logits(reference: MultiScaleVit, ours: MViT) -> None:
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = reference.forward_intermediates(images, intermediates_only=True)
        actual = raw_maps(ours, images)
        for one, other in zip(actual, expected, strict=True):
            assert relative_error(one, other) < TOLERANCE
        tokens = reference.norm(actual[-1].flatten(2).transpose(1, 2))
        logits = reference.forward_head(tokens)
        assert relative_error(logits, reference(images)) < TOLERANCE


def drop_class_token(model: MultiScaleVit) -> MultiScaleVit:
    """timm's own network without the token that its map then is not conditioned on."""
    model.cls_token = None
    model.global_pool = "avg"
    for module in model.modules():
        if hasattr(module, "has_cls_token"):
            module.has_cls_token = False
    return model


@pytest.mark.parametrize("case", long_but(("T", "S cls"), TIMM_NAMES))
def test_timm_narrow(case):
    """Features and logits of each shape; those with a class token, without it on both sides."""
    reference, ours = timm_network(case), our_network(case)
    report = load_weights(ours, reference, strict=True)
    assert report.format == "timm"
    assert set(report.initialised) == OUTPUT_NORMS
    expected = {"norm.weight", "norm.bias", "head.fc.weight", "head.fc.bias"}
    assert set(report.unused) == expected | ({"cls_token"} if "cls" in case else set())
    assert_same_features_and_logits(drop_class_token(reference), ours)


def test_timm_published_size():
    reference, ours = randomize(timm.create_model("mvitv2_tiny")).eval(), published("T")
    load_weights(ours, reference, strict=True)
    assert_same_features_and_logits(reference, ours)


@pytest.mark.usefixtures("without_memory")
@pytest.mark.parametrize("case", TIMM_NAMES)
def test_every_published_size_fits(case):
    """Names and shapes."""
    report = load_weights(published(case), timm.create_model(TIMM_NAMES[case]), strict=True)
    assert not report.resized
    assert set(report.initialised) == OUTPUT_NORMS


@pytest.mark.parametrize("case", ["T", "L", "H cls"])
def test_mvit_file(case, tmp_path):
    source = randomize(our_network(case), seed=1)
    state = mvit_state(source)
    if "cls" in case:
        state["cls_token"] = torch.rand(1, 1, 24)
    torch.save(mvit_file(state), tmp_path / "model.pyth")
    ours = our_network(case)
    report = load_weights(ours, tmp_path / "model.pyth", strict=True)
    assert report.format == "mvit"
    assert set(report.unused) == {n for n in state if n.startswith(("norm", "head", "cls"))}
    actual = ours.state_dict()
    for name, weight in source.state_dict().items():
        assert name in OUTPUT_NORMS or torch.equal(actual[name], weight), name


def test_video_files(tmp_path):
    """PySlowFast's and torchvision's weights: their centre frame."""
    source = without_windows()
    state = mvit_state(source)
    torch.save(mvit_file(inflated(state)), tmp_path / "video.pyth")
    ours = MViT(**TINY)
    report = load_weights(ours, tmp_path / "video.pyth", strict=True)
    assert report.format == "pyslowfast"
    shapes = {reshaped.name: reshaped.old for reshaped in report.resized}
    assert shapes["patch_embed.proj.weight"] == (8, 3, 3, 7, 7)
    assert sum(name.endswith("rel_pos_t") for name in report.unused) == 4
    for name in set(state) & set(ours.state_dict()):
        assert torch.equal(ours.state_dict()[name], state[name]), name


def test_torchvision():
    reference, ours = randomize(mvit_v2_s(weights=None)), published("S")
    report = load_weights(ours, reference, strict=True)
    assert report.format == "torchvision"
    state = reference.state_dict()
    assert torch.equal(ours.patch_embed.proj.weight, state["conv_proj.weight"][:, :, 1])
    attention, theirs = ours.blocks[5].attn, "blocks.5.attn.pool_k"
    assert torch.equal(attention.pool_k.weight, state[f"{theirs}.pool.weight"][:, :, 1])
    assert torch.equal(attention.norm_k.bias, state[f"{theirs}.norm_act.0.bias"])
    assert torch.equal(ours.blocks[3].proj.weight, state["blocks.3.project.weight"])
    assert torch.equal(ours.blocks[7].mlp.fc2.weight, state["blocks.7.mlp.3.weight"])
    # Its first block of scale4 pools K and V more, so that its table is shorter.
    assert {(r.old, r.new) for r in report.resized if "rel_pos" in r.name} == {((27, 96), (55, 96))}


def test_backbone_of_detectron2_and_a_wrapped_model(tmp_path):
    """A backbone's checkpoint, with the optimizer's state, from and into wrapped models."""
    reference = randomize(Detectron2MViT(**TINY))
    optimizer = torch.optim.AdamW(reference.parameters())
    checkpointer = DetectionCheckpointer(reference, str(tmp_path), optimizer=optimizer)
    checkpointer.save("model")
    ours = MViT(**TINY)
    report = load_weights(ours, tmp_path / "model.pth", strict=True)
    assert not report.initialised
    assert not report.unused
    assert_same_weights(ours.state_dict(), reference.state_dict())

    wrapped = nn.DataParallel(MViT(**TINY))
    load_weights(wrapped, nn.DataParallel(reference), strict=True)
    assert_same_weights(wrapped.module.state_dict(), reference.state_dict())


def test_fpn_and_back(tmp_path):
    fpn = randomize(MViTFPN(MViT(**TINY), ["scale2", "scale3", "scale4", "scale5"], 8))
    other = MViTFPN(MViT(**TINY), ["scale2", "scale3", "scale4", "scale5"], 8)
    load_weights(other, fpn, strict=True)
    assert_same_weights(other.state_dict(), fpn.state_dict())
    report = load_weights(MViT(**TINY), fpn, strict=True)
    assert {name.partition(".")[0] for name in report.unused} == {
        f"fpn_{kind}{level}" for kind in ("lateral", "output") for level in (2, 3, 4, 5)
    }
    # The pyramid's norms are not taken for the classifier's: no name is matched by its end.
    fpn = MViTFPN(MViT(**TINY), ["scale2", "scale3", "scale4", "scale5"], 8, norm="LN")
    before = {name: w.clone() for name, w in fpn.state_dict().items() if "fpn" in name}
    report = load_weights(fpn, mvit_state(without_windows()), strict=True)
    assert set(report.unused) >= {"norm.weight", "norm.bias"}
    assert_same_weights({n: w for n, w in fpn.state_dict().items() if "fpn" in n}, before)


def test_safetensors(tmp_path):
    source = without_windows()
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    ours = MViT(**TINY)
    load_weights(ours, str(tmp_path / "model.safetensors"), strict=True)
    assert_same_weights(ours.state_dict(), source.state_dict())


def test_resized_tables_equal_run_time_resizing():
    """Tables of 224 in a network made for 384: the outputs at 384 are the same."""
    small = without_windows(use_abs_pos=True, img_size=224, pretrain_img_size=224)
    large = without_windows(use_abs_pos=True, img_size=384, pretrain_img_size=384)
    report = load_weights(large, small, strict=True)
    assert {r.name for r in report.resized} == {
        name for name in small.state_dict() if "rel_pos" in name or name == "pos_embed"
    }
    images = torch.randn(1, 3, 384, 384)
    with torch.no_grad():
        for one, other in zip(large(images).values(), small(images).values(), strict=True):
            assert relative_error(one, other) < 1e-6


def test_tables_of_1024():
    """Every table of a published size, 224 to 1024: what the forward pass makes of it there."""
    small = published("T", use_abs_pos=True)
    randomize(small)
    large = published("T", use_abs_pos=True, img_size=1024, pretrain_img_size=1024)
    load_weights(large, small, strict=True)
    for one, other in zip(small.blocks, large.blocks, strict=True):
        for old, new in zip(
            one.attn.position_tables("q"), other.attn.position_tables("q"), strict=True
        ):
            assert len(new) > len(old)
            assert torch.equal(resize_table(old, len(new)), new)
    at_run_time = absolute_embedding(small.pos_embed, True, (256, 256))
    assert torch.equal(absolute_embedding(large.pos_embed, True, (256, 256)), at_run_time)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_resized_in_float32(dtype):
    """Positions of half precision, resized: exactly what their float32 values give."""
    half = without_windows(use_abs_pos=True, pretrain_img_size=160, img_size=160).to(dtype)
    state = half.state_dict()
    from_half, from_float = (without_windows(use_abs_pos=True) for _ in range(2))
    report = load_weights(from_half, state, strict=True)
    load_weights(from_float, {name: weight.float() for name, weight in state.items()}, strict=True)
    resized = {reshaped.name for reshaped in report.resized}
    assert {"pos_embed", "blocks.0.attn.rel_pos_h"} <= resized
    assert_same_weights(from_half.state_dict(), from_float.state_dict())
    # Resized in half precision, every value would be one that half precision can hold.
    table = from_half.state_dict()["blocks.0.attn.rel_pos_h"]
    assert not torch.equal(table, table.to(dtype).float())


@pytest.mark.parametrize("source_has", [True, False])
@pytest.mark.parametrize("model_keeps", [True, False])
def test_class_position(source_has, model_keeps):
    source = without_windows(use_abs_pos=True, pretrain_use_cls_token=source_has)
    state = mvit_state(source) | ({"cls_token": torch.rand(1, 1, 8)} if source_has else {})
    ours = without_windows(use_abs_pos=True, pretrain_use_cls_token=model_keeps)
    before = ours.pos_embed[:, :1].clone()
    report = load_weights(ours, state, strict=True)
    assert ("cls_token" in report.unused) == source_has
    assert torch.equal(ours.pos_embed[:, -3136:], source.pos_embed[:, -3136:])
    if model_keeps:
        first = source.pos_embed[:, :1] if source_has else before
        assert torch.equal(ours.pos_embed[:, :1], first)


def test_the_other_l_is_told_apart(tmp_path):
    reference = timm_network("L", depths=(1, 1, 1, 1))
    wrong = MViT(**TINY | {"embed_dim": 16, "num_heads": 2})
    before = {name: weight.clone() for name, weight in wrong.state_dict().items()}
    with pytest.raises(UserError, match=r"in the MLP.*expand_in_attention=False .*=false\)"):
        load_weights(wrong, reference)
    assert_same_weights(wrong.state_dict(), before)
    right = MViT(**TINY | {"embed_dim": 16, "num_heads": 2, "expand_in_attention": False})
    load_weights(right, reference, strict=True)
    with pytest.raises(UserError, match=r"in the attention.*expand_in_attention=True "):
        load_weights(right, wrong)


def without(state: dict, start: str) -> dict:
    return {name: weight for name, weight in state.items() if not name.startswith(start)}


MISFITS = {
    "shape": (
        lambda state: state | {"blocks.1.norm2.bias": torch.rand(7)},
        r"blocks.1.norm2.bias has shape \(7,\), the model's blocks.1.norm2.bias \(16,\)",
    ),
    "channels of the images": (
        lambda state: state | {"patch_embed.proj.weight": torch.rand(8, 4, 7, 7)},
        r"shape \(8, 4, 7, 7\), the model's .* \(8, 3, 7, 7\)",
    ),
    "width of a table": (
        lambda state: state | {"blocks.0.attn.rel_pos_h": torch.rand(55, 9)},
        r"shape \(55, 9\), the model's .* \(111, 8\)",
    ),
    "a gap": (lambda state: without(state, "blocks.1."), "3 blocks, but only 1 are"),
    "the end": (
        lambda state: without(state, "blocks.3."),
        "1-1-1 blocks and 8 channels.*1-1-1-1 blocks",
    ),
    "q, k and v apart": (
        lambda state: state | {"blocks.0.attn.q.weight": torch.rand(8, 8)},
        "separate projections of q, k and v",
    ),
    "nothing": (lambda state: {}, "it holds no weights, but nothing"),
    "the start": (lambda state: without(state, "patch"), "neither an MViT nor a detector"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_weights_that_do_not_fit(case):
    spoil, words = MISFITS[case]
    with pytest.raises(UserError, match=words) as caught:
        load_weights(MViT(**TINY), spoil(mvit_state(without_windows())))
    assert "\n" not in str(caught.value)


def test_other_sizes_are_named():
    with pytest.raises(UserError, match=r"is of MViTv2-S of 1-2-11-2 .* model is MViTv2-T of"):
        load_weights(published("T"), published("S"))


def test_strict():
    state = mvit_state(without_windows()) | {"momentum": torch.rand(1)}
    del state["blocks.2.attn.rel_pos_w"]
    report = load_weights(MViT(**TINY), state)
    assert set(report.unexpected) == {"blocks.2.attn.rel_pos_w", "momentum"}
    ours = MViT(**TINY)
    before = {name: weight.clone() for name, weight in ours.state_dict().items()}
    with pytest.raises(UserError, match=r"2 of the tensors.*blocks\.2\.attn\.rel_pos_w, momentum"):
        load_weights(ours, state, strict=True)
    assert_same_weights(ours.state_dict(), before)


def test_report_counts_every_tensor():
    state = mvit_state(without_windows(img_size=256))
    report = load_weights(MViT(**TINY), state)
    names = {*report.loaded, *(r.name for r in report.resized), *report.initialised}
    assert names == set(MViT(**TINY).state_dict())
    assert len(report.loaded) + len(report.resized) + len(report.unused) == len(state)
    table = report.table()
    assert re.search(r"resized +1 +blocks\.0\.attn\.rel_pos_h 127×8 → 111×8", table)
    assert re.search(r"left at initialisation +8 +scale\*_norm", table)
    assert re.search(r"unused +2 +norm\n +2 +head\.projection", table)
    assert len(table.splitlines()) < 20
