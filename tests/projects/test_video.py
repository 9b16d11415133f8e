"""projects/video: augmentation, loaders, evaluation, recipes, and runs from videos to pictures."""

import csv
import json
import random
import re
from functools import partial
from itertools import islice

import numpy as np
import pytest
import torch
from detectron2.config import instantiate
from PIL import Image
from scripts import ROOT, load_script, one_error
from timm.data import Mixup
from timm.data.auto_augment import rand_augment_transform
from timm.loss import SoftTargetCrossEntropy
from timm.utils import accuracy

from mvitv2_det import UserError, Variant
from mvitv2_det.config import load_config
from mvitv2_det.data.loader import BatchOrder, TrainLoader
from mvitv2_det.engine import build_model
from mvitv2_det.recognition.description import ENTRY, ClipInput, Description
from mvitv2_det.video.writing import write_video
from projects.common.sources import Sample
from projects.common.task import Classification
from projects.video import benchmark, evaluation
from projects.video.augment import ClipAugmentation
from projects.video.data import TestClips, TrainingClips, prepare_datasets
from projects.video.evaluation import VideoEvaluator

pytest.importorskip("av")

CONFIGS = ROOT / "projects" / "video" / "configs"
NAMES = sorted(file.stem for file in CONFIGS.glob("*.py"))
SMALL = ("moving_digits", "gait")
CLASSES = ("brighter", "darker")
train_main = load_script("projects/video/train.py").main

pytestmark = pytest.mark.usefixtures("fresh_loggers")


def config(name):
    return load_config(str(CONFIGS / f"{name}.py"))


@pytest.fixture
def clips(tmp_path):
    """A folder with train/ and val/, of two classes that time alone tells apart."""
    for split, count in (("train", 4), ("val", 3)):
        for name in CLASSES:
            for index in range(count):
                levels = np.linspace(20, 220 - 10 * index, 8).astype(np.uint8)
                frames = np.zeros((8, 36, 40, 3), np.uint8) + levels[:, None, None, None]
                file = tmp_path / "clips" / split / name / f"{index}.mp4"
                file.parent.mkdir(parents=True, exist_ok=True)
                write_video(file, frames if name == "brighter" else frames[::-1], 30)
    return tmp_path / "clips"


@pytest.fixture
def overrides(clips):
    """Two steps of a tiny network on the CPU."""
    return [
        f"dataset.train={clips}",
        f"train.output_dir={clips.parent}/out",
        "input.frames=4",
        "model.variant.embed_dim=8",
        "model.variant.blocks=[1,1,1,1]",
        "dataloader.train.total_batch_size=4",
        "dataloader.train.num_workers=0",
        "recipe.epochs=1",
        "recipe.eval_epochs=1",
        "train.log_period=1",
    ]


def call(*arguments, name="moving_digits"):
    return train_main(["--config-file", str(CONFIGS / f"{name}.py"), *arguments])


# Runs.


def test_trains_evaluates_draws(overrides, clips):
    output = clips.parent / "out"
    assert call(*overrides, "input.clips=2", "input.rate=1", "train.dry_run=true") == 0
    assert call(*overrides, "input.clips=2", "input.rate=1") == 0
    checkpoint = torch.load(output / "model_final.pth", weights_only=True)
    described = Description.from_dict(checkpoint[ENTRY])
    assert described.classes == CLASSES and described.input.frames == 4
    described.build().load_state_dict(checkpoint["model"], strict=True)
    found = json.loads((output / "inference" / "classifications.json").read_text())
    assert [file.split("/")[-2] for file in found["files"]] == [CLASSES[n] for n in found["labels"]]
    for name in ("confusion.png", "mistakes.png", "predictions.png"):
        assert name == "mistakes.png" or (output / "inference" / name).is_file()
    assert (output / "curves.png").is_file()

    final = f"train.init_checkpoint={output}/model_final.pth"
    again = [*overrides, "input.clips=2", "input.rate=1", final, f"dataset.val={clips}/val"]
    assert call("--eval-only", *again, f"train.output_dir={output}/again") == 0
    same = json.loads((output / "again" / "inference" / "classifications.json").read_text())
    assert np.allclose(same["probabilities"], found["probabilities"], atol=1e-5)  # float32


