"""Which functions and classes a YAML config may call: those by which models are built and trained.

Modules, transforms, samplers, schedules, optimizers, hooks and evaluators pass by their kind, and
functions and other classes by their names: never a whole package, of which ``torch.hub.load`` and
the like are part.
"""

import inspect
from collections.abc import Collection
from typing import Any

from detectron2.data.transforms import Augmentation, AugmentationList
from detectron2.engine import HookBase
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils.registry import locate
from fvcore.common.param_scheduler import ParamScheduler
from fvcore.transforms.transform import Transform
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import Sampler

from .errors import UserError

# Classes of these kinds pass, where they are defined in one of these modules or below.
_KINDS = (
    nn.Module,
    Augmentation,
    AugmentationList,
    Transform,
    Sampler,
    ParamScheduler,
    LRScheduler,
    Optimizer,
    HookBase,
    DatasetEvaluator,
)
_HOMES = (
    "detectron2.data.samplers",
    "detectron2.data.transforms",
    "detectron2.engine.hooks",
    "detectron2.evaluation",
    "detectron2.layers",
    "detectron2.modeling",
    "detectron2.solver",
    "fvcore.common.param_scheduler",
    "fvcore.transforms",
    "mvitv2_det",
    "projects",
    "timm.data",
    "timm.layers",
    "timm.loss",
    "timm.models",
    "timm.optim",
    "timm.scheduler",
    "torch.nn",
    "torch.optim",
    "torch.utils.data",
    "torchvision.models",
    "torchvision.ops",
    "torchvision.transforms",
)

# Transforms and schedules without a base class above: all classes that these modules define.
_HOMES_OF_PLAIN_CLASSES = (
    "timm.data.transforms",
    "timm.scheduler",
    "torchvision.transforms.transforms",
)

# What else the configs of this project and of Detectron2 call, each where it is defined.
_NAMES = frozenset(
    {
        "detectron2.data.build.build_detection_test_loader",
        "detectron2.data.build.build_detection_train_loader",
        "detectron2.data.build.get_detection_dataset_dicts",
        "detectron2.data.dataset_mapper.DatasetMapper",
        "detectron2.data.samplers.distributed_sampler.RepeatFactorTrainingSampler"
        ".repeat_factors_from_category_frequency",
        "detectron2.layers.shape_spec.ShapeSpec",
        "detectron2.modeling.backbone.resnet.ResNet.make_default_stages",
        "detectron2.modeling.backbone.vit.get_vit_lr_decay_rate",
        "detectron2.modeling.box_regression.Box2BoxTransform",
        "detectron2.modeling.box_regression.Box2BoxTransformLinear",
        "detectron2.modeling.box_regression.Box2BoxTransformRotated",
        "detectron2.modeling.matcher.Matcher",
        "detectron2.solver.build.get_default_optimizer_params",
        "mvitv2_det.data.datasets.prepare_datasets",
        "mvitv2_det.data.lvis.FederatedLossWeights",
        "mvitv2_det.data.mapper.DatasetMapper",
        "mvitv2_det.engine.layer_decay.LayerDecay",
        "mvitv2_det.engine.schedule.warmup_fraction",
        "mvitv2_det.recognition.actions.ActionRecognizer.video",
        "mvitv2_det.recognition.description.ClipInput",
        "mvitv2_det.recognition.description.Input",
        "mvitv2_det.recognition.recognizer.Recognizer.image",
        "mvitv2_det.recognition.recognizer.Recognizer.plain",
        "mvitv2_det.recognition.recognizer.Recognizer.video",
        "mvitv2_det.variants.Variant",
        "projects.ava.data.prepare_datasets",
        "projects.ava.data.test_loader",
        "projects.ava.data.train_loader",
        "projects.common.optim.parameter_groups",
        "projects.common.runs.StoredDescription",
        "projects.imagenet.data.prepare_datasets",
        "projects.imagenet.data.test_loader",
        "projects.imagenet.data.train_loader",
        "projects.video.data.prepare_datasets",
        "projects.video.data.test_loader",
        "projects.video.data.train_loader",
        "timm.data.mixup.Mixup",
        "torchvision.models.swin_transformer.swin_b",
    }
)


def find_allowed(name: object, trust: Collection[str] = ()) -> Any:
    """Finds the function or class that a YAML config names, if it may be called.

    Args:
        name: with dots, such as ``torch.nn.LayerNorm``.
        trust: further names that are allowed, as they stand in the config.

    Raises:
        UserError: the name is not allowed, or there is nothing of this name.
    """
    if not isinstance(name, str):
        raise UserError(f"it wants to call {name!r}; a name such as torch.nn.LayerNorm is expected")
    found = None
    # Importing a module runs it: none is imported that does not come from one of these packages.
    if name in trust or _is_below(name, {home.partition(".")[0] for home in _HOMES}):
        try:
            found = locate(name)
        except Exception as error:
            reason = " ".join(str(error).split())
            raise UserError(f"there is no {name}, which it wants to call: {reason}") from error
    if name in trust or _is_allowed(found):
        return found
    raise UserError(
        f"it was refused because it wants to call {name}, which is none of the modules, "
        f"transforms, samplers, schedules and optimizers that a YAML config may call; if you know "
        f"where the file comes from, add --trust {name}"
    )


def _is_allowed(found: object) -> bool:
    if not (inspect.isclass(found) or inspect.isroutine(found)):
        return False
    module = str(found.__module__)
    if f"{module}.{found.__qualname__}" in _NAMES:
        return True
    if not inspect.isclass(found):
        return False
    return _is_below(module, _HOMES_OF_PLAIN_CLASSES) or (
        issubclass(found, _KINDS) and _is_below(module, _HOMES)
    )


def _is_below(name: str, homes: Collection[str]) -> bool:
    return any(name == home or name.startswith(f"{home}.") for home in homes)
