"""How an exported file compares with the model that it was made of, and on which images.

Axes: B images or clips, H × W or T × H × W pixels, N instances.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.ops import box_iou

from .writers import Runner

_SAME_OVERLAP = 0.5  # IoU from which on two boxes of a class are of one instance


@dataclass(frozen=True)
class Comparison:
    """How an exported file compares with the model that it was made of.

    Attributes:
        sizes: (H, W) of the images, or (T, H, W) of the clips, compared on.
        error: the largest difference over the largest value, of the worst output.
        instances: number of a detector's instances that were compared; None for other parts.
        quantized: what :func:`compare_quantized` says of the file where it is quantised; the other
            figures are then those of the file before.
    """

    sizes: list[tuple[int, ...]]
    error: float
    instances: int | None
    quantized: float | None = None


def noise(size: tuple[int, ...], seed: int) -> Tensor:
    """Makes an image (3, H, W) or a clip (3, T, H, W), 0 to 255, of noise coarse enough to find."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.zeros(1, 3, *size)
    for step in (64, 16, 4, 1):
        coarse = torch.rand(1, 3, *(-(-side // step) for side in size), generator=generator)
        image += nn.functional.interpolate(coarse, size=size, mode="nearest") / 4
    return 255 * image[0]


def normalised(image: Tensor, model: nn.Module) -> Tensor:
    """Normalises (3, …) to (1, 3, …) with the model's mean, or else the image's own."""
    mean = getattr(model, "pixel_mean", image.mean())
    std = getattr(model, "pixel_std", image.std())
    return ((image - mean) / std)[None]


def sizes_to_compare(image_size: tuple[int, ...], dynamic: bool) -> list[tuple[int, ...]]:
    """Chooses sizes to compare on: the example's, and two that no stride or window divides."""
    *frames, height, width = image_size
    others = [(height // 2 + 7, width + 33), (height + 65, width // 2 + 3)]
    return [image_size, *((*frames, *other) for other in others if dynamic)]


def compare(
    run: Runner, model: nn.Module, images: Sequence[Tensor], part: str, axes: int
) -> Comparison:
    """Compares the outputs for images whose last ``axes`` are (H, W) or (T, H, W)."""
    error, instances, sizes = 0.0, 0, []
    for image in images:
        sizes.append(tuple(image.shape[-axes:]))
        expected = outputs_of(model(image))
        try:
            actual = outputs_of(run(image))
        except Exception:  # such as a size that the exported graph does not take
            error = float("inf")
            break
        instances += len(expected[0])
        for mine, theirs in zip(actual, expected, strict=True):
            error = max(error, _relative_error(mine, theirs))
    sizes = list(dict.fromkeys(sizes))
    return Comparison(sizes, error, instances if part == "detector" else None)


@torch.no_grad()
def compare_quantized(run: Runner, model: nn.Module, images: Sequence[Tensor], part: str) -> float:
    """Compares what rounding has changed.

    Returns:
        of a detector the share of its instances that only the file or only the model finds, others
        having the same class and boxes with an IoU of 0.5; of other parts the largest difference
        over the largest value of an output.
    """
    error, alone, instances = 0.0, 0, 0
    for image in images:
        expected, actual = outputs_of(model(image)), outputs_of(run(image))
        if part != "detector":
            for mine, theirs in zip(actual, expected, strict=True):
                error = max(error, _relative_error(mine, theirs))
            continue
        (boxes, classes), (other_boxes, other_classes) = expected[:2], actual[:2]
        is_same = box_iou(boxes, other_boxes) >= _SAME_OVERLAP
        is_same &= classes[:, None] == other_classes[None]
        alone += int((~is_same.any(0)).sum() + (~is_same.any(1)).sum())
        instances += len(boxes) + len(other_boxes)
    return alone / max(instances, 1) if part == "detector" else error


def outputs_of(result: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    """The outputs of a model, or of a file, that may have one or several."""
    return (result,) if isinstance(result, Tensor) else result


def _relative_error(actual: Tensor, expected: Tensor) -> float:
    """Divides the largest difference by the largest value; infinite if shapes differ."""
    if actual.shape != expected.shape:
        return float("inf")
    if expected.numel() == 0:
        return 0.0
    difference = (actual - expected).abs().max().item()
    return difference / max(expected.abs().max().item(), torch.finfo(torch.float32).tiny)


def describe(sizes: Sequence[tuple[int, ...]]) -> str:
    """Sizes in words, such as ``16×224×224``."""
    return ", ".join("×".join(map(str, size)) for size in sizes)
