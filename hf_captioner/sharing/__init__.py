"""Sharing captioners: model cards."""
