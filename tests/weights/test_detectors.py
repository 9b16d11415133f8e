"""Whole detectors, between Detectron2's own models and checkpointer and ours."""

import pickle

import pytest
import torch
from conftest import tiny_overrides
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import instantiate
from detectron2.modeling import MViT as Detectron2MViT
from detectron2.modeling.backbone.fpn import FPN
from marks import long_but
from models import randomize
from torch import nn
from weight_files import assert_same_weights, mvit_state

from mvitv2_det import MViT, UserError, convert_weights, get_config, load_weights
from mvitv2_det.config import apply_overrides

NAMES = ["mask_rcnn_mvitv2_t_3x", "cascade_mask_rcnn_mvitv2_t_3x"]


def narrow_config(name: str):
    """The config with a narrow backbone and heads, without a threshold on scores."""
    cfg = get_config(name)
    apply_overrides(cfg, tiny_overrides(cfg))
    heads = cfg.model.roi_heads
    if "box_heads" in heads:
        for head, predictor in zip(heads.box_heads, heads.box_predictors, strict=True):
            head.conv_dims, head.fc_dims, predictor.input_shape.channels = [8], [16], 16
            predictor.test_score_thresh = 0.0
    else:
        heads.box_head.fc_dims, heads.box_predictor.input_shape.channels = [16, 16], 16
        heads.box_predictor.test_score_thresh = 0.0
    return cfg


def our_detector(name: str) -> nn.Module:
    """With the plain attention, whose operations are Detectron2's in their order: what rounds
    otherwise may cross a threshold, and a detection is there or not."""
    cfg = narrow_config(name)
    cfg.model.backbone.bottom_up.attention_backend = "reference"
    return instantiate(cfg.model).eval()


def detectron2_detector(name: str) -> nn.Module:
    """The same with Detectron2's backbone and FPN, nothing of ours in it."""
    cfg = narrow_config(name)
    cfg.model.backbone._target_ = FPN
    cfg.model.backbone.bottom_up._target_ = Detectron2MViT
    model = instantiate(cfg.model).eval()
    assert not any(type(m).__module__.startswith("mvitv2_det") for m in model.modules())
    # Ours makes its patches of images that lie channels-last; without AVX-512 the convolution
    # rounds otherwise there than on images that do not.
    model.backbone.bottom_up.patch_embed.register_forward_pre_hook(
        lambda _, inputs: inputs[0].to(memory_format=torch.channels_last)
    )
    return model


def shaken(model: nn.Module) -> nn.Module:
    """With random weights, batch statistics too."""
    randomize(model)
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 1.5)
    return model


