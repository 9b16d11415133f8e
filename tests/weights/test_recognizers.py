"""Classifiers of images and of clips: heads, class tokens, inflation, and every project's names."""

import dataclasses
import re
import subprocess
import sys

import pytest
import timm
import torch
from models import TINY, randomize, relative_error
from timm.models.mvitv2 import MultiScaleVit, model_cfgs
from torch import nn
from torchvision.models.video import mvit_v1_b, mvit_v2_s
from torchvision.models.video.mvit import MSBlockConfig
from torchvision.models.video.mvit import MViT as TorchvisionMViT
from weight_files import TIMM_NAMES, assert_same_weights, mvit_file, without_windows

from mvitv2_det import VARIANTS, MViT, Recognizer, UserError, convert_weights, load_weights
from mvitv2_det.attention.position import relative_index
from mvitv2_det.commands import main
from mvitv2_det.variants import MVITV1_ARGUMENTS
from mvitv2_det.weights.files import read_weights
from mvitv2_det.weights.reshape import aligned_tables

TOLERANCE = 1e-4
SIZE = 64
SMALL = dataclasses.replace(VARIANTS["T"], embed_dim=8, blocks=(1, 1, 1, 1))
# MViTs of clips and of images with the same strides and no class token: section 4.3 is exact.
ALIKE = {"class_token": False, "adaptive_kv_stride": 4}
V1 = {name: value for name, value in MVITV1_ARGUMENTS.items() if "global" not in name}


def image(num_classes: int = 5, *, seed: int = 0, image_size: int = SIZE, **options) -> Recognizer:
    network = Recognizer.image(SMALL, num_classes, image_size=image_size, **options)
    return randomize(network, seed).eval()


def video(num_classes: int = 5, *, seed: int = 0, frames: int = 8, **options) -> Recognizer:
    options = {"image_size": SIZE} | options
    return randomize(Recognizer.video(SMALL, frames, num_classes, **options), seed).eval()


def timm_classifier(name: str, num_classes: int = 5) -> MultiScaleVit:
    cfg = dataclasses.replace(model_cfgs[name], embed_dim=8, depths=(1, 1, 1, 1), num_heads=1)
    network = MultiScaleVit(cfg, img_size=(SIZE, SIZE), num_classes=num_classes)
    return randomize(network, seed=1).eval()


def torchvision_classifier(is_v1: bool = False) -> TorchvisionMViT:
    """One block a stage, of 8 channels, K and V pooled as published."""
    settings = []
    for stage in range(4):
        stride = 2 if stage else 1
        pools_q = stage or not is_v1
        wide = 8 * 2**stage
        settings.append(
            MSBlockConfig(
                num_heads=2**stage,
                input_channels=wide if is_v1 or not stage else wide // 2,
                output_channels=min(2 * wide, 64) if is_v1 else wide,
                kernel_q=[3, 3, 3] if pools_q else [],
                kernel_kv=[3, 3, 3],
                stride_q=[1, stride, stride] if pools_q else [],
                stride_kv=[1, 8 >> stage, 8 >> stage],
            )
        )
    network = TorchvisionMViT(
        spatial_size=(SIZE, SIZE),
        temporal_size=8,
        block_setting=settings,
        residual_pool=not is_v1,
        residual_with_cls_embed=False,
        rel_pos_embed=not is_v1,
        proj_after_attn=not is_v1,
        num_classes=5,
    )
    return randomize(network, seed=1).eval()


def assert_nothing_left(report) -> None:
    assert not (report.initialised or report.unused or report.unexpected or report.resized)


def assert_same_logits(one: nn.Module, other: nn.Module, shape: tuple[int, ...]) -> None:
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        assert relative_error(one(inputs), other(inputs)) < TOLERANCE


@pytest.mark.parametrize("name", ["mvitv2_tiny", "mvitv2_small_cls"])
def test_timm_module(name):
    reference, ours = timm_classifier(name), image(class_token="cls" in name)
    assert_nothing_left(load_weights(ours, reference, strict=True))
    assert_same_logits(ours, reference, (2, 3, SIZE, SIZE))


@pytest.mark.parametrize("is_v1", [False, True])
def test_torchvision_module(is_v1):
    """MViTv2; and MViTv1, which has absolute positions of space, time and class token."""
    reference, ours = torchvision_classifier(is_v1), video(**(V1 if is_v1 else {}))
    report = load_weights(ours, reference, strict=True)
    assert_nothing_left(report)
    assert report.format == "torchvision"
    assert_same_logits(ours, reference, (2, 3, 8, SIZE, SIZE))


