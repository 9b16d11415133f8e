"""projects/imagenet: data, recipe, training, evaluation, and what is said of bad input."""

import json
import re
import shutil
import tarfile
from collections import Counter

import numpy as np
import pytest
import timm
import torch
from detectron2.config import instantiate
from imagenet_runs import (
    CLASSES,
    CONFIGS,
    SMALL,
    call,
    config,
    cut,
    empty,
    write_image,
)
from models import randomize
from omegaconf import OmegaConf
from PIL import Image
from scripts import load_script, one_error
from timm.data import Mixup, create_transform
from timm.loss import SoftTargetCrossEntropy
from timm.utils import accuracy

from mvitv2_det import Classifier, Recognizer, UserError
from mvitv2_det.commands import main as mvitv2_det
from mvitv2_det.engine import build_model
from mvitv2_det.recognition.description import ENTRY, Description
from mvitv2_det.visualize import results
from mvitv2_det.visualize.run_files import read_metrics
from projects.common.optim import parameter_groups
from projects.common.runs import StoredDescription
from projects.common.sources import given_classes, held_out
from projects.common.task import Classification
from projects.imagenet import sources, timm_sources
from projects.imagenet.data import prepare_datasets
from projects.imagenet.evaluation import ClassificationEvaluator

NAMES = sorted(file.stem for file in CONFIGS.glob("*.py"))
pytestmark = pytest.mark.usefixtures("fresh_loggers")


def accuracies(folder):
    lines = map(json.loads, (folder / "metrics.json").read_text().splitlines())
    return [line["classification/top1"] for line in lines if "classification/top1" in line]


# A run, from its first step to its pictures.


def test_trains_resumes_evaluates_draws(overrides, photos, capfd):
    output = photos.parent / "out"
    overrides += ["train.model_ema.enabled=true", "train.model_ema.decay=0.5"]
    assert call(*overrides, "train.dry_run=true") == 0
    assert "whole run: 2 steps and 1 evaluations" in capfd.readouterr().out
    assert call(*overrides) == 0
    checkpoint = torch.load(output / "model_final.pth", weights_only=True)
    assert checkpoint["iteration"] == 1
    assert (output / "model_best.pth").is_file() and (output / "curves.png").is_file()

    # The checkpoint says all that is needed to build the network and to name what it finds.
    described = Description.from_dict(checkpoint[ENTRY])
    assert described.classes == CLASSES
    assert described.input.size == 32 and described.input.mode == "squash"
    described.build().load_state_dict(checkpoint["model"], strict=True)

    assert call("--resume", *overrides, "recipe.epochs=2") == 0
    assert torch.load(output / "model_final.pth", weights_only=True)["iteration"] == 3
    assert len(accuracies(output)) == 2

    final = f"train.init_checkpoint={output}/model_final.pth"
    capfd.readouterr()
    evaluation = [*overrides, final, f"train.output_dir={output}/again"]
    assert call("--eval-only", *evaluation) == 0
    found = json.loads((output / "again" / "inference" / "classifications.json").read_text())
    assert found["classes"] == list(CLASSES)
    assert [file.split("/")[-2] for file in found["files"]] == sorted(2 * CLASSES)
    hits = [top[0] == label for top, label in zip(found["top"], found["labels"], strict=True)]
    assert f"copypaste: {100 * np.mean(hits):.4f}" in capfd.readouterr().out
    assert accuracies(output)[-1] == pytest.approx(100 * np.mean(hits))
    assert (output / "again" / "inference" / "confusion.png").is_file()

    # The average is evaluated beside the weights, and is a classifier as any other.
    last = [line for line in read_metrics(output / "metrics.json") if "classification/top1" in line]
    assert "model_ema/classification/top1" in last[-1]
    assert Classifier(output / "model_ema.pth", top=1)(found["files"][0])[0].name in CLASSES

    # Prediction finds what evaluation has found: the same network, preprocessing and names.
    predicted = Classifier(output / "model_final.pth", top=1)(found["files"][0])
    assert predicted[0].name == CLASSES[found["top"][0][0]]
    assert predicted[0].probability == pytest.approx(found["probabilities"][0][0], abs=1e-5)

    assert mvitv2_det(["draw", str(output)]) == 0
    assert "top-1" in capfd.readouterr().out
    assert (output / "mistakes.png").is_file()


