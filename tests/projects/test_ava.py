"""projects/ava: clips and boxes, recipe, training and evaluation on digits that move."""

import csv
import json
import random
import shutil
from itertools import chain, islice

import numpy as np
import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig, instantiate
from PIL import Image
from recognition.networks import NARROW
from scripts import ROOT, load_script
from sklearn.datasets import load_digits
from small_detector import save_detector
from torch import nn

from mvitv2_det import UserError, Variant
from mvitv2_det.config import load_config
from mvitv2_det.engine import evaluate_checkpoint, train
from mvitv2_det.predict.classes import known_classes
from mvitv2_det.recognition.action_finder import ActionFinder
from mvitv2_det.recognition.actions import ActionRecognizer
from mvitv2_det.recognition.description import ClipInput, Description
from mvitv2_det.video import open_video
from mvitv2_det.video.key_frames import VIEWS, at_view, key_frame_clip
from mvitv2_det.video.writing import write_video
from mvitv2_det.visualize.persons import draw_persons
from mvitv2_det.weights.files import read_checkpoint
from projects.ava.annotations import KeyFrame, read_truths
from projects.ava.data import Augmentation, Sample, prepare_datasets, read_split
from projects.ava.evaluation import ActionEvaluator
from projects.ava.task import Actions
from projects.common.runs import set_schedule

CONFIGS = ROOT / "projects" / "ava" / "configs"
NAMES = sorted(file.stem for file in CONFIGS.glob("*.py"))
ACTIONS = ("left", "right", "zero", "one")
SIDE, DIGIT, FRAMES, FPS = 64, 24, 8, 4
predict = load_script("projects/ava/predict.py")
train_main = load_script("projects/ava/train.py").main

pytestmark = pytest.mark.usefixtures("fresh_loggers")


def config(name):
    return load_config(str(CONFIGS / f"{name}.py"))


def write_digits(folder, digits, rng):
    """Frames of two digits that move; returns box and actions of each at the key frame, 1 s."""
    frames = np.zeros((FRAMES, SIDE, SIDE), np.uint8)
    persons = []
    for top in (4, 36):
        shape, sign = (int(rng.integers(2)) for _ in range(2))
        ink = digits[shape][rng.integers(len(digits[shape]))] * 15.9
        ink = np.asarray(Image.fromarray(ink.astype(np.uint8)).resize((DIGIT, DIGIT)))
        places = (2 + np.arange(FRAMES) * 5)[:: 1 if sign else -1]
        for frame, left in zip(frames, places.tolist(), strict=True):
            frame[top : top + DIGIT, left : left + DIGIT] = ink
        left = int(places[FPS])
        box = np.array((left, top, left + DIGIT, top + DIGIT)) / SIDE
        persons.append((box.tolist(), (2 if sign else 1, 3 + shape)))
    folder.mkdir(parents=True)
    for index, frame in enumerate(frames):
        Image.fromarray(frame).convert("RGB").save(folder / f"{index}.png")
    return persons


@pytest.fixture(scope="module")
def digits_folder(tmp_path_factory):
    """Videos of moving digits as folders of frames, annotated as AVA is."""
    folder = tmp_path_factory.mktemp("ava")
    data, rng = load_digits(), np.random.default_rng(0)
    digits = [data.images[data.target == number] for number in (0, 1)]
    for split, count in (("train", 64), ("val", 24)):
        lines, persons = [], []
        for index in range(count):
            name = f"{split}{index:03d}"
            found = write_digits(folder / "videos" / name, digits, rng)
            for number, (box, actions) in enumerate(found):
                cells = [name, "0001", *(f"{side:.5f}" for side in box)]
                lines += [[*cells, action, number] for action in actions]
                persons.append([*cells, "", 0.9])
        for kind, rows in (("", lines), ("_persons", persons)):
            with (folder / f"{split}{kind}.csv").open("w", newline="") as stream:
                csv.writer(stream).writerows(rows)
    items = [f'item {{ name: "{name}" id: {k} }}' for k, name in enumerate(ACTIONS, 1)]
    (folder / "actions.pbtxt").write_text("\n".join(items))
    return folder


