"""What training and evaluation on LVIS need beside what COCO does."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import get_fed_loss_cls_weights
from detectron2.evaluation import LVISEvaluator
from torch import Tensor

from ..errors import UserError


def check_lvis_package() -> None:
    """Checks that there is the package that reads and evaluates LVIS.

    Raises:
        UserError: there is not.
    """
    if find_spec("lvis") is None:
        raise UserError("LVIS needs the package lvis: pip install 'mvitv2_det[lvis]'")


class FederatedLossWeights:
    """How often the federated loss draws each class that an image says nothing about.

    A class is drawn in proportion to a power of the number of training images that it is in. It
    stands in a config where Detectron2's ``FastRCNNOutputLayers`` takes
    ``get_fed_loss_cls_weights``.

    Args:
        dataset_names: the training split's name. Of LVIS, Detectron2 knows the numbers; of another
            split they are counted.
        num_classes: of the model.
        freq_weight_power: the power.
    """

    def __init__(self, dataset_names: str, num_classes: int, freq_weight_power: float = 0.5):
        self.dataset_names = dataset_names
        self.num_classes = num_classes
        self.freq_weight_power = freq_weight_power

    def __call__(self) -> Tensor:
        """The weights, (number of classes,); ones where the training split is not at hand.

        Only training draws by them, and weights that are loaded bring their own.
        """
        name = self.dataset_names
        if name not in DatasetCatalog.list():
            return torch.ones(self.num_classes)
        if MetadataCatalog.get(name).get("class_image_count") is None:
            counts = torch.zeros(self.num_classes)
            for record in DatasetCatalog.get(name):
                counts[list({one["category_id"] for one in record["annotations"]})] += 1
            # A class that is in no image is still one that can be drawn.
            return counts.clamp(min=1) ** self.freq_weight_power
        weights: Tensor = get_fed_loss_cls_weights(name, self.freq_weight_power)
        return weights


class LvisEvaluator(LVISEvaluator):
    """Detectron2's evaluator, which calls the ``lvis`` package, with any release of NumPy.

    It takes the arguments of :class:`detectron2.evaluation.LVISEvaluator`.

    Raises:
        UserError: the package is not installed.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        check_lvis_package()
        super().__init__(*args, **kwargs)

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """The results by task; None on all processes but the main one."""
        with numpy_with_float():
            return super().evaluate()


@contextmanager
def numpy_with_float() -> Iterator[None]:
    """The last release of lvis, 0.5.3, asks NumPy for ``float``, which NumPy 1.24 has dropped."""
    if "float" in vars(np):
        yield
        return
    np.float = float  # type: ignore[attr-defined]
    try:
        yield
    finally:
        del np.float  # type: ignore[attr-defined]
