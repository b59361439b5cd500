"""Sharing captioners: model cards, and conversion of other people's captioners."""

from .card import write_card
from .conversion import convert_captioner, convert_model

__all__ = ["convert_captioner", "convert_model", "write_card"]
