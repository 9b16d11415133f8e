"""Frames are those that PyAV and OpenCV decode one after the other, whatever is asked for."""

import shutil
from fractions import Fraction

import cv2
import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from mvitv2_det.errors import UserError
from mvitv2_det.video import open_video, read_stream
from mvitv2_det.video.writing import write_video

av = pytest.importorskip("av")

FILES = ("demo.mp4", "demo_spatiotemporal_det.mp4", "part_0.mp4", "test.avi")
ORDER = [17, 3, 3, 30, 0, 29, 12, 31]


def numbered_frames(count: int = 40, height: int = 48, width: int = 64) -> list[np.ndarray]:
    """Grey frames, each 6 levels brighter than the one before, white in a corner."""
    frames = np.zeros((count, height, width, 3), np.uint8)
    frames += 6 * np.arange(count, dtype=np.uint8)[:, None, None, None]
    frames[:, : height // 4, : width // 4] = 255
    return list(frames)


def numbers_in(frames: np.ndarray) -> list[int]:
    return [round(float(frame[24:, 32:].mean()) / 6) for frame in frames]


def decoded_in_order(path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def write_timed(path, stamps, *, rotation=0, **options) -> None:
    """Writes numbered frames that are shown at given milliseconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options=options)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        if rotation:
            if not hasattr(stream, "set_display_rotation"):
                pytest.skip("this PyAV does not write rotations")
            stream.set_display_rotation(rotation)
        for stamp, pixels in zip(stamps, numbered_frames(len(stamps)), strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = stamp, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.mark.parametrize("backend", ["av", "opencv"])
@pytest.mark.parametrize(
    ("ending", "codec", "options"),
    [
        ("mp4", "libx264", {"g": "8", "bf": "3", "b-pyramid": "2"}),
        ("mp4", "libx264", {"g": "8", "bf": "3", "x264-params": "open-gop=1:scenecut=0"}),
        ("mkv", "libx265", {"g": "8", "x265-params": "log-level=none:bframes=4"}),
        ("webm", "libvpx", {"auto-alt-ref": "1", "lag-in-frames": "20", "b": "1M"}),
        ("webm", "libvpx-vp9", {"lag-in-frames": "20", "g": "10"}),
        ("avi", "mpeg4", {"bf": "2", "g": "8", "b": "4M"}),
        ("ts", "libx264", {"g": "8", "bf": "2"}),
    ],
)
def test_frames_in_any_order(tmp_path, backend, ending, codec, options):
    file = tmp_path / f"numbers.{ending}"
    write_video(file, numbered_frames(), 25, codec=codec, options=options)
    with open_video(file, backend) as video:
        assert len(video) == 40
        np.testing.assert_allclose(video.seconds, np.arange(40) / 25, atol=1e-3)
        assert numbers_in(video.frames(ORDER)) == ORDER
        assert numbers_in(video.frames([35, 2])) == [35, 2]
        assert numbers_in([frame.pixels for frame in video]) == list(range(40))
        if backend == "av":
            np.testing.assert_array_equal(video.frames(range(40)), decoded_in_order(file))


def test_workers_read_after_their_parent_has_read(tmp_path):
    """PyAV 19 keeps threads that a forked process lacks: a worker would wait for ever."""
    path = tmp_path / "clip.mp4"
    write_video(path, numbered_frames(4, height=240, width=320), 30)
    expected = decoded_in_order(path)
    with open_video(path) as video:
        assert np.array_equal(video.frames(range(4)), expected)

    def read(paths):
        with open_video(paths[0]) as video:
            return video.frames(range(4))

    loader = DataLoader([path], 1, num_workers=1, collate_fn=read, timeout=60)
    # The worker collates, so that it reads.
    (found,) = loader
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("backend", ["av", "opencv"])
def test_times_of_a_variable_rate(tmp_path, backend):
    stamps = [0, 40, 80, 120, 500, 510, 520, 900, 1000, 1100]
    file = tmp_path / "variable.mkv"
    write_timed(file, stamps, bf="2", g="4")
    with open_video(file, backend) as video:
        np.testing.assert_allclose(video.seconds * 1000, stamps, atol=1.01)
        assert video.fps == pytest.approx(9 / 1.1, rel=1e-2)
        times = [-1, 0.0, 0.075, 0.3, 0.5, 0.515, 0.8, 7]
        assert numbers_in(video.at_seconds(times)) == [0, 0, 1, 3, 4, 5, 6, 9]


@pytest.mark.parametrize("backend", ["av", "opencv"])
def test_times_of_a_matroska_are_rounded(tmp_path, backend):
    file = tmp_path / "rounded.mkv"
    write_video(file, numbered_frames(), 30)
    with open_video(file, backend) as video:
        assert video.indices_at(np.arange(40) / 30).tolist() == list(range(40))


@pytest.mark.parametrize("backend", ["av", "opencv"])
@pytest.mark.parametrize(("rotation", "corner"), [(90, (1, 0)), (-90, (0, 1)), (180, (1, 1))])
def test_rotated_frames_are_upright(tmp_path, backend, rotation, corner):
    # The rotation is that of FFmpeg: degrees against the clock to turn the picture by.
    file = tmp_path / "rotated.mp4"
    write_timed(file, range(0, 200, 40), rotation=rotation)
    with open_video(file, backend) as video:
        turned = video.frames([2])[0]
        height, width = video.size
        assert (height, width) == ((64, 48) if abs(rotation) == 90 else (48, 64))
        rows, columns = (turned[-4:], turned[:4]), (slice(-4, None), slice(None, 4))
        brightest = rows[1 - corner[0]][:, columns[1 - corner[1]]]
        assert brightest.mean() > 200


@pytest.mark.parametrize("backend", ["av", "opencv"])
def test_wrong_count_in_the_header(tmp_path, backend):
    file = tmp_path / "numbers.avi"
    write_video(file, numbered_frames(), 25, codec="mpeg4", options={"bf": "2", "b": "4M"})
    content = bytearray(file.read_bytes())
    place = content.index(b"avih") + 8 + 16
    assert int.from_bytes(content[place : place + 4], "little") == 40
    content[place : place + 4] = (900).to_bytes(4, "little")
    file.write_bytes(bytes(content))
    with open_video(file, backend) as video:
        assert len(video) == 40
        assert numbers_in(video.frames([39, 1])) == [39, 1]


@pytest.mark.parametrize("backend", ["av", "opencv"])
@pytest.mark.parametrize("name", FILES)
def test_real_files(shared_data, backend, name):
    file = shared_data("video") / name
    expected = decoded_in_order(file)
    with open_video(file, backend) as video:
        assert len(video) == len(expected)
        indices = [len(expected) - 1, 0, len(expected) // 2, len(expected) // 2 + 1, 5]
        found = video.frames(indices).astype(int)
    # OpenCV's FFmpeg scales colours by another path.
    limit = 0 if backend == "av" else 3
    assert np.abs(found - expected[indices]).max() <= limit


@pytest.mark.parametrize("name", FILES)
def test_real_files_by_torchcodec(shared_data, name):
    file = shared_data("video") / name
    expected = decoded_in_order(file)
    pytest.importorskip("torchcodec", exc_type=(ImportError, OSError, RuntimeError))
    if name == "test.avi":
        with pytest.raises(UserError, match="not exact"):
            open_video(file, "torchcodec")
        return
    with open_video(file, "torchcodec") as video, open_video(file) as ours:
        found = video.frames([7, 0, len(expected) - 1])
        np.testing.assert_array_equal(found, expected[[7, 0, len(expected) - 1]])
        np.testing.assert_allclose(video.seconds, ours.seconds, atol=1e-6)


def test_folder_of_frames(tmp_path):
    for number, pixels in enumerate(numbered_frames(12)):
        Image.fromarray(pixels).save(tmp_path / f"img_{number}.png")
    with open_video(tmp_path, fps=10) as video:
        assert (len(video), video.fps, video.duration) == (12, 10, 1.2)
        assert numbers_in(video.frames([11, 2, 10])) == [11, 2, 10]
        assert numbers_in(video.at_seconds([0.25])) == [2]
        assert [frame.seconds for frame in video][:3] == [0, 0.1, 0.2]


def test_stream_gives_frames_and_times(tmp_path):
    file = tmp_path / "numbers.mp4"
    write_video(file, numbered_frames(10), 25, options={"bf": "2"})
    frames = list(read_stream(str(file)))
    assert numbers_in([frame.pixels for frame in frames]) == list(range(10))
    assert [frame.seconds for frame in frames] == pytest.approx(np.arange(10) / 25)


@pytest.mark.parametrize("backend", ["av", "opencv"])
def test_broken_files_are_named(tmp_path, backend):
    file = tmp_path / "numbers.mp4"
    with pytest.raises(UserError, match=r"numbers\.mp4: there is no such file"):
        open_video(file, backend)
    file.touch()
    with pytest.raises(UserError, match=r"numbers\.mp4: the file is empty"):
        open_video(file, backend)
    file.write_bytes(b"no video" * 100)
    with pytest.raises(UserError, match=r"cannot read video .*numbers\.mp4"):
        open_video(file, backend)


@pytest.mark.parametrize("backend", ["av", "opencv"])
def test_cut_off_file_gives_what_is_left(tmp_path, backend):
    file = tmp_path / "numbers.mp4"
    noise = np.random.default_rng(0).integers(0, 255, (40, 48, 64, 3), dtype=np.uint8)
    write_video(file, noise, 25, options={"g": "5", "movflags": "faststart"})
    # The index of the file is at its front.
    options = {"movflags": "+faststart"}
    with av.open(str(file)) as whole, av.open(str(tmp_path / "f.mp4"), "w", options=options) as to:
        stream = to.add_stream_from_template(whole.streams.video[0])
        for packet in whole.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                to.mux(packet)
    content = (tmp_path / "f.mp4").read_bytes()
    (tmp_path / "f.mp4").write_bytes(content[: len(content) // 2])
    with open_video(tmp_path / "f.mp4", backend) as video:
        count = len(video)
        assert 0 < count < 40
        assert video.frames([count - 6]).shape == (1, 48, 64, 3)
    with open_video(tmp_path / "f.mp4", backend) as video, pytest.raises(UserError):
        video.frames([39])


def test_wrong_arguments_are_refused(tmp_path):
    file = tmp_path / "numbers.mp4"
    write_video(file, numbered_frames(5), 25)
    for arguments, words in [
        ((file, "decord"), "backend must be one of"),
        ((file, "images"), "no folder of frames"),
        ((tmp_path, "av"), "is a folder"),
        ((tmp_path,), "holds no image"),
    ]:
        with pytest.raises(UserError, match=words):
            open_video(*arguments)
    with open_video(file) as video:
        for indices in ([5], [-1], []):
            with pytest.raises(UserError):
                video.frames(indices)
    with pytest.raises(UserError, match="camera 97"):
        next(read_stream(97))


def test_file_that_has_changed_is_indexed_anew(tmp_path):
    file = tmp_path / "numbers.mp4"
    write_video(file, numbered_frames(10), 25)
    with open_video(file) as video:
        assert len(video) == 10
    write_video(tmp_path / "more.mp4", numbered_frames(20), 25)
    shutil.move(tmp_path / "more.mp4", file)
    with open_video(file) as video:
        assert len(video) == 20


def test_opencv_reads_without_pyav(tmp_path, monkeypatch):
    file = tmp_path / "numbers.mp4"
    write_video(file, numbered_frames(5), 25)
    monkeypatch.setattr("mvitv2_det.video.reading.has_av", lambda: False)
    assert type(open_video(file)).__name__ == "OpencvVideo"
    assert cv2.VideoCapture(str(file)).isOpened()
