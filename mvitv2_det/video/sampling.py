"""Which frames of a video make a clip.

T × τ clips are on a time base of 30 frames a second, as in PySlowFast: T frames that are τ/30 s
apart span T·τ/30 s, whatever the video's rate. Segments divide the frames of a whole video into T
parts and take one of each (Something-Something).

PySlowFast spreads its T frames from the first to the last source frame of the span, so that
they are (span − 1 frame)/(T − 1) apart; here they are τ/30 s apart, as the paper says.
"""

import numpy as np

from ..errors import UserError

TIME_BASE = 30.0  # frames a second that τ counts


def span(frames: int, rate: float) -> float:
    """Seconds of a T × τ clip."""
    return frames * rate / TIME_BASE


def clip_times(start: float, frames: int, rate: float) -> np.ndarray:
    """(T,) seconds at which the frames of a clip are shown, from ``start`` on."""
    return start + np.arange(frames) * (rate / TIME_BASE)


def random_start(duration: float, length: float, rng: np.random.Generator) -> float:
    """A time in which a clip of a length starts, so that it ends within the video if it can."""
    return float(rng.uniform(0.0, max(duration - length, 0.0)))


def uniform_starts(duration: float, length: float, clips: int) -> list[float]:
    """Times at which K clips start, the first at the start and the last at the end.

    One clip is in the middle. Clips of a video that is shorter than one all start with it.
    """
    room = max(duration - length, 0.0)
    if clips == 1:
        return [room / 2]
    return [room * clip / (clips - 1) for clip in range(clips)]


def segment_frames(count: int, segments: int, rng: np.random.Generator | None = None) -> np.ndarray:
    """(T,) numbers of frames, one of each segment of a video, as PySlowFast takes them.

    Args:
        count: frames of the video.
        segments: T.
        rng: takes a random frame of each segment; None takes the middle one.

    Raises:
        UserError: the video has no frames.
    """
    if count < 1:
        raise UserError("a video without frames has no segments")
    edges = np.round(np.arange(segments + 1) * ((count - 1) / segments)).astype(np.int64)
    if rng is None:
        return (edges[:-1] + edges[1:]) // 2
    return rng.integers(edges[:-1], edges[1:], endpoint=True)
