"""Data sets of images and captions, and the batches that training takes."""

from .collator import CaptionCollator
from .feature_cache import FeatureDataset, cache_features
from .shapes import shapes_dataset
from .sources import load_captions
from .validation import validate

__all__ = ["CaptionCollator", "FeatureDataset", "cache_features", "load_captions", "shapes_dataset", "validate"]