def assert_same_detections(one: nn.Module, other: nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    for height, width in [(96, 128), (75, 101)]:
        image = 255 * torch.rand(3, height, width, generator=generator)
        with torch.no_grad():
            first, second = (
                model([{"image": image, "height": height, "width": width}])[0]["instances"]
                for model in (one, other)
            )
        assert len(first) == len(second) > 5
        assert torch.equal(first.pred_classes, second.pred_classes)
        torch.testing.assert_close(first.pred_boxes.tensor, second.pred_boxes.tensor)
        torch.testing.assert_close(first.scores, second.scores)
        assert torch.equal(first.pred_masks, second.pred_masks)
        assert first.pred_masks.any()


def save_pkl(model: nn.Module, path) -> None:
    """As Detectron2's model zoo does."""
    arrays = {name: weight.numpy() for name, weight in model.state_dict().items()}
    content = {"model": arrays, "__author__": "Detectron2 Model Zoo", "matching_heuristics": False}
    path.write_bytes(pickle.dumps(content))


@pytest.mark.parametrize("name", long_but(NAMES[1:], NAMES))
def test_detectron2s_own_files(name, tmp_path):
    reference = shaken(detectron2_detector(name))
    DetectionCheckpointer(reference, str(tmp_path)).save("model")
    save_pkl(reference, tmp_path / "model.pkl")
    for file in ("model.pth", "model.pkl"):
        ours = our_detector(name)
        report = load_weights(ours, tmp_path / file, strict=True)
        assert report.format == "detectron2"
        assert not report.initialised
        assert not report.unused
        assert_same_detections(reference, ours)


def test_to_timm_and_back(tmp_path):
    """A trained detector's backbone, bit for bit; its output norms and heads are not timm's."""
    detector = shaken(our_detector(NAMES[0]))
    DetectionCheckpointer(detector, str(tmp_path)).save("model_final")
    done = convert_weights(tmp_path / "model_final.pth", tmp_path / "timm.pth", to="timm")
    before = detector.backbone.bottom_up.state_dict()
    shared = {name for name in before if not name.startswith("scale")}
    assert len(done.written) == len(shared)
    other = our_detector(NAMES[0])
    report = load_weights(other, tmp_path / "timm.pth", strict=True)
    assert set(report.loaded) == {f"backbone.bottom_up.{name}" for name in shared}
    after = other.backbone.bottom_up.state_dict()
    assert_same_weights({n: after[n] for n in shared}, {n: before[n] for n in shared})


@pytest.mark.parametrize("name", long_but(NAMES[:1], NAMES))
@pytest.mark.parametrize("ending", ["pth", "pkl"])
def test_our_files_in_stock_detectron2(name, ending, tmp_path):
    """Saved by the checkpointer as training does, and converted to the model zoo's kind."""
    ours = shaken(our_detector(name))
    DetectionCheckpointer(ours, str(tmp_path)).save("model")
    if ending == "pkl":
        convert_weights(tmp_path / "model.pth", tmp_path / "model.pkl")
        # Stock Detectron2 would match names by their ends.
        assert not pickle.loads((tmp_path / "model.pkl").read_bytes())["matching_heuristics"]
    stock = detectron2_detector(name)
    DetectionCheckpointer(stock).load(str(tmp_path / f"model.{ending}"))
    assert_same_weights(stock.state_dict(), ours.state_dict())
    assert_same_detections(stock, ours)


def test_a_backbone_into_a_detector_and_out_of_it(tmp_path):
    detector = our_detector(NAMES[0])
    backbone = shaken(MViT(**_arguments(detector)))
    report = load_weights(detector, mvit_state(backbone), strict=True)
    bottom_up = detector.backbone.bottom_up.state_dict()
    for name, weight in backbone.state_dict().items():
        assert name.startswith("scale") or torch.equal(bottom_up[name], weight), name
    assert all(name.startswith("backbone.bottom_up.") for name in report.loaded)
    left = {name.partition(".")[0] for name in report.initialised}
    assert left == {"backbone", "proposal_generator", "roi_heads"}

    # A converted classifier brings its norm and head; stock Detectron2 loads its backbone.
    convert_weights(mvit_state(backbone), tmp_path / "backbone.pth", to="detectron2")
    stock = detectron2_detector(NAMES[0])
    DetectionCheckpointer(stock).load(str(tmp_path / "backbone.pth"))
    loaded = stock.backbone.bottom_up.blocks[3].attn
    assert torch.equal(loaded.qkv.weight, backbone.blocks[3].attn.qkv.weight)

    shaken(detector)
    report = load_weights(backbone, detector, strict=True)
    assert_same_weights(backbone.state_dict(), detector.backbone.bottom_up.state_dict())
    assert "roi_heads.box_predictor.cls_score.weight" in report.unused


def _arguments(detector: nn.Module) -> dict:
    cfg = narrow_config(NAMES[0]).model.backbone.bottom_up
    return {key: value for key, value in cfg.items() if key != "_target_"}


def test_another_number_of_classes(tmp_path):
    """Fine-tuning a detector: the layers that count classes are left, and said to be."""
    cfg = narrow_config(NAMES[0])
    cfg.model.roi_heads.num_classes = 2
    ours = instantiate(cfg.model)
    source = shaken(our_detector(NAMES[0]))
    report = load_weights(ours, source)
    counting = {
        f"roi_heads.{layer}.{leaf}"
        for layer in (
            "box_predictor.cls_score",
            "box_predictor.bbox_pred",
            "mask_head.predictor",
        )
        for leaf in ("weight", "bias")
    }
    assert {m.name for m in report.misfits} == counting == set(report.unexpected)
    assert "81×16 → 3×16" in report.table()
    with pytest.raises(UserError, match="6 of the tensors do not fit"):
        load_weights(ours, source, strict=True)


def test_heads_of_another_kind():
    report = load_weights(our_detector(NAMES[0]), our_detector(NAMES[1]))
    assert any(name.startswith("roi_heads.box_predictor.2") for name in report.unexpected)
    assert any(name.startswith("roi_heads.box_predictor.cls") for name in report.unexpected)
