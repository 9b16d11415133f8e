"""MViTv2 for object detection, as a Detectron2 backbone extension.

Li et al., "MViTv2: Improved Multiscale Vision Transformers for Classification and Detection",
CVPR 2022, arXiv 2112.01526.

Importing this package is quick: it imports neither torch nor Detectron2. Each name below is
imported from its module when it is first used. Importing ``add_mvitv2_config`` also registers
``build_mvitv2_backbone`` and ``build_mvitv2_fpn_backbone`` in Detectron2's registry.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .without_detectron2 import explain_missing_detectron2

if TYPE_CHECKING:
    from .backbone.mvit import MViT
    from .backbone.vit import ViT
    from .caching import constant_weights
    from .config import get_config
    from .detection import MViTFPN, ResampledPyramid, add_mvitv2_config
    from .errors import UserError
    from .fused import compile_blocks, explain
    from .graphs import replay_graphs
    from .predict import Predictor
    from .recognition.action_finder import ActionFinder
    from .recognition.actions import ActionRecognizer
    from .recognition.classifier import Classifier
    from .recognition.clip_classifier import ClipClassifier
    from .recognition.recognizer import Recognizer
    from .variants import VARIANTS, Variant
    from .weights import convert_weights, load_weights

__version__ = "0.1.0"

__all__ = [
    "VARIANTS",
    "ActionFinder",
    "ActionRecognizer",
    "Classifier",
    "ClipClassifier",
    "MViT",
    "MViTFPN",
    "Predictor",
    "Recognizer",
    "ResampledPyramid",
    "UserError",
    "Variant",
    "ViT",
    "add_mvitv2_config",
    "compile_blocks",
    "constant_weights",
    "convert_weights",
    "explain",
    "get_config",
    "load_weights",
    "replay_graphs",
]

_MODULES = {
    "VARIANTS": "variants",
    "ActionFinder": "recognition.action_finder",
    "ActionRecognizer": "recognition.actions",
    "Classifier": "recognition.classifier",
    "ClipClassifier": "recognition.clip_classifier",
    "MViT": "backbone.mvit",
    "MViTFPN": "detection",
    "Predictor": "predict",
    "Recognizer": "recognition.recognizer",
    "ResampledPyramid": "detection",
    "UserError": "errors",
    "Variant": "variants",
    "ViT": "backbone.vit",
    "add_mvitv2_config": "detection",
    "compile_blocks": "fused",
    "constant_weights": "caching",
    "replay_graphs": "graphs",
    "convert_weights": "weights",
    "explain": "fused",
    "get_config": "config",
    "load_weights": "weights",
}

explain_missing_detectron2()


def __getattr__(name: str) -> Any:
    """Imports a public name, or a submodule, when it is first used."""
    if name in _MODULES:
        value = getattr(import_module(f".{_MODULES[name]}", __name__), name)
        globals()[name] = value
        return value
    if not name.startswith("_"):
        module = f"{__name__}.{name}"
        try:
            return import_module(module)
        except ModuleNotFoundError as error:
            if error.name != module:
                raise
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