@pytest.mark.usefixtures("without_memory")
@pytest.mark.parametrize("case", TIMM_NAMES)
def test_published_sizes_of_timm(case):
    ours = Recognizer.image(case[0], class_token="cls" in case, expand_in_attention=case != "L")
    reference = timm.create_model(TIMM_NAMES[case], num_classes=1000)
    assert_nothing_left(load_weights(ours, reference, strict=True))


def test_published_sizes_of_torchvision():
    with torch.device("meta"):
        assert_nothing_left(load_weights(Recognizer.video("S"), mvit_v2_s(), strict=True))
        v1 = dataclasses.replace(VARIANTS["B"], blocks=(1, 2, 11, 2))
        ours = Recognizer.video(v1, **V1)
        assert_nothing_left(load_weights(ours, mvit_v1_b(), strict=True))


OPTIONS = {
    "images": (image, {}, "mvit"),
    "images, ImageNet-21K": (image, {"class_token": True, "use_abs_pos": True}, "mvit"),
    "clips": (video, {}, "pyslowfast"),
    "clips, MViTv1": (video, V1, "pyslowfast"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_own_checkpoints(case, tmp_path):
    """Their names are those of facebookresearch/mvit and PySlowFast."""
    make, options, format = OPTIONS[case]
    source, ours = make(seed=1, **options), make(**options)
    torch.save(mvit_file(source.state_dict()), tmp_path / "model.pyth")
    report = load_weights(ours, tmp_path / "model.pyth", strict=True)
    assert_nothing_left(report)
    assert report.format == format
    assert_same_weights(ours.state_dict(), source.state_dict())


def mmlab(state: dict, head: str) -> dict:
    """The names that the converters of mmpretrain give, with the head of either project."""
    result = {}
    for name, value in state.items():
        if name.startswith("head."):
            result[name.replace("head.projection", head)] = value
        else:
            name = re.sub(r"^norm\.", "norm3.", name)
            name = re.sub(r"^patch_embed\.proj\.", "patch_embed.projection.", name)
            result[f"backbone.{name}"] = value
    return result


@pytest.mark.parametrize(
    ("make", "head", "format"),
    [(image, "head.fc", "mmpretrain"), (video, "cls_head.fc_cls", "mmaction2")],
)
def test_mmlab(make, head, format):
    source, ours = make(seed=1), make()
    content = {"meta": {}, "state_dict": mmlab(source.state_dict(), head)}
    report = load_weights(ours, content, strict=True)
    assert_nothing_left(report)
    assert report.format == format
    assert_same_weights(ours.state_dict(), source.state_dict())
    into_detection = load_weights(MViT(**TINY), content, strict=True)
    assert f"{head}.weight" in into_detection.unused


def test_filters_of_one_frame_are_those_of_images():
    source, ours = image(seed=1), image()
    state = {n: w.unsqueeze(2) if w.dim() == 4 else w for n, w in source.state_dict().items()}
    report = load_weights(ours, state, strict=True)
    assert_nothing_left(report)
    assert report.format == "mvit"
    assert_same_weights(ours.state_dict(), source.state_dict())
    temporal = {"blocks.0.attn.rel_pos_t": torch.rand(1, 8)}
    assert load_weights(ours, state | temporal).format == "pyslowfast"


def test_other_classes():
    """ImageNet-21K's head in a network of fewer classes: left, and by request its first rows."""
    source, ours = image(191, seed=1), image(37)
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    with pytest.raises(UserError, match=r"2 of the tensors do not fit.*head\.projection"):
        load_weights(ours, source, strict=True)
    assert_same_weights(ours.state_dict(), before)
    report = load_weights(ours, source)
    assert re.search(r"of other shape +1 +head: 191 → 37 classes", report.table())
    assert set(report.unexpected) == {"head.projection.weight", "head.projection.bias"}
    assert torch.equal(ours.head.projection.weight, before["head.projection.weight"])
    assert torch.equal(ours.norm.weight, source.norm.weight)

    report = load_weights(ours, source, strict=True, classes="first")
    assert re.search(r"first outputs of +1 +head: 191 → 37 classes", report.table())
    inputs = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        torch.testing.assert_close(ours(inputs), source(inputs)[:, :37])
    # There is no first thousand of fewer.
    report = load_weights(image(200), source, classes="first")
    assert "head: 191 → 200 classes" in report.table()


@pytest.mark.parametrize("options", [{}, {"use_abs_pos": True}])
def test_inflation_is_exact(options):
    """Section 4.3: a still clip gives the image's logits."""
    source = image(seed=1, **options).double()
    ours = video(**ALIKE, **options).double()
    report = load_weights(ours, source, strict=True)
    images = torch.randn(2, 3, SIZE, SIZE, dtype=torch.float64)
    with torch.no_grad():
        actual = ours(images.unsqueeze(2).repeat(1, 1, 8, 1, 1))
        assert relative_error(actual, source(images)) < 1e-9
    temporal = {f"blocks.{index}.attn.rel_pos_t" for index in range(4)}
    assert set(report.zeroed) == temporal | ({"pos_embed_temporal"} if options else set())
    table = report.table()
    filter = r"patch_embed\.proj\.weight 8×3×7×7 → 8×3×3×7×7"
    assert re.search(rf"inflated by centre +1 +{filter}", table)
    assert re.search(r"set to zero [^:]*4 +blocks\.\*\.attn\.rel_pos_t", table)
    assert re.search(r"spatial tables +4 +blocks\.\*\.attn\.rel_pos_h row for row \(as_is\)", table)
    names = {*report.loaded, *(r.name for r in report.resized), *report.zeroed}
    assert names == set(ours.state_dict())


def test_class_token_of_images_in_clips():
    source, ours = image(seed=1, class_token=True, use_abs_pos=True), video(use_abs_pos=True)
    load_weights(ours, source, strict=True)
    assert torch.equal(ours.cls_token, source.cls_token)
    assert torch.equal(ours.pos_embed_class, source.pos_embed[:, :1])
    assert torch.equal(ours.pos_embed_spatial, source.pos_embed[:, 1:])
    assert not ours.pos_embed_temporal.any()


@pytest.mark.parametrize(("how", "factors"), [("mean", (1 / 3,) * 3), ("repeat", (1, 1, 1))])
def test_other_inflations(how, factors):
    source, ours = image(seed=1), video(**ALIKE)
    report = load_weights(ours, source, strict=True, inflate=how)
    assert f"inflated by {how}" in report.table()
    for frame, factor in enumerate(factors):
        for name in ("patch_embed.proj.weight", "blocks.2.attn.pool_k.weight"):
            actual, expected = ours.state_dict()[name][:, :, frame], source.state_dict()[name]
            torch.testing.assert_close(actual, factor * expected)


def test_clip_into_images_and_back():
    source, middle, ours = image(seed=1), video(**ALIKE), image()
    load_weights(middle, source, strict=True)
    report = load_weights(ours, middle, strict=True)
    assert {r.how for r in report.resized} == {"reduced to the centre frame"}
    assert "tables" not in report.table()
    assert_same_weights(ours.state_dict(), source.state_dict())


def test_separable_positions_are_resized():
    source, ours = video(seed=1, **V1), video(frames=16, **V1 | {"image_size": 96})
    report = load_weights(ours, source, strict=True)
    positions = {r.name: (r.old[1], r.new[1]) for r in report.resized}
    assert positions == {"pos_embed_spatial": (256, 576), "pos_embed_temporal": (4, 8)}
    assert torch.equal(ours.pos_embed_class, source.pos_embed_class)
    grid = source.pos_embed_spatial.reshape(1, 16, 16, 8).permute(0, 3, 1, 2)
    grid = nn.functional.interpolate(grid, size=(24, 24), mode="bicubic").flatten(2)
    torch.testing.assert_close(ours.pos_embed_spatial, grid.transpose(1, 2))
    frames = source.pos_embed_temporal.transpose(1, 2)
    frames = nn.functional.interpolate(frames, size=8, mode="linear")
    torch.testing.assert_close(ours.pos_embed_temporal, frames.transpose(1, 2))


# Queries and keys along an axis in each block of S at 224.
GRIDS_OF_S = {
    4: [(56, 14), (28, 28), (28, 14), (14, 28), *[(14, 14)] * 10, (7, 14), (7, 7)],
    8: [(56, 7), (28, 14), (28, 7), (14, 14), *[(14, 7)] * 10, (7, 14), (7, 7)],
}


def test_aligned_tables():
    """A table of the distances themselves says the same distances to a network of other strides."""
    with torch.device("meta"):
        networks = {4: Recognizer.image("S"), 8: Recognizer.video("S")}
    weights = {stride: dict(network.state_dict()) for stride, network in networks.items()}
    for block, (queries, keys) in enumerate(GRIDS_OF_S[4]):
        index = relative_index(queries, keys, device=torch.device("cpu"))
        table = torch.full((2 * max(queries, keys) - 1, 1), torch.nan)
        distance = torch.arange(queries)[:, None] / queries - torch.arange(keys)[None] / keys
        table[index, 0] = distance
        # Rows that no query and key of these strides reads go on in the same steps.
        steps = torch.arange(len(table)) - index[0, 0]
        table = (steps / max(queries, keys))[:, None].where(table.isnan(), table)
        for axis in "hw":
            name = f"blocks.{block}.attn.rel_pos_{axis}"
            assert len(weights[4][name]) == len(table)
            weights[4][name] = table
    aligned = aligned_tables(weights[4], weights[8])
    moved = set()
    for block, (queries, keys) in enumerate(GRIDS_OF_S[8]):
        index = relative_index(queries, keys, device=torch.device("cpu"))
        distance = torch.arange(queries)[:, None] / queries - torch.arange(keys)[None] / keys
        source = weights[4][f"blocks.{block}.attn.rel_pos_h"]
        expected = distance.clamp(source.min(), source.max())
        for axis in "hw":
            table, has_moved = aligned[f"blocks.{block}.attn.rel_pos_{axis}"]
            torch.testing.assert_close(table[index, 0], expected)
            moved |= {block} if has_moved else set()
    # The last two blocks have the same strides in both.
    assert moved == set(range(14))


def test_aligned_into_clips():
    """A still clip's tables, on the same strides, are those of the image."""
    source, ours, other = image(seed=1), video(**ALIKE), video(class_token=False)
    report = load_weights(ours, source, strict=True, tables="aligned")
    assert "by distance (aligned)" in report.table()
    assert torch.equal(ours.blocks[1].attn.rel_pos_h, source.blocks[1].attn.rel_pos_h)
    report = load_weights(other, source, strict=True, tables="aligned")
    assert re.search(r"aligned at distance zero +1 +blocks\.0\.attn\.rel_pos_h", report.table())
    assert not torch.equal(other.blocks[0].attn.rel_pos_h, source.blocks[0].attn.rel_pos_h)


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"inflate": "sum"}, "inflate must be one of centre, mean, repeat, got 'sum'"),
        ({"tables": "zero"}, "tables must be one of as_is, aligned, got 'zero'"),
        ({"classes": 3}, "classes must be one of all, first, got 3"),
    ],
)
def test_wrong_keywords(keywords, words):
    with pytest.raises(UserError, match=words):
        load_weights(image(), image(), **keywords)


