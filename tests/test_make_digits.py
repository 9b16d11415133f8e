"""The demo's data set: exact, split by digit image, the same for the same seed."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from scripts import load_script

from mvitv2_det.data.coco_format import check_coco_data

pytest.importorskip("sklearn")

SMALL = ["--train-images", "12", "--val-images", "6", "--image-size", "96"]


make_digits = load_script("tools/make_digits.py")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("digits") / "made"
    assert make_digits.main(["--output", str(output), *SMALL]) == 0
    return output


def read(folder: Path, split: str) -> dict:
    return json.loads((folder / f"{split}.json").read_text())


def masks_of(content: dict) -> dict[int, list[tuple[dict, np.ndarray]]]:
    """Annotations and their masks, by image."""
    by_image = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        mask = coco_mask.decode(annotation["segmentation"]).astype(bool)
        by_image[annotation["image_id"]].append((annotation, mask))
    return by_image


def test_training_accepts_it(dataset):
    summaries = [
        check_coco_data(str(dataset / f"{split}.json"), str(dataset / split))
        for split in ("train", "val")
    ]
    assert summaries[0].categories == summaries[1].categories
    assert list(summaries[0].categories.values()) == [str(digit) for digit in range(10)]
    assert summaries[0].has_masks and summaries[0].has_rle


def test_no_digit_image_is_in_both_splits(dataset):
    used = {
        split: {a["digit_index"] for a in read(dataset, split)["annotations"]}
        for split in ("train", "val")
    }
    assert used["train"] and used["val"]
    assert not used["train"] & used["val"]


def test_the_split_covers_every_digit_image_and_class_once():
    targets = np.repeat(np.arange(10), 30)
    split = make_digits.split_digits(targets, np.random.default_rng(0))
    both = np.concatenate([split["train"], split["val"]])
    assert sorted(both) == list(range(300))
    assert np.bincount(targets[split["val"]]).tolist() == [6] * 10


def test_no_piece_of_a_photograph_is_in_both_splits():
    photograph = np.arange(4 * 30).reshape(4, 30, 1).repeat(3, axis=2)
    split = make_digits.split_photographs([photograph])
    pieces = [set(split[name][0][..., 0].flat) for name in ("train", "val")]
    assert not pieces[0] & pieces[1]
    assert len(pieces[0] | pieces[1]) == 4 * 30


def test_the_class_is_that_of_the_digit_image(dataset):
    from sklearn.datasets import load_digits

    targets = load_digits().target
    for annotation in read(dataset, "val")["annotations"]:
        assert annotation["category_id"] == targets[annotation["digit_index"]] + 1


@pytest.mark.parametrize("split", ["train", "val"])
def test_boxes_and_areas_are_those_of_the_visible_masks(dataset, split):
    for instances in masks_of(read(dataset, split)).values():
        for annotation, mask in instances:
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            x, y = columns[0], rows[0]
            assert annotation["bbox"] == [x, y, columns[-1] + 1 - x, rows[-1] + 1 - y]
            assert annotation["area"] == mask.sum() > 0
            assert annotation["iscrowd"] == 0
        # What one digit hides of another belongs to one of them.
        assert sum(mask for _, mask in instances).max() <= 1


def test_masks_are_where_the_digits_are_drawn(dataset):
    """Within a mask the picture is the digit's colour: pixels in it differ less than around it."""
    content = read(dataset, "train")
    for image in content["images"]:
        pixels = np.asarray(Image.open(dataset / "train" / image["file_name"]), dtype=float)
        for annotation, mask in masks_of(content)[image["id"]]:
            x, y, width, height = (int(side) for side in annotation["bbox"])
            box = np.zeros_like(mask)
            box[y : y + height, x : x + width] = True
            inside, around = pixels[mask], pixels[box & ~mask]
            if len(around) > 50:
                assert np.abs(inside.mean(axis=0) - around.mean(axis=0)).max() > 20


def test_the_same_seed_makes_the_same_files(dataset, tmp_path):
    for name, seed in (("same", "0"), ("other", "1")):
        make_digits.main(["--output", str(tmp_path / name), *SMALL, "--seed", seed])
    first = {path.relative_to(dataset): path.read_bytes() for path in dataset.rglob("*.*")}
    for path, content in first.items():
        assert (tmp_path / "same" / path).read_bytes() == content
    assert (tmp_path / "other" / "train.json").read_bytes() != first[Path("train.json")]


def test_a_complete_set_is_kept_and_another_replaced(tmp_path, capsys):
    output = tmp_path / "made"
    arguments = ["--output", str(output), "--val-images", "2", "--image-size", "64"]
    make_digits.main([*arguments, "--train-images", "3"])
    first_made = (output / "train.json").stat().st_mtime_ns
    capsys.readouterr()

    assert make_digits.main([*arguments, "--train-images", "3"]) == 0
    assert "is there already" in capsys.readouterr().out
    assert (output / "train.json").stat().st_mtime_ns == first_made

    (output / "train" / "00001.jpg").unlink()
    make_digits.main([*arguments, "--train-images", "3"])
    assert (output / "train" / "00001.jpg").is_file()

    make_digits.main([*arguments, "--train-images", "4"])
    assert len(read(output, "train")["images"]) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--train-images", "0"], "--train-images must be at least 1, got 0"),
        (["--image-size", "20"], "--image-size must be at least 64, got 20"),
        (["--seed", "-1"], "--seed must be at least 0, got -1"),
    ],
)
def test_numbers_out_of_range_are_refused(tmp_path, capsys, arguments, words):
    assert make_digits.main(["--output", str(tmp_path / "made"), *arguments]) == 2
    assert capsys.readouterr().err == f"error: {words}\n"


def test_a_folder_of_other_files_is_left_alone(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("the only copy")
    assert make_digits.main(["--output", str(tmp_path), *SMALL]) == 2
    assert "holds other files: name a new or empty folder" in capsys.readouterr().err
    assert (tmp_path / "thesis.txt").read_text() == "the only copy"


def test_a_file_is_no_output_folder(tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("")
    assert make_digits.main(["--output", str(file), *SMALL]) == 2
    assert "is a file: name a folder" in capsys.readouterr().err


def test_an_output_that_cannot_be_written_is_named(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert make_digits.main(["--output", str(tmp_path / "file" / "made"), *SMALL]) == 2
    assert "cannot write --output" in capsys.readouterr().err
