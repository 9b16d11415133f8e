"""The tutorial's commands, as they stand in it, with less data and smaller networks."""

import json
import re
import shlex

import pytest
from conftest import tiny_overrides
from scripts import ROOT, load_script

from mvitv2_det import get_config
from mvitv2_det.commands import main

pytest.importorskip("sklearn")

TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")

SHORT = [
    "train.max_iter=2",
    "train.eval_period=0",
    "dataloader.train.total_batch_size=2",
    "dataloader.train.num_workers=0",
    "dataloader.test.num_workers=0",
    "train.log_period=1",
]

# Appended to the commands that start so: of two values for an option, the last one counts.
SMALLER = {
    "python tools/make_digits.py": [
        "--train-images",
        "6",
        "--val-images",
        "3",
        "--image-size",
        "96",
    ],
    "mvitv2-det train --config-file demo": SHORT,
    "mvitv2-det train --config-file mask_rcnn_mvitv2_t_3x": [
        *tiny_overrides(get_config("mask_rcnn_mvitv2_t_3x")),
        *SHORT,
    ],
    "mvitv2-det train --config-file output/digits/config.yaml --eval-only": [],
    "mvitv2-det draw": [],
    # Two iterations teach nothing: whatever is found.
    "mvitv2-det predict": ["--score-threshold", "0.01"],
    "mvitv2-det train --eval-only": [],
    "mvitv2-det export --config output/digits/config.yaml --weights output/digits/model_final.pth "
    "--part detector": [],
    # ONNX takes half a minute here; test_export.py exports to it.
    "mvitv2-det export --config output/digits/config.yaml --weights output/digits/model_final.pth "
    "--part backbone": ["--format", "torchscript"],
    "mvitv2-det look-inside": [],
}


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", TUTORIAL, re.DOTALL | re.MULTILINE)


def commands():
    """The words of every command in the bash blocks."""
    lines = [line for block in blocks("bash") for line in block.replace("\\\n", " ").splitlines()]
    words = [shlex.split(line, comments=True) for line in lines]
    return [command for command in words if command]


def call(arguments):
    """Runs a command in this process, which has the libraries loaded; returns its status."""
    if arguments[0] == "mvitv2-det":
        return main(arguments[1:])
    assert arguments[0] == "python"
    return load_script(arguments[1]).main(arguments[2:])


@pytest.fixture
def folder(tmp_path, monkeypatch, fresh_loggers):
    """A working folder in which the checkout's tools are found as in the checkout."""
    (tmp_path / "tools").symlink_to(ROOT / "tools")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.long
def test_commands_in_their_order(folder):
    left = dict(SMALLER)
    for arguments in commands():
        line = shlex.join(arguments)
        (start,) = [start for start in left if line.startswith(start)]
        assert call([*arguments, *left.pop(start)]) == 0, line
    assert not left
    for block in blocks("python"):
        exec(compile(block, "docs/tutorial.md", "exec"), {})
    digits = folder / "output" / "digits"
    made = {str(path.relative_to(digits)) for path in digits.rglob("*")}
    assert {"model_final.pth", "curves.png", "gallery.png"} <= made
    assert {f"found/overlays/0000{number}.jpg" for number in (1, 2, 3)} <= made
    assert {"detector.pt", "backbone.onnx", "inside/attention_block_2.png"} <= made
    content = json.loads((digits / "found" / "images.json").read_text())
    assert [category["name"] for category in content["categories"]] == list("0123456789")
    assert json.loads((digits / "found" / "results.json").read_text())


def test_its_json_is_coco(tmp_path):
    """The example of the format passes the check that training makes."""
    from PIL import Image

    from mvitv2_det.data.coco_format import check_coco_data

    (block,) = blocks("json")
    (tmp_path / "train.json").write_text(block)
    (tmp_path / "train").mkdir()
    Image.new("RGB", (640, 480)).save(tmp_path / "train" / "00001.jpg")
    summary = check_coco_data(str(tmp_path / "train.json"), str(tmp_path / "train"))
    assert summary.has_masks and summary.categories == {1: "cat", 2: "dog"}


def test_its_links_and_options_exist(capsys):
    with pytest.raises(SystemExit):
        main(["predict", "--help"])
    text = capsys.readouterr().out
    options = set(re.findall(r"^\| `(--[a-z-]+)", TUTORIAL, re.MULTILINE))
    assert len(options) > 4 and all(option in text for option in options)