@pytest.mark.long
def test_two_processes_train_and_evaluate_each_image_once(overrides, photos):
    (photos / "val" / "light" / "1.png").unlink()
    url = f"file://{photos.parent}/rendezvous"
    batch = "dataloader.train.total_batch_size=4"
    assert call("--num-gpus", "2", "--dist-url", url, *overrides, batch) == 0
    output = photos.parent / "out"
    file = output / "inference" / "classifications.json"
    two = json.loads(file.read_text())
    final = f"train.init_checkpoint={output}/model_final.pth"
    assert call("--eval-only", *overrides, final) == 0
    one = json.loads(file.read_text())
    assert len(one["files"]) == 5
    for key in ("classes", "files", "labels", "top"):
        assert two[key] == one[key]
    assert np.allclose(two["probabilities"], one["probabilities"], atol=1e-5)  # float32


@pytest.mark.long
def test_trains_with_the_whole_recipe(overrides, photos):
    """The recipe of ImageNet on small images: RandAugment, erasing, mixup, clipping."""
    settings = [o for o in overrides if "variant" not in o]
    settings += ["train.device=cpu", "input.size=32", "train.max_iter=1"]
    assert call(*settings, name="t_in1k") == 0
    assert len(accuracies(photos.parent / "out")) == 1


# What a user may get wrong.


def test_first_outputs_of_a_larger_classifier(overrides, photos, capfd):
    """As ImageNet-21K's networks classify ImageNet-1K."""
    larger = randomize(Recognizer.image(SMALL, 5, image_size=32)).eval()
    torch.save({"model": larger.state_dict()}, photos / "larger.pth")
    weights = f"train.init_checkpoint={photos}/larger.pth"
    assert call("--eval-only", *overrides, weights) == 2
    assert "head: 5 → 3 classes" in one_error(capfd)

    assert call("--eval-only", *overrides, weights, "train.load.classes=first") == 0
    file = photos.parent / "out" / "inference" / "classifications.json"
    found = json.loads(file.read_text())
    transform = config("digits").input
    images = [instantiate(transform).transform()(Image.open(path)) for path in found["files"]]
    with torch.no_grad():
        expected = larger(torch.stack(images))[:, :3].softmax(1)
    labels = torch.tensor(found["labels"])[:, None]
    of_labels = expected.gather(1, labels)[:, 0]
    assert np.allclose(found["label_probabilities"], of_labels, atol=1e-5)  # float32


