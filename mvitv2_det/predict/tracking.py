"""Numbers that instances of a video keep from frame to frame, by ByteTrack.

Y. Zhang et al.: ByteTrack: Multi-Object Tracking by Associating Every Detection Box, ECCV 2022, as
the package ``trackers`` does it. An instance is followed by its box, whatever its class; one that
scores low continues a track, but begins none.

Axes: N instances of a frame.
"""

from typing import Any

import numpy as np
import torch
from detectron2.structures import Instances
from torch import Tensor

from ..errors import UserError
from .inputs import Source

LEAST_SCORE = 0.1  # of what continues a track; ByteTrack's
NO_TRACK = -1


class Tracking:
    """Gives the instances of videos, frame after frame, their numbers.

    Numbers count from 1 in each video. An instance has one from the second frame on that it is
    found in: what is found once is often a mistake.
    """

    def __init__(self, score_threshold: float) -> None:
        """
        Args:
            score_threshold: instances that score higher are kept and begin tracks; others, down to
                :data:`LEAST_SCORE`, help tracks over frames in which they are hard to see.

        Raises:
            UserError: the package ``trackers`` is not installed.
        """
        _require_trackers()
        self._threshold = score_threshold
        self._source: Source | None = None
        self._tracker: Any = None

    def __call__(self, source: Source, frame: int | None, instances: Instances) -> Instances:
        """Follows the instances of the next frame.

        Args:
            source: an image, or the video of the frame.
            frame: its number; None of an image, whose instances get no numbers.
            instances: what was found, that which scores low included.

        Returns:
            those that score over the threshold; those of a frame with ``track_ids``, int64 (N,),
            which are :data:`NO_TRACK` where an instance has no number yet.
        """
        kept = instances.scores > self._threshold
        if frame is None:
            return select(instances, kept)
        if source != self._source:
            self._source = source
            self._tracker = _require_trackers().ByteTrackTracker(
                frame_rate=source.frames_per_second(),
                track_activation_threshold=self._threshold,
                high_conf_det_threshold=self._threshold,
            )
        tracked = select(instances, kept)
        tracked.track_ids = self._follow(instances)[kept]
        return tracked

    def _follow(self, instances: Instances) -> Tensor:
        """The numbers of all instances (N,), int64."""
        import supervision

        detections = supervision.Detections(
            instances.pred_boxes.tensor.numpy().reshape(-1, 4).astype(np.float64),
            confidence=instances.scores.numpy(),
            # What comes back is in another order.
            data={"place": np.arange(len(instances))},
        )
        found = self._tracker.update(detections)
        numbers = torch.full((len(instances),), NO_TRACK)
        if len(found):
            ids = torch.as_tensor(found.tracker_id)
            numbers[torch.as_tensor(found.data["place"])] = torch.where(ids < 0, NO_TRACK, ids + 1)
        return numbers


def select(instances: Instances, kept: Tensor) -> Instances:
    """Chooses instances, also of those whose masks are a list.

    Args:
        instances: N of them.
        kept: (N,) bool.
    """
    chosen = Instances(instances.image_size)
    for name, values in instances.get_fields().items():
        if isinstance(values, list):
            chosen.set(name, [values[place] for place in kept.nonzero().flatten().tolist()])
        else:
            chosen.set(name, values[kept])
    return chosen


def _require_trackers() -> Any:
    try:
        import trackers
    except ImportError as error:
        raise UserError(
            f"--track needs the package trackers, which cannot be imported ({error}): "
            f"pip install 'mvitv2_det[track]'"
        ) from error
    return trackers
