"""Tiles, against what is seen of an image as a whole: by a detector that finds everything."""

import ctypes
import json
import mmap
import sys
from itertools import pairwise
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image
from small_detector import save_detector

from mvitv2_det import UserError
from mvitv2_det.commands import main
from mvitv2_det.predict import Predictor, large_images, read_rgb, tiles
from mvitv2_det.predict.image_predictor import ImagePredictor
from mvitv2_det.predict.large_images import LargeImage
from mvitv2_det.predict.loop import progress
from mvitv2_det.predict.outputs import predicted_masks
from mvitv2_det.predict.stitching import Found, Tile, stitch
from mvitv2_det.predict.tiles import TiledPredictor, Tiling
from mvitv2_det.visualize.instances import resized
from mvitv2_det.visualize.masks import MaskPart

COLORS = np.array([[250, 0, 0], [0, 250, 0]])  # of classes


class Regions:
    """A stand-in for a Predictor: finds regions of one colour, exactly; smaller ones are surer."""

    device, channel_order, classes = torch.device("cpu"), "RGB", ["red", "green"]

    def __init__(self, batch_size=3, masks=True):
        self.batch_size, self.masks, self.seen = batch_size, masks, []

    def prepare_rgb(self, rgb, name=""):
        return rgb

    def infer(self, images):
        assert len(images) <= self.batch_size
        self.seen += [image.shape[:2] for image in images]
        return [self._find(image) for image in images]

    def _find(self, image):
        found = [
            (numbers == number, label)
            for label, color in enumerate(COLORS)
            for count, numbers in [cv2.connectedComponents((image == color).all(2).view(np.uint8))]
            for number in range(1, count)
        ]
        found.sort(key=lambda one: one[0].sum())
        boxes = [cv2.boundingRect(mask.view(np.uint8)) for mask, _ in found]
        boxes = torch.tensor([[x, y, x + w, y + h] for x, y, w, h in boxes]).reshape(-1, 4)
        fields = {
            "pred_boxes": Boxes(boxes.float()),
            "scores": torch.linspace(0.99, 0.5, len(found)),
            "pred_classes": torch.tensor([label for _, label in found], dtype=torch.int64),
        }
        if self.masks:
            masks = [torch.from_numpy(mask) for mask, _ in found]
            fields["pred_masks"] = torch.stack(masks) if masks else torch.zeros(0, *image.shape[:2])
        return Instances(image.shape[:2], **fields)


def scene(height, width, count, radii, seed=0):
    """(height, width, 3) with ellipses of two colours that do not touch each other."""
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width, 3), np.uint8)
    for _ in range(count):
        center = rng.integers(0, (width, height)).tolist()
        axes = rng.integers(*radii, 2).tolist()
        angle = float(rng.uniform(0, 180))
        around = np.zeros((height, width), np.uint8)
        cv2.ellipse(around, center, [axis + 3 for axis in axes], angle, 0, 360, 1, -1)
        if not image[around > 0].any():
            color = COLORS[rng.integers(2)].tolist()
            cv2.ellipse(image, center, axes, angle, 0, 360, color, -1)
    return image


def described(instances):
    """What was found, in any order."""
    masks = predicted_masks(instances)
    shapes = [json.dumps(MaskPart.of_segmentation(mask, 0, 0).rle(999, 999)) for mask in masks]
    boxes = instances.pred_boxes.tensor.tolist()
    shapes = shapes or [""] * len(boxes)
    found = zip(instances.pred_classes.tolist(), boxes, shapes, strict=True)
    return sorted((label, *box, shape) for label, box, shape in found)


@pytest.mark.parametrize(
    ("radii", "tiles", "masks"),
    [
        ((3, 8), "64:20", False),  # whole in some tile
        ((3, 8), "64:20", True),
        ((3, 8), "64:3", True),  # cut by most edges
        ((3, 8), "50:30", True),  # seen by many tiles
        ((12, 60), "40:10", True),  # larger than overlaps, and some than tiles
        ((12, 60), "190", True),
    ],
)
def test_tiles_find_what_the_whole_image_shows(radii, tiles, masks):
    for seed in range(3):
        image = scene(140, 190, 40, radii, seed)
        model = Regions(masks=masks)
        found = TiledPredictor(model, Tiling.parse(tiles))(image)
        expected = model.infer([image])[0]
        assert found.image_size == (140, 190)
        assert len(expected) > 3
        assert described(found) == described(expected)
        assert (found.scores.diff() <= 0).all()


