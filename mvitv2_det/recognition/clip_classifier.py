"""The most probable classes of videos, whole or in windows that slide over them.

It needs no Detectron2.

Axes: V views (clips × crops), T frames, S the side of the input.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast, overload

import torch
from torch import Tensor

from ..errors import UserError
from ..graphs import replay_graphs
from ..predict.image_predictor import Inference, batches
from ..video.reading import Frame, Video, open_video
from ..video.sampling import span
from ..video.windows import SlidingWindows, window_starts, window_times
from ..weights.sources import Source
from .classifier import Likely, most_likely, read_recognizer
from .description import ClipInput

VideoLike = str | Path | Video


class Moment(NamedTuple):
    """A window of a video.

    Attributes:
        start, end: in seconds from the first frame on.
        classes: the most probable ones, best first.
    """

    start: float
    end: float
    classes: list[Likely]


class ClipClassifier(Inference):
    """Gives the most probable classes of videos.

    A call with a video gives a list of :class:`~mvitv2_det.recognition.classifier.Likely` classes,
    best first, of the whole video: clips are spread over it, and the probabilities of all crops of
    all clips are averaged. With a sequence of videos it gives a list of such lists. A video is a
    file, a folder of frames, or one that :func:`mvitv2_det.video.open_video` has opened.
    :meth:`probabilities` gives those of all classes, :meth:`timeline` the classes in each of the
    windows that slide over a video of any length, :meth:`watch` those of frames as they come.

    Attributes:
        model: the network, in evaluation mode, on its device: clips (B, 3, T, S, S) to logits.
        description: its class names and preprocessing.
        device, batch_size, top: as given.
    """

    def __init__(
        self,
        weights: Source,
        *,
        num_classes: int | None = None,
        classes: Sequence[str] | None = None,
        image_size: int | None = None,
        squash: bool = False,
        frames: int | None = None,
        rate: float | None = None,
        clips: int | None = None,
        crops: int | None = None,
        top: int = 5,
        device: str | None = None,
        precision: str = "fp32",
        batch_size: int = 8,
        cuda_graphs: bool = False,
    ) -> None:
        """
        Args:
            weights: a checkpoint of training here, or weights of any source that
                :func:`mvitv2_det.load_weights` reads.
            num_classes: outputs of released weights to keep, the first.
            classes: a name for each output; by default those that the checkpoint names, or
                Kinetics-400's.
            image_size: side of the network's input; by default that of the description, as all
                that follow.
            squash: resize both sides to ``image_size``, so that nothing is cut off.
            frames: T of a clip; the positions in time are resized.
            rate: distance of its frames in 30ths of a second.
            clips: spread over a whole video.
            crops: of each clip: 1 of the centre or 3 along the longer side.
            top: classes that are given for a video, at most.
            device: such as ``cpu`` or ``cuda:1``; by default a GPU if there is one.
            precision: ``fp32``, or ``fp16`` or ``bf16`` by autocast.
            batch_size: crops of clips that go through the model together, at most.
            cuda_graphs: replay the network as CUDA graphs; see :func:`mvitv2_det.replay_graphs`.

        Raises:
            UserError: an argument is wrong, the device is not there, or the weights are not those
                of a classifier of clips.
        """
        super().__init__(
            device=device, precision=precision, batch_size=batch_size, cuda_graphs=cuda_graphs
        )
        if top < 1:
            raise UserError(f"top must be 1 or more, got {top}")
        model, description = read_recognizer(weights, num_classes=num_classes, of="video")
        if classes is not None:
            description = dataclasses.replace(description, classes=tuple(classes))
        given: dict[str, Any] = {
            "size": image_size, "frames": frames, "rate": rate, "clips": clips, "crops": crops
        }  # fmt: skip
        changes: dict[str, Any] = {k: value for k, value in given.items() if value is not None}
        changes |= {"mode": "squash", "crop": 1.0} if squash else {}
        self.input = dataclasses.replace(cast(ClipInput, description.input), **changes)
        self.description = dataclasses.replace(description, input=self.input)
        self.model = model.to(self.device)
        if cuda_graphs:
            replay_graphs(self.model)
        self.top = min(top, len(description.classes))

    # A path is a sequence, too, of letters, and a video one of frames: the first is meant.
    @overload
    def __call__(self, videos: VideoLike) -> list[Likely]: ...  # type: ignore[overload-overlap]

    @overload
    def __call__(self, videos: Sequence[VideoLike]) -> list[list[Likely]]: ...

    def __call__(
        self, videos: VideoLike | Sequence[VideoLike]
    ) -> list[Likely] | list[list[Likely]]:
        """Classifies one whole video, or each of several.

        Raises:
            UserError: a video cannot be read.
        """
        one = isinstance(videos, (str, Path, Video))
        several = [cast(VideoLike, videos)] if one else cast(Sequence[VideoLike], videos)
        found = most_likely(self.probabilities(several), self.description.classes, self.top)
        return found[0] if one else found

    def probabilities(self, videos: Sequence[VideoLike]) -> Tensor:
        """Classifies whole videos; returns (videos, classes), float32, on the CPU.

        Raises:
            UserError: a video cannot be read.
        """
        found = [self.infer([self.prepare(video)]) for video in videos]
        return torch.cat([torch.empty(0, len(self.description.classes)), *found])

    def prepare(self, video: VideoLike) -> Tensor:
        """Makes the network's inputs (V, 3, T, S, S) of a whole video.

        Raises:
            UserError: it cannot be read.
        """
        if isinstance(video, Video):
            return self.input.test_views(video)
        with open_video(video) as opened:
            return self.input.test_views(opened)

    @torch.no_grad()
    def infer(self, inputs: Sequence[Tensor]) -> Tensor:
        """Classifies inputs (V, 3, T, S, S) of videos or windows.

        Returns:
            probabilities (inputs, classes), the mean over the views of each, float32, on the CPU.

        Raises:
            UserError: the GPU has too little memory.
        """
        views = (view for one in inputs for view in one)
        found = []
        for batch in batches(views, self.batch_size):
            with self._running(len(batch)):
                logits = self.model(torch.stack(batch).to(self.device))
            found.append(logits.float().softmax(dim=1).cpu())
        parts = torch.cat(found).split([len(one) for one in inputs])
        return torch.stack([part.mean(dim=0) for part in parts])

    def timeline(
        self, video: VideoLike, window: float | None = None, stride: float | None = None
    ) -> list[Moment]:
        """Classifies the windows that slide over a video; its frames are decoded once, in order.

        Args:
            video: of any length.
            window: seconds; see :meth:`watch`.
            stride: seconds from the start of one window to that of the next, by default the window.
                The last window ends with the video.

        Raises:
            UserError: the video cannot be read, or a time is wrong.
        """
        if not isinstance(video, Video):
            with open_video(video) as opened:
                return self.timeline(opened, window, stride)
        watched = self.watch(video, window, stride, duration=video.duration)
        return [moment for _, moments in watched for moment in moments]

    def watch(
        self,
        frames: Iterable[Frame],
        window: float | None = None,
        stride: float | None = None,
        *,
        duration: float | None = None,
    ) -> Iterator[tuple[Frame | None, list[Moment]]]:
        """Classifies windows while frames come, such as those of a camera.

        No more is held than the frames of the windows that are open, resized, and a batch.

        Args:
            frames: in order, as a :class:`~mvitv2_det.video.Video` or
                :func:`~mvitv2_det.video.read_stream` gives them.
            window: seconds, at least those of a clip, which is the default; 2 for segments. A
                longer window has as many clips as cover it, though not more than a whole video.
            stride: seconds from the start of one window to that of the next, by default the window.
            duration: of the video, in seconds, if it is known: the last window ends with it, and
                windows wait for a batch to be full. Otherwise a window is classified when its last
                frame has come.

        Yields:
            each frame, with the windows that have been classified since the one before; None with
            those after the last frame.

        Raises:
            UserError: a frame cannot be read, or a time is wrong.
        """
        length, stride = self.check_window(window, stride)
        times = window_times(
            length, self.input.frames, self.input.rate, self.input.sampling, self.input.clips
        )
        windows = SlidingWindows(
            window_starts(length, stride, duration),
            length,
            times.ravel(),
            lambda pixels: self.input.shrink(pixels[None])[0],
        )
        end = float("inf") if duration is None else duration
        waiting: list[tuple[float, Tensor]] = []

        def classified(is_last: bool = False) -> list[Moment]:
            views = sum(len(one) for _, one in waiting)
            if not views or not (is_last or duration is None or views >= self.batch_size):
                return []
            found = self.infer([one for _, one in waiting])
            likely = most_likely(found, self.description.classes, self.top)
            moments = [
                Moment(start, min(start + length, end), classes)
                for (start, _), classes in zip(waiting, likely, strict=True)
            ]
            waiting.clear()
            return moments

        def add(complete: list[tuple[float, list[Tensor]]]) -> None:
            for start, kept in complete:
                clips = torch.stack(kept).unflatten(0, times.shape)
                waiting.append((start, torch.cat([self.input.views_of(clip) for clip in clips])))

        for frame in frames:
            add(windows.push(frame))
            yield frame, classified()
        add(windows.finish(duration or 0.0))
        yield None, classified(is_last=True)

    def check_window(self, window: float | None, stride: float | None) -> tuple[float, float]:
        """The seconds of a window and of its stride, where nothing is given as well.

        Raises:
            UserError: one is not positive, or the window is shorter than a clip.
        """
        of_clip = span(self.input.frames, self.input.rate)
        is_stride = self.input.sampling == "stride"
        length = window if window is not None else of_clip if is_stride else _OF_SEGMENTS
        stride = length if stride is None else stride
        for name, value in (("window", length), ("stride", stride)):
            if not 0 < value < float("inf"):
                raise UserError(f"the {name} must be a positive number of seconds, got {value:g}")
        if is_stride and length < of_clip - 1e-6:
            raise UserError(
                f"the window must be at least as long as a clip of the network, {of_clip:.3g} "
                f"seconds, got {length:g}"
            )
        return length, stride


_OF_SEGMENTS = 2.0  # seconds of a window, of networks whose clips have no length of their own
