"""Pictures of a finished run: curves of losses and AP, and predictions beside the ground truth."""

from .curves import ap_table, draw_curves, last_evaluated
from .gallery import draw_gallery
from .instances import class_colors, draw_instances
from .run_files import read_metrics, read_results

__all__ = [
    "ap_table",
    "class_colors",
    "draw_curves",
    "draw_gallery",
    "draw_instances",
    "last_evaluated",
    "read_metrics",
    "read_results",
]
