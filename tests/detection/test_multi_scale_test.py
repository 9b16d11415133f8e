"""Testing at several scales: exact with one view, mirrored images, merging, memory, the command."""

import json
import weakref

import pytest
import torch
from conftest import dataset_overrides, tiny_overrides
from detectors import DETECTORS, tiny_detector
from detectron2.config import instantiate
from detectron2.structures import Instances
from models import randomize
from PIL import Image
from torch import nn
from torchvision.ops import box_iou

import train_net
from mvitv2_det import UserError, get_config
from mvitv2_det.config import apply_overrides, config_files
from mvitv2_det.data import DatasetMapper, prepare_datasets
from mvitv2_det.detection.box_inference import selecting_predictor
from mvitv2_det.detection.multi_scale_test import MultiScaleTest, _move
from mvitv2_det.engine import build_model

SYSTEM_LEVEL = "cascade_mask_rcnn_mvitv2_l_in21k_lsj_50ep_softnms_ms"


@pytest.fixture(autouse=True)
def _one_thread():
    """Networks this small are slower with more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def random_image(height, width):
    """(3, H, W), smooth enough that resizing keeps what is in it."""
    coarse = torch.randint(0, 256, (1, 3, height // 8, width // 8)).float()
    image = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0]
    return image.to(torch.uint8)


@torch.no_grad()
def detections(model, *records) -> list[Instances]:
    return [output["instances"] for output in model.eval()(list(records))]


def assert_equal(actual: Instances, expected: Instances):
    assert len(expected) > 20
    assert actual.image_size == expected.image_size
    assert actual.get_fields().keys() == expected.get_fields().keys()
    assert torch.equal(actual.pred_boxes.tensor, expected.pred_boxes.tensor)
    for field in ("scores", "pred_classes", "pred_masks"):
        assert torch.equal(actual.get(field), expected.get(field)), field


@pytest.mark.parametrize("method", ["", "linear", "gaussian"])
@pytest.mark.parametrize("name", DETECTORS)
def test_one_view_is_plain_inference_exactly(name, method, tmp_path):
    """Bit for bit, on a batch of files of two sizes that the mapper and the views resize."""
    cfg = get_config(name)
    cfg.dataloader.test.mapper.augmentations[0].update(short_edge_length=64, max_size=90)
    mapper = instantiate(cfg.dataloader.test.mapper)
    records = []
    for number, (height, width) in enumerate([(48, 72), (56, 40)]):
        file = tmp_path / f"{number}.png"
        Image.fromarray(random_image(height, width).permute(1, 2, 0).numpy()).save(file)
        records.append(mapper({"file_name": str(file), "height": height, "width": width}))
    model = tiny_detector(name, method)
    expected = detections(model, *records)
    actual = detections(MultiScaleTest(model, [64], 90, flip=False), *records)
    assert records[0]["image"].shape == (3, 60, 90)
    for found, wanted in zip(actual, expected, strict=True):
        assert_equal(found, wanted)


@pytest.mark.parametrize("name", DETECTORS)
def test_a_mirrored_image_gives_mirrored_results(name):
    """Scores to 1e-4 and boxes to 0.01 pixels in float32; masks but for pixels on their edges."""
    model = tiny_detector(name, "gaussian")
    test = MultiScaleTest(model, [64, 96], 200)
    image = random_image(64, 96)
    (found,) = detections(test, {"image": image})
    (mirrored,) = detections(test, {"image": image.flip(-1)})
    assert len(found) == len(mirrored) > 20
    assert torch.allclose(mirrored.scores, found.scores, rtol=1e-4)
    # Scores that are all but equal may change places.
    found_boxes, boxes = found.pred_boxes.tensor, mirrored.pred_boxes.tensor
    boxes = torch.stack([96 - boxes[:, 2], boxes[:, 1], 96 - boxes[:, 0], boxes[:, 3]], dim=1)
    distance = (boxes[:, None] - found_boxes).abs().amax(dim=-1)
    distance[mirrored.pred_classes[:, None] != found.pred_classes] = torch.inf
    assert distance.min(dim=1).values.max() < 0.01
    match = distance.argmin(dim=1)
    assert len(match.unique()) == len(match)
    masks = found.pred_masks[match].flip(-1)
    assert masks.any()
    assert (mirrored.pred_masks != masks).float().mean() < 1e-3
    # The two are not mirror images because they are alike.
    (plain,) = detections(MultiScaleTest(model, [64, 96], 200, flip=False), {"image": image})
    assert not torch.equal(plain.scores, found.scores)


def test_hard_nms_merges_what_the_scales_find():
    """Every detection of a scale stays, or a better one of its class overlaps it."""
    model = tiny_detector(DETECTORS[0])
    selecting_predictor(model.roi_heads).test_topk_per_image = -1
    image = {"image": random_image(64, 96)}
    sides = [48, 96]
    alone = [detections(MultiScaleTest(model, [side], 400, flip=False), image)[0] for side in sides]
    (merged,) = detections(MultiScaleTest(model, sides, 400, flip=False), image)
    assert len(merged) > max(len(found) for found in alone)
    for found in alone:
        same = (found.scores[:, None] == merged.scores) & (
            found.pred_classes[:, None] == merged.pred_classes
        )
        boxes = found.pred_boxes.tensor[:, None] - merged.pred_boxes.tensor
        kept = (same & (boxes.abs().amax(dim=-1) < 1e-3)).any(dim=1)
        assert 0.1 < kept.float().mean() < 1
        overlaps = box_iou(found.pred_boxes.tensor, merged.pred_boxes.tensor) > 0.49
        better = merged.scores > found.scores[:, None]
        of_class = found.pred_classes[:, None] == merged.pred_classes
        assert (kept | (overlaps & better & of_class).any(dim=1)).all()


def test_masks_are_averaged_over_the_views():
    """Against the mask head on each view's own, with the boxes of the result."""
    model = tiny_detector(DETECTORS[1], "linear")
    sums = []
    head = model.roi_heads.mask_head
    head.register_forward_hook(lambda _, __, out: sums.append(out[0].pred_masks.clone()))
    test = MultiScaleTest(model, [48, 64, 96], 400, flip=False)
    seen = {}
    original = test._add_masks

    def spy(found, *arguments):
        original(found, *arguments)
        seen["masks"] = found[0].pred_masks

    test._add_masks = spy
    detections(test, {"image": random_image(64, 96)})
    assert len(sums) == 3
    assert not torch.allclose(sums[0], sums[1])
    assert torch.allclose(seen["masks"], torch.stack(sums).mean(0), atol=1e-6)