@pytest.mark.long
def test_two_processes_evaluate_each_video_once(overrides, clips):
    (clips / "val" / "darker" / "2.mp4").unlink()
    url = f"file://{clips.parent}/rendezvous"
    assert call("--num-gpus", "2", "--dist-url", url, *overrides) == 0
    output = clips.parent / "out"
    file = output / "inference" / "classifications.json"
    two = json.loads(file.read_text())
    final = f"train.init_checkpoint={output}/model_final.pth"
    assert call("--eval-only", *overrides, final) == 0
    one = json.loads(file.read_text())
    assert len(one["files"]) == 5
    for key in ("files", "labels", "top"):
        assert two[key] == one[key]
    assert np.allclose(two["probabilities"], one["probabilities"], atol=1e-5)  # float32


@pytest.mark.long
def test_trains_with_the_whole_recipe(overrides):
    """The recipe of Kinetics on small clips: RandAugment, erasing, mixup, repeated augmentation."""
    settings = [o for o in overrides if "variant" not in o]
    settings += ["train.device=cpu", "input.size=32", "train.max_iter=1", "input.clips=2"]
    assert call(*settings, name="k400_s_16x4") == 0


@pytest.mark.long
def test_benchmark_compares_with_torchvision(tmp_path):
    """Of the whole network, a round of each."""
    options = ["--parts", "torchvision", "--rounds", "1", "--device", "cpu"]
    assert benchmark.main([*options, "--output", str(tmp_path)]) == 0
    lines = (tmp_path / "torchvision.csv").read_text().splitlines()
    inference, training = csv.DictReader(line for line in lines if not line.startswith("#"))
    assert float(inference["largest difference"]) < 1e-4
    assert float(training["ratio saved"]) < 0.4


def test_benchmark_fits_growth(tmp_path, monkeypatch):
    sizes = [(2, 32), (4, 32), (8, 32)]
    small = Variant(embed_dim=16, blocks=(1, 1, 1, 1), num_heads=1, drop_path_rate=0.0)
    monkeypatch.setattr(benchmark, "VARIANT", small)
    monkeypatch.setitem(
        benchmark.PARTS, "frames", partial(benchmark.growth, sizes=sizes, of="frames")
    )
    options = ["--parts", "frames", "--rounds", "1", "--device", "cpu", "--output", str(tmp_path)]
    assert benchmark.main(options) == 0
    text = (tmp_path / "frames.md").read_text()
    assert text.count("32²") == 7 and "memory ∝ frames^" in text
    assert len((tmp_path / "frames.csv").read_text().splitlines()) > 6


# Bad files.


def spoil(clips, *numbers):
    for number in numbers:
        (clips / "train" / "darker" / f"{number}.mp4").write_bytes(b"no video" * 20)


def test_a_file_that_does_not_decode_is_named_counted_and_replaced(overrides, clips, caplog):
    spoil(clips, 1)
    assert call(*overrides, "recipe.epochs=2") == 0
    log = (clips.parent / "out" / "log.txt").read_text()
    assert re.search(r"darker/1\.mp4.*replaced by another \(number 1\)", log)


def test_too_many_files_that_do_not_decode_end_the_run(overrides, clips, capfd):
    spoil(clips, 0, 1, 2)
    assert call(*overrides, "train.max_unreadable=1", "dataloader.train.num_workers=1") == 2
    line = one_error(capfd)
    assert re.search(r"darker/\d.mp4.*; 2 were unreadable until then", line)
    assert "train.max_unreadable" in line


