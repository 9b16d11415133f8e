"""Training steps and inference of a row's network on synthetic images, to be timed.

Images are noise with seven objects each, as many as a COCO image has; the cost of a step does not
depend on their content. The work of a detector's heads is fixed, as in the counted costs: every
proposal is made a confident candidate of one class, so that non-maximum suppression and the mask
head have the work of a trained detector despite random weights.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import instantiate
from detectron2.structures import Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage
from omegaconf import DictConfig
from torch import Tensor, nn

from mvitv2_det import get_config
from mvitv2_det.detection.costs import DETECTIONS, IMAGE_SIZE, PROPOSALS
from mvitv2_det.fused import accelerate
from projects.common.memory import saved_for_backward
from projects.common.results import DTYPES
from projects.common.timing import Step

OBJECTS = 7
CONFIDENT = 10.0  # logit of the class that every region gets
NUM_CLASSES = 1000
# Too small to change a weight, so that all iterations do the same.
LEARNING_RATE = 1e-12


@dataclass(frozen=True)
class Settings:
    """Size, precision and device of a measurement.

    Attributes:
        device: ``"cpu"`` or ``"cuda"``.
        batch: images in a training step and in an inference.
        image_size: (H, W) in pixels.
        precision: one of ``DTYPES``: float32, or autocast to one of the others.
        backend: attention backend, the same for all rows, so that kinds of attention are
            compared and not their implementations. ``"auto"`` takes the fastest for each.
    """

    device: str
    batch: int
    image_size: tuple[int, int]
    precision: str
    backend: str = "reference"

    @property
    def region_scale(self) -> float:
        """Share of the protocol's proposals and detections, as large as that of its area.

        On a small image the heads would otherwise outweigh the backbone.
        """
        return min(1.0, np.prod(self.image_size) / np.prod(IMAGE_SIZE))

    def autocast(self) -> torch.autocast:
        """Makes the context that a forward pass runs in."""
        dtype = DTYPES[self.precision]
        return torch.autocast(self.device, dtype, enabled=self.precision != "fp32")


class Workload:
    """A network with its input. Between its turns only its weights exist, on the CPU.

    Args:
        model: the LazyCall of a detector or of an image classifier.
        task: ``"detection"`` or ``"classification"``.
        settings: size and precision.
    """

    def __init__(self, model: DictConfig, task: str, settings: Settings) -> None:
        self.settings = settings
        if task == "detection":
            self.model = instantiate(_with_scaled_regions(model, settings.region_scale))
            _make_every_proposal_a_candidate(self.model)
            images = make_detection_images(settings.batch, settings.image_size)
            self.compute_loss: Callable[[], Tensor] = lambda: sum(self.model(images).values())
            self.infer: Step = lambda: self.model(images)
        else:
            self.model = instantiate(model)
            shape = (settings.batch, 3, *settings.image_size)
            images = torch.randn(shape, device=settings.device)
            labels = torch.arange(settings.batch, device=settings.device) % NUM_CLASSES
            self.compute_loss = lambda: F.cross_entropy(self.model(images), labels)
            self.infer = lambda: self.model(images)
        accelerate(self.model, settings.backend)

    @contextmanager
    def training(self) -> Iterator[Step]:
        """Yields a training step: forward, backward, AdamW."""
        model = self.model.to(self.settings.device).train()
        optimizer = _optimizer(model)
        scaler = torch.amp.GradScaler(
            self.settings.device, enabled=self.settings.precision == "fp16"
        )

        def step() -> None:
            optimizer.zero_grad()
            with self.settings.autocast():
                loss = self.compute_loss()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()

        try:
            with EventStorage():
                yield step
        finally:
            optimizer.state.clear()
            model.zero_grad()
            model.to("cpu")

    def saved_for_backward(self) -> int:
        """Measures the bytes that a training step's forward pass saves, without the weights."""
        model = self.model.to(self.settings.device).train()
        weights = [*model.parameters(), *model.buffers()]
        with EventStorage(), self.settings.autocast():
            saved = saved_for_backward(self.compute_loss, weights)
        model.to("cpu")
        return saved

    @contextmanager
    def testing(self) -> Iterator[Step]:
        """Yields an inference step."""
        model = self.model.to(self.settings.device).eval()

        def step() -> None:
            with torch.no_grad(), self.settings.autocast():
                self.infer()

        try:
            yield step
        finally:
            model.to("cpu")


def make_detection_images(batch: int, image_size: tuple[int, int]) -> list[dict]:
    """Makes the same images each time in Detectron2's format, with quadrangles as ground truth."""
    height, width = image_size
    rng = np.random.default_rng(0)
    made = []
    for _ in range(batch):
        pixels = rng.integers(0, 256, (3, height, width), dtype=np.uint8)
        sides = np.exp(rng.uniform(np.log(0.05), np.log(0.5), (OBJECTS, 2))) * (width, height)
        corners = rng.uniform(size=(OBJECTS, 2)) * ((width, height) - sides)
        objects = Instances(image_size)
        objects.gt_boxes = Boxes(torch.tensor(np.hstack([corners, corners + sides])).float())
        objects.gt_classes = torch.tensor(rng.integers(0, 80, OBJECTS))
        objects.gt_masks = PolygonMasks(
            [
                [np.array([(x0 + x1) / 2, y0, x1, (y0 + y1) / 2, (x0 + x1) / 2, y1, x0, y1])]
                for x0, y0, x1, y1 in objects.gt_boxes.tensor.tolist()
            ]
        )
        image = torch.from_numpy(pixels)
        made.append({"image": image, "height": height, "width": width, "instances": objects})
    return made


def _with_scaled_regions(model: DictConfig, scale: float) -> DictConfig:
    """Scales the numbers of regions of a detector's LazyCall in place, and returns it."""

    def scaled(number: int) -> int:
        return max(1, round(scale * number))

    rpn, heads = model.proposal_generator, model.roi_heads
    rpn.pre_nms_topk = tuple(scaled(number) for number in rpn.pre_nms_topk)
    rpn.post_nms_topk = (scaled(PROPOSALS), scaled(PROPOSALS))
    rpn.batch_size_per_image = scaled(rpn.batch_size_per_image)
    heads.batch_size_per_image = scaled(heads.batch_size_per_image)
    heads.box_predictor.test_topk_per_image = scaled(DETECTIONS)
    return model


def _make_every_proposal_a_candidate(model: nn.Module) -> None:
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.bias[0] = CONFIDENT


def _optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """Makes the recipe's AdamW for a network."""
    optimizer = get_config("mask_rcnn_mvitv2_t_3x").optimizer
    optimizer.params.model = model
    optimizer.lr = LEARNING_RATE
    return instantiate(optimizer)
