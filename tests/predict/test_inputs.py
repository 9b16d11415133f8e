import cv2
import numpy as np
import pytest
from PIL import Image

from mvitv2_det import UserError
from mvitv2_det.predict.inputs import find_sources


@pytest.fixture
def folder(tmp_path):
    """Two folders with images of the same names, other files, and a folder in one of them."""
    for name in ("a/1.png", "a/2.PNG", "a/in/3.png", "b/1.png", "b/[4].png"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    for name in ("a/notes.txt", "a/._1.png", "a/clip.mp4"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "empty").mkdir()
    return tmp_path


def names(*inputs):
    return [source.name for source in find_sources(list(map(str, inputs)))]


def test_files_folders_and_patterns(folder, monkeypatch):
    assert names(folder / "b" / "1.png") == ["1.png"]
    assert names(folder / "a") == ["1.png", "2.PNG", "clip.mp4"]
    assert names(folder / "a" / "*.png") == ["1.png"]
    assert names(folder / "a" / "**") == ["1.png", "2.PNG", "clip.mp4", "in/3.png"]
    assert names(folder / "b" / "[4].png", folder / "b" / "[0-9].png") == ["[4].png", "1.png"]
    assert names(folder / "a" / "notes.txt") == ["notes.txt"]  # named: tried as an image
    monkeypatch.chdir(folder)
    assert names("a/1.png", folder / "a") == ["1.png", "2.PNG", "clip.mp4"]  # each once
    assert names("a", "b/1.png") == ["a/1.png", "a/2.PNG", "a/clip.mp4", "b/1.png"]


def test_links_keep_their_names(folder):
    (folder / "links").mkdir()
    (folder / "links" / "x.png").symlink_to(folder / "a" / "1.png")
    (folder / "links" / "y.png").symlink_to(folder / "b" / "1.png")
    assert names(folder / "links") == ["x.png", "y.png"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("none.png", r"there is no image, video or folder '.*none\.png'"),
        ("empty", r"no image or video directly in folder .*empty"),
        ("a/*.jpg", r"no image or video matches '.*\*\.jpg'"),
    ],
)
def test_nothing_to_predict_on(text, words, folder):
    with pytest.raises(UserError, match=words):
        find_sources([str(folder / text)])


def write_video(file, frames, fps=10.0):
    code = cv2.VideoWriter_fourcc(*"mp4v")
    writer = cv2.VideoWriter(str(file), code, fps, (64, 48))
    for frame in frames:
        writer.write(frame[:, :, ::-1])
    writer.release()


def test_video(tmp_path):
    frames = [np.full((48, 64, 3), (200, 20 * index, 0), np.uint8) for index in range(6)]
    write_video(tmp_path / "clip.mp4", frames)
    (source,) = find_sources([str(tmp_path)])
    assert source.is_video and source.count() == 6 and source.frames_per_second() == 10
    found = list(source.images())
    assert len(found) == 6
    for frame, expected in zip(found, frames, strict=True):
        assert frame.dtype == np.uint8
        assert np.abs(frame.astype(int) - expected).max() < 12  # of a codec with losses; RGB


def test_videos_that_cannot_be_read(tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    (source,) = find_sources([str(tmp_path / "text.mp4")])
    assert source.count() == 0
    with pytest.raises(UserError, match=r"cannot read video .*text\.mp4: it is missing"):
        list(source.images())
    noise = np.random.default_rng(0).integers(0, 255, (40, 48, 64, 3), dtype=np.uint8)
    code = cv2.VideoWriter_fourcc(*"MJPG")
    writer = cv2.VideoWriter(str(tmp_path / "cut.avi"), code, 10.0, (64, 48))
    for frame in noise:
        writer.write(frame)
    writer.release()
    whole = (tmp_path / "cut.avi").read_bytes()
    (tmp_path / "cut.avi").write_bytes(whole[: len(whole) // 2])
    (source,) = find_sources([str(tmp_path / "cut.avi")])
    frames = []
    with pytest.raises(UserError, match=r"cannot read video .*cut\.avi to its end: \d+ of its 40"):
        frames.extend(source.images())
    assert 10 < len(frames) < 30
