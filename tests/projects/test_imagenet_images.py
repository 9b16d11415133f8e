"""projects/imagenet: images as users have them, those that cannot be read, and labels."""

import dataclasses
import re
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from imagenet_runs import CLASSES, SMALL, call, cut
from PIL import Image
from scripts import one_error

from mvitv2_det import Classifier, UserError
from mvitv2_det.errors import Unreadable
from mvitv2_det.predict.images import read_rgb
from mvitv2_det.recognition.description import ENTRY, Description, Input
from projects.imagenet import data
from projects.imagenet.timm_sources import Labels

pytestmark = [
    pytest.mark.usefixtures("fresh_loggers"),
    # timm does not close archives.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def pack(photos, split):
    """A tar archive of a split."""
    with tarfile.open(photos / f"{split}.tar", "w") as archive:
        archive.add(photos / split, arcname=".")
    return photos / f"{split}.tar"


def source(photos, split, kind):
    """Settings of ``dataset`` that name a split: files, an archive of timm's, or torchvision's."""
    if kind == "folder":
        return {split: str(photos / split)}
    if kind == "tar":
        return {split: str(pack(photos, split))}
    return {split: "torch/image_folder", "root": str(photos), f"{split}_split": split}


KINDS = ("folder", "tar", "torch")


def opened(photos, split, kind, classes=CLASSES):
    node = {"train": "", "val": "", "train_split": "", "val_split": "", "root": "", "options": {}}
    node |= {"classes": list(classes)} | source(photos, split, kind)
    if split == "train":
        node["val"] = "elsewhere"
    return data.open_split(node, split)


# Images that cannot be read.


@pytest.mark.parametrize("kind", KINDS)
def test_an_unreadable_image_is_named_and_no_other_takes_its_place(kind, photos):
    """timm would take the next one in silence, in evaluation too."""
    whole = opened(photos, "val", kind)
    assert len(whole) == 6 and whole[3][1] == 1
    cut(photos / "val" / "grey" / "1.png")
    images = opened(photos, "val", kind)
    with pytest.raises(Unreadable, match=r"cannot read image .*grey/1\.png.*trunc"):
        images[3]
    assert images[2][1] == 1


def test_training_names_replaces_and_counts_and_evaluation_ends(overrides, photos, capfd):
    for split in ("train", "val"):
        cut(photos / split / "grey" / "1.png")
    run = [*overrides, f"dataset.train={pack(photos, 'train')}", f"dataset.val={photos / 'val'}"]
    assert call(*run, "train.max_unreadable=1", "dataloader.test.num_workers=1") == 2
    log = (photos.parent / "out" / "log.txt").read_text()
    assert re.search(r"grey/1\.png.*replaced by another \(number 1\)", log)
    assert re.search(r"cannot read image .*val/grey/1\.png: .*trunc", one_error(capfd))


def test_an_image_that_cannot_be_resized(photos):
    """Its short side becomes 37 pixels, and the long one more than there is memory for."""
    Image.new("L", (65_000, 1)).save(photos / "val" / "grey" / "1.png")
    images = opened(photos, "val", "folder")

    def resize(image):
        raise MemoryError(f"cannot allocate {image.size}")

    images.transform = resize
    with pytest.raises(Unreadable, match=r"cannot resize image .*grey/1\.png of 65000×1"):
        images[3]


# Kinds of images, and the pixels that they are: what training and prediction see of each.

RGB = np.random.default_rng(0).integers(0, 256, (24, 36, 3), np.uint8)
GREY = RGB[:, :, 0]
COLOUR = Image.fromarray(RGB)
TURNED = Image.Exif()
TURNED[0x0112] = 6  # shown turned by 90 degrees, clockwise


def palette():
    return COLOUR.quantize(16, dither=Image.Dither.NONE)


# Name of the file: how it is written, and what is seen.
KINDS_OF_IMAGES = {
    "grey16.png": (lambda f: Image.fromarray(GREY.astype(np.uint16) * 257).save(f), GREY),
    "colour16.png": (lambda f: cv2.imwrite(str(f), RGB[:, :, ::-1].astype(np.uint16) * 257), RGB),
    "grey16.tif": (lambda f: Image.fromarray(GREY.astype(np.uint16) * 257).save(f), GREY),
    "cmyk.tif": (lambda f: COLOUR.convert("CMYK").save(f), RGB),
    "palette.png": (
        lambda f: palette().save(f, transparency=3),
        np.array(palette().convert("RGB")),
    ),
    "palette.gif": (
        lambda f: palette().save(f, transparency=3),
        np.array(palette().convert("RGB")),
    ),
    "alpha.png": (lambda f: Image.fromarray(np.dstack([RGB, GREY])).save(f), RGB),
    "grey_alpha.png": (lambda f: Image.merge("LA", 2 * [Image.fromarray(GREY)]).save(f), GREY),
    "grey.bmp": (lambda f: Image.fromarray(GREY).save(f), GREY),
    "black_white.png": (lambda f: Image.fromarray(GREY > 127).save(f), (GREY > 127) * 255),
    "turned.png": (lambda f: COLOUR.save(f, exif=TURNED), np.rot90(RGB, -1)),
    "turned.webp": (lambda f: COLOUR.save(f, exif=TURNED, lossless=True), np.rot90(RGB, -1)),
    "turned.tif": (lambda f: COLOUR.save(f, exif=TURNED), np.rot90(RGB, -1)),
}


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    arguments = {"variant": {**dataclasses.asdict(SMALL), "blocks": [1, 1, 1, 1]}}
    description = Description(
        "image", arguments | {"image_size": 32}, CLASSES, Input(size=32, mode="squash", crop=1.0)
    )
    file = tmp_path_factory.mktemp("weights") / "model.pth"
    entries = {"model": description.build().state_dict(), ENTRY: description.to_dict()}
    torch.save(entries, file)
    return Classifier(file, device="cpu")


@pytest.mark.parametrize("name", KINDS_OF_IMAGES)
def test_training_and_prediction_see_the_same_pixels(name, photos, classifier):
    write, seen = KINDS_OF_IMAGES[name]
    (photos / "train" / "grey" / "0.png").unlink()
    file = photos / "train" / "grey" / f"0{Path(name).suffix}"
    write(file)
    expected = np.broadcast_to(seen[..., None], (*seen.shape, 3)) if seen.ndim == 2 else seen
    assert np.array_equal(read_rgb(file), expected)
    prepared = classifier.prepare(file)
    for kind in KINDS:
        images = opened(photos, "train", kind)
        if kind != "folder" and len(images) < 12:
            continue  # timm and torchvision pass by what has an ending that they do not know
        assert np.array_equal(np.array(images[4][0]), expected), kind
        images.transform = classifier.description.input.transform()
        assert torch.equal(images[4][0], prepared)


def test_cmyk_of_a_jpeg_is_seen_as_pillow_shows_it(photos):
    """Its values are stored inverted, and are lossy: near the colours, not their negative."""
    file = photos / "train" / "grey" / "0.jpg"
    smooth = COLOUR.resize((4, 3)).resize((36, 24))
    smooth.convert("CMYK").save(file, quality=95)
    image = np.array(opened(photos, "train", "folder")[4][0]).astype(int)
    assert abs(image - np.array(smooth)).mean() < 8


# Labels.


def test_labels_are_by_name_where_a_split_lacks_a_class(photos):
    """torchvision and timm number the folders of each split by themselves."""
    for file in (photos / "val" / "dark").iterdir():
        file.unlink()
    (photos / "val" / "dark").rmdir()
    for kind in KINDS:
        assert [label for _, label in opened(photos, "val", kind)] == [1, 1, 2, 2], kind


@pytest.mark.parametrize("kind", KINDS)
def test_a_class_that_was_not_trained(kind, photos):
    (photos / "val" / "grey").rename(photos / "val" / "blue")
    with pytest.raises(UserError, match=r"has class 'blue'.*not among the 2 classes"):
        opened(photos, "val", kind, ["dark", "light"])


def test_labels_of_names_that_are_others(caplog):
    labels = Labels(["n01", "n02"], ["tench", "goldfish"], "hfds/fish")
    assert [labels(n, "x") for n in (0, np.int64(1))] == [0, 1]
    assert "hfds/fish: its classes are taken by their numbers" in caplog.text
    assert Labels([], ["a", "b"], "wds/x")(1, "x") == 1


@pytest.mark.parametrize("label", [-1, 2, None, 1.0, [0, 1]])
def test_a_label_that_is_no_class(label):
    with pytest.raises(UserError, match=r"hfds/x\[3\] has label .*: expected a number from 0 to 1"):
        Labels([], ["a", "b"], "hfds/x")(label, "hfds/x[3]")
