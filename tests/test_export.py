"""What is exported runs without this project's code, and is equal to the model.

ONNX Runtime is the judge for ONNX; sizes are no multiples of strides and windows, and weights and
position tables are random, so that a size taken for granted shows.
"""

from functools import cache
from pathlib import Path

import pytest
import torch
from conftest import TINY as TINY_TRAINING
from detectron2.config import instantiate
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from models import TINY, randomize, relative_error
from torch import nn

from mvitv2_det import MViT, MViTFPN, Recognizer, UserError, Variant, get_config
from mvitv2_det.attention.position import relative_index
from mvitv2_det.config import apply_overrides
from mvitv2_det.export import comparing, export_model, writers
from mvitv2_det.export.writers import FeatureMaps
from mvitv2_det.fused import accelerate

# More windows than the example of 64×96, which has one row of them; odd sides, an exact multiple.
SIZES = [(33, 301), (97, 65), (230, 128), (256, 192)]
LEVELS = ["scale2", "scale3", "scale4", "scale5"]


def pyramid(levels: list[str] = LEVELS, **changes) -> MViTFPN:
    """A random tiny MViT with windows of 16 tokens in scale2, and its FPN."""
    backbone = MViT(**TINY | {"adaptive_window_size": 16, "out_features": levels} | changes)
    top_block = LastLevelMaxPool()
    top_block.in_feature = levels[-1].replace("scale", "p")
    return randomize(MViTFPN(backbone, levels, 8, top_block=top_block)).eval()


def detector(config: str = "demo") -> nn.Module:
    """A random tiny detector that finds something in anything."""
    cfg = apply_overrides(
        get_config(config),
        [
            *TINY_TRAINING,
            "model.backbone.bottom_up.embed_dim=8",
            "model.backbone.bottom_up.depth=4",
            "model.backbone.bottom_up.last_block_indexes=[0,1,2,3]",
            "model.roi_heads.box_predictor.test_score_thresh=0.0",
            "model.roi_heads.box_predictor.test_topk_per_image=10",
        ],
    )
    cfg.model.roi_heads.num_classes = 3
    return randomize(instantiate(cfg.model)).eval()


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def traced_pyramid():
    """A model, and what both formats are made of, made once: symbolic shapes take their time.

    Two blocks, one with windows and a global one with strides, are all kinds of ``pyramid()``.
    """
    model = pyramid(LEVELS[:2])
    with torch.no_grad():
        return model, writers.torch_program(FeatureMaps(model), noise(2, 3, 64, 96), (0, 2, 3))


@pytest.mark.long
@pytest.mark.parametrize("format", ["torch_export", "onnx"])
def test_pyramid_with_dynamic_sizes(format, traced_pyramid, tmp_path, monkeypatch):
    """Float32, to 1e-4 of the largest value, torch.export's plain operations to 1e-5."""
    pytest.importorskip("onnxruntime" if format == "onnx" else "torch")
    model, program = traced_pyramid
    monkeypatch.setattr(writers, "torch_program", lambda *_: program)
    read_once = cache(writers.READERS[format])  # for the comparison and for this test
    monkeypatch.setitem(writers.READERS, format, read_once)
    file = tmp_path / "pyramid"
    comparison = export_model(
        model, file, part="backbone", format=format, image_size=(64, 96), dynamic=True
    )
    assert comparison.sizes == [(64, 96), (39, 129), (129, 51)]
    assert comparison.error <= (1e-4 if format == "onnx" else 1e-5)
    run = read_once(file)
    for batch, size in enumerate(SIZES, start=1):
        images = noise(batch, 3, *size)
        with torch.no_grad():
            expected = model(images)
        for actual, level in zip(run(images), expected.values(), strict=True):
            assert actual.shape == level.shape
            assert relative_error(actual, level) < 1e-4


def test_detector_by_torchscript_at_other_sizes(tmp_path):
    """Another image of the same size, and other sizes, give what eager gives."""
    model, file = detector(), tmp_path / "detector.pt"
    accelerate(model, "reference")  # what is traced, so that nothing rounds otherwise
    comparison = export_model(
        model, file, part="detector", format="torchscript", image_size=(64, 96), dynamic=True
    )
    assert comparison.error <= 1e-6 and comparison.instances == 30
    traced = torch.jit.load(str(file))
    for seed, size in enumerate([(64, 96), (75, 130)]):
        image = 255 * noise(3, *size, seed=seed).sigmoid()
        with torch.no_grad():
            (found,) = model([{"image": image}])
            boxes, classes, scores, masks = traced(image)
        found = found["instances"]
        assert relative_error(boxes, found.pred_boxes.tensor) < 1e-6
        assert torch.equal(classes, found.pred_classes) and torch.equal(scores, found.scores)
        assert masks.shape == (10, 28, 28)