BAD_DATA = {
    "one class": (
        lambda p: [shutil.rmtree(p / s / c) for s in ("train", "val") for c in ("grey", "light")],
        "train has the class 'dark' alone: expected two or more",
    ),
    "one image of a class, of which a share is to be held out": (
        lambda p: [shutil.rmtree(p / "val")]
        + [(p / "train/grey" / f"{n}.png").unlink() for n in range(3)],
        r"class 'grey' has .*3\.png alone, of which no share can be held out",
    ),
    "no image": (lambda p: (p / "train/grey/0.png").write_text("x"), r"grey/0\.png: it is no"),
    "empty class": (lambda p: empty(p / "train/grey"), r"train/grey holds no image"),
    "class of validation alone": (
        lambda p: (p / "val/grey").rename(p / "val/blue"),
        r"val has class 'blue' \(of .*\), which is not among the 3 classes .*dark, grey, light",
    ),
    "images without folders": (
        lambda p: [write_image(p / "x/0.png", 0, 0), (p / "train").rename(p / "y"),
                   (p / "x").rename(p / "train")],
        "train has no folders: expected one for each class",
    ),
    # The header is whole, so that only training finds it.
    "cut-off images": (
        lambda p: [cut(path) for path in p.glob("train/*/*.png")],
        r"cannot read image .*train/\w+/\d\.png: .*trunc",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data(case, overrides, photos, capfd):
    spoil, words = BAD_DATA[case]
    spoil(photos)
    assert call(*overrides) == 2
    assert re.search(words, one_error(capfd))
    assert case == "cut-off images" or not (photos.parent / "out").exists()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("dataset.train=nowhere", "no folder of classes or csv file 'nowhere'"),
        ("dataset.train=", "dataset.train is missing"),
        ("dataset.train=hfds/nothing", "hfds/nothing.*(install the package|cannot be opened)"),
        ("dataset.train=none.tar", "no validation split beside none.tar: give dataset.val"),
        ("dataset.classes=none.txt", "dataset.classes: cannot read none.txt"),
        ("model.num_classes=7", "model.num_classes is 7, but .* has 3 classes"),
        ("dataloader.train.total_batch_size=100", "is 100, but there are 12 images to train on"),
        ("input.mode=whole", "input.mode must be centre or squash, got whole"),
        ("model.variant.blocks=[1,1]", "cannot be built"),
        ("dataset.classes=3", "must be names, or a text file .* got 3"),
        ("dataset.classes=[dark,grey,dark]", "it has 'dark' more than once"),
        ("dataset.classes=[dark,grey]", "class 'light' .* not among the 2 classes"),
        ("task.mixup.num_classes=2", "task.mixup.num_classes is 2, but there are 3 classes"),
        ("task.first_outputs=0", "first_outputs must be from 1 to the 3 classes, got 0"),
        ("task.first_outputs=2", "is 2, but validation has images of 'light', which is output 2"),
        ("dataset.train=torch/image_folder", "dataset.root is missing"),
        ("dataloader.train.augmentation.interpolation=cubic", "timm refuses .*'cubic'"),
        ("dataloader.train.augmentation.scale=3", "timm refuses .*augmentation"),
    ],
)
def test_bad_settings(override, words, overrides, capfd):
    assert call(*overrides, override) == 2
    assert re.search(words, one_error(capfd))


def test_mixup_needs_pairs(overrides, photos, capfd):
    settings = [o for o in overrides if "variant" not in o and "batch_size" not in o]
    settings += ["dataloader.train.total_batch_size=3", "train.device=cpu"]
    assert call(*settings, name="t_in1k") == 2
    assert "must be even, as mixup takes pairs, got 3" in one_error(capfd)


def test_resuming_with_other_classes():
    content = {
        "constructor": "image",
        "arguments": {"variant": "T"},
        "classes": ["ant", "bee"],
        "input": {"size": 32},
    }
    stored = StoredDescription(content)
    stored.load_state_dict(stored.state_dict())
    with pytest.raises(UserError, match=r"was of 2 classes \(bee, ant, …\), the data are of 2"):
        stored.load_state_dict(content | {"classes": ["bee", "ant"]})


# Sources.


def listed(samples):
    return [(str(sample.path), sample.label) for sample in samples]


@pytest.mark.parametrize("header", [True, False])
def test_csv_is_as_a_folder(photos, header):
    expected, classes = sources.read_samples(str(photos / "train"))
    assert classes == list(CLASSES)
    lines = [f"{sample.path.relative_to(photos)},{sample.label}" for sample in expected]
    file = photos / "train.csv"
    file.write_text("\n".join([*["path,label"] * header, *lines, ""]))
    samples, classes = sources.read_samples(str(file))
    assert listed(samples) == listed(expected) and classes == list(CLASSES)


def test_csv_trains(overrides, photos):
    for split in ("train", "val"):
        lines = [f"{p.relative_to(photos)},{p.parent.name}" for p in photos.glob(f"{split}/*/*")]
        (photos / f"{split}.csv").write_text("\n".join(lines))
    assert call(*overrides, f"dataset.train={photos}/train.csv") == 0
    saved = OmegaConf.load(photos.parent / "out" / "config.yaml")
    assert saved.dataset.val == f"{photos}/val.csv"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no lines path,label"),
        ("train/grey/0.png\n", "line 1: expected path,label, got 'train/grey/0.png'"),
        ("path,label\nnone.png,grey\n", "line 2: there is no file .*none.png"),
    ],
)
def test_csv_that_is_none(photos, text, words):
    (photos / "a.csv").write_text(text)
    with pytest.raises(UserError, match=words):
        sources.read_samples(str(photos / "a.csv"))


