"""Explanations of a caption: pictures of the attention."""

from .pictures import overlay, save_attention_picture

__all__ = ["overlay", "save_attention_picture"]
