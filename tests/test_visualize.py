"""Curves, gallery and table of a finished run, made here of a few grey images."""

import json
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from detectron2.config import LazyConfig
from detectron2.structures import BoxMode
from matplotlib.axes import Axes
from PIL import Image
from pycocotools import mask as coco_mask

from mvitv2_det import UserError, get_config
from mvitv2_det.commands import main
from mvitv2_det.data import prepare_datasets
from mvitv2_det.visualize import (
    ap_table,
    class_colors,
    draw_curves,
    draw_gallery,
    draw_instances,
    gallery,
    instances,
    read_metrics,
    read_results,
)
from mvitv2_det.visualize.curves import smooth
from mvitv2_det.visualize.gallery import spread
from mvitv2_det.visualize.text import draw_label

HEIGHT, WIDTH = 48, 64
BOX = [10, 8, 30, 24]  # x, y, width, height
CATEGORIES = [{"id": 7, "name": "ring"}, {"id": 3, "name": "block"}]


def draw(arguments: list[str]) -> int:
    """Calls ``mvitv2-det draw``; returns its exit status."""
    return main(["draw", *arguments])


def ring() -> np.ndarray:
    """(HEIGHT, WIDTH) mask of a frame with a hole, filling BOX."""
    x, y, width, height = BOX
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[y : y + height, x : x + width] = 1
    mask[y + 8 : y + height - 8, x + 8 : x + width - 8] = 0
    return mask


def rle(mask: np.ndarray) -> dict:
    encoded = coco_mask.encode(np.asfortranarray(mask))
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def write_data(folder: Path, images: int) -> None:
    """A val.json with a polygon, a ring and a crowd on the first image, nothing on the others."""
    for index in range(images):
        Image.new("RGB", (WIDTH, HEIGHT), (90, 90, 90)).save(folder / f"{index}.png")
    polygon = [[2, 2, 8, 2, 8, 8, 2, 8]]
    shapes = [(7, BOX, rle(ring()), 0), (3, [2, 2, 6, 6], polygon, 0), (3, BOX, rle(ring()), 1)]
    annotations = [
        dict(id=i, image_id=0, category_id=c, bbox=b, area=36, iscrowd=crowd, segmentation=s)
        for i, (c, b, s, crowd) in enumerate(shapes, start=1)
    ]
    content = {
        "images": [
            dict(id=i, file_name=f"{i}.png", width=WIDTH, height=HEIGHT) for i in range(images)
        ],
        "annotations": annotations,
        "categories": CATEGORIES,
    }
    (folder / "val.json").write_text(json.dumps(content))


def metrics(task: str, iteration: int, ap: float) -> dict:
    values = dict.fromkeys(("AP", "AP50", "AP75", "APs", "APm"), ap)
    return {
        "iteration": iteration,
        **{f"{task}/{name}": value for name, value in values.items()},
        f"{task}/APl": float("nan"),
    }


def write_metrics(folder: Path, records: list[dict]) -> None:
    (folder / "metrics.json").write_text("".join(json.dumps(r) + "\n" for r in records))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run's folder; its gallery is drawn small, to be quick."""
    monkeypatch.setattr(gallery, "_LONGEST_SIDE", 128)
    write_data(tmp_path, images=3)
    cfg = get_config("mask_rcnn_mvitv2_t_3x")
    cfg.dataset.val_json, cfg.dataset.val_images = str(tmp_path / "val.json"), str(tmp_path)
    folder = tmp_path / "my_run"
    (folder / "inference").mkdir(parents=True)
    LazyConfig.save(cfg, str(folder / "config.yaml"))
    losses = {"total_loss": 3.0, "loss_cls": 1.5, "loss_mask": 0.7, "loss_box_reg": 0.0}
    both = {**metrics("bbox", 20, 41.25), **metrics("segm", 20, 35.5)}
    write_metrics(folder, [{"iteration": 9, **losses}, {"iteration": 19, **losses}, both])
    write_results(folder, [prediction(category_id=7, score=0.9)])
    return folder