def test_a_replacement_is_of_the_same_class(clips):
    spoil(clips, 1, 2, 3)
    samples = [
        Sample(clips / "train" / name / f"{n}.mp4", name) for name in CLASSES for n in range(4)
    ]
    node = {"backend": "", "fps": 30}
    augmentation = ClipAugmentation(ClipInput(size=32, crop=1.0, frames=4, rate=1), hflip=0.0)
    data = TrainingClips(samples, CLASSES, node, augmentation, 2)
    loader = TrainLoader(data, BatchOrder(8, 8))
    loader.max_unreadable = 99
    (batch,) = islice(loader, 1)
    assert len(loader.unreadable) >= 3
    assert sorted(labels.tolist() for _, labels in batch) == [[0, 0]] * 4 + [[1, 1]] * 4
    for inputs, labels in batch:
        assert (inputs[0, 0, :, 0, 0].diff() > 0).all() == (labels[0] == 0)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("dataset.train=nowhere", "no folder of classes or list of videos 'nowhere'"),
        ("dataset.train=", "dataset.train is missing"),
        ("dataset.classes=none.txt", "dataset.classes: cannot read none.txt"),
        ("model.num_classes=7", "model.num_classes is 7, but .* has 2 classes"),
        ("dataloader.train.total_batch_size=100", "is 100, but there are 8 clips to train on"),
        ("dataloader.train.repeats=3", "a multiple of 1 processes × 3 repeats, got 4"),
        ("input.sampling=dense", "input.sampling must be stride or segments, got dense"),
        ("dataset.backend=decord", "video backend must be one of"),
        ("dataloader.train.augmentation.short_side=[20,30]", "short_side must be two sides"),
    ],
)
def test_bad_settings(override, words, overrides, capfd):
    assert call(*overrides, override) == 2
    assert re.search(words, one_error(capfd))


# Augmentation.


def noise(count=3, height=40, width=52):
    frames = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), dtype=np.uint8)
    return np.repeat(frames, count, axis=0)


def test_all_frames_are_changed_alike():
    """Of equal frames come equal frames, but for the noise of erasing; each draw is another."""
    input = ClipInput(size=32, frames=3)
    augment = ClipAugmentation(
        input, auto_augment="rand-m7-n4-mstd0.5-inc1", scale=(0.08, 1.0), hflip=0.5
    )
    drawn = [augment(noise()) for _ in range(6)]
    for clip in drawn:
        assert clip.shape == (3, 3, 32, 32)
        assert torch.equal(clip[:, 0], clip[:, 1]) and torch.equal(clip[:, 0], clip[:, 2])
    assert all(not torch.equal(drawn[0], other) for other in drawn[1:])


def test_rand_augment_is_timms():
    input = ClipInput(size=40, crop=1.0, frames=3, mean=(0.0,) * 3, std=(1.0,) * 3)
    augment = ClipAugmentation(input, auto_augment="rand-m7-n4-mstd0.5-inc1", hflip=0.0)
    theirs = rand_augment_transform(
        "rand-m7-n4-mstd0.5-inc1", {"translate_const": 18, "interpolation": Image.BILINEAR}
    )
    frames = noise(height=40, width=40)
    for seed in range(5):
        random.seed(seed), np.random.seed(seed)
        ours = augment(frames)
        random.seed(seed), np.random.seed(seed)
        expected = torch.from_numpy(np.array(theirs(Image.fromarray(frames[0])))).permute(2, 0, 1)
        assert torch.allclose(255 * ours[:, 1], expected.float(), atol=1e-3)


def test_erasing_is_of_one_box_with_other_noise_in_each_frame():
    input = ClipInput(size=32, crop=1.0, frames=3, mean=(0.0,) * 3, std=(1.0,) * 3)
    augment = ClipAugmentation(input, hflip=0.0, re_prob=1.0)
    frames = np.zeros((3, 32, 32, 3), np.uint8)
    clip = augment(frames)
    erased = clip != 0
    assert 0 < erased[0, 0].sum() < 32 * 32
    assert (erased == erased[:1, :1]).all()
    assert not torch.equal(clip[:, 0], clip[:, 1])


def test_mirrors_and_crops():
    input = ClipInput(size=8, crop=1.0, frames=1, mean=(0.0,) * 3, std=(1.0,) * 3)
    columns = np.broadcast_to(np.arange(12, dtype=np.uint8)[:, None], (1, 10, 12, 3)).copy()
    augment = ClipAugmentation(input, short_side=(10, 10), hflip=0.5)
    rows = {tuple((255 * augment(columns)[0, 0, 0]).round().int().tolist()) for _ in range(200)}
    forward = {tuple(range(left, left + 8)) for left in range(5)}
    assert rows == forward | {row[::-1] for row in forward}


