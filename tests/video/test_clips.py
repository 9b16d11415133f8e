"""Which frames are in clips, and what becomes of them."""

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from mvitv2_det.errors import UserError
from mvitv2_det.recognition.description import ClipInput
from mvitv2_det.video.clips import as_clip, resize_short_side, spatial_crops
from mvitv2_det.video.reading import Video
from mvitv2_det.video.sampling import random_start, segment_frames, uniform_starts


class Numbers(Video):
    """A video whose k-th frame has the value k."""

    def __init__(self, count: int, fps: float, height: int = 8, width: int = 12) -> None:
        super().__init__("numbers")
        self._seconds = np.arange(count) / fps
        self._shape = (height, width, 3)
        self.reads: list[int] = []

    @property
    def seconds(self):
        return self._seconds

    def _read(self, indices):
        self.reads += list(indices)
        return [np.full(self._shape, index, np.uint8) for index in indices]

    def __iter__(self):
        raise NotImplementedError

    def close(self):
        pass


@pytest.mark.parametrize(
    ("fps", "expected"), [(30, [0, 4, 8, 12]), (15, [0, 2, 4, 6]), (60, [0, 8, 16, 24])]
)
def test_time_base_is_30_frames_a_second(fps, expected):
    clip = ClipInput(frames=4, rate=4, clips=2)
    assert clip.test_clips(Numbers(200, fps))[0].tolist() == expected


def test_clips_cover_the_video():
    clips = ClipInput(frames=4, rate=3, clips=5).test_clips(Numbers(112, 30))
    # A clip spans 12 of 112 frames: its start moves over 100.
    assert clips[:, 0].tolist() == [0, 25, 50, 75, 100]
    assert clips[-1].tolist() == [100, 103, 106, 109]
    assert uniform_starts(10, 2, 1) == [4]


def test_a_short_video_repeats_its_last_frame():
    clip = ClipInput(frames=5, rate=4, clips=3)
    assert (clip.test_clips(Numbers(10, 30)) == [0, 4, 8, 9, 9]).all()
    assert clip.random_clip(Numbers(10, 30), np.random.default_rng(0)).tolist() == [0, 4, 8, 9, 9]


def test_random_clips_start_anywhere():
    rng = np.random.default_rng(0)
    starts = [random_start(10, 4, rng) for _ in range(2000)]
    assert 0 <= min(starts) < 0.02 and 5.98 < max(starts) <= 6
    assert np.mean(starts) == pytest.approx(3, abs=0.15)


def test_segments_are_those_of_pyslowfast():
    # Their bounds are round(i · (frames − 1) / T); a test takes (start + end) // 2.
    assert segment_frames(33, 4).tolist() == [4, 12, 20, 28]
    assert segment_frames(2, 4).tolist() == [0, 0, 0, 1]
    assert segment_frames(10, 1).tolist() == [4]
    rng = np.random.default_rng(0)
    drawn = np.array([segment_frames(33, 4, rng) for _ in range(500)])
    assert drawn.min(axis=0).tolist() == [0, 8, 16, 24]
    assert drawn.max(axis=0).tolist() == [8, 16, 24, 32]


def test_views_are_clips_times_crops_and_frames_are_read_once_forward():
    video = Numbers(112, 30, height=40, width=64)
    clip = ClipInput(size=32, crop=0.8, frames=4, rate=3, clips=5, crops=3)
    views = clip.test_views(video)
    assert views.shape == (15, 3, 4, 32, 32)
    assert len(video.reads) == 20 and video.reads == sorted(video.reads)  # forward, once
    levels = views[:, 0, :, 0, 0] * clip.std[0] + clip.mean[0]
    expected = torch.tensor(
        [[start, start + 3, start + 6, start + 9] for start in range(0, 101, 25)]
    )
    assert torch.allclose(255 * levels, expected.repeat_interleave(3, 0).float(), atol=1e-3)


def test_crops_are_along_the_longer_side():
    rows, columns = torch.meshgrid(torch.arange(10), torch.arange(21), indexing="ij")
    wide = torch.stack((rows, columns, rows))[None]
    corners = [crop[0, :2, 0, 0].tolist() for crop in spatial_crops(wide, 8, 3)]
    assert corners == [[1, 0], [1, 7], [1, 13]]
    corners = [crop[0, :2, 0, 0].tolist() for crop in spatial_crops(wide.mT, 8, 3)]
    assert corners == [[1, 0], [1, 7], [1, 13]]  # transposed
    assert [crop[0, :2, 0, 0].tolist() for crop in spatial_crops(wide, 8, 1)] == [[1, 7]]


@pytest.mark.parametrize(("height", "width", "size"), [(24, 41, (16, 27)), (41, 24, (27, 16))])
def test_short_side_as_pyslowfast(height, width, size):
    """It interpolates floats bilinearly, without antialiasing."""
    frames = np.random.default_rng(0).integers(0, 256, (3, height, width, 3), dtype=np.uint8)
    clip = as_clip(frames)
    ours = resize_short_side(clip.float(), 16)
    assert ours.shape == (3, 3, *size)
    assert torch.allclose(ours, interpolate(clip.float(), size, mode="bilinear"), atol=1e-3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sampling": "dense"}, "input.sampling must be stride or segments"),
        ({"sampling": "segments"}, "input.clips must be 1"),
        ({"crops": 2}, "input.crops must be 1 or 3"),
        ({"crops": 3, "mode": "squash"}, "leaves nothing to crop"),
        ({"frames": 0}, "input.frames"),
        ({"rate": -1}, "input.rate"),
        ({"interpolation": "lanczos"}, "input.interpolation"),
    ],
)
def test_wrong_inputs_are_refused(changes, words):
    with pytest.raises(UserError, match=words):
        ClipInput(**changes)
