"""Finding instances in images, as evaluation does, with a LazyConfig and its weights."""

import copy
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import detectron2.data.transforms as T
import numpy as np
import torch
from detectron2.config import instantiate
from detectron2.structures import Instances
from omegaconf import DictConfig, OmegaConf
from torch import nn

from ..caching import constant_weights
from ..config import apply_overrides
from ..errors import UserError
from ..graphs import replay_graphs
from ..runtimes import TORCH, check_runtime, run_exported
from ..trained import read_config, read_trained
from .classes import known_classes, own_classes
from .image_predictor import CHANNEL_ORDERS, ImageLike, ImagePredictor


class Predictor(ImagePredictor[dict[str, Any], Instances]):
    """Finds instances in images, the same as evaluation with the same config and weights.

    Images are resized by the config's test augmentations, or seen at several scales where the
    config has a ``multi_scale_test``. Those of a batch that are of one size go through the model
    together; others are never padded to each other, which would change what is found in them.
    Another runtime than ``torch`` computes each image by itself, several at a time.

    Attributes:
        model: in evaluation mode, on its device. Its weights must not be changed: see
            :func:`mvitv2_det.constant_weights`.
        classes: names and category ids of the model's classes.
        device, batch_size: as given.
    """

    def __init__(
        self,
        config: str | Path | DictConfig,
        weights: str | Path,
        *,
        overrides: Sequence[str] = (),
        trust: Collection[str] = (),
        device: str | None = None,
        precision: str = "fp32",
        score_threshold: float | None = None,
        batch_size: int = 8,
        channel_order: str = "RGB",
        cuda_graphs: bool = False,
        runtime: str = TORCH,
    ) -> None:
        """
        Args:
            config: a file, such as the ``config.yaml`` that a run has saved; a name that
                :func:`mvitv2_det.get_config` knows; or a config, which is left as it is.
            weights: of a whole detector; see :func:`mvitv2_det.load_weights`.
            overrides: of the config, ``key=value``.
            trust: functions and classes that a YAML config may call beside those that it may by
                itself (:mod:`mvitv2_det.allowed_names`).
            device: such as ``cpu`` or ``cuda:1``; by default a GPU if there is one.
            precision: ``fp32``, or ``fp16`` or ``bf16`` by autocast; that of another runtime is one
                of :data:`mvitv2_det.runtimes.PRECISIONS`.
            score_threshold: instances must score higher, in [0, 1]; by default the config's.
            batch_size: images that go through the model together, at most.
            channel_order: order of colours in arrays: ``RGB``, or ``BGR`` as ``cv2.imread`` gives.
            cuda_graphs: replay the backbone as CUDA graphs; see :func:`mvitv2_det.replay_graphs`.
            runtime: what computes: ``torch``; or on a CPU ``openvino`` or ``onnxruntime``, for
                which the detector is exported once: :func:`mvitv2_det.runtimes.run_exported`.

        Raises:
            UserError: an argument is wrong, the device is not there, or the weights are not those
                of the config's model.
        """
        check_runtime(runtime, precision, device)
        self._is_exported = runtime != TORCH
        super().__init__(
            device="cpu" if self._is_exported else device,
            precision="fp32" if self._is_exported else precision,
            batch_size=batch_size,
            channel_order=channel_order,
            cuda_graphs=cuda_graphs,
        )
        if score_threshold is not None and not 0 <= score_threshold <= 1:
            raise UserError(f"the score threshold must be in [0, 1], got {score_threshold:g}")
        cfg = _read_config(config, overrides, trust)
        classes = own_classes(cfg)
        if classes and OmegaConf.select(cfg, "model.roi_heads.num_classes") is not None:
            cfg.model.roi_heads.num_classes = len(classes.names)
        self._resize, self._channels = _read_mapper(cfg)
        self.model = read_trained(cfg, str(weights), device=str(self.device))
        if cuda_graphs:
            replay_graphs(self.model.get_submodule("backbone"))
        count = _box_predictors(self.model)[0].num_classes
        self.classes = classes or known_classes(cfg, count)
        if score_threshold is not None:
            set_score_threshold(self.model, score_threshold)
        if self._is_exported:
            if cfg.get("multi_scale_test"):
                raise UserError(f"{runtime} has no multi-scale testing: choose the runtime torch")
            settings = [cfg.model, score_threshold]
            self.model = run_exported(
                self.model, settings, weights, runtime=runtime, precision=precision
            )
        if cfg.get("multi_scale_test"):
            # It resizes by itself.
            self._resize = T.AugmentationList([])
            self.model = instantiate({**cfg.multi_scale_test, "model": self.model}).eval()
        self._promise = ExitStack()  # ends with the predictor
        self._promise.enter_context(constant_weights(self.model))

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles are promised nothing of their weights."""
        return self.__dict__ | {"_promise": None}

    def prepare(self, image: ImageLike, name: str = "the image") -> dict[str, Any]:
        """Makes the model's input of an image, as the config's test loader does.

        Args:
            image: as for :meth:`__call__`.
            name: what errors call an image in memory.

        Raises:
            UserError: it cannot be read or resized.
        """
        name = f"image {image}" if isinstance(image, (str, Path)) else name
        return self.prepare_rgb(self._read(image), name)

    def prepare_rgb(self, rgb: np.ndarray, name: str = "the image") -> dict[str, Any]:
        """Makes the model's input of (H, W, 3) RGB, uint8; see :meth:`prepare`."""
        height, width = rgb.shape[:2]
        is_bgr = self._channels == "BGR"
        pixels = T.AugInput(np.ascontiguousarray(rgb[:, :, ::-1]) if is_bgr else rgb)
        try:
            self._resize(pixels)
        except (ValueError, AssertionError, ZeroDivisionError, OverflowError) as error:
            raise UserError(f"cannot resize {name} of {width}×{height}: {error}") from error
        tensor = torch.as_tensor(np.ascontiguousarray(pixels.image.transpose(2, 0, 1)))
        return {"image": tensor, "height": height, "width": width}

    @torch.no_grad()
    def infer(self, inputs: Sequence[dict[str, Any]]) -> list[Instances]:
        """Finds the instances of inputs that :meth:`prepare` has made; returns them in that order.

        Returns:
            on the CPU, in pixels of the image, sorted by descending score: ``pred_boxes``,
            ``scores``, ``pred_classes`` and, of a model with masks, ``pred_masks`` (N, H, W) bool.

        Raises:
            UserError: the GPU has too little memory.
        """
        same_size: dict[torch.Size, list[int]] = {}
        for index, one in enumerate(inputs):
            # Other runtimes compute each image by itself, several at a time.
            size = torch.Size() if self._is_exported else one["image"].shape
            same_size.setdefault(size, []).append(index)
        found: dict[int, Instances] = {}
        for indexes in same_size.values():
            with self._running(len(indexes)):
                outputs = self.model([inputs[index] for index in indexes])
            found |= {
                index: _on_cpu(output["instances"])
                for index, output in zip(indexes, outputs, strict=True)
            }
        return [found[index] for index in range(len(inputs))]


