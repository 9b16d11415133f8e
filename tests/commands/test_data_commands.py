"""mvitv2-det check and convert-data as their users call them, in process."""

import json

import pytest
import samples
from PIL import Image

from mvitv2_det.commands import main


def test_check_prints_what_data_hold_and_draws_samples(tmp_path, capsys):
    folder = samples.coco(tmp_path / "data")
    output = tmp_path / "checked"
    file = folder / "annotations/instances_val.json"
    assert main(["check", str(file), "--output", str(output), "--samples", "1"]) == 0
    said = capsys.readouterr().out
    assert "instances_val: 2 images, 0 of them without an instance; 4 of 4 instances" in said
    rows = [line.split() for line in said.splitlines()]
    assert ["class", "small", "medium", "large", "all", "crowds"] in rows
    assert ["box", "2", "0", "0", "2", "0"] in rows and ["all", "4", "0", "0", "4", "0"] in rows
    assert "nothing is wrong" in said
    drawn = Image.open(output / "samples_instances_val.png").convert("RGB")
    assert len(drawn.getcolors(2**24)) > 1000
    assert (output / "faults.txt").read_text() == ""


def test_check_puts_every_fault_of_the_trial_on_one_page(tmp_path, capsys):
    folder = samples.with_every_fault(tmp_path / "data")
    arguments = ["check", str(folder), "--output", str(tmp_path / "out"), "--samples", "0"]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    for words in (
        "1 annotations have polygons of fewer than three points alone (the first is '1'): left out",
        "have an 'iscrowd' that is False, a polygon of fewer than three points (the first is '2'):",
        "1 annotations have an empty 'segmentation' (the first is '3'): left out",
        "annotations have a box that is partly outside of the image (the first is '4'): put right",
        "3 categories have ids that are texts",
        "category 'things' groups others and has no instance: left out",
        "val.json has no instance of 1 of 2 categories, which cannot be evaluated: 'plate'",
    ):
        assert words in said
    assert main([*arguments, "--odd", "refuse"]) == 2
    said = capsys.readouterr().out
    listed = (tmp_path / "out" / "faults.txt").read_text().splitlines()
    assert f"{len(listed)} faults, listed in" in said
    assert sum("train.json: annotation '1' has polygons of fewer" in line for line in listed) == 1


def test_check_lists_all_that_is_wrong(tmp_path, capsys):
    folder = samples.coco(tmp_path / "data")
    file = folder / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    for one in content["annotations"][:5]:
        one["category_id"] = 9
    content["images"][3]["file_name"] = "none.png"
    file.write_text(json.dumps(content))
    arguments = ["check", str(file), "--images", str(folder / "images/train"), "--samples", "0"]
    arguments += ["--output", str(tmp_path / "out")]
    assert main(arguments) == 2
    said = capsys.readouterr().out
    listed = (tmp_path / "out" / "faults.txt").read_text().splitlines()
    assert len(listed) == 6 and "6 faults, listed in" in said
    assert "cannot read image" in listed[0] and "annotation 5 is of category 9" in listed[-1]
    assert main([*arguments, "--odd", "drop"]) == 0
    said = capsys.readouterr().out
    assert "6 wrong records are left out (the first: " in said
    assert "3 images, " in said


def test_convert_data_writes_what_training_takes(tmp_path, capsys):
    folder = samples.voc_traced(tmp_path / "data")
    output = tmp_path / "coco"
    arguments = ["convert-data", str(folder), str(output), "--val-share", "0.5", "--seed", "1"]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "format voc" in said and "2 of 4 images are it, drawn by the seed 1" in said
    overrides = dict(word.split("=") for word in said.splitlines()[-1].split()[2:])
    assert overrides["dataset.train_json"] == str(output / "train.json")
    assert overrides["dataset.val_images"] == str(folder)
    first = (output / "val.json").read_text()
    assert main(arguments) == 0
    assert (output / "val.json").read_text() == first
    assert len(json.loads(first)["images"]) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["convert-data", "none", "out"], "there is no"),
        (["check", "none", "--odd", "fix"], "must be repair, drop, refuse, got 'fix'"),
        (["check", "none", "--samples", "-1"], "--samples must be 0 or more"),
    ],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1


def test_convert_data_does_not_write_over_its_source(tmp_path, capsys):
    folder = samples.coco(tmp_path / "data")
    train = folder / "annotations" / "instances_train.json"
    train.rename(train.with_name("train.json"))
    assert main(["convert-data", str(folder), str(folder / "annotations")]) == 2
    assert "is the data themselves: name another folder" in capsys.readouterr().err
