"""Prediction on images and videos: ``python -m mvitv2_det.predict``, and from Python."""

from .images import read_rgb
from .predictor import PRECISIONS, Predictor

__all__ = ["PRECISIONS", "Predictor", "read_rgb"]
