"""Checking, registering and reading of data sets."""

from .datasets import prepare_datasets
from .mapper import DatasetMapper, naming_unreadable_image

__all__ = ["DatasetMapper", "naming_unreadable_image", "prepare_datasets"]
