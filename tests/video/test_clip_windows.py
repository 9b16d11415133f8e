"""Windows over frames that come one by one show what reading by time shows."""

from itertools import islice

import numpy as np
import pytest
from test_clips import Numbers

from mvitv2_det.video.reading import Frame
from mvitv2_det.video.sampling import uniform_starts
from mvitv2_det.video.windows import SlidingWindows, window_starts, window_times


class Uneven(Numbers):
    """Frames at random times."""

    def __init__(self, count: int, seed: int) -> None:
        super().__init__(count, 30)
        gaps = np.random.default_rng(seed).uniform(0.005, 0.3, count - 1)
        self._seconds = np.concatenate([[0.0], gaps.cumsum()])


def slide(video, starts, length, times, duration=0.0):
    """The windows' starts and the numbers of their frames, and how many frames were kept."""
    kept = []

    def keep(pixels):
        kept.append(int(pixels[0, 0, 0]))
        return kept[-1]

    windows, found = SlidingWindows(starts, length, times, keep), []
    for number, seconds in enumerate(video.seconds):
        found += windows.push(Frame(seconds, np.full((1, 1, 3), number, np.uint8)))
    return found + windows.finish(duration), kept


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("stride", [0.3, 1.0, 2.5])
def test_frames_are_those_that_are_shown(seed, stride):
    video = Uneven(80, seed)
    # Not ascending, as those of overlapping clips are.
    times = np.random.default_rng(seed).uniform(0, 1, 7)
    starts = list(window_starts(1.0, stride, video.duration))
    found, kept = slide(video, starts, 1.0, times, video.duration)
    assert [start for start, _ in found] == starts
    for start, numbers in found:
        assert numbers == video.indices_at(start + times).tolist()
    assert len(kept) == len(set(kept))  # nothing is resized twice


def test_starts_cover_the_video():
    assert list(window_starts(2, 2, 8)) == [0, 2, 4, 6]
    assert list(window_starts(2, 1.5, 5.9)) == pytest.approx([0, 1.5, 3, 3.9])
    assert list(window_starts(2, 0.5, 1.2)) == [0]
    assert list(islice(window_starts(2, 3), 3)) == [0, 3, 6]


def test_a_stream_ends_with_its_last_whole_window():
    video = Numbers(60, 10)
    times = np.array([0.0, 0.5])
    found, _ = slide(video, window_starts(1, 0.7), 1, times)
    # It is shown to second 6: a window from 5.6 on would end after it.
    assert [start for start, _ in found] == pytest.approx(0.7 * np.arange(8))
    assert found[1][1] == [7, 12]
    found, _ = slide(Numbers(3, 10), window_starts(1, 0.7), 1, times)
    assert found == [(0.0, [0, 2])]  # shorter than a window
    found, _ = slide(Numbers(1, 10), window_starts(1, 0.7), 1, times)
    assert found == [(0.0, [0, 0])]


def test_few_frames_are_held():
    held, most = set(), 0

    class Kept:
        def __init__(self):
            held.add(id(self))

        def __del__(self):
            held.discard(id(self))

    windows = SlidingWindows(window_starts(2, 1), 2, np.arange(8) / 4, lambda _: Kept())
    for number in range(3000):
        windows.push(Frame(number / 30, np.zeros((1, 1, 3), np.uint8)))
        most = max(most, len(held))
    assert 4 <= most <= 16  # two windows of 8 frames


def test_times_of_a_window():
    clips = window_times(4.0, 8, 4, "stride", 5)  # clips of 32/30 s
    assert clips.shape == (4, 8)
    starts = uniform_starts(4.0, 32 / 30, 4)
    assert clips[:, 0] == pytest.approx(starts) and clips[-1, -1] == pytest.approx(4 - 4 / 30)
    assert window_times(4.0, 8, 4, "stride", 2).shape == (2, 8)
    assert window_times(32 / 30, 8, 4, "stride", 5)[0] == pytest.approx(np.arange(8) * 4 / 30)
    assert window_times(2.0, 4, 4, "segments", 1).tolist() == [[0.25, 0.75, 1.25, 1.75]]