def small_config(folder, output, name="s_16x4"):
    """A small network of a config on the digits, on the CPU."""
    cfg = config(name)
    cfg.dataset.update(
        videos=f"{folder}/videos",
        start=0,
        fps=FPS,
        train=f"{folder}/train.csv",
        val=f"{folder}/val.csv",
        train_persons=f"{folder}/train_persons.csv",
        val_persons=f"{folder}/val_persons.csv",
        train_excluded="",
        val_excluded="",
        actions=f"{folder}/actions.pbtxt",
    )
    cfg.input.update(size=SIDE, frames=4, rate=15)
    cfg.model.update(
        variant=L(Variant)(embed_dim=16, blocks=(1, 1, 1, 1), num_heads=1, drop_path_rate=0.0),
        num_classes=None,
        drop_path_rate=0.0,
        head_dropout=0.0,
    )
    cfg.dataloader.train.update(
        augmentation=dict(short_side=(SIDE, SIDE), hflip=0.0), total_batch_size=16, num_workers=0
    )
    cfg.train.update(device="cpu", seed=1, output_dir=str(output), log_period=1)
    return cfg


@pytest.fixture(scope="module")
def trained(digits_folder, tmp_path_factory):
    """The folder of a run."""
    output = tmp_path_factory.mktemp("run")
    cfg = small_config(digits_folder, output)
    # From scratch AdamW learns in fewer steps.
    del cfg.optimizer.momentum, cfg.optimizer.nesterov
    cfg.optimizer.update(_target_="torch.optim.AdamW", lr=4e-3)
    cfg.recipe.update(epochs=11, warmup_epochs=1, eval_epochs=11)
    prepare_datasets(cfg, training=True)
    torch.manual_seed(0)
    train(cfg)
    return output


@pytest.mark.long
def test_learns_what_moving_digits_do(digits_folder, trained):
    """Random scores give each action the share of persons that do it, about half."""
    lines = [json.loads(line) for line in (trained / "metrics.json").read_text().splitlines()]
    losses = [line["total_loss"] for line in lines if "total_loss" in line]
    assert losses[-1] < 0.75 * losses[0]
    truths = read_truths(digits_folder / "val.csv")
    persons = [person for each in truths.values() for person in each]
    shares = [sum(k in each.actions for each in persons) / len(persons) for k in (1, 2, 3, 4)]
    best = max(line["actions/mAP"] for line in lines if "actions/mAP" in line)
    assert best > 100 * np.mean(shares) + 15
    text = (trained / "inference" / "detections.csv").read_text()
    rows = list(csv.reader(text.splitlines()))
    assert len(rows) == len(persons) * 4 and all(len(row) == 8 for row in rows)
    description = Description.from_dict(
        read_checkpoint(trained / "model_final.pth")[1]["recognizer"]
    )
    assert description.constructor == "actions" and description.classes == ACTIONS


@pytest.mark.long
def test_both_views_evaluate_a_checkpoint(digits_folder, trained, tmp_path):
    """Of square frames they are the same, and that of the end of training."""
    lines = [json.loads(line) for line in (trained / "metrics.json").read_text().splitlines()]
    expected = max(line["actions/mAP"] for line in lines if "actions/mAP" in line)
    for view in VIEWS:
        cfg = small_config(digits_folder, tmp_path)
        cfg.dataloader.test.view = view
        cfg.train.init_checkpoint = str(trained / "model_final.pth")
        prepare_datasets(cfg, training=False)
        assert evaluate_checkpoint(cfg)["actions"]["mAP"] == pytest.approx(expected, abs=1e-3)


def test_a_saved_config_makes_the_same_network(digits_folder, tmp_path):
    cfg = small_config(digits_folder, tmp_path)
    prepare_datasets(cfg, training=False)
    LazyConfig.save(cfg, str(tmp_path / "config.yaml"))
    saved = load_config(str(tmp_path / "config.yaml"))
    assert type(instantiate(saved.model)) is ActionRecognizer


@pytest.mark.long
def test_two_processes_evaluate_each_key_frame_once(digits_folder, trained, tmp_path):
    cfg = small_config(digits_folder, tmp_path / "two")
    cfg.train.init_checkpoint = str(trained / "model_final.pth")
    prepare_datasets(cfg, training=False)
    LazyConfig.save(cfg, str(tmp_path / "config.yaml"))
    options = ["--config-file", str(tmp_path / "config.yaml"), "--eval-only"]
    url = f"file://{tmp_path}/rendezvous"
    assert train_main([*options, "--num-gpus", "2", "--dist-url", url]) == 0

    def rows(output):
        text = (output / "inference" / "detections.csv").read_text()
        return sorted(csv.reader(text.splitlines()))

    two, one = rows(tmp_path / "two"), rows(trained)
    assert [row[:7] for row in two] == [row[:7] for row in one]
    # float32 sums depend on the batch.
    np.testing.assert_allclose([float(r[7]) for r in two], [float(r[7]) for r in one], atol=2e-4)


