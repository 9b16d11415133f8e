"""Pictures of a finished run: curves, predictions beside the ground truth, mistakes.

The names are imported when they are first used: some need Detectron2, and some do not.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .classification import Classified, draw_classified, draw_confusion_matrix, write_mistakes
    from .curves import ap_table, draw_curves, last_evaluated
    from .gallery import draw_gallery
    from .instances import class_colors, draw_instances
    from .run_files import read_metrics, read_results

__all__ = [
    "Classified",
    "ap_table",
    "class_colors",
    "draw_classified",
    "draw_confusion_matrix",
    "draw_curves",
    "draw_gallery",
    "draw_instances",
    "last_evaluated",
    "read_metrics",
    "read_results",
    "write_mistakes",
]

_MODULES = {
    "Classified": "classification",
    "ap_table": "curves",
    "class_colors": "instances",
    "draw_classified": "classification",
    "draw_confusion_matrix": "classification",
    "draw_curves": "curves",
    "draw_gallery": "gallery",
    "draw_instances": "instances",
    "last_evaluated": "curves",
    "read_metrics": "run_files",
    "read_results": "run_files",
    "write_mistakes": "classification",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f".{_MODULES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
