"""The most probable classes of images, with a trained checkpoint or released weights.

It needs no Detectron2.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import UserError
from ..graphs import replay_graphs
from ..predict.image_predictor import ImageLike, ImagePredictor
from ..predict.images import transformed
from ..weights import load_weights
from ..weights.sources import Checkpoint, Source, read_source
from .description import ENTRY, Description
from .recognizer import Recognizer
from .released import describe_weights


class Likely(NamedTuple):
    """A class of an image.

    Attributes:
        name: of the class.
        probability: in [0, 1].
        number: of the network's output, from 0 on; two classes may have one name, as the cranes
            of ImageNet.
    """

    name: str
    probability: float
    number: int


def read_recognizer(
    weights: Source, *, num_classes: int | None = None, of: str | None = "image"
) -> tuple[Recognizer, Description]:
    """Reads a trained classifier, in evaluation mode on the CPU.

    A checkpoint that training here has saved describes itself; the network that other weights
    belong to is found from their shapes, see
    :func:`mvitv2_det.recognition.released.describe_weights`.

    Args:
        weights: see :func:`mvitv2_det.load_weights`.
        num_classes: outputs of released weights to keep: the first 1,000 of ImageNet-21K's 19,168
            are those of ImageNet-1K.
        of: ``image`` or ``video``, what it must be of; None for either.

    Raises:
        UserError: the weights cannot be read, are not those of such a classifier, or do not hold
            the whole network.
    """
    checkpoint = read_source(weights)
    if ENTRY in checkpoint.others:
        try:
            description = Description.from_dict(checkpoint.others[ENTRY])
            if num_classes not in (None, len(description.classes)):
                raise UserError(
                    f"it was trained here on {len(description.classes)} classes of its own: the "
                    f"first {num_classes} cannot be taken"
                )
        except UserError as error:
            raise UserError(f"checkpoint {checkpoint.source!r}: {error}") from error
    else:
        description = describe_weights(checkpoint, num_classes)
    constructor = description.constructor
    if constructor != (of or constructor):
        what = {"image": "images", "video": "clips", "actions": "actions of persons"}
        raise UserError(
            f"checkpoint {checkpoint.source!r} is of {what.get(constructor, constructor)}: "
            f"expected one of {what[of or constructor]}"
        )
    try:
        model = description.build()
    except UserError as error:
        raise UserError(f"checkpoint {checkpoint.source!r}: {error}") from error
    report = load_weights(model, checkpoint, strict=True, classes="first" if num_classes else "all")
    if report.initialised:
        raise UserError(
            f"checkpoint {checkpoint.source!r} lacks {len(report.initialised)} tensors of the "
            f"network, {report.initialised[0]} among them"
        )
    return model.eval(), description


def kind_of(checkpoint: Checkpoint) -> str:
    """What the classifier of a checkpoint is of, ``image`` or ``video``, before it is checked."""
    description = checkpoint.others.get(ENTRY)
    if isinstance(description, Mapping):
        return "video" if description.get("constructor") == "video" else "image"
    return "video" if checkpoint.is_of_clips else "image"


def most_likely(probabilities: Tensor, classes: Sequence[str], top: int) -> list[list[Likely]]:
    """The most probable classes of each row of (N, classes), best first."""
    values, indexes = probabilities.topk(top)
    return [
        [Likely(classes[index], value, index) for index, value in zip(*one, strict=True)]
        for one in zip(indexes.tolist(), values.tolist(), strict=True)
    ]


class Classifier(ImagePredictor[Tensor, list[Likely]]):
    """Gives the most probable classes of images.

    A call with an image gives a list of :class:`Likely` classes, best first; with a sequence of
    images a list of such lists. :meth:`probabilities` gives those of all classes.

    Attributes:
        model: the network, in evaluation mode, on its device.
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
        top: int = 5,
        device: str | None = None,
        precision: str = "fp32",
        batch_size: int = 8,
        channel_order: str = "RGB",
        cuda_graphs: bool = False,
    ) -> None:
        """
        Args:
            weights: a checkpoint of training here, or weights of any source that
                :func:`mvitv2_det.load_weights` reads.
            num_classes: outputs of released weights to keep: 1,000 of ImageNet-21K's are those of
                ImageNet-1K.
            classes: a name for each output; by default those that the checkpoint names, or
                ImageNet's.
            image_size: side of the network's input; by default that of the description.
            squash: resize both sides to ``image_size``, so that nothing is cut off, as in the
                "resize" test of the paper; by default as the description says.
            top: classes that are given for an image, at most.
            device: such as ``cpu`` or ``cuda:1``; by default a GPU if there is one.
            precision: ``fp32``, or ``fp16`` or ``bf16`` by autocast.
            batch_size: images that go through the model together, at most.
            channel_order: order of colours in arrays: ``RGB``, or ``BGR`` as ``cv2.imread`` gives.
            cuda_graphs: replay the network as CUDA graphs; see :func:`mvitv2_det.replay_graphs`.

        Raises:
            UserError: an argument is wrong, the device is not there, or the weights are not those
                of an image classifier.
        """
        super().__init__(
            device=device,
            precision=precision,
            batch_size=batch_size,
            channel_order=channel_order,
            cuda_graphs=cuda_graphs,
        )
        if top < 1:
            raise UserError(f"top must be 1 or more, got {top}")
        model, description = read_recognizer(weights, num_classes=num_classes)
        if classes is not None:
            description = dataclasses.replace(description, classes=tuple(classes))
        changes: dict[str, Any] = {"size": image_size} if image_size is not None else {}
        changes |= {"mode": "squash", "crop": 1.0} if squash else {}
        description = dataclasses.replace(
            description, input=dataclasses.replace(description.input, **changes)
        )
        self.model = model.to(self.device)
        if cuda_graphs:
            replay_graphs(self.model)
        self.description = description
        self.top = min(top, len(description.classes))
        self._transform = description.input.transform()

    def prepare(self, image: ImageLike, name: str = "the image") -> Tensor:
        """Makes the network's input (3, size, size) of an image.

        Args:
            image: as for a call.
            name: what errors call an image in memory.

        Raises:
            UserError: it cannot be read or resized.
        """
        rgb = self._read(image)
        name = f"image {image}" if isinstance(image, (str, Path)) else name
        return transformed(self._transform, rgb, name)

    def infer(self, inputs: Sequence[Tensor]) -> list[list[Likely]]:
        """Classifies inputs that :meth:`prepare` has made.

        Returns:
            for each the most probable classes, best first.

        Raises:
            UserError: the GPU has too little memory.
        """
        return most_likely(self._infer(inputs), self.description.classes, self.top)

    def probabilities(self, images: Sequence[ImageLike]) -> Tensor:
        """Classifies images; returns the probabilities (images, classes), float32, on the CPU.

        Raises:
            UserError: an image cannot be read or resized.
        """
        found = [torch.empty(0, len(self.description.classes))]
        for start in range(0, len(images), self.batch_size):
            batch = images[start : start + self.batch_size]
            found.append(self._infer([self.prepare(image) for image in batch]))
        return torch.cat(found)

    @torch.no_grad()
    def _infer(self, inputs: Sequence[Tensor]) -> Tensor:
        with self._running(len(inputs)):
            logits = self.model(torch.stack(list(inputs)).to(self.device))
        return logits.float().softmax(dim=1).cpu()
