"""What persons in a video do, by a trained checkpoint, where their boxes are known.

It needs no Detectron2.

Axes: N persons at a time, C actions.
"""

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
import torch

from ..errors import UserError
from ..predict.image_predictor import Inference
from ..video.key_frames import VIEWS, at_view, key_frame_clip
from ..video.reading import Video
from ..weights import load_weights
from ..weights.sources import Source, read_source
from .actions import ActionRecognizer
from .description import ENTRY, ClipInput, Description


def read_action_recognizer(weights: Source) -> tuple[ActionRecognizer, Description]:
    """Reads a network that ``projects/ava`` has trained, in evaluation mode on the CPU.

    Args:
        weights: see :func:`mvitv2_det.load_weights`.

    Raises:
        UserError: the weights cannot be read, do not say what they are, or are not of actions.
    """
    checkpoint = read_source(weights)
    try:
        if ENTRY not in checkpoint.others:
            raise UserError("it does not describe itself: expected one of projects/ava")
        description = Description.from_dict(checkpoint.others[ENTRY])
        if description.constructor != "actions":
            raise UserError(
                f"it is of constructor {description.constructor}: expected actions of persons, "
                f"as projects/ava trains them"
            )
        model = description.build()
    except UserError as error:
        raise UserError(f"checkpoint {checkpoint.source!r}: {error}") from error
    report = load_weights(model, checkpoint, strict=True)
    if report.initialised:
        raise UserError(
            f"checkpoint {checkpoint.source!r} lacks {len(report.initialised)} tensors of the "
            f"network, {report.initialised[0]} among them"
        )
    assert isinstance(model, ActionRecognizer)  # of this constructor
    return model.eval(), description


class ActionFinder(Inference):
    """Gives the probability of each action of each person.

    Attributes:
        model: the network, in evaluation mode, on its device.
        classes: names of the actions.
        device, view: as given.
    """

    def __init__(
        self,
        weights: Source,
        *,
        view: str = "full",
        device: str | None = None,
        precision: str = "fp32",
        batch_size: int = 8,
    ) -> None:
        """
        Args:
            weights: a checkpoint of ``projects/ava``.
            view: ``full`` sees all of the frame, ``center`` the square in its centre, as Table A.2.
            device: such as ``cpu`` or ``cuda:1``; by default a GPU if there is one.
            precision: ``fp32``, or ``fp16`` or ``bf16`` by autocast.
            batch_size: clips that go through the network together, at most.

        Raises:
            UserError: an argument is wrong, or the weights are not those of such a network.
        """
        super().__init__(device=device, precision=precision, batch_size=batch_size)
        if view not in VIEWS:
            raise UserError(f"view must be {' or '.join(VIEWS)}, got {view!r}")
        self.view = view
        model, description = read_action_recognizer(weights)
        self.model = model.to(self.device)
        self.classes = description.classes
        assert isinstance(description.input, ClipInput)  # as all of this constructor
        self._input = description.input

    def __call__(
        self, video: Video, seconds: Sequence[float], boxes: Sequence[np.ndarray]
    ) -> Iterator[np.ndarray]:
        """Yields probabilities (N, C), float32, for each time.

        Args:
            video: an open one.
            seconds: times from its first frame on, the middles of clips.
            boxes: of each time (N, 4) left, top, right, bottom in shares of width and height.

        Raises:
            UserError: a frame cannot be decoded.
        """
        looks = zip(seconds, boxes, strict=True)
        while batch := list(islice(looks, self.batch_size)):
            yield from self._at(video, batch)

    @torch.no_grad()
    def _at(self, video: Video, looks: Sequence[tuple[float, np.ndarray]]) -> Iterator[np.ndarray]:
        input, clips, places = self._input, [], []
        for time, boxes in looks:
            if len(boxes):  # clips without persons need not be read
                frames = video.frames(key_frame_clip(video, time, input))
                clip, placed = at_view(frames, boxes, input, self.view)
                clips.append(clip)
                places.append(placed.to(self.device))
        found = np.zeros((0, len(self.classes)), np.float32)
        if clips:
            with self._running(len(clips)):
                logits = self.model(torch.stack(clips).to(self.device), places)
            found = logits.float().sigmoid().cpu().numpy()
        ends = np.cumsum([len(boxes) for _, boxes in looks])
        yield from np.split(found, ends[:-1])