def most_that_suppression_finds(file: Path) -> list[int]:
    """How many boxes each non-maximum suppression of a file of ONNX ends at, in order."""
    onnx = pytest.importorskip("onnx")
    branches = [
        attribute.g
        for node in onnx.load(file).graph.node
        for attribute in node.attribute
        if node.op_type == "If"
    ]
    found = []
    for graph in branches:
        values = {
            node.output[0]: onnx.numpy_helper.to_array(node.attribute[0].t)
            for node in graph.node
            if node.op_type == "Constant"
        }
        found += [
            int(values[node.input[2]].item())
            for node in graph.node
            if node.op_type == "NonMaxSuppression"
        ]
    return found


def test_detector_by_onnx(tmp_path):
    pytest.importorskip("onnxruntime")
    model, file = detector(), tmp_path / "detector.onnx"
    comparison = export_model(
        model,
        file,
        part="detector",
        format="onnx",
        image_size=(64, 96),
        dynamic=True,
    )
    assert comparison.sizes[1:] == [(39, 129), (129, 51)]
    assert comparison.error <= 1e-4 and comparison.instances == 30
    proposals = model.proposal_generator.post_nms_topk[False]
    assert most_that_suppression_finds(file) == [proposals, 10]


@pytest.mark.parametrize(
    ("part", "format", "options", "message"),
    [
        ("detector", "torch_export", {}, "export the detector as onnx or torchscript"),
        ("detector", "torchscript", {}, "MViTFPN without box heads"),
        ("neck", "onnx", {}, "part must be one of backbone, detector, classifier, got 'neck'"),
        ("backbone", "pickle", {}, "format must be one of torch_export, onnx, torchscript"),
        ("backbone", "onnx", {"image_size": (32, 64), "dynamic": True}, "at least 64×64"),
    ],
)
def test_what_cannot_be_exported_is_named(part, format, options, message, tmp_path):
    request = {"part": part, "format": format, "image_size": (64, 64)} | options
    with pytest.raises(UserError, match=message):
        export_model(pyramid(), tmp_path / "file", **request)


def test_shifted_windows_have_one_size(tmp_path):
    with pytest.raises(UserError, match="shifted windows cannot be exported with dynamic sizes"):
        export_model(
            pyramid(window_layout="shifted", depth=5, last_block_indexes=(1, 2, 3, 4)),
            tmp_path / "file",
            part="backbone",
            format="torchscript",
            image_size=(64, 64),
            dynamic=True,
        )


def test_square_padding_has_one_size(tmp_path):
    model = MViTFPN(MViT(**TINY), LEVELS, 8, square_pad=64)
    request = {"part": "backbone", "format": "torchscript", "image_size": (64, 64)}
    with pytest.raises(UserError, match=r"model\.backbone\.square_pad=0"):
        export_model(model, tmp_path / "file", **request, dynamic=True)


def test_missing_packages_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'mvitv2_det\[export\]'"):
        export_model(
            pyramid(), tmp_path / "file", part="backbone", format="onnx", image_size=(64, 64)
        )


def test_a_file_that_differs_is_not_kept(tmp_path, monkeypatch):
    """What Python computes of an image is a constant to the tracer."""

    class OfOneSize(nn.Module):
        def forward(self, images):
            return {"map": images * float(images.mean())}

        def output_shape(self):
            return {"map": None}

    request = {"part": "backbone", "format": "torchscript", "image_size": (8, 8)}
    with pytest.raises(UserError, match=r"differs from the model by .* on images of 8×8"):
        export_model(OfOneSize(), tmp_path / "file", **request)
    assert not list(tmp_path.iterdir())


