"""Data: checking and registering one's own, and reading it."""

from .datasets import prepare_datasets
from .mapper import DatasetMapper

__all__ = ["DatasetMapper", "prepare_datasets"]