def test_classes_in_natural_order(photos):
    for name in ("10", "2"):
        write_image(photos / "numbers" / name / "deep" / "0.png", 0, 0)
    assert sources.read_samples(str(photos / "numbers"))[1] == ["2", "10"]


def test_splits_are_found(photos):
    train, val = str(photos / "train"), str(photos / "val")
    assert timm_sources.find_splits(str(photos), "") == (train, val)
    assert timm_sources.find_splits(train, "") == (train, val)
    assert timm_sources.find_splits(train, "elsewhere") == (train, "elsewhere")
    assert timm_sources.find_splits(str(photos / "val"), "") == (val, "")
    assert timm_sources.find_splits("hfds/beans", "") == ("hfds/beans", "hfds/beans")


def test_share_held_out(photos):
    samples, _ = sources.read_samples(str(photos / "train"))
    inside = held_out(samples, 0.5, inside=True)
    outside = held_out(samples, 0.5, inside=False)
    assert sorted(listed(inside) + listed(outside)) == sorted(listed(samples))
    assert Counter(s.label for s in inside) == dict.fromkeys(CLASSES, 2)
    assert listed(inside) == listed(held_out(samples, 0.5, inside=True))


def test_folder_without_validation_split(overrides, photos):
    """One override; a share of each class is held out, and the checkpoint can be evaluated."""
    run = [*overrides, f"dataset.train={photos}/val", "dataset.val_share=0.5"]
    assert call(*run, "dataloader.train.total_batch_size=2") == 0
    output = photos.parent / "out"
    found = json.loads((output / "inference" / "classifications.json").read_text())
    assert len(found["files"]) == 3 and found["labels"] == [0, 1, 2]


def test_timm_reads(overrides, photos):
    """A source of timm's that needs no further package: torchvision's folders."""
    run = ["dataset.train=torch/image_folder", f"dataset.root={photos}", "dataset.val_split=val"]
    assert call(*overrides, *run) == 0
    checkpoint = torch.load(photos.parent / "out" / "model_final.pth", weights_only=True)
    assert checkpoint[ENTRY]["classes"] == list(CLASSES)


def test_tar_archives(overrides, photos):
    for split in ("train", "val"):
        with tarfile.open(photos / f"{split}.tar", "w") as archive:
            archive.add(photos / split, arcname=".")
    run = [f"dataset.{split}={photos}/{split}.tar" for split in ("train", "val")]
    assert call(*overrides, *run) == 0
    found = photos.parent / "out" / "inference" / "classifications.json"
    assert json.loads(found.read_text())["labels"] == [0, 0, 1, 1, 2, 2]


def test_labels_of_a_part_of_the_classes(photos):
    """A split may lack classes; labels are those of the trained classes all the same."""
    for name in ("dark", "grey"):
        empty(photos / "val" / name)
        (photos / "val" / name).rmdir()
    samples, classes = sources.read_samples(str(photos / "val"), CLASSES)
    assert {label for _, label in sources.Images(samples, classes)} == {2}


def test_class_names_of_a_file(photos):
    (photos / "names.txt").write_text("light\ndark\n\ngrey\n")
    assert given_classes(str(photos / "names.txt")) == ["light", "dark", "grey"]
    (photos / "names.txt").write_text("light\nlight\n")
    with pytest.raises(UserError, match="'light' more than once"):
        given_classes(str(photos / "names.txt"))


# Loaders.