def test_short_sides_are_drawn_by_their_inverse(monkeypatch):
    sides = []
    monkeypatch.setattr(
        "projects.video.augment.resize_short_side",
        lambda clip, side, _: sides.append(side) or torch.zeros(1, 3, 320, 320),
    )
    augment = ClipAugmentation(ClipInput(), short_side=(256, 320))
    for _ in range(2000):
        augment(np.zeros((1, 8, 8, 3), np.uint8))
    assert min(sides) == 256 and max(sides) == 320
    # The mean of 1/u for u even in [1/320, 1/256].
    assert np.mean(sides) == pytest.approx(np.log(320 / 256) / (1 / 256 - 1 / 320), abs=1.5)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_clips_are_mixed_as_images(kind):
    """Each frame as timm mixes it alone; cutmix cuts the same box of all frames."""
    alphas = {"mixup_alpha": 0.8 * (kind == "mixup"), "cutmix_alpha": 1.0 * (kind == "cutmix")}
    mixup = Mixup(**alphas, num_classes=5)
    clips, labels = torch.randn(4, 3, 6, 16, 20), torch.tensor([0, 4, 2, 2])
    seen = []

    class Network(torch.nn.Linear):
        def forward(self, x):
            seen.append(x)
            return super().forward(x.mean((2, 3, 4)))

    task = Classification(Network(3, 5), SoftTargetCrossEntropy(), mixup)
    np.random.seed(0)
    task((clips.clone(), labels))
    for frame in range(6):
        np.random.seed(0)
        expected, _ = mixup(clips[:, :, frame].clone(), labels)
        assert torch.equal(seen[0][:, :, frame], expected)
    assert not torch.equal(seen[0], clips)


def test_shuffled_frames_are_the_same_frames(clips):
    samples = [Sample(clips / "val" / "brighter" / "0.mp4", "brighter")]
    input = ClipInput(size=32, crop=1.0, frames=8, rate=1, clips=1)
    node = {"backend": "", "fps": 30}
    plain, label, number = TestClips(samples, CLASSES, node, input)[0]
    shuffled = TestClips(samples, CLASSES, node, input, shuffle_frames=True)[0][0]
    assert (label, number) == (0, 0) and not torch.equal(plain, shuffled)
    assert torch.allclose(plain[0, 0, :, 0, 0].sort().values, shuffled[0, 0, :, 0, 0].sort().values)


# Evaluation.


def test_accuracies_over_views_and_processes(monkeypatch, tmp_path):
    """The mean of probabilities, not of logits; videos that come twice count once."""
    videos, views, classes = 12, 3, 7
    logits, labels = 4 * torch.randn(videos * views, classes), torch.randint(classes, (videos,))
    samples = [Sample(tmp_path / f"{n}.mp4", "a") for n in range(videos)]
    monkeypatch.setattr(evaluation, "read_split", lambda *_: samples)
    monkeypatch.setattr(evaluation, "write_classifications", lambda *_: None)
    evaluator = VideoEvaluator({"classes": list("abcdefg")}, str(tmp_path))
    monkeypatch.setattr(evaluator, "_draw", lambda *_: None)
    for numbers in ([5, 3, 0, 1], [2, 4, 6, 7, 8], [9, 10, 11, 0, 5]):
        of_views = torch.cat([torch.arange(n * views, (n + 1) * views) for n in numbers])
        evaluator.process((None, labels[numbers], torch.tensor(numbers)), logits[of_views])
    found = evaluator.evaluate()["classification"]
    mean = logits.softmax(1).unflatten(0, (videos, views)).mean(1)
    expected = [float(each) for each in accuracy(mean, labels, topk=(1, 5))]
    assert [found["top1"], found["top5"]] == pytest.approx(expected)
    of_clips = accuracy(logits, labels.repeat_interleave(views), topk=(1, 5))
    assert [found["clip_top1"], found["clip_top5"]] == pytest.approx([float(e) for e in of_clips])

    evaluator.reset()
    evaluator.process((None, labels[:1], torch.tensor([0])), logits[:views])
    with pytest.raises(UserError, match="1 of 12 videos were evaluated"):
        evaluator.evaluate()


