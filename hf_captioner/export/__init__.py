"""Captioners that run elsewhere: ONNX, and the runtime without torch."""

from .onnx_captioner import OnnxCaptioner

__all__ = ["OnnxCaptioner"]
