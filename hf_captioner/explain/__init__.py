"""
Explanations of a caption: where a captioner looked for each word, and pictures and a page of it; how far its
confidence can be believed; and the page that compares captioners.
"""

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
from .curves import deletion_and_insertion
from .explanation import ExplainedWord, Explanation, explain
from .methods import METHODS, token_maps
from .page import write_page
from .pictures import grid_picture, overlay, save_animation, save_grid

__all__ = [
    "METHODS",
    "ExplainedWord",
    "Explanation",
    "ShownImage",
    "ShownMaps",
    "auroc",
    "deletion_and_insertion",
    "expected_calibration_error",
    "explain",
    "fit_familiarity",
    "fit_temperature",
    "grid_picture",
    "overlay",
    "reliability",
    "risk_coverage",
    "save_animation",
    "save_calibration_picture",
    "save_grid",
    "token_maps",
    "write_comparison_page",
    "write_page",
]
