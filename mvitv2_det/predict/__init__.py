"""Prediction on images and videos, from Python: :class:`Predictor`.

The names are imported when they are first used, so that ``python -m mvitv2_det.predict --help`` is
quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .image_predictor import PRECISIONS
    from .images import read_rgb
    from .predictor import Predictor

__all__ = ["PRECISIONS", "Predictor", "read_rgb"]

_MODULES = {"PRECISIONS": "image_predictor", "Predictor": "predictor", "read_rgb": "images"}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f".{_MODULES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