@pytest.mark.parametrize("second", [901, 902, 905])
def test_frames_around_a_key_frame_are_pyslowfasts(tmp_path, second):
    """Its rule for folders of 30 frames a second whose first is at second 900."""
    for index in range(160):
        Image.new("RGB", (4, 4)).save(tmp_path / f"v_{index:06d}.png")
    with open_video(tmp_path, fps=30) as video:
        found = key_frame_clip(video, second - 900, ClipInput(frames=16, rate=4))
    middle = (second - 900) * 30
    expected = np.clip(range(middle - 32, middle + 32, 4), 0, 159)
    assert found.tolist() == expected.tolist()


def painted(height=90, width=160):
    """A bright person on black, and its box in shares."""
    frames = np.zeros((2, height, width, 3), np.uint8)
    frames[:, 20:70, 60:90] = 255
    return frames, np.array([[60 / width, 20 / height, 90 / width, 70 / height]])


def bright_box(clip):
    """Left, top, right, bottom of what is bright in (3, T, H, W)."""
    rows, columns = np.nonzero((clip[0, 0] > 0).numpy())
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_views_show_persons_where_their_boxes_are():
    """To a pixel and a half: half of it is the resizing's, one that boxes end before the edge."""
    frames, boxes = painted()
    input = ClipInput(size=64)
    full, placed = at_view(frames, boxes, input, "full")
    assert full.shape == (3, 2, 64, 113)
    np.testing.assert_allclose(placed[0], bright_box(full), atol=1.5)
    center, placed = at_view(frames, boxes, input, "center")
    assert center.shape == (3, 2, 64, 64)
    np.testing.assert_allclose(placed[0], bright_box(center), atol=1.5)
    # What is beyond the square is cut off; a point is left of a person who is not in it.
    _, placed = at_view(frames, np.array([[0, 0, 1, 1], [0, 0, 0.05, 0.5]]), input, "center")
    assert placed[0].tolist() == [0, 0, 63, 63] and placed[1, 0] == placed[1, 2] == 0


def test_augmentation_moves_persons_and_boxes_alike():
    frames, boxes = painted()
    augment = Augmentation(ClipInput(size=64), short_side=(70, 90))
    random.seed(0)
    for _ in range(20):
        clip, placed = augment(frames, boxes)
        assert clip.shape == (3, 2, 64, 64)
        if (clip > 0).any():
            np.testing.assert_allclose(placed[0], bright_box(clip), atol=2.1)
    with pytest.raises(UserError, match=r"short_side must be two sides from input.size 64"):
        Augmentation(ClipInput(size=64), short_side=(32, 90))


def sample(targets, index=0):
    boxes = torch.tensor([[0.0, 0, 20, 20], [5, 5, 40, 63]])
    return Sample(torch.randn(3, 4, 64, 64), boxes, targets, index)


def test_loss_is_the_cross_entropy_of_sigmoids():
    network = ActionRecognizer.video(NARROW, 4, 3, image_size=64, head_dropout=0.0)
    task = Actions(network)
    batch = [sample(torch.tensor([[1.0, 0, 1], [0, 0, 0]])) for _ in range(2)]
    probabilities = task.eval()(batch)
    assert [each.shape for each in probabilities] == [(2, 3), (2, 3)]
    expected = nn.BCELoss()(torch.cat(probabilities), torch.cat([each.targets for each in batch]))
    torch.testing.assert_close(task.train()(batch)["loss_actions"], expected)


def test_clips_of_several_sizes_are_evaluated_in_one_batch():
    network = ActionRecognizer.video(NARROW, 4, 3, image_size=64)
    task = Actions(network).eval()
    first, last = sample(torch.zeros(2, 3)), sample(torch.zeros(2, 3))
    wide = first._replace(clip=torch.randn(3, 4, 64, 96), boxes=first.boxes[:1])
    together = task([first, wide, last])
    alone = [task([each])[0] for each in (first, wide, last)]
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def evaluator_of(digits_folder, tmp_path, **dataset):
    cfg = small_config(digits_folder, tmp_path)
    cfg.dataset.update(dataset)
    cfg.dataset.classes = list(ACTIONS)
    return ActionEvaluator(cfg.dataset, str(tmp_path)), read_split(cfg.dataset, "val")


