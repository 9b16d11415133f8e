"""What predictors of all kinds share: the device, the precision, batches, and reading of images."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

import numpy as np
import torch
from PIL import Image

from ..errors import UserError
from .images import as_rgb, read_rgb

ImageLike = str | Path | np.ndarray | Image.Image
Item = TypeVar("Item")
Prepared = TypeVar("Prepared")
Found = TypeVar("Found")

PRECISIONS = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}
CHANNEL_ORDERS = ("RGB", "BGR")


class Inference:
    """Where and how a model runs, whatever it takes.

    Attributes:
        device: where the model runs.
        batch_size: images or clips that go through the model together, at most.
    """

    def __init__(
        self, *, device: str | None, precision: str, batch_size: int, cuda_graphs: bool = False
    ) -> None:
        """
        Args:
            device: such as ``cpu`` or ``cuda:1``; by default a GPU if there is one.
            precision: ``fp32``, or ``fp16`` or ``bf16`` by autocast.
            batch_size: images or clips that go through the model together, at most.
            cuda_graphs: replay the network as CUDA graphs; see :func:`mvitv2_det.replay_graphs`.

        Raises:
            UserError: an argument is wrong, or the device is not there.
        """
        if precision not in PRECISIONS:
            raise UserError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
        if batch_size < 1:
            raise UserError(f"the batch size must be 1 or more, got {batch_size}")
        self.device = _check_device(device)
        if cuda_graphs and self.device.type != "cuda":
            raise UserError(f"CUDA graphs are of GPUs, and the device is {self.device}: leave them")
        self.batch_size = batch_size
        self._precision = PRECISIONS[precision]

    @contextmanager
    def _running(self, count: int) -> Iterator[None]:
        """The precision that was asked for; a lack of memory for ``count`` images in one line."""
        try:
            with torch.autocast(
                self.device.type, self._precision, enabled=self._precision is not None
            ):
                yield
        except torch.cuda.OutOfMemoryError as error:
            raise UserError(
                f"the GPU has too little memory for a batch of {count}: choose a smaller batch "
                f"size, or a precision of fp16 or bf16"
            ) from error


class ImagePredictor(Inference, ABC, Generic[Prepared, Found]):
    """Finds something in images: ``Prepared`` is a model's input, ``Found`` what it gives.

    Attributes:
        channel_order: as given.
        should_stop: says whether what takes long for an image is to end by a KeyboardInterrupt.
    """

    def __init__(
        self,
        *,
        device: str | None,
        precision: str,
        batch_size: int,
        channel_order: str,
        cuda_graphs: bool = False,
    ) -> None:
        """
        Args:
            device, precision, batch_size, cuda_graphs: as for :class:`Inference`.
            channel_order: order of colours in arrays: ``RGB``, or ``BGR`` as ``cv2.imread`` gives.

        Raises:
            UserError: an argument is wrong, or the device is not there.
        """
        super().__init__(
            device=device, precision=precision, batch_size=batch_size, cuda_graphs=cuda_graphs
        )
        if channel_order not in CHANNEL_ORDERS:
            raise UserError(f"channel_order must be RGB or BGR, got {channel_order!r}")
        self.channel_order = channel_order
        self.should_stop: Callable[[], bool] = lambda: False

    # A path is a sequence, too, of letters: the first that fits is meant.
    @overload
    def __call__(self, images: ImageLike) -> Found: ...  # type: ignore[overload-overlap]

    @overload
    def __call__(self, images: Sequence[ImageLike]) -> list[Found]: ...

    def __call__(self, images: ImageLike | Sequence[ImageLike]) -> Found | list[Found]:
        """Finds what is in one image, or in each of several.

        Args:
            images: a file; an array of shape (H, W, 3), (H, W, 4) or (H, W), of uint8 or, over its
                full range, uint16; an image of Pillow; or a sequence of these.

        Returns:
            what :meth:`infer` gives for the image; a list for a sequence.

        Raises:
            UserError: an image cannot be read or resized.
        """
        if isinstance(images, (str, Path, np.ndarray, Image.Image)):
            return self.infer([self.prepare(images)])[0]
        found: list[Found] = []
        for batch in batches(images, self.batch_size):
            found += self.infer([self.prepare(image) for image in batch])
        return found

    def read_file(self, file: str | Path) -> Any:
        """Reads an image of a file for :meth:`prepare`: (H, W, 3) RGB, uint8.

        Raises:
            UserError: it cannot be read.
        """
        return read_rgb(file)

    @abstractmethod
    def prepare(self, image: ImageLike, name: str = "the image") -> Prepared:
        """Makes the model's input of an image; errors call an image in memory ``name``."""

    @abstractmethod
    def infer(self, inputs: Sequence[Prepared]) -> list[Found]:
        """Finds what is in inputs that :meth:`prepare` has made; returns it in their order."""

    def _read(self, image: ImageLike) -> np.ndarray:
        """Reads (H, W, 3) RGB, uint8.

        Raises:
            UserError: it cannot be read.
        """
        if isinstance(image, (str, Path)):
            return read_rgb(image)
        return as_rgb(image, self.channel_order)


def batches(items: Sequence[Item] | Iterator[Item], size: int) -> Iterator[list[Item]]:
    """Cuts a sequence into lists of ``size``; the last may be shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _check_device(name: str | None) -> torch.device:
    """Chooses the device, and tries it out.

    Raises:
        UserError: this machine has no such device.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"device {name!r} cannot be used on this machine ({reason}); choose cpu, or none for "
            f"what there is"
        ) from error
    return device