def test_relative_index_as_of_numbers():
    """The table rows of every query and key, as Python's numbers give them, float32 included."""
    for queries, keys in [(7, 7), (7, 3), (5, 13), (100, 33), (200, 67), (50, 200), (1, 1)]:
        step_q, step_k = max(keys / queries, 1.0), max(queries / keys, 1.0)
        expected = (
            torch.arange(queries)[:, None] * step_q
            - torch.arange(keys)[None, :] * step_k
            + (keys - 1) * step_k
        ).long()
        assert torch.equal(relative_index(queries, keys, device=torch.device("cpu")), expected)


@pytest.mark.parametrize(
    ("format", "class_token"),
    [
        pytest.param("torch_export", False, marks=pytest.mark.long),
        pytest.param("onnx", True, marks=pytest.mark.long),
        ("torchscript", False),
    ],
)
def test_classifier_of_any_number_of_images(format, class_token, tmp_path):
    """Float32, to 1e-4 of the largest logit; the file holds what was given to describe it."""
    onnxruntime = pytest.importorskip("onnxruntime") if format == "onnx" else None
    sizes = Variant(8, (1, 1, 1, 1), 1, 0.0)
    model = Recognizer.image(sizes, 7, class_token=class_token, image_size=96)
    model = randomize(model).eval()
    file, metadata = tmp_path / "classifier", {"classes": '["ä", "b"]'}
    comparison = export_model(
        model, file, part="classifier", format=format, image_size=(96, 96), metadata=metadata
    )
    assert comparison.sizes == [(96, 96)] and comparison.error <= 1e-4
    run = writers.READERS[format](file)
    for batch in (1, 2, 5):
        images = noise(batch, 3, 96, 96)
        with torch.no_grad():
            expected = model(images)
            (actual,) = comparing.outputs_of(run(images))
        assert actual.shape == (batch, 7)
        assert relative_error(actual, expected) < 1e-4
    if onnxruntime is not None:
        session = onnxruntime.InferenceSession(file)
        found = session.get_modelmeta().custom_metadata_map
        assert session.get_outputs()[0].name == "logits"
    else:
        found = {"classes": ""}
        load = torch.export.load if format == "torch_export" else torch.jit.load
        name = "extra_files" if format == "torch_export" else "_extra_files"
        load(file, **{name: found})
    value = found["classes"]
    assert (value.decode() if isinstance(value, bytes) else value) == metadata["classes"]


@pytest.mark.parametrize(
    ("format", "frames", "class_token", "dynamic"),
    [
        pytest.param("onnx", 10, False, False, marks=pytest.mark.long),
        pytest.param("torch_export", 4, False, False, marks=pytest.mark.long),
        ("torchscript", 10, True, False),
    ],
)
def test_classifier_of_any_number_of_clips(format, frames, class_token, dynamic, tmp_path):
    """Float32, to 1e-4 of the largest logit, also of more frames than the tables are made for."""
    if format == "onnx":
        pytest.importorskip("onnxruntime")
    sizes = Variant(8, (1, 1, 1, 1), 1, 0.0)
    model = randomize(Recognizer.video(sizes, 4, 7, class_token, image_size=64)).eval()
    file, request = tmp_path / "c", {"part": "classifier", "format": format, "dynamic": dynamic}
    comparison = export_model(model, file, image_size=(frames, 64, 64), **request)
    assert comparison.sizes[0] == (frames, 64, 64) and comparison.error <= 1e-4
    assert len(comparison.sizes) == (3 if dynamic else 1)
    run = writers.READERS[format](file)
    for batch, size in ((1, (64, 64)), (3, (97, 70) if dynamic else (64, 64))):
        clips = noise(batch, 3, frames, *size)
        with torch.no_grad():
            expected = model(clips)
            (actual,) = comparing.outputs_of(run(clips))
        assert actual.shape == (batch, 7)
        assert relative_error(actual, expected) < 1e-4


def test_parts_belong_to_their_models(tmp_path):
    sizes = Variant(8, (1, 1, 1, 1), 1, 0.0)
    clips = Recognizer.video(sizes, num_classes=2, image_size=64)
    request = {"file": tmp_path / "m", "format": "torchscript", "image_size": (64, 64)}
    with pytest.raises(UserError, match="the backbone of a Recognizer cannot be exported"):
        export_model(clips, part="backbone", **request)
    with pytest.raises(UserError, match="the classifier of a MViTFPN cannot be exported"):
        export_model(pyramid(), part="classifier", **request)
    with pytest.raises(UserError, match="3 numbers, as clips have frames, too"):
        export_model(clips, part="classifier", **request)