@pytest.mark.parametrize("stride", [1, 2, 16])
def test_strides_that_tables_do_not_tell(stride):
    source = image(adaptive_kv_stride=stride)
    with pytest.raises(UserError, match=r"cannot tell .* rel_pos_h .* use tables='as_is'"):
        load_weights(video(class_token=False), source, tables="aligned")
    with pytest.raises(UserError, match="needs a rel_pos_h in every block"):
        load_weights(video(class_token=False), image(use_rel_pos=False), tables="aligned")


def test_class_token_that_the_source_lacks():
    report = load_weights(image(class_token=True), image())
    assert report.unexpected == ("cls_token",)


def test_between_recognition_and_detection():
    recogniser, backbone = image(seed=1), without_windows()
    report = load_weights(backbone, recogniser, strict=True)
    head = {name for name in recogniser.state_dict() if name.startswith(("norm.", "head."))}
    assert set(report.unused) == head
    assert torch.equal(backbone.blocks[2].attn.qkv.weight, recogniser.blocks[2].attn.qkv.weight)
    report = load_weights(image(), backbone, strict=True)
    assert set(report.initialised) == head
    assert all(name.startswith("scale") for name in report.unused)


@pytest.mark.parametrize("name", ["mvitv2_tiny", "mvitv2_small_cls"])
def test_to_timm_and_back(name, tmp_path):
    """A recogniser trained here: timm's network takes all of it, and gives it back."""
    source = image(class_token="cls" in name)
    torch.save({"model": source.state_dict(), "iteration": 9}, tmp_path / "model_final.pth")
    target = tmp_path / "timm.safetensors"
    convert_weights(tmp_path / "model_final.pth", target, to="timm", strict=True)
    network = timm_classifier(name)
    network.load_state_dict(read_weights(target))
    assert_same_logits(network, source, (2, 3, SIZE, SIZE))
    ours = image(class_token="cls" in name, seed=2)
    load_weights(ours, target, strict=True)
    assert_same_weights(ours.state_dict(), source.state_dict())