def set_score_threshold(model: nn.Module, threshold: float) -> None:
    """Makes box heads, Standard or Cascade, keep what scores higher, before NMS and the top k.

    Raises:
        UserError: the model has no box head.
    """
    for predictor in _box_predictors(model):
        predictor.test_score_thresh = threshold


def _box_predictors(model: nn.Module) -> list[Any]:
    predictors = [module for module in model.modules() if hasattr(module, "test_score_thresh")]
    if not predictors:
        raise UserError("the config's model has no box predictor with a test_score_thresh")
    return predictors


def _read_config(
    config: str | Path | DictConfig, overrides: Sequence[str], trust: Collection[str]
) -> DictConfig:
    if isinstance(config, DictConfig):
        cfg = apply_overrides(copy.deepcopy(config), list(overrides))
    else:
        cfg = read_config(str(config), overrides, trust)
    for key in ("model", "train", "dataloader.test.mapper"):
        if OmegaConf.select(cfg, key) is None:
            raise UserError(f"the config has no {key!r}: expected a LazyConfig like those here")
    return cfg


def _read_mapper(cfg: DictConfig) -> tuple[T.Augmentation, str]:
    """Finds how the test loader resizes images, and its order of colours, RGB or BGR."""
    mapper = instantiate(cfg.dataloader.test.mapper)
    for attribute in ("augmentations", "image_format"):
        if not hasattr(mapper, attribute):
            raise UserError(
                f"dataloader.test.mapper, a {type(mapper).__name__}, has no {attribute!r}: "
                f"expected a DatasetMapper"
            )
    if mapper.image_format not in CHANNEL_ORDERS:
        raise UserError(
            f"dataloader.test.mapper.image_format must be RGB or BGR, got {mapper.image_format!r}"
        )
    return mapper.augmentations, mapper.image_format


def _on_cpu(instances: Instances) -> Instances:
    """Moves instances to the CPU, in float32: numpy and json do not know bfloat16."""
    instances = instances.to("cpu")
    instances.scores = instances.scores.float()
    instances.pred_boxes.tensor = instances.pred_boxes.tensor.float()
    return instances