def test_boxes_move_between_sizes_and_mirror_images():
    """From 40 × 30 to twice the height and three times the width; classes each have a box."""
    boxes = torch.tensor([[1.0, 2, 3, 4, 0, 0, 30, 40]])
    moved = [[3.0, 4, 9, 8, 0, 0, 90, 80]]
    mirrored = [[81.0, 4, 87, 8, 0, 0, 90, 80]]
    assert _move(boxes, (40, 30), (80, 90)).tolist() == moved
    assert _move(boxes, (40, 30), (80, 90), mirrored_from=True).tolist() == mirrored
    assert _move(boxes, (40, 30), (80, 90), mirrored_to=True).tolist() == mirrored


def test_features_of_one_view_exist_at_a_time():
    """Whenever the backbone starts, none of the maps that it made before are alive."""
    model = tiny_detector(DETECTORS[1], "gaussian")
    maps, alive, passes = [], [], []

    def starts(*_):
        alive.append(sum(reference() is not None for reference in maps))

    def ends(_, __, output):
        passes.append(output["p2"].shape[-1])
        maps.extend(weakref.ref(value) for value in output.values())

    model.backbone.register_forward_pre_hook(starts)
    model.backbone.register_forward_hook(ends)
    detections(MultiScaleTest(model, [32, 64, 96], 400), {"image": random_image(64, 96)})
    # Six views, and all but the last one again for the masks.
    assert len(passes) == 11
    assert len(set(passes)) == 3
    assert alive == [0] * 11
    passes.clear()
    detections(MultiScaleTest(model, [64], 400, flip=False), {"image": random_image(64, 96)})
    assert len(passes) == 1


def test_views_come_from_the_original_image(tmp_path):
    """Not from the resized one of the data loader, where the file is known."""
    file = tmp_path / "image.png"
    Image.fromarray(random_image(64, 96).permute(1, 2, 0).numpy()).save(file)
    record = {"file_name": str(file), "height": 64, "width": 96}
    small = DatasetMapper(is_train=False, augmentations=[], image_format="RGB")(record)
    original = dict(small)
    small["image"] = small["image"][:, ::4, ::4].contiguous()
    test = MultiScaleTest(tiny_detector(DETECTORS[0]), [48, 64], 400)
    (expected,) = detections(test, original)
    (from_file,) = detections(test, small)
    assert_equal(from_file, expected)
    del small["file_name"]
    (from_small,) = detections(test, small)
    assert from_small.image_size == (64, 96)
    assert not torch.equal(from_small.scores, expected.scores)
    file.write_bytes(file.read_bytes()[:100])
    small["file_name"] = str(file)
    with pytest.raises(UserError, match=r"cannot read image .*image\.png"):
        detections(test, small)