# The recipes.

# Variant, T, τ, side, clips × crops, epochs, rate for 256 clips, mixup, and 10⁶ parameters.
RECIPES = {
    "k400_s_16x4": ("S", 16, 4, 224, 5, 1, 200, 8e-4, True, 34.538),
    "k400_b_32x3": ("B", 32, 3, 224, 5, 1, 200, 8e-4, True, 51.230),
    "k400_b_32x3_in21k": ("B", 32, 3, 224, 10, 1, 75, 8e-5, True, 51.230),
    "k400_l_40x3": ("L", 40, 3, 224, 10, 1, 30, 3.2e-5, False, 217.661),
    "k400_l_40x3_312_in21k": ("L", 40, 3, 312, 5, 3, 30, 3.2e-5, False, 213.390),
    "k600_l_40x3_352_in21k": ("L", 40, 3, 352, 4, 3, 30, 3.2e-5, False, 213.669),
    "k700_b_32x3": ("B", 32, 3, 224, 3, 3, 200, 8e-4, True, 51.461),
    "ssv2_s_16x4": ("S", 16, 4, 224, 1, 3, 100, 1e-2, True, 34.364),
    "ssv2_l_40x3_312_in21k": ("L", 40, 3, 312, 1, 3, 40, 1e-2, True, 213.130),
    "k400_mvitv1_b_32x3": (None, 32, 3, 224, 5, 1, 200, 8e-4, True, 36.611),
    "k600_mvitv1_b24_32x3": (None, 32, 3, 224, 5, 1, 200, 8e-4, True, 53.327),
    "k400_s_16x4_joint_space_pos": ("S", 16, 4, 224, 5, 1, 200, 8e-4, True, 37.050),
    "k400_s_16x4_no_residual": ("S", 16, 4, 224, 5, 1, 200, 8e-4, True, 34.502),
}
OUTPUTS = {"k400": 400, "k600": 600, "k700": 700, "ssv2": 174}


@pytest.mark.parametrize("name", RECIPES)
def test_recipe(name):
    cfg = config(name)
    model, input, recipe = cfg.model, cfg.input, cfg.recipe
    variant = model.variant if isinstance(model.variant, str) else None
    expected = RECIPES[name]
    assert expected[:-1] == (
        variant, input.frames, input.rate, input.size, input.clips, input.crops, recipe.epochs,
        pytest.approx(recipe.lr_per_256), bool(cfg.task.mixup),
    )  # fmt: skip
    cfg.model.num_classes = OUTPUTS[name[:4]]
    cfg.train.device = "meta"
    with torch.device("meta"):
        built = build_model(cfg)
    millions = sum(weight.numel() for weight in built.parameters()) / 1e6
    assert millions == pytest.approx(expected[-1], abs=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_every_config_is_whole(name):
    cfg = config(name)
    assert cfg.train.output_dir.endswith(name)
    input = instantiate(cfg.input)
    assert name in SMALL or (input.sampling == "segments") == name.startswith("ssv2")
    checkpoint = cfg.train.init_checkpoint
    if checkpoint.startswith("output/"):
        assert checkpoint.split("/")[1] in NAMES
    schedule = instantiate(cfg.lr_multiplier)
    assert schedule(1 - 1e-9) == pytest.approx(0.01, rel=1e-2)


def test_length_follows_repeated_augmentation(clips):
    cfg = config("k400_s_16x4")
    cfg.dataset.train = str(clips)
    cfg.dataloader.train.total_batch_size = 4
    prepare_datasets(cfg, training=True)
    # 8 videos give 16 clips an epoch.
    assert cfg.train.max_iter == 200 * 4 and cfg.optimizer.lr == pytest.approx(1.6e-3 * 4 / 512)
    assert cfg.dataset.val == f"{clips}/val" and cfg.model.num_classes == 2