@pytest.mark.parametrize("is_v1", [False, True])
def test_to_torchvision_and_back(is_v1, tmp_path):
    source = video(**(V1 if is_v1 else {}))
    convert_weights(source, tmp_path / "tv.pth", to="torchvision", strict=True)
    network = torchvision_classifier(is_v1)
    network.load_state_dict(read_weights(tmp_path / "tv.pth"))
    assert_same_logits(network, source, (1, 3, 8, SIZE, SIZE))
    convert_weights(tmp_path / "tv.pth", tmp_path / "back.pyth", to="pyslowfast", strict=True)
    assert_same_weights(read_weights(tmp_path / "back.pyth"), source.state_dict())
    with pytest.raises(UserError, match="no network of clips, as torchvision's MViTs are"):
        convert_weights(image(), tmp_path / "tv.pth", to="torchvision")


def test_frames_that_a_format_lacks(tmp_path, capsys):
    source = video()
    torch.save(mvit_file(source.state_dict()), tmp_path / "clips.pyth")
    paths = [str(tmp_path / "clips.pyth"), str(tmp_path / "images.pyth")]
    done = convert_weights(*paths, to="mvit")
    filters = {n for n, w in source.state_dict().items() if w.dim() == 5}
    assert set(done.reduced) == filters
    assert len(filters) == 13
    assert set(done.dropped) == {f"blocks.{index}.attn.rel_pos_t" for index in range(4)}
    written = read_weights(paths[1])
    assert torch.equal(written["patch_embed.proj.weight"], source.patch_embed.proj.weight[:, :, 1])
    with pytest.raises(UserError, match="no names for 4 tensors"):
        convert_weights(*paths, to="mvit", strict=True)
    state = {n: w for n, w in source.state_dict().items() if "rel_pos_t" not in n}
    with pytest.raises(UserError, match="mvit has no frames, and 13 filters have: write pysl"):
        convert_weights(state, paths[1], to="mvit", strict=True)
    assert main(["convert", *paths]) == 0
    assert "the centre frame alone, as mvit has no frames, of patch_embed.proj" in (
        capsys.readouterr().out
    )
    for to, ending in (("pyslowfast", "pyth"), ("safetensors", "safetensors")):
        whole = tmp_path / f"whole.{ending}"
        assert not convert_weights(paths[0], whole, to=to, strict=True).reduced
        ours = video(seed=2)
        load_weights(ours, whole, strict=True)
        assert_same_weights(ours.state_dict(), source.state_dict())


