"""Sharing captioners: model cards."""

from .card import write_card

__all__ = ["write_card"]
