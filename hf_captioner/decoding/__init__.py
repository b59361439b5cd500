"""What steers `generate()`, and what reads its result, word by word."""

from .words import WordLimit, word_probabilities

__all__ = ["WordLimit", "word_probabilities"]
