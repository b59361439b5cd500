"""Explanations of a caption: pictures of the attention, and how far the confidence can be believed, and the page that
compares captioners."""

from .calibration import (
    auroc,
    expected_calibration_error,
    fit_familiarity,
    fit_temperature,
    reliability,
    risk_coverage,
    save_calibration_picture,
)
from .comparison_page import ShownImage, ShownMaps, write_comparison_page
from .pictures import overlay, save_attention_picture

__all__ = [
    "ShownImage",
    "ShownMaps",
    "auroc",
    "expected_calibration_error",
    "fit_familiarity",
    "fit_temperature",
    "overlay",
    "reliability",
    "risk_coverage",
    "save_attention_picture",
    "save_calibration_picture",
    "write_comparison_page",
]
