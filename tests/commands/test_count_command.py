"""mvitv2-det count as its users call it, in process."""

import pytest

from mvitv2_det.commands import main
from mvitv2_det.config import config_files


def test_prints_parts_and_total(capsys):
    file = str(config_files()["mask_rcnn_mvitv2_t_3x"])
    assert main(["count", "mask_rcnn_mvitv2_t_3x", file]) == 0
    printed = capsys.readouterr().out
    assert printed.count("800×1280 pixels, 1000 proposals, 100 detections") == 2
    rows = [line.split() for line in printed.splitlines() if line.startswith("total")]
    assert rows == [["total", "278.25", "278.25", "43.680"]] * 2


def test_takes_all_numbers(capsys):
    numbers = ["--image-size", "64", "96", "--proposals", "7", "--detections", "3"]
    assert main(["count", "mask_rcnn_mvitv2_t_3x", *numbers]) == 0
    assert "64×96 pixels, 7 proposals, 3 detections" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["mask_rcnn_mvitv2_x_3x"], "error: there is no config 'mask_rcnn_mvitv2_x_3x'"),
        (["missing.py"], "error: there is no config file 'missing.py'"),
        (["mask_rcnn_mvitv2_t_3x", "--proposals", "0"], "error: proposals must be at least 1"),
        ([], "error: name one config or more, or give --all alone"),
        (["--all", "mask_rcnn_mvitv2_t_3x"], "error: name one config or more, or give --all alone"),
    ],
)
def test_mistakes_are_one_line(capsys, arguments, words):
    assert main(["count", *arguments]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(words)
    assert printed.count("\n") == 1
