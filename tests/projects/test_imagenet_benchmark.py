"""The benchmark of classifiers against timm's, on small images."""

import csv

from projects.imagenet import benchmark


def test_writes_speed_and_memory_of_both(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "IMAGE_SIZE", 64)
    options = ["--variants", "T", "--rounds", "1", "--batch", "1", "--output", str(tmp_path)]
    assert benchmark.main([*options, "--device", "cpu"]) == 0
    lines = (tmp_path / "speed.csv").read_text().splitlines()
    inference, training = csv.DictReader(line for line in lines if not line.startswith("#"))
    assert (inference["network"], inference["task"]) == ("T", "inference")
    assert float(inference["largest difference"]) < 1e-4
    assert training["task"] == "training step" and float(training["ratio saved"]) < 1
    assert " to " in inference["ours: times as fast"]
    assert "| T " in (tmp_path / "speed.md").read_text()


def test_wrong_options(capsys):
    assert benchmark.main(["--rounds", "0"]) == 2
    assert "--rounds must be at least 1, got 0" in capsys.readouterr().err