def test_tiles_cover_an_image_evenly():
    for height, width in ((100, 100), (99, 301), (1000, 64), (65, 64), (257, 1024)):
        tiles = Tiling(64, 16).tiles(height, width)
        covered = np.zeros((height, width), int)
        for top, left, bottom, right in tiles:
            assert (bottom - top, right - left) == (min(64, height), 64)
            covered[top:bottom, left:right] += 1
        assert covered.min() == 1
        lefts = sorted({tile.left for tile in tiles})
        assert all(a + 64 - b >= 16 for a, b in pairwise(lefts))
        assert lefts[-1] + 64 == width
    assert Tiling(64, 16).tiles(64, 64) == [Tile(0, 0, 64, 64)]
    assert len(Tiling(64, 16).tiles(64, 112)) == 2


@pytest.mark.parametrize("text", ["", "0", "64:64", "64:", "-5", "64:1:2", "a", "1.5"])
def test_tiles_that_are_none(text):
    with pytest.raises(UserError, match=r"--tiles must be|tiles must have"):
        Tiling.parse(text)


def part(tile, box, score, masks=True):
    left, top, right, bottom = box
    mask = [MaskPart(top, left, np.ones((bottom - top, right - left), np.uint8)).packed()]
    arrays = np.array([box], np.float32), np.array([score], np.float32), np.array([0])
    return Found(tile, *arrays, mask if masks else None)


LEFT, RIGHT = Tile(0, 0, 100, 100), Tile(0, 60, 100, 160)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        # Whole in both: the surer.
        ((70, 10, 90, 30), (71, 10, 91, 30), [(71, 10, 91, 30)]),
        # Neighbours, which NMS by intersection over the smaller would mistake.
        ((62, 10, 78, 30), (76, 10, 92, 30), [(76, 10, 92, 30), (62, 10, 78, 30)]),
        # A small one within a large one that the other tile cuts.
        ((70, 10, 80, 20), (60, 0, 150, 90), [(60, 0, 150, 90), (70, 10, 80, 20)]),
        # Cut on the left, whole on the right: the whole one.
        ((80, 10, 100, 30), (82, 10, 120, 30), [(82, 10, 120, 30)]),
        # Cut in both: united.
        ((20, 10, 100, 30), (60, 11, 140, 31), [(20, 10, 140, 31)]),
    ],
)
@pytest.mark.parametrize("masks", [True, False])
def test_what_two_tiles_see(first, second, expected, masks):
    found = [part(LEFT, first, 0.6, masks), part(RIGHT, second, 0.8, masks)]
    together = stitch(found, (100, 160))
    assert [tuple(map(int, box)) for box in together.boxes] == expected
    assert together.scores[0] == np.float32(0.8)
    if masks:
        bounds = cv2.boundingRect(together.masks[0].part().within(0, 0, 100, 160))
        left, top, right, bottom = expected[0]
        assert bounds == (left, top, right - left, bottom - top)


def test_one_tile_may_find_the_same_twice():
    twice = part(LEFT, (10, 10, 30, 30), 0.9)
    twice = Found(
        LEFT,
        *(np.repeat(getattr(twice, name), 2, 0) for name in ("boxes", "scores", "classes")),
        twice.masks * 2,
    )
    empty = Found(
        RIGHT, np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, int), []
    )
    assert len(stitch([twice, empty], (100, 160)).scores) == 2


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    return save_detector(tmp_path_factory.mktemp("detector"))