@pytest.mark.long
def test_without_detectron2(tmp_path):
    """Loading and converting need none of it; importing it is blocked."""
    torch.save({"model": image().state_dict()}, tmp_path / "model.pth")
    code = (
        "import dataclasses, sys; sys.modules['detectron2'] = None\n"
        "from mvitv2_det import VARIANTS, Recognizer, load_weights\n"
        "from mvitv2_det.commands import main\n"
        "size = dataclasses.replace(VARIANTS['T'], embed_dim=8, blocks=(1, 1, 1, 1))\n"
        f"model = Recognizer.image(size, 5, image_size={SIZE})\n"
        "report = load_weights(model, 'model.pth', strict=True)\n"
        "assert not report.initialised\n"
        "assert main(['convert', 'model.pth', 'model.safetensors', '--to', 'timm']) == 0\n"
        "for address in ('detectron2://x.pth', 'http://127.0.0.1:9/x.pth', 'timm://resnet50'):\n"
        "    try:\n"
        "        load_weights(model, address)\n"
        "    except Exception as error:\n"
        "        print(type(error).__name__, error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()[-3:]
    assert all(line.startswith("UserError") for line in lines), lines
    assert "(if Detectron2 is installed)" in lines[0]
    assert "cannot be fetched" in lines[1]
    assert "timm has no such MViTv2" in lines[2]