def prediction(**changes) -> dict:
    return dict(image_id=0, bbox=BOX, segmentation=rle(ring()), **changes)


def write_results(folder: Path, results: list[dict]) -> None:
    file = folder / "inference" / "coco_instances_results.json"
    file.write_text(json.dumps(results))


def test_the_command_draws_and_prints(run, capsys):
    assert draw([str(run)]) == 0
    printed = capsys.readouterr().out
    assert "at iteration 20" in printed
    assert str(run / "curves.png") in printed
    assert str(run / "gallery.png") in printed
    rows = [line.split() for line in printed.splitlines()]
    assert ["box", "41.2", "41.2", "41.2", "41.2", "41.2", "-"] in rows
    assert ["mask", "35.5", "35.5", "35.5", "35.5", "35.5", "-"] in rows
    for name in ("curves.png", "gallery.png"):
        assert np.asarray(Image.open(run / name).convert("RGB")).std() > 0


def test_a_run_draws_the_same_picture_again(run):
    pictures = []
    for seed in range(2):
        np.random.seed(seed)
        assert draw([str(run)]) == 0
        pictures.append((run / "gallery.png").read_bytes())
    assert pictures[0] == pictures[1]


def test_runs_without_masks(run, capsys):
    write_metrics(run, [metrics("bbox", 20, 10.0)])
    result = prediction(category_id=7, score=0.9)
    del result["segmentation"]
    write_results(run, [result])
    assert draw([str(run)]) == 0
    printed = capsys.readouterr().out
    assert "\nbox" in printed
    assert "\nmask" not in printed


def test_no_prediction_at_all(run):
    write_results(run, [])
    assert draw([str(run), "--images", "1"]) == 0


def test_pages_and_old_pages(run, tmp_path):
    write_data(tmp_path, images=10)
    assert draw([str(run), "--images", "9"]) == 0
    assert (run / "gallery_2.png").is_file()
    assert draw([str(run), "--images", "1"]) == 0
    assert not (run / "gallery_2.png").exists()


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("my_run/config.yaml", "config.yaml"),
        ("my_run/metrics.json", "metrics.json"),
        ("my_run/inference/coco_instances_results.json", "coco_instances_results.json"),
        ("val.json", "val.json"),
        ("1.png", "1.png"),
    ],
)
def test_missing_files_are_one_line(run, tmp_path, capsys, missing, words):
    (tmp_path / missing).unlink()
    assert draw([str(run)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert words in error
    assert error.count("\n") == 1
    assert not (run / "gallery.png").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image_id": 99, "category_id": 7}, "image 99"),
        ({"category_id": 55}, "category 55"),
    ],
)
def test_predictions_of_other_data(run, capsys, change, words):
    write_results(run, [{**prediction(category_id=7, score=0.9), **change}])
    assert draw([str(run)]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    "option", [["--images", "0"], ["--score-threshold", "50"], ["--score-threshold", "nan"]]
)
def test_numbers_out_of_range(run, capsys, option):
    assert draw([str(run), *option]) == 2
    assert option[0] in capsys.readouterr().err


def test_a_yacs_run_is_refused(run, capsys):
    (run / "config.yaml").write_text("MODEL:\n  DEVICE: cpu\n")
    assert draw([str(run)]) == 2
    assert "no LazyConfig" in capsys.readouterr().err


def test_metrics_of_a_run_started_anew(tmp_path):
    first = [{"iteration": i, "total_loss": 9.0} for i in (19, 39, 59)]
    write_metrics(tmp_path, [*first, {"iteration": 39, "total_loss": 1.0}])
    records = read_metrics(tmp_path / "metrics.json")
    assert [(r["iteration"], r["total_loss"]) for r in records] == [(19, 9.0), (39, 1.0)]


@pytest.mark.parametrize("line", ["{", "[1]", '{"total_loss": 1}'])
def test_metrics_that_are_none(tmp_path, line):
    (tmp_path / "metrics.json").write_text(f'{{"iteration": 1}}\n{line}\n')
    with pytest.raises(UserError, match="line 2"):
        read_metrics(tmp_path / "metrics.json")