def test_without_masks_and_without_detections():
    model = tiny_detector(DETECTORS[0], "linear")
    test = MultiScaleTest(model, [48, 64], 400)
    image = {"image": random_image(64, 96)}
    selecting_predictor(model.roi_heads).test_score_thresh = 1.0
    (nothing,) = detections(test, image)
    assert len(nothing) == 0
    assert nothing.pred_masks.shape == (0, 64, 96)
    selecting_predictor(model.roi_heads).test_score_thresh = 0.02
    model.roi_heads.mask_on = False
    (boxes,) = detections(test, image)
    assert len(boxes) > 20
    assert not boxes.has("pred_masks")


@pytest.fixture
def system_level(coco_folder):
    """Overrides that make the paper's system-level config tiny, with weights to evaluate."""
    cfg = get_config(SYSTEM_LEVEL)
    overrides = tiny_overrides(cfg) + dataset_overrides(coco_folder)
    overrides += [f"train.output_dir={coco_folder}/out"]
    for stage in range(3):
        overrides.append(f"model.roi_heads.box_heads.{stage}.conv_dims=[8]")
        overrides.append(f"model.roi_heads.box_heads.{stage}.fc_dims=[16]")
        overrides.append(f"model.roi_heads.box_predictors.{stage}.input_shape.channels=16")
    apply_overrides(cfg, overrides)
    prepare_datasets(cfg, training=False)
    weights = coco_folder / "weights.pth"
    torch.save({"model": randomize(build_model(cfg)).state_dict()}, weights)
    return [*overrides, f"train.init_checkpoint={weights}"]


@pytest.mark.usefixtures("fresh_loggers")
def test_system_level_setting_from_the_command_line(system_level, coco_folder, capfd):
    """``--eval-only`` with the config tests at all its scales; null gives plain inference, and so
    does the one scale of the data loader."""

    def evaluate(*overrides):
        arguments = ["--config-file", str(config_files()[SYSTEM_LEVEL]), "--eval-only"]
        assert train_net.main([*arguments, *system_level, *overrides]) == 0
        results = coco_folder / "out" / "inference" / "coco_instances_results.json"
        return json.loads(results.read_text())

    plain = evaluate("multi_scale_test=null")
    assert len(plain) > 20
    one = ["multi_scale_test.short_sides=[48]", "multi_scale_test.max_side=1333"]
    assert evaluate(*one, "multi_scale_test.flip=false") == plain
    assert evaluate("multi_scale_test.short_sides=[48,64]") != plain
    capfd.readouterr()
    arguments = ["--config-file", str(config_files()[SYSTEM_LEVEL]), "--eval-only"]
    assert train_net.main([*arguments, *system_level, "multi_scale_test.short_sides=800"]) == 2
    (line,) = [x for x in capfd.readouterr().err.splitlines() if x.startswith("error: ")]
    assert "must be a list of whole numbers above 0, got 800" in line


def test_the_config_is_the_papers_model():
    """As its parent but for testing; scales and Soft-NMS as its text says."""
    cfg = get_config(SYSTEM_LEVEL)
    with torch.device("meta"):
        models = [instantiate(get_config(n).model) for n in (SYSTEM_LEVEL, SYSTEM_LEVEL[:-11])]
    shapes = [{k: v.shape for k, v in model.state_dict().items()} for model in models]
    assert shapes[0] == shapes[1]
    predictor = models[0].roi_heads.box_predictor[-1]
    assert predictor.soft_nms_method == "linear"
    assert predictor.test_nms_thresh == 0.3
    assert predictor.test_score_thresh == 0.001
    cfg.multi_scale_test.model = models[0]
    assert len(instantiate(cfg.multi_scale_test).views) == 12


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"short_sides": []}, r"short_sides must be a list .*, got \[\]"),
        ({"short_sides": [480, 0]}, r"short_sides must be a list .*, got \[480, 0\]"),
        ({"max_side": 0}, "max_side must be above 0, got 0"),
        ({"model": nn.Linear(1, 1)}, "Cascade R-CNN, got Linear"),
    ],
)
def test_bad_settings(changes, words):
    arguments = {"model": tiny_detector(DETECTORS[0]), "short_sides": [48], "max_side": 90}
    with pytest.raises(UserError, match=words):
        MultiScaleTest(**arguments | changes)


def test_only_in_evaluation_mode_and_without_keypoints():
    test = MultiScaleTest(tiny_detector(DETECTORS[0]), [48], 90)
    with pytest.raises(RuntimeError, match=r"call \.eval\(\) first"):
        test.train()([{"image": random_image(64, 96)}])
    test.model.roi_heads.keypoint_on = True
    with pytest.raises(UserError, match="does not merge keypoints"):
        MultiScaleTest(test.model, [48], 90)