@pytest.fixture
def photo(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (40, 70, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_one_tile_is_plain_prediction(detector, photo, tmp_path):
    """Exactly: the same files, but for the overlay's compression, which is the same, too."""
    options = ["--config", detector.config, "--weights", detector.weights, "--device", "cpu"]
    options += ["--score-threshold", "0.05", str(photo), "--output"]
    assert main(["predict", *options, str(tmp_path / "plain")]) == 0
    assert main(["predict", *options, str(tmp_path / "tiles"), "--tiles", "70"]) == 0
    assert main(["predict", *options, str(tmp_path / "more"), "--tiles", "40:10"]) == 0
    for file in ("results.json", "images.json", "overlays/photo.png"):
        plain, tiles, more = (
            (tmp_path / folder / file).read_bytes() for folder in ("plain", "tiles", "more")
        )
        assert plain == tiles
        assert (plain == more) == (file == "images.json")
    assert len(json.loads((tmp_path / "plain" / "results.json").read_text())) > 3


def test_arrays_in_either_order_of_colours(detector, photo):
    rgb = read_rgb(photo)
    found = [
        TiledPredictor(
            Predictor(detector.config, detector.weights, device="cpu", channel_order=order),
            Tiling(40, 10),
        )(np.ascontiguousarray(image))
        for order, image in (("RGB", rgb), ("BGR", rgb[:, :, ::-1]))
    ]
    assert len(found[0]) > 3 and torch.equal(found[0].scores, found[1].scores)


@pytest.mark.parametrize(
    ("name", "mode", "exif"),
    [
        ("a.png", "RGB", 1),
        ("a.jpg", "RGB", 6),
        ("a.tif", "I;16", 1),
        ("a.png", "P", 1),
        ("a.jpg", "CMYK", 1),
        ("a.png", "LA", 1),
        ("a.bmp", "L", 1),
    ],
)
def test_parts_of_files_are_those_of_the_image(tmp_path, monkeypatch, name, mode, exif):
    pixels = np.random.default_rng(0).integers(0, 255, (31, 47, 3), dtype=np.uint8)
    image = (
        Image.fromarray(pixels).convert(mode)
        if mode != "I;16"
        else Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 257)
    )
    tags = Image.Exif()
    tags[0x0112] = exif
    image.save(tmp_path / name, **({"exif": tags} if exif != 1 else {}))
    whole, large = read_rgb(tmp_path / name), LargeImage(tmp_path / name)
    assert large.shape == whole.shape
    assert (large.part(3, 5, 20, 29) == whole[3:20, 5:29]).all()
    assert (large.at_scale(1) == whole).all()
    assert large.at_scale(3).shape == (3 * whole.shape[0], 3 * whole.shape[1], 3)
    monkeypatch.setattr(large_images, "_ROWS", 5)
    rows = len(whole) // 10 * 10
    assert (large.at_scale(0.5)[: rows // 2] == resized(whole[:rows], 0.5)).all()


def test_files_of_more_pixels_than_pillow_takes(tmp_path, monkeypatch):
    Image.new("L", (50, 50)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UserError, match="--tiles"):
        read_rgb(tmp_path / "a.png")
    assert LargeImage(tmp_path / "a.png").part(0, 0, 2, 2).shape == (2, 2, 3)
    assert Image.MAX_IMAGE_PIXELS == 1000


def test_broken_files_are_named(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    for file in ("a.png", "none.png"):
        with pytest.raises(UserError, match=file):
            LargeImage(tmp_path / file)


def test_what_cannot_be_put_together_is_refused():
    model = Regions()
    plain = model.infer
    image = scene(100, 100, 5, (5, 9))

    def with_keypoints(images):
        found = plain(images)
        for one in found:
            one.pred_keypoints = torch.zeros(len(one), 17, 3)
        return found

    model.infer = with_keypoints
    with pytest.raises(UserError, match="pred_keypoints"):
        TiledPredictor(model, Tiling(64, 16))(image)


def test_an_interrupt_ends_a_large_image():
    model = Regions(batch_size=1)
    predictor = TiledPredictor(model, Tiling(64, 16))
    assert isinstance(predictor, ImagePredictor)
    predictor.should_stop = lambda: len(model.seen) == 2
    with pytest.raises(KeyboardInterrupt):
        predictor(scene(200, 200, 5, (5, 9)))
    assert len(model.seen) == 2


def test_tiles_of_a_batch_are_seen_together():
    model, calls = Regions(batch_size=4), []
    spy = SimpleNamespace(
        device=model.device,
        channel_order="RGB",
        classes=[],
        batch_size=4,
        prepare_rgb=model.prepare_rgb,
        infer=lambda images: calls.append(len(images)) or model.infer(images),
    )
    TiledPredictor(spy, Tiling(64, 16))(scene(160, 160, 5, (5, 9)))
    assert calls == [4, 4, 1]


def test_free_memory_is_given_back(monkeypatch):
    """In the heap between what is kept, as large images need it: every four batches."""
    if not (sys.platform == "linux" and hasattr(ctypes.CDLL(None), "malloc_trim")):
        pytest.skip("the C library is not glibc")
    kept = [np.ones(12_500) for _ in range(1000)][::10]  # 100 MB, of which 10 are kept
    before = resident()
    tiles._trim_heap()
    assert resident() < before - 50e6 and len(kept) == 100
    calls = []
    monkeypatch.setattr(tiles, "_trim_heap", lambda: calls.append(1))
    TiledPredictor(Regions(batch_size=1), Tiling(64, 16))(scene(160, 160, 5, (5, 9)))
    assert len(calls) == 3  # of 9 batches


def resident() -> int:
    """Bytes that this process has in memory."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * mmap.PAGESIZE


def test_bars_in_a_log_file_have_no_escape_codes(capsys):
    with progress(2, "image") as images:
        for _ in range(2):
            with progress(3, "tile", is_part=True) as parts:
                parts.update(3)
            images.update()
    shown = capsys.readouterr().err
    assert "2/2" in shown and "0/3" in shown
    assert "\x1b" not in shown