def test_transforms_are_timms(photos):
    cfg = config("t_in1k")
    cfg.dataset.train = str(photos)
    cfg.dataloader.train.update(total_batch_size=4, num_workers=0)
    prepare_datasets(cfg, training=True)
    expected = create_transform(
        224, is_training=True, auto_augment="rand-m9-n6-mstd0.5-inc1", interpolation="bicubic",
        re_prob=0.25, re_mode="pixel", re_count=1, color_jitter=0.4,
    )  # fmt: skip
    loader = instantiate(cfg.dataloader.train)
    assert str(loader.dataset.transform) == str(expected)
    assert "ColorJitter" not in str(expected)  # RandAugment turns it off
    centre = str(instantiate(cfg.dataloader.test).dataset.transform)
    assert "Resize(size=256, interpolation=bicubic" in centre and "size=(224, 224)" in centre
    cfg.input.update(mode="squash", crop=1.0)
    squashed = str(instantiate(cfg.dataloader.test).dataset.transform)
    assert "Resize(size=(224, 224)" in squashed


def test_posterize_to_no_bits(photos):
    """RandAugment at its largest magnitude, which Pillow refuses and the recipe reaches."""
    cfg = config("t_in1k")
    cfg.dataset.train = str(photos)
    cfg.dataloader.train.update(total_batch_size=4, num_workers=0)
    prepare_datasets(cfg, training=True)
    steps = instantiate(cfg.dataloader.train).dataset.transform.transforms
    operations = next(step.ops for step in steps if hasattr(step, "ops"))
    (posterize,) = [each for each in operations if each.name.startswith("Posterize")]
    posterize.prob, posterize.magnitude, posterize.magnitude_std = 1.0, 10, 0.0
    image = Image.new("RGB", (4, 4), (200, 100, 255))
    assert posterize(image).getextrema() == ((0, 0),) * 3
    posterize.magnitude = 5  # keeps two of eight bits
    assert posterize(image).getpixel((0, 0)) == (192, 64, 192)


# The recipe.

# Appendix B.2: variant, class token, size, epochs, rate for 256, weight decay, drop path, mixup.
RECIPES = {
    "t_in1k": ("T", False, 224, 300, 2.5e-4, 0.05, 0.1, True),
    "s_in1k": ("S", False, 224, 300, 2.5e-4, 0.05, 0.1, True),
    "b_in1k": ("B", False, 224, 300, 2.5e-4, 0.05, 0.3, True),
    "l_in1k": ("L", False, 224, 300, 2.5e-4, 0.1, 0.5, True),
    "s_in1k_384": ("S", False, 384, 30, 4e-5, 0.05, 0.1, True),
    "b_in1k_384": ("B", False, 384, 30, 4e-5, 0.05, 0.3, True),
    "l_in1k_384": ("L", False, 384, 30, 2e-3, 0.1, 0.5, False),
    "b_in21k": ("B", True, 224, 90, 6.75e-5, 0.01, 0.3, True),
    "l_in21k": ("L", True, 224, 90, 1e-4, 0.1, 0.5, True),
    "h_in21k": ("H", True, 224, 60, 1e-4, 0.1, 0.8, True),
    "b_in21k_to_1k": ("B", True, 224, 30, 2.8e-4, 0.05, 0.3, False),
    "l_in21k_to_1k": ("L", True, 224, 30, 2.8e-4, 0.05, 0.5, False),
    "h_in21k_to_1k": ("H", True, 224, 30, 2.8e-4, 0.05, 0.8, False),
    "l_in21k_to_1k_384": ("L", True, 384, 30, 2.8e-4, 0.05, 0.5, False),
    "h_in21k_to_1k_384": ("H", True, 384, 30, 2.8e-4, 0.05, 0.8, False),
    "h_in21k_to_1k_512": ("H", True, 512, 3, 2.8e-4, 1e-8, 0.8, True),
}


def test_there_is_a_config_of_each_recipe():
    assert set(NAMES) == {*RECIPES, "digits"}


