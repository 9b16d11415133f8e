"""The benchmark of the backbone, on small images: what it compares, and what it writes."""

import csv

import pytest
import torch

from projects.backbone_benchmark import loss_curves, networks, run, scaling, stages
from projects.backbone_benchmark.networks import Setting
from projects.backbone_benchmark.scaling import Point

SMALL = Setting("T", (64, 96), 1, "fp32", "cpu")


def test_speed_of_equal_networks(tmp_path, capsys):
    arguments = ["--variants", "T", "--sizes", "64x96", "--rounds", "1", "--timm"]
    assert run.main([*arguments, "--device", "cpu", "--output", str(tmp_path)]) == 0
    folder = tmp_path / "cpu_fp32_batch1"
    lines = (folder / "speed.csv").read_text().splitlines()
    head = [line for line in lines if line.startswith("#")]
    assert any("python projects/backbone_benchmark/run.py --variants T" in line for line in head)
    rows = {row["network"]: row for row in csv.DictReader(lines[len(head) :])}
    assert set(rows) == {"Detectron2", "ours", "timm", "ours, without windows as timm"}
    assert float(rows["ours"]["largest difference"]) < 1e-4
    assert float(rows["ours"]["of the base's"]) < 1
    assert rows["ours, without windows as timm"]["compared with"] == "timm"
    assert "×" in (folder / "speed.md").read_text()
    assert (folder / "speed.png").stat().st_size > 1000
    assert "| ours " in capsys.readouterr().out


def test_ours_without_windows_computes_what_timm_does():
    setting = Setting("T", (64, 64), 1, "fp32", "cpu")
    theirs = networks.timm_network(setting)
    ours = networks.our_network(
        setting, networks.detectron2_network(setting), "auto", **networks.AS_TIMM
    )
    shapes = [
        {name: feature.shape for name, feature in networks.inference(model, setting)().items()}
        for model in (theirs, ours)
    ]
    assert shapes[0] == shapes[1]


def test_floors_of_stages():
    """Products counted by hand in one stage; no time below its floor."""
    measured = stages.measure(SMALL, rounds=1, report=lambda line: None)
    assert [stage.name for stage in measured] == [
        stages.PATCHES,
        *(f"scale{s}" for s in range(2, 6)),
    ]
    patches = measured[0]
    assert patches.multiply_adds == 16 * 24 * 96 * 3 * 7 * 7
    tokens, weights = 16 * 24 * 96, 96 * 3 * 49 + 96
    assert patches.bytes == 4 * (3 * 64 * 96 + tokens + weights)
    for stage in measured:
        assert set(stage.seconds) == {"Detectron2", "ours"}
        assert all(seconds > 0.5 * stage.floor for seconds in stage.seconds.values())


def test_exponent_of_a_power_law():
    points = [Point("ours", side, None, round(1000 * side**2.5)) for side in (448, 640, 1024)]
    assert scaling.exponent(points, "ours", "peak") == pytest.approx(1.25, abs=1e-3)


def test_scaling_measures_both_networks():
    points = scaling.measure(SMALL, 1, sides=(32, 64), report=lambda line: None)
    assert [(p.network, p.side) for p in points] == [
        ("Detectron2", 32), ("ours", 32), ("Detectron2", 64), ("ours", 64)
    ]  # fmt: skip
    assert all(point.peak > 0 and point.seconds.spread.median > 0 for point in points)


def test_losses_stay_together():
    """Before rounding is amplified, both backbones train alike, and training changes the loss."""
    losses = loss_curves.measure(4, report=lambda line: None).losses
    base, _, ours = losses.values()
    assert ours == pytest.approx(base, rel=1e-4)
    assert len(set(base)) == 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--sizes", "800"], "must be like 800x1088, got '800'"),
        (["--sizes", "16x64"], "at least 32x32, got '16x64'"),
        (["--rounds", "0"], "--rounds must be at least 1, got 0"),
        (["--precision", "fp16", "--device", "cpu"], "fp16 needs a GPU"),
    ],
)
def test_what_cannot_be_measured_is_said_in_a_line(arguments, words, capsys, tmp_path):
    assert run.main([*arguments, "--output", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and words in error and "Traceback" not in error


@pytest.mark.gpu
def test_on_a_gpu(tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    arguments = ["--variants", "T", "--sizes", "64x96", "--rounds", "1", "--precision", "bf16"]
    assert run.main([*arguments, "--output", str(tmp_path)]) == 0
