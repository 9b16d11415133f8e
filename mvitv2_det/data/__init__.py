"""Checking, registering and reading of data sets."""

from .datasets import prepare_datasets
from .loader import TrainLoader, build_train_loader
from .mapper import DatasetMapper, naming_unreadable_image

__all__ = [
    "DatasetMapper",
    "TrainLoader",
    "build_train_loader",
    "naming_unreadable_image",
    "prepare_datasets",
]