def test_what_people_have_annotated_scores_100(digits_folder, tmp_path):
    evaluator, persons = evaluator_of(digits_folder, tmp_path)
    truths = read_truths(digits_folder / "val.csv")
    for index, (key, each) in enumerate(persons.items()):
        same = [
            truth.actions for person in each for truth in truths[key] if truth.box == person.box
        ]
        rows = torch.tensor([[float(k in actions) for k in (1, 2, 3, 4)] for actions in same])
        evaluator.process([sample(rows, index)], [rows])
    assert evaluator.evaluate() == {"actions": {"mAP": 100.0}}


def test_persons_that_are_not_found_count_and_excluded_key_frames_do_not(digits_folder, tmp_path):
    truths = read_truths(digits_folder / "val.csv")
    few = list(truths)[:6]
    lines = [
        f"{k.video},{k.second},{','.join(map(str, p.box))},,0.9" for k in few for p in truths[k]
    ]
    (tmp_path / "few.csv").write_text("\n".join(lines))
    rest = "\n".join(f"{key.video},{key.second}" for key in list(truths)[6:])
    (tmp_path / "rest.csv").write_text(rest)
    scores = []
    for excluded in ("", str(tmp_path / "rest.csv")):
        evaluator, persons = evaluator_of(
            digits_folder, tmp_path, val_persons=str(tmp_path / "few.csv"), val_excluded=excluded
        )
        assert list(persons) == few
        for index, key in enumerate(few):
            rows = [[float(k in person.actions) for k in (1, 2, 3, 4)] for person in truths[key]]
            evaluator.process([sample(torch.tensor(rows), index)], [torch.tensor(rows)])
        scores.append(evaluator.evaluate()["actions"]["mAP"])
    assert scores[0] < 50 and scores[1] == 100


# Millions of parameters in Table A.2.
PARAMETERS = {
    "s_16x4": 34.3,
    "b_32x3": 51.0,
    "l_40x3_312": 213.0,
    "v1_b_16x4": 36.4,
    "v1_b_64x3": 36.4,
    "v1_b24_32x3": 52.9,
}


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_those_of_the_table(name):
    with torch.device("meta"):
        model = instantiate(config(name).model)
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert model.num_classes == 80 and model.stride == 32
    assert round(millions, 1) == PARAMETERS[name]


def test_recipe_is_that_of_the_paper():
    """B.6: SGD, 0.6 at 512 clips, 30 epochs, 5 of warm-up, 1e-8, 0.4."""
    cfg = config("s_16x4")
    set_schedule(cfg, 51200, "key frames")
    assert cfg.optimizer.lr == pytest.approx(0.6) and cfg.train.max_iter == 3000
    assert cfg.optimizer._target_ is torch.optim.SGD and cfg.optimizer.weight_decay == 1e-8
    schedule = instantiate(cfg.lr_multiplier)
    rates = [schedule(share / 30) for share in (0, 2.5, 5, 30 - 1e-9)]
    # Half of the warm-up leads halfway to the cosine's value at its end.
    end = (1 + np.cos(np.pi / 6)) / 2
    np.testing.assert_allclose(rates, [2e-4, (2e-4 + end) / 2, end, 0], atol=1e-3)
    assert cfg.model.drop_path_rate == 0.4


WRONG = {
    "there is no video or folder of frames": {"videos": "nowhere"},
    "has no second 1, as videos start at second 900": {"start": 900},
    "cannot read gone.csv": {"val_persons": "gone.csv"},
    "lower the least score": {"least_score": 0.95},
    "no key frame of": {"val_every": 2},
}


@pytest.mark.parametrize("message", WRONG)
def test_what_does_not_fit_is_named(digits_folder, tmp_path, message):
    cfg = small_config(digits_folder, tmp_path)
    cfg.dataset.update(WRONG[message])

    def begin():
        prepare_datasets(cfg, training=False)
        next(iter(instantiate(cfg.dataloader.test)))

    with pytest.raises(UserError, match=message):
        begin()


def test_a_clip_that_cannot_be_read_is_replaced_in_training(digits_folder, tmp_path):
    videos = tmp_path / "videos"
    shutil.copytree(digits_folder / "videos", videos)
    for number in (3, 5):
        for frame in (videos / f"train{number:03d}").iterdir():
            frame.write_bytes(b"no image")
    cfg = small_config(digits_folder, tmp_path)
    cfg.dataset.videos = str(videos)
    prepare_datasets(cfg, training=True)
    loader = instantiate(cfg.dataloader.train)
    loader.max_unreadable = 9
    samples = list(chain(*islice(loader, 4)))
    assert len(samples) == 64 and not {3, 5} & {sample.index for sample in samples}
    assert any("train003" in line for line in loader.unreadable)


