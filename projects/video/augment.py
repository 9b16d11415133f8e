"""Random changes of clips in training, one draw for all frames of a clip.

Axes: T frames, H × W pixels, S the side of the input.
"""

import functools
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import str_to_pil_interp
from torch import Tensor
from torchvision.transforms import RandomResizedCrop

from mvitv2_det.errors import UserError
from mvitv2_det.recognition.description import ClipInput
from mvitv2_det.video.clips import as_clip, normalise, resize, resize_short_side
from projects.common.augment import mend_posterize


class ClipAugmentation:
    """Makes a training input of the frames of a clip, in the order of PySlowFast.

    RandAugment is on whole frames; then come crop, flip, normalisation and erasing.

    Args:
        input: size, colours and interpolation.
        auto_augment: timm's string of a RandAugment; None for none.
        scale, ratio: of an Inception crop: shares of the area, and width by height. None crops
            after resizing the short side.
        short_side: least and largest, in pixels, of that resizing; its inverse is drawn evenly.
            None with no scale resizes as in a test.
        hflip: share of clips that are mirrored.
        re_prob, re_mode, re_count: timm's random erasing, of the same boxes in all frames, with
            other noise in each.

    Raises:
        UserError: the range of the short side is none.
    """

    def __init__(
        self,
        input: ClipInput,
        *,
        auto_augment: str | None = None,
        scale: Sequence[float] | None = None,
        ratio: Sequence[float] = (3 / 4, 4 / 3),
        short_side: Sequence[int] | None = None,
        hflip: float = 0.5,
        re_prob: float = 0.0,
        re_mode: str = "pixel",
        re_count: int = 1,
    ) -> None:
        if short_side and not input.size <= short_side[0] <= short_side[1]:
            raise UserError(
                f"dataloader.train.augmentation.short_side must be two sides from input.size "
                f"{input.size} on, ascending, got {list(short_side)}"
            )
        self.input = input
        self.auto_augment = auto_augment
        self.scale, self.ratio, self.short_side = scale, ratio, short_side
        self.hflip = hflip
        self.erasing = RandomErasing(re_prob, mode=re_mode, min_count=re_count, device="cpu")

    def __call__(self, frames: np.ndarray) -> Tensor:
        """(T, H, W, 3) RGB, uint8, to (3, T, S, S)."""
        clip = as_clip(self._rand_augment(frames))
        clip = self._crop(clip)
        if random.random() < self.hflip:
            clip = clip.flip(-1)
        clip = normalise(clip, self.input.mean, self.input.std)
        # Erasing makes noise for each of its channels: of channels of frames, other in each frame.
        channels, count, height, width = clip.shape
        erased = self.erasing(clip.reshape(channels * count, height, width))
        return erased.reshape(clip.shape)

    def _rand_augment(self, frames: np.ndarray) -> np.ndarray:
        if not self.auto_augment:
            return frames
        # PySlowFast's hyperparameters: translations are a share of the short side.
        shift = int(min(frames.shape[1:3]) * 0.45)
        augment = _rand_augment(self.auto_augment, shift, self.input.interpolation)
        states = random.getstate(), np.random.get_state()
        changed = []
        for frame in frames:
            random.setstate(states[0])
            np.random.set_state(states[1])
            changed.append(np.asarray(augment(Image.fromarray(frame))))
        return np.stack(changed)

    def _crop(self, clip: Tensor) -> Tensor:
        """(T, 3, H, W) to (T, 3, S, S)."""
        input, side = self.input, self.input.size
        if self.scale:
            # The draw alone is torchvision's.
            top, left, height, width = RandomResizedCrop.get_params(
                clip, list(self.scale), list(self.ratio)
            )
            cut = clip[..., top : top + height, left : left + width]
            return resize(cut, [side, side], input.interpolation)
        short = max(side, round(side / input.crop))
        if self.short_side:
            least, most = self.short_side
            short = round(1 / random.uniform(1 / most, 1 / least))
        if input.mode == "squash":
            clip = resize(clip, [short, short], input.interpolation)
        else:
            clip = resize_short_side(clip, short, input.interpolation)
        top = random.randint(0, clip.shape[-2] - side)
        left = random.randint(0, clip.shape[-1] - side)
        return clip[..., top : top + side, left : left + side]


@functools.lru_cache(maxsize=64)
def _rand_augment(text: str, shift: int, interpolation: str) -> Any:
    augment = rand_augment_transform(
        text, {"translate_const": shift, "interpolation": str_to_pil_interp(interpolation)}
    )
    mend_posterize(augment.ops)
    return augment