@pytest.mark.parametrize("text", ["{", "{}x", '[{"image_id": 1}]', "[1]", "3"])
def test_results_that_are_none(tmp_path, text):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(UserError, match="results format"):
        read_results(tmp_path / "results.json")


def test_no_evaluation():
    with pytest.raises(UserError, match="no evaluation"):
        ap_table([{"iteration": 1, "total_loss": 1.0}])


def test_curves_without_evaluation(tmp_path):
    draw_curves([{"iteration": 1, "total_loss": 1.0}], "title", tmp_path / "curves.png")
    assert (tmp_path / "curves.png").is_file()


def test_stages_of_a_cascade_add_up(monkeypatch, tmp_path):
    drawn = {}

    def plot(axes, x, y, *args, **style):
        drawn[style.get("label")] = (list(x), list(y))
        return original(axes, x, y, *args, **style)

    original = Axes.plot
    monkeypatch.setattr(Axes, "plot", plot)
    stages = {f"loss_cls_stage{stage}": 0.5 for stage in range(3)}
    draw_curves([{"iteration": 4, "loss_keypoint": 2.0, **stages}], "", tmp_path / "c.png")
    assert drawn["class"] == ([4], [1.5])
    assert drawn["keypoint"] == ([4], [2.0])


def test_smooth():
    assert smooth(np.array([1.0, 5.0, 2.0])).tolist() == [1.0, 5.0, 2.0]
    assert np.allclose(smooth(np.full(200, 3.0)), 3.0)
    noise = np.random.default_rng(0).normal(size=400)
    assert smooth(noise).std() < 0.5 * noise.std()


def test_spread_is_even():
    assert spread(5, 8) == [0, 1, 2, 3, 4]
    assert spread(80, 8) == [5, 15, 25, 35, 45, 55, 65, 75]
    chosen = spread(61, 7)
    assert len(set(chosen)) == 7
    assert set(np.diff(chosen)) <= {8, 9}


@pytest.mark.parametrize("number", [1, 2, 10, 80])
def test_class_colors_are_distinct(number):
    colors = class_colors(number)
    assert len(set(colors)) == number
    assert all(0 <= value <= 1 for color in colors for value in color)


