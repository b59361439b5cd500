"""Explanations of a caption: pictures of the attention, and how far the confidence can be believed."""

from .calibration import (
    auroc,
    expected_calibration_error,
    fit_familiarity,
    fit_temperature,
    reliability,
    risk_coverage,
    save_calibration_picture,
)
from .pictures import overlay, save_attention_picture

__all__ = [
    "auroc",
    "expected_calibration_error",
    "fit_familiarity",
    "fit_temperature",
    "overlay",
    "reliability",
    "risk_coverage",
    "save_attention_picture",
    "save_calibration_picture",
]
