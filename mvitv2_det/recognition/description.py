"""What a trained recogniser's checkpoint says of itself: network, class names, preprocessing.

Training writes :meth:`Description.to_dict` into the checkpoint under :data:`ENTRY`, beside
``"model"``. It is of plain values, so that it is read without running code, and is all that
prediction, evaluation and export need to know beside the weights.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform
from torch import Tensor

from ..errors import UserError
from ..variants import VARIANTS, Variant
from ..video.clips import (
    SAMPLINGS,
    as_clip,
    normalise,
    random_clip,
    resize,
    resize_short_side,
    spatial_crops,
    uniform_clips,
)
from ..video.reading import Video
from .actions import ActionRecognizer
from .recognizer import Recognizer

ENTRY = "recognizer"
_READ = 16  # frames
CLIP_INTERPOLATIONS = ("bilinear", "bicubic", "nearest")
# How an image becomes a square, in timm's words: what is cut off is beyond the centre, or nothing.
CROP_MODES = {"centre": "center", "squash": "squash"}
INTERPOLATIONS = ("bicubic", "bilinear", "nearest", "box", "hamming", "lanczos")


@dataclass(frozen=True)
class Input:
    """How an image becomes the network's input.

    The defaults are those of the paper's centre-crop test; ``mode="squash", crop=1.0`` is its
    "resize" test, which ``VAL_CROP_RATIO: 0.0`` is in facebookresearch/mvit.

    Attributes:
        size: side of the input, in pixels.
        crop: the share of the resized image's side that is kept, in (0, 1].
        mode: ``centre`` resizes the short side to ``size / crop``, ``squash`` both sides; then
            the central square is kept.
        interpolation: one of :data:`INTERPOLATIONS`.
        mean, std: of red, green and blue in [0, 1], to normalise with.
    """

    size: int = 224
    crop: float = 0.875
    mode: str = "centre"
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = IMAGENET_DEFAULT_MEAN
    std: tuple[float, ...] = IMAGENET_DEFAULT_STD

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            values = getattr(self, name)
            if not isinstance(values, Sequence) or len(values) != 3:
                raise _wrong(f"input.{name}", "three numbers", values)
            if not all(_is_number(value) for value in values):
                raise _wrong(f"input.{name}", "three numbers", values)
            object.__setattr__(self, name, tuple(map(float, values)))
        if not min(self.std) > 0:
            raise _wrong("input.std", "three positive numbers", self.std)
        if not _is_count(self.size):
            raise _wrong("input.size", "a number of pixels", self.size)
        if not (_is_number(self.crop) and 0 < self.crop <= 1):
            raise _wrong("input.crop", "a share in (0, 1]", self.crop)
        if self.mode not in list(CROP_MODES):
            raise _wrong("input.mode", " or ".join(CROP_MODES), self.mode)
        if self.interpolation not in INTERPOLATIONS:
            raise _wrong(
                "input.interpolation", f"one of {', '.join(INTERPOLATIONS)}", self.interpolation
            )

    def transform(self) -> Callable[[Image.Image], Tensor]:
        """timm's transform for evaluation: an RGB image of Pillow to (3, size, size), normalised.

        Evaluation in training and prediction both use it.
        """
        return create_transform(
            self.size,
            is_training=False,
            interpolation=self.interpolation,
            mean=self.mean,
            std=self.std,
            crop_pct=self.crop,
            crop_mode=CROP_MODES[self.mode],
        )


@dataclass(frozen=True)
class ClipInput(Input):
    """How a video becomes the network's inputs; the defaults are Kinetics' 16 × 4 with 5 views.

    ``crop`` is the share of the resized short side: 224/256 as in the paper. Frames are resized
    without antialiasing, as the released networks have been trained.

    Attributes:
        frames: T of a clip.
        rate: τ, the distance of frames in 30ths of a second; segments do not use it.
        sampling: ``stride``, or ``segments`` of the whole video (Something-Something).
        clips: K, spread over the video for a test.
        crops: of each, for a test: 1 of the centre or 3 along the longer side.
    """

    interpolation: str = "bilinear"
    frames: int = 16
    rate: float = 4
    sampling: str = "stride"
    clips: int = 5
    crops: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("frames", "clips"):
            if not _is_count(getattr(self, name)):
                raise _wrong(f"input.{name}", "a number from 1 on", getattr(self, name))
        if not (_is_number(self.rate) and self.rate > 0):
            raise _wrong("input.rate", "a positive number", self.rate)
        if self.sampling not in SAMPLINGS:
            raise _wrong("input.sampling", " or ".join(SAMPLINGS), self.sampling)
        if self.sampling == "segments" and self.clips != 1:
            raise _wrong("input.clips", "1, as segments cover the whole video", self.clips)
        if self.crops not in (1, 3):
            raise _wrong("input.crops", "1 or 3", self.crops)
        if self.crops == 3 and self.mode == "squash":
            raise _wrong("input.crops", "1, as mode squash leaves nothing to crop", self.crops)
        if self.interpolation not in CLIP_INTERPOLATIONS:
            expected = f"one of {', '.join(CLIP_INTERPOLATIONS)}"
            raise _wrong("input.interpolation", expected, self.interpolation)

    @property
    def views(self) -> int:
        """Inputs that are made of a video for a test."""
        return self.clips * self.crops

    def random_clip(self, video: Video, rng: np.random.Generator) -> np.ndarray:
        """(T,) numbers of the frames of a random clip of a video."""
        return random_clip(video, self.frames, self.rate, self.sampling, rng)

    def test_clips(self, video: Video) -> np.ndarray:
        """(clips, T) numbers of the frames of the clips of a test."""
        return uniform_clips(video, self.frames, self.rate, self.sampling, self.clips)

    def transform(self) -> Callable[[np.ndarray], Tensor]:  # type: ignore[override]
        """The transform for evaluation: frames (T, H, W, 3) RGB, uint8, to (crops, 3, T, S, S).

        Evaluation in training and prediction both use it.
        """
        return self._transform

    def _transform(self, frames: np.ndarray) -> Tensor:
        return self.views_of(self.shrink(frames))

    def shrink(self, frames: np.ndarray) -> Tensor:
        """Resizes frames (T, H, W, 3) RGB, uint8, each by itself; returns (T, 3, h, w), uint8."""
        clip = as_clip(frames)
        short = max(self.size, round(self.size / self.crop))
        if self.mode == "squash":
            return resize(clip, [short, short], self.interpolation)
        return resize_short_side(clip, short, self.interpolation)

    def views_of(self, clip: Tensor) -> Tensor:
        """A clip (T, 3, h, w) of :meth:`shrink` to the network's inputs, (crops, 3, T, S, S)."""
        crops = spatial_crops(clip, self.size, self.crops)
        return torch.stack([normalise(crop, self.mean, self.std) for crop in crops])

    def test_views(self, video: Video) -> Tensor:
        """Reads a video once and makes all inputs of a test, (views, 3, T, S, S).

        Raises:
            UserError: a frame cannot be decoded.
        """
        numbers = self.test_clips(video)
        unique, places = np.unique(numbers, return_inverse=True)
        # Few frames at once are held as large as they are decoded.
        parts = [unique[start : start + _READ] for start in range(0, len(unique), _READ)]
        frames = torch.cat([self.shrink(video.frames(part)) for part in parts])
        clips = [frames[each] for each in torch.from_numpy(places.reshape(numbers.shape))]
        return torch.cat([self.views_of(clip) for clip in clips])