@pytest.mark.parametrize("name", RECIPES)
def test_recipe(name):
    cfg = config(name)
    model, recipe = cfg.model, cfg.recipe
    assert RECIPES[name] == (
        model.variant, model.class_token, cfg.input.size, recipe.epochs,
        pytest.approx(recipe.lr_per_256), cfg.optimizer.weight_decay, model.drop_path_rate,
        bool(cfg.task.mixup),
    )  # fmt: skip
    assert cfg.train.output_dir == f"output/{name}"
    cfg.model.num_classes = 1000
    cfg.train.device = "meta"
    with torch.device("meta"):
        built = build_model(cfg)
    millions = sum(p.numel() for p in built.parameters()) / 1e6
    # Tables 2 and A.3; the networks with a class token have no published number of their own,
    # except L and H of Table 3, and L with a class token expands in attention.
    published = {"T": 24, "S": 35, "B": 52, "L": 218, "H": 667}[model.variant]
    assert millions == pytest.approx(published, rel=0.03 if not model.class_token else 0.05)


@pytest.mark.parametrize("name", NAMES)
def test_rates_over_a_run(name):
    """Warm-up is linear, then follows half a period of a cosine; there may be none."""
    cfg = config(name)
    schedule = instantiate(cfg.lr_multiplier)
    share = cfg.recipe.warmup_epochs / cfg.recipe.epochs
    if share:
        assert schedule(0.0) == pytest.approx(4e-5)
    top = schedule(share + 1e-6)
    cosine = 4e-3 + (1 - 4e-3) * (1 + np.cos(np.pi * share)) / 2
    assert top == pytest.approx(cosine, rel=1e-3)
    assert schedule(1 - 1e-9) == pytest.approx(4e-3, rel=1e-3)


def test_length_and_rate_follow_data_and_batch(photos):
    cfg = config("t_in1k")
    cfg.dataset.train = str(photos)
    cfg.dataloader.train.update(total_batch_size=4, num_workers=0)
    prepare_datasets(cfg, training=True)
    assert cfg.train.max_iter == 300 * 3 and cfg.train.eval_period == 3
    assert cfg.optimizer.lr == pytest.approx(2e-3 * 4 / 2048)
    given = config("t_in1k")
    given.dataset.train = str(photos)
    given.dataloader.train.update(total_batch_size=4, num_workers=0)
    given.train.max_iter, given.optimizer.lr = 7, 1e-3
    prepare_datasets(given, training=True)
    assert given.train.max_iter == 7 and given.optimizer.lr == 1e-3


def test_decay_of_weights_and_layers():
    model = Recognizer.image(SMALL, 3, class_token=True, image_size=32)
    groups = parameter_groups(model, base_lr=1.0, weight_decay=0.1, layer_decay=0.5)
    of = {id(p): group for group in groups for p in group["params"]}
    settings = {
        n: (of[id(p)]["weight_decay"], of[id(p)]["lr"]) for n, p in model.named_parameters()
    }
    # Four blocks, the last with the last norm, and the head follow the patch embedding.
    assert settings["patch_embed.proj.weight"] == (0.1, 0.5**5)
    assert settings["patch_embed.proj.bias"] == (0.0, 0.5**5)
    assert settings["cls_token"] == (0.1, 0.5**5)
    assert settings["blocks.0.attn.rel_pos_h"] == (0.1, 0.5**4)
    assert settings["blocks.3.norm1.weight"] == (0.0, 0.5)
    assert settings["norm.weight"] == (0.0, 0.5)
    assert settings["head.projection.weight"] == (0.1, 1.0)
    # As timm divides its own network, whose names are others.
    theirs = timm.models.mvitv2.MultiScaleVit(
        timm.models.mvitv2.MultiScaleVitCfg(depths=(1, 1, 1, 1), embed_dim=8), num_classes=3
    )
    scales = {g["lr_scale"] for g in timm.optim.param_groups_layer_decay(theirs, layer_decay=0.5)}
    assert {group["lr"] for group in groups} == scales