def test_actions_that_the_network_does_not_have_are_named(digits_folder, tmp_path):
    cfg = small_config(digits_folder, tmp_path)
    cfg.model.num_classes = 3
    with pytest.raises(UserError, match="has action 4, but the network has 3 outputs"):
        prepare_datasets(cfg, training=True)
    short = tmp_path / "short.pbtxt"
    short.write_text('item { name: "left" id: 1 }')
    cfg = small_config(digits_folder, tmp_path)
    cfg.dataset.actions = str(short)
    with pytest.raises(UserError, match="has action 4, but there are 1"):
        prepare_datasets(cfg, training=True)


@pytest.fixture(scope="module")
def clip(digits_folder, tmp_path_factory):
    """A video of validation as a file, losslessly, and the boxes at its key frame in pixels."""
    folder = digits_folder / "videos" / "val000"
    path = tmp_path_factory.mktemp("clip") / "val000.mp4"
    with open_video(folder, fps=FPS) as video:
        frames = video.frames(range(FRAMES))
    write_video(path, frames, FPS, codec="libx264rgb", pixel_format="rgb24", options={"crf": "0"})
    persons = read_truths(digits_folder / "val.csv")[KeyFrame("val000", 1)]
    return path, np.array([person.box for person in persons]) * SIDE


@pytest.mark.long
def test_finds_in_a_video_what_evaluation_does(clip, trained):
    """The same probabilities, to the four digits of the file that evaluation has written."""
    path, boxes = clip
    finder = ActionFinder(trained / "model_final.pth", device="cpu")
    with open_video(path) as video:
        found = list(
            predict.find_actions(video, lambda frame: (boxes, np.ones(len(boxes))), finder, every=2)
        )
    assert [each.seconds for each in found] == [1.0]
    text = (trained / "inference" / "detections.csv").read_text()
    rows = [row for row in csv.reader(text.splitlines()) if row[0] == "val000"]
    expected = np.array([float(row[7]) for row in rows]).reshape(2, 4)
    np.testing.assert_allclose(found[0].probabilities, expected, atol=1e-3)


def test_times_go_through_the_network_together(clip, trained):
    """The same as one by one, to 1e-6 (float32); there may be no person at a time."""
    path, boxes = clip
    seconds, persons = [0.3, 0.8, 1.0, 1.4], [boxes, boxes[:0], boxes[:1], boxes]
    found = []
    for batch_size in (1, 3):
        finder = ActionFinder(trained / "model_final.pth", device="cpu", batch_size=batch_size)
        with open_video(path) as video:
            found.append(list(finder(video, seconds, persons)))
    assert [each.shape for each in found[1]] == [(2, 4), (0, 4), (1, 4), (2, 4)]
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_one_command_draws_a_video(clip, trained, tmp_path, capsys):
    """With a detector of random weights, which finds persons anywhere."""
    path, _ = clip
    detector = save_detector(tmp_path)
    options = [str(path), "--output", str(tmp_path / "out"), "--config", detector.config]
    options += ["--actions", str(trained / "model_final.pth"), "--weights", detector.weights]
    options += ["--device", "cpu", "--least", "0.2", "--every", "0.5"]
    assert predict.main(options) == 2
    assert "the detector has no class 'person' but" in capsys.readouterr().err
    name = known_classes(detector.cfg, 2).names[0]
    assert predict.main([*options, "--person", name, "--score", "0.2"]) == 0
    records = json.loads((tmp_path / "out" / "val000.json").read_text())
    assert {record["seconds"] for record in records} <= {0.25, 0.75, 1.25, 1.75}
    assert records and all(set(record["actions"]) <= set(ACTIONS) for record in records)
    with open_video(tmp_path / "out" / "val000.mp4") as drawn:
        assert len(drawn) == FRAMES and drawn.size == (SIDE, SIDE)
    assert predict.main([*options[:5], "--actions", detector.weights, *options[7:]]) == 2
    assert "it does not describe itself: expected one of projects/ava" in capsys.readouterr().err


def test_labels_are_on_the_person():
    frame = np.zeros((60, 80, 3), np.uint8)
    picture = draw_persons(frame, np.array([[20.0, 10, 50, 50]]), [["walk 0.90"]])
    assert not frame.any() and picture.shape == frame.shape
    rows, columns = np.nonzero(picture.any(-1))
    assert rows.min() == 10 and rows.max() == 50 and columns.min() == 20
