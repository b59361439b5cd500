"""Where a captioner looked."""

from .pictures import overlay, save_attention_picture

__all__ = ["overlay", "save_attention_picture"]
