"""Captioners on their way to others: cards."""