# What a recogniser takes, by the constructor of its network.
INPUTS: dict[str, type[Input]] = {"image": Input, "video": ClipInput, "actions": ClipInput}
CONSTRUCTORS: dict[str, Callable[..., Recognizer]] = {
    "image": Recognizer.image,
    "video": Recognizer.video,
    "actions": ActionRecognizer.video,
}


@dataclass(frozen=True)
class Description:
    """A recogniser without its weights.

    Attributes:
        constructor: one of :data:`CONSTRUCTORS`: ``image`` or ``video`` of
            :class:`~mvitv2_det.Recognizer`, ``actions`` of persons in clips.
        arguments: of the constructor, plain values; ``variant`` is a name such as ``T``, or the
            fields of a :class:`~mvitv2_det.Variant` as a mapping.
        classes: a name for each output.
        input: the preprocessing; of clips a :class:`ClipInput`.
    """

    constructor: str
    arguments: Mapping[str, Any]
    classes: tuple[str, ...]
    input: Input = field(default_factory=Input)

    def __post_init__(self) -> None:
        if self.constructor not in INPUTS:
            raise _wrong("constructor", " or ".join(CONSTRUCTORS), self.constructor)
        if type(self.input) is not INPUTS[self.constructor]:
            if self.input != Input():
                raise _wrong("input", f"an input of constructor {self.constructor}", self.input)
            object.__setattr__(self, "input", INPUTS[self.constructor]())
        if not isinstance(self.arguments, Mapping):
            raise _wrong("arguments", "a mapping", self.arguments)
        arguments = _plain("arguments", self.arguments)
        classes = self.classes
        if isinstance(classes, str) or not isinstance(classes, Sequence) or not classes:
            raise _wrong("classes", "a list of names", classes)
        if not all(isinstance(name, str) for name in classes):
            raise _wrong("classes", "a list of names", classes)
        object.__setattr__(self, "classes", tuple(classes))
        outputs = arguments.setdefault("num_classes", len(classes))
        if outputs != len(classes):
            raise _wrong("classes", f"as many names as the {outputs} outputs", f"{len(classes)}")
        object.__setattr__(self, "arguments", arguments)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint, which :meth:`from_dict` takes."""
        input = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self.input).items()}
        return {
            "constructor": self.constructor,
            "arguments": _plain("arguments", self.arguments),
            "classes": list(self.classes),
            "input": input,
        }

    @classmethod
    def from_dict(cls, content: object) -> "Description":
        """Reads what :meth:`to_dict` has written.

        Raises:
            UserError: something in it is missing, unknown, or of another kind.
        """
        values = _only(content, "", cls)
        if values.get("constructor") in INPUTS and "input" in values:
            kind = INPUTS[values["constructor"]]
            values["input"] = kind(**_only(values["input"], "input", kind))
        if missing := [n for n in ("constructor", "arguments", "classes") if n not in values]:
            raise UserError(f"the checkpoint's {ENTRY!r} entry has no {', '.join(missing)}")
        return cls(**values)

    def build(self) -> Recognizer:
        """The network, with initial weights.

        Raises:
            UserError: the constructor does not take the arguments.
        """
        arguments = dict(self.arguments)
        try:
            variant = arguments.get("variant")
            if isinstance(variant, Mapping):
                sizes: dict[str, Any] = {
                    name: tuple(value) if isinstance(value, list) else value
                    for name, value in variant.items()
                }
                arguments["variant"] = Variant(**sizes)
            elif variant is not None and variant not in VARIANTS:
                raise _wrong("variant", f"one of {', '.join(VARIANTS)}, or its sizes", variant)
            return CONSTRUCTORS[self.constructor](**arguments)
        except UserError:
            raise
        except (TypeError, ValueError) as error:
            raise UserError(f"the recogniser cannot be made of its description: {error}") from error


def _only(content: object, name: str, kind: type) -> dict[str, Any]:
    """A mapping's items, if it has no others than the fields of a dataclass."""
    where = f"{ENTRY}.{name}" if name else ENTRY
    if not isinstance(content, Mapping):
        raise UserError(
            f"the checkpoint's {where!r} entry must be a mapping, got a {type(content).__name__}"
        )
    known = [each.name for each in fields(kind)]
    if unknown := [str(key) for key in content if key not in known]:
        raise UserError(
            f"the checkpoint's {where!r} entry has {', '.join(unknown)}, which is not known; "
            f"expected {', '.join(known)}"
        )
    return dict(content)


def _plain(name: str, value: Any) -> Any:
    """A copy of values that a checkpoint can hold: lists for sequences, dicts for mappings.

    Raises:
        UserError: a value is none that a checkpoint can hold.
    """
    if isinstance(value, Mapping):
        return {str(key): _plain(f"{name}.{key}", each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(f"{name}[{index}]", each) for index, each in enumerate(value)]
    if value is None or type(value) in (bool, int, float, str):  # subclasses are NumPy's
        return value
    raise _wrong(name, "a plain value (number, text, list or mapping)", type(value).__name__)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _wrong(name: str, expected: str, got: object) -> UserError:
    text = str(got)
    return UserError(
        f"the recogniser's description: {name} must be {expected}, got "
        f"{text if len(text) < 80 else text[:77] + '...'}"
    )