def annotation(**changes) -> dict:
    return {"bbox": BOX, "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0, **changes}


def painted(annotations: list[dict], names: list[str], scale: float = 1) -> np.ndarray:
    """(HEIGHT, WIDTH) bool: pixels that drawing changed."""
    grey = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    return (draw_instances(grey, annotations, names, scale=scale) != 90).any(axis=2)


def test_masks_keep_their_holes():
    changed = painted([annotation(segmentation=rle(ring()))], ["ring"])
    x, y, width, height = BOX
    assert changed[y + 4, x + 4]
    assert changed[y + height - 4, x + width // 2]
    assert not changed[y + height // 2, x + width // 2]
    assert not changed[: y - 3].any()
    assert not changed[:, x + width + 3 :].any()


def test_polygons_are_filled():
    polygon = [np.array([12.0, 10.0, 36.0, 10.0, 36.0, 28.0, 12.0, 28.0])]
    assert painted([annotation(segmentation=polygon)], ["block"])[20, 24]
    assert not painted([annotation()], ["block"])[20, 24]


def labelled(annotations: list[dict], names: list[str]) -> list[str]:
    """The texts of labels, in the order of their annotations."""
    with pytest.MonkeyPatch.context() as patch:
        texts: list[str] = []
        patch.setattr(instances, "draw_label", lambda *a: texts.append(a[1]))
        painted(annotations, names)
    return texts[::-1]


def test_labels_hold_scores_always_and_names_where_they_help():
    names = ["ring", "block"]
    box = annotation(bbox=[20, 30, 6, 6])
    assert labelled([box], names[:1]) == []
    assert labelled([annotation(score=0.871)], names[:1]) == ["87%"]
    assert labelled([annotation(score=0.871)], names) == ["ring 87%"]
    assert labelled([annotation(category_id=1, iscrowd=1)], names) == ["block (crowd)"]
    # Of many, those whose name does not fit over their box have none.
    wide = annotation(bbox=[0, 10, 64, 30], score=0.5)
    assert labelled([wide] + [{**box, "score": 0.9}] * 31, names) == ["ring 50%"] + ["90%"] * 31


def test_labels_hide_each_other_as_little_as_can_be():
    taken = np.zeros((40, 60), np.uint8)
    places = []
    for _ in range(4):
        (x, y), hidden = instances._place([20, 15, 40, 25], 12, 6, taken)
        assert not hidden
        taken[y : y + 6, x : x + 12] += 1
        places.append((x, y))
    assert places[:2] == [(20, 9), (20, 26)]
    assert taken.max() == 1 and taken.sum() == 4 * 6 * 12
    # At an edge, a label is moved into the picture.
    assert instances._place([55, -3, 70, 2], 12, 6, taken * 0) == ((48, 0), 0)


def test_names_in_any_letters(tmp_path):
    """OpenCV's own letters are ASCII's alone."""
    pictures = [np.zeros((20, 60, 3), np.uint8) for _ in range(2)]
    for picture, text in zip(pictures, ("кот", "???"), strict=True):
        draw_label(picture, text, (3, 2), 11, (255, 255, 0))
    assert (pictures[0] != pictures[1]).any()
    assert pictures[0][3, 4].tolist() == [255, 255, 0] and not pictures[0][0].any()


@pytest.mark.parametrize(("side", "scale"), [(100, 4), (256, 2), (480, 1), (4000, 1), (16000, 0.5)])
def test_pictures_are_of_a_size_to_look_at(side, scale):
    assert instances.picture_scale(side, side) == scale


def test_small_images_are_enlarged_and_large_ones_shrunk():
    grey = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    assert draw_instances(grey, [], ["a"]).shape == (432, 576, 3)
    for scale in (2, 0.5):
        changed = painted([annotation(segmentation=rle(ring()))], ["ring"], scale)
        assert changed.shape == (HEIGHT * scale, WIDTH * scale)
        rows, columns = np.nonzero(changed)
        x, y, width, height = (scale * side for side in BOX)
        assert abs(columns.min() - x) <= 1 and abs(columns.max() - x - width) <= 1
        assert abs(rows.min() - y) <= 1 and abs(rows.max() - y - height) <= 1
        assert not changed[int(y + height / 2), int(x + width / 2)]


def test_one_color_per_class():
    grey = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    small = annotation(bbox=[40, 30, 10, 10])
    x, y = 12, BOX[1] + BOX[3]  # on the lower edge of BOX

    def edge(annotations: list[dict]) -> list[int]:
        return draw_instances(grey, annotations, ["a"], scale=1)[y, x].tolist()

    assert edge([annotation()]) == edge([annotation(score=0.7), small])
    assert edge([annotation()]) == [round(255 * part) for part in class_colors(1)[0]]


@pytest.mark.long
def test_a_hundred_instances_are_drawn_in_a_second():
    """On a quiet core; a hundred masks of half of 4000×3000 each way, of which many overlap."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (3000, 4000, 3), dtype=np.uint8)
    shapes = []
    for x, y in rng.uniform(0, 0.8, (100, 2)) * (4000, 3000):
        mask = np.zeros((3000, 4000), np.uint8)
        cv2.ellipse(mask, (int(x) + 300, int(y) + 300), (300, 250), 30, 0, 360, 1, -1)
        box = cv2.boundingRect(mask)
        shapes.append(annotation(bbox=box, segmentation=mask, score=0.9))
    start = time.process_time()
    draw_instances(image, shapes, ["a", "b"])
    assert time.process_time() - start < 1.5


def test_missing_image_of_the_gallery(run, tmp_path):
    cfg = LazyConfig.load(str(run / "config.yaml"))
    prepare_datasets(cfg, training=False)
    (tmp_path / "0.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"0\.png"):
        draw_gallery(cfg.dataloader.test.dataset.names, {}, run, title="", images=3)