def test_loss_is_timms():
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 5))
    images, labels = torch.randn(4, 3, 2, 2), torch.tensor([0, 4, 2, 2])
    task = Classification(network, SoftTargetCrossEntropy())
    expected = torch.nn.functional.cross_entropy(network(images), labels)
    assert torch.allclose(task((images, labels))["loss_cls"], expected)

    mixup = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, num_classes=5)
    task = Classification(network, SoftTargetCrossEntropy(), mixup, first_outputs=3)
    np.random.seed(0)
    found = task((images.clone(), labels))["loss_cls"]
    np.random.seed(0)
    mixed, targets = mixup(images.clone(), labels)
    assert torch.allclose(found, SoftTargetCrossEntropy()(network(mixed), targets))
    task.eval()
    assert torch.equal(task((images, labels)), network(images)[:, :3])


def test_accuracies_are_timms(photos):
    logits, labels = torch.randn(40, 7), torch.randint(7, (40,))
    node = {"val": "", "train": str(photos), "classes": list("abcdefg")}
    evaluator = ClassificationEvaluator(node, str(photos / "out"))
    evaluator._draw = lambda *_: None
    for part in (slice(0, 25), slice(25, 40)):
        evaluator.process((None, labels[part]), logits[part])
    found = evaluator.evaluate()["classification"]
    expected = accuracy(logits, labels, topk=(1, 5))
    assert [found["top1"], found["top5"]] == pytest.approx([float(each) for each in expected])


CONTENT = {
    "classes": ["a", "b", "c"],
    "labels": [0, 0, 2],
    "label_probabilities": [0.9, 0.2, 0.5],
    "top": [[0, 1], [1, 0], [2, 0]],
    "probabilities": [[0.9, 0.1], [0.8, 0.2], [0.5, 0.4]],
    "files": ["x.png", "y.png", "z.png"],
}


def test_what_is_drawn_of_predictions(monkeypatch, tmp_path):
    drawn = []
    for name in ("draw_confusion_matrix", "write_mistakes"):
        monkeypatch.setattr(results, name, lambda *arguments: drawn.append(arguments))
    file = tmp_path / "classifications.json"
    file.write_text(json.dumps(CONTENT))
    results.draw_classifications(file, tmp_path)
    (counts, classes, _), (rows, *_) = drawn
    assert counts.tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]] and classes == ["a", "b", "c"]
    assert tuple(rows[1][:5]) == ("y.png", [1, 0], [0.8, 0.2], 0, 0.2)
    # timm's sources have no files: there is nothing to show of the mistakes.
    file.write_text(json.dumps(CONTENT | {"files": []}))
    assert results.draw_classifications(file, tmp_path) == [tmp_path / "confusion.png"]


@pytest.mark.parametrize("change", [{"labels": "x"}, {"top": [[7], [0], [0]]}, {"files": ["x"]}])
def test_predictions_that_are_none(tmp_path, change):
    file = tmp_path / "classifications.json"
    file.write_text(json.dumps(CONTENT | change))
    with pytest.raises(UserError, match="not what a classifier's evaluation writes"):
        results.draw_classifications(file, tmp_path)


# Digits.


def test_digits_are_those_of_the_detection_demo(tmp_path, capsys):
    datasets = pytest.importorskip("sklearn.datasets")
    script = load_script("tools/make_digit_images.py")
    output = str(tmp_path / "digits")
    assert script.main(["--output", output]) == 0
    assert "1438 images for training, 359 for validation" in capsys.readouterr().out
    samples, classes = sources.read_samples(f"{output}/train")
    assert classes == list("0123456789")
    held_out, _ = sources.read_samples(f"{output}/val")
    numbers = [int(sample.path.stem) for sample in samples + held_out]
    assert sorted(numbers) == list(range(1797))
    digits = datasets.load_digits()
    assert all(int(s.label) == digits.target[int(s.path.stem)] for s in samples + held_out)
    assert script.main(["--output", output]) == 0
    (tmp_path / "digits" / "val" / "0").rename(tmp_path / "digits" / "x")
    assert script.main(["--output", output]) == 2
    assert "holds something else" in capsys.readouterr().err
