"""Tools that write videos: moving digits, and silhouettes of walkers."""

import numpy as np
import pytest
from scripts import load_script

from mvitv2_det.video import open_video

pytest.importorskip("av")


def test_backwards_a_clip_is_one_of_the_other_class():
    script = load_script("tools/make_moving_digits.py")
    digit, photograph = np.full((8, 8), 16.0), np.full((64, 64, 3), 90, np.uint8)
    right, left = (
        script.make_clip(digit, [photograph], name, np.random.default_rng(3))
        for name in ("right", "left")
    )
    np.testing.assert_array_equal(right, left[::-1])
    columns = [frame.mean(axis=(0, 2)) for frame in right]
    places = [int(np.argmax(column > 40)) for column in columns]
    assert places == sorted(places) and places[-1] - places[0] >= 9


def test_moving_digits(tmp_path, monkeypatch, capsys):
    pytest.importorskip("sklearn.datasets")
    script = load_script("tools/make_moving_digits.py")
    monkeypatch.setattr(script, "COUNTS", {"train": 4, "val": 2})
    output = tmp_path / "digits"
    assert script.main(["--output", str(output)]) == 0
    files = sorted(str(file.relative_to(output)) for file in output.glob("*/*/*.mp4"))
    assert files == [
        "train/left/0000.mp4", "train/left/0002.mp4", "train/right/0001.mp4",
        "train/right/0003.mp4", "val/left/0000.mp4", "val/right/0001.mp4",
    ]  # fmt: skip
    with open_video(output / files[0]) as video:
        assert (len(video), video.size, video.fps) == (16, (32, 32), pytest.approx(30))
    assert script.main(["--output", str(output)]) == 0  # they are there
    (output / files[0]).unlink()
    assert script.main(["--output", str(output)]) == 2
    assert "holds something else" in capsys.readouterr().err


def test_gait(tmp_path, capsys):
    script = load_script("tools/make_gait_videos.py")
    clips = np.random.default_rng(0).integers(0, 2, (3, 10, 32, 22), dtype=np.uint8)
    clips[:, :, ::2] = clips[:, :, 1::2]
    source, output = tmp_path / "gait.npz", tmp_path / "gait"
    labels = np.array([5, 0, 5], np.int16)
    np.savez(source, train_clips=clips, train_labels=labels, val_clips=clips[:1], val_labels=[5])
    assert script.main([str(source), "--output", str(output)]) == 0
    with open_video(output / "train" / "05" / "0002.mp4") as video:
        frames = video.frames(range(10))
    assert ((frames[..., 0] > 127) == clips[2]).mean() > 0.99
    assert script.main([str(source), "--output", str(output)]) == 2
    assert "exists: name a new folder" in capsys.readouterr().err
    source.write_bytes(b"no zip")
    assert script.main([str(source), "--output", str(tmp_path / "x")]) == 2
    assert "cannot read clips and labels" in capsys.readouterr().err
