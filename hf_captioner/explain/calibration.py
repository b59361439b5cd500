"""How far a captioner's confidence can be believed, and what makes it more believable."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import InputError
from ..models.confidence_captioner import Familiarity

RANK = 16  # most directions of the statistics of known images
TEMPERATURES = np.geomspace(0.25, 4, 65)  # neighbours differ by 4 %; 1 is among them


def _probabilities(name: str, values: Any) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0 or not ((array >= 0) & (array <= 1)).all():
        raise InputError(f"`{name}` must be numbers in [0, 1], at least one, got {values!r}")
    return array


def fit_temperature(
    probabilities: np.ndarray, right: Sequence[bool], temperatures: np.ndarray = TEMPERATURES
) -> float:
    """
    The temperature under which words' probabilities say best whether the words are right: that of the least negative
    log-likelihood (Guo et al. 2017, section 4.2). There the likelihood is that of the one right class; a word of a
    caption is right or not, so here it is that of a yes or no.

    Args:
        probabilities: (W, G), of W words under each of G temperatures.
        right: (W), whether the word was right.
        temperatures: (G).

    Raises:
        InputError: if there are no words, a number is no probability, or the shapes differ.

    Examples:
        >>> import numpy as np
        >>> from hf_captioner.explain import fit_temperature
        >>> temperatures = np.array([1.0, 2.0, 4.0])
        >>> probabilities = np.tile(1 / (1 + np.exp(-4 / temperatures)), (4, 1))  # of four words: 0.98, 0.88, 0.73
        >>> fit_temperature(probabilities, [True, True, True, False], temperatures)  # three of four were right
        4.0
    """
    table, outcome = _probabilities("probabilities", probabilities), np.asarray(right, dtype=bool)
    if table.shape != (len(outcome), len(temperatures)):
        raise InputError(
            f"`probabilities` must be ({len(outcome)} words, {len(temperatures)} temperatures), got {table.shape}"
        )
    table = table.clip(1e-7, 1 - 1e-7)
    losses = -np.where(outcome[:, None], np.log(table), np.log1p(-table)).mean(0)
    return float(temperatures[losses.argmin()])


def reliability(probabilities: Sequence[float], right: Sequence[bool], bins: int = 10) -> list[dict[str, float]]:
    """
    A reliability diagram in numbers (Guo et al. 2017, section 2): what was said with a probability in each of `bins`
    equal parts of [0, 1], and how often it was right.

    Args:
        probabilities: (W), in [0, 1].
        right: (W), whether what was said with each of them was right.
        bins: number of parts.

    Returns:
        for every part that is not empty: `from` and `to`, `count`, and the means `probability` and `right`.

    Raises:
        InputError: if there is nothing, or a number is no probability.

    Examples:
        >>> from hf_captioner.explain import reliability
        >>> reliability([0.9, 0.9, 0.9, 0.9], [True, True, True, False], bins=2)
        [{'from': 0.5, 'to': 1.0, 'count': 4, 'probability': 0.9, 'right': 0.75}]
    """
    values, outcome = _probabilities("probabilities", probabilities), np.asarray(right, dtype=np.float64)
    part = np.minimum((values * bins).astype(int), bins - 1)
    return [
        {
            "from": k / bins,
            "to": (k + 1) / bins,
            "count": int((part == k).sum()),
            "probability": float(values[part == k].mean()),
            "right": float(outcome[part == k].mean()),
        }
        for k in range(bins)
        if (part == k).any()
    ]


def expected_calibration_error(probabilities: Sequence[float], right: Sequence[bool], bins: int = 10) -> float:
    """The mean distance of probability and frequency over the parts of [`reliability`] (Guo et al. 2017, eq. 3).

    Examples:
        >>> from hf_captioner.explain import expected_calibration_error
        >>> round(expected_calibration_error([0.9, 0.9, 0.9, 0.9], [True, True, True, False]), 2)
        0.15
    """
    parts = reliability(probabilities, right, bins)
    total = sum(part["count"] for part in parts)
    return sum(part["count"] / total * abs(part["probability"] - part["right"]) for part in parts)


def risk_coverage(scores: Sequence[float], risks: Sequence[float]) -> dict[str, Any]:
    """
    What is gained by saying only what is said with confidence (Geifman and El-Yaniv 2017, section 2): for every share
    of captions, the most confident ones, their mean risk.

    Args:
        scores: (N), the confidence in every caption; captions of one score are kept or left together.
        risks: (N), what each costs.

    Returns:
        `coverage` and `risk`, lists with an entry for every score; `area`, the mean risk over all numbers of captions
        that may be kept (the area under the curve); `area_random`, what it would be if scores said nothing, and
        `area_best`, if they had the order of the risks.

    Raises:
        InputError: if there is nothing, or the lengths differ.

    Examples:
        >>> from hf_captioner.explain import risk_coverage
        >>> curve = risk_coverage(scores=[0.9, 0.5, 0.1], risks=[0.0, 0.2, 0.7])
        >>> [round(share, 2) for share in curve["coverage"]], [round(risk, 2) for risk in curve["risk"]]
        ([0.33, 0.67, 1.0], [0.0, 0.1, 0.3])
        >>> curve["area"] == curve["area_best"] < curve["area_random"]
        True
    """
    confidence, risk = np.asarray(scores, dtype=np.float64), np.asarray(risks, dtype=np.float64)
    if len(confidence) == 0 or confidence.shape != risk.shape:
        raise InputError(f"`scores` must be one for each of {len(risk)} risks, at least one, got {len(confidence)}")
    levels, group = np.unique(-confidence, return_inverse=True)
    counts = np.bincount(group)
    kept = counts.cumsum()
    risk_kept = np.bincount(group, risk).cumsum() / kept
    # Among equal scores the order is by chance: each has the mean risk of its group.
    each = np.repeat(np.bincount(group, risk) / counts, counts)
    number = np.arange(1, len(risk) + 1)
    return {
        "coverage": (kept / len(risk)).tolist(),
        "risk": risk_kept.tolist(),
        "area": float((each.cumsum() / number).mean()),
        "area_random": float(risk.mean()),
        "area_best": float((np.sort(risk).cumsum() / number).mean()),
    }


def auroc(higher: Sequence[float], lower: Sequence[float]) -> float:
    """
    The probability that one of `higher` is greater than one of `lower`, equal ones counting half: the area under the
    ROC curve (Hanley and McNeil 1982).

    Args:
        higher: (P), scores of what ought to have high ones, at least one.
        lower: (N), those of all else, at least one.

    Examples:
        >>> from hf_captioner.explain import auroc
        >>> auroc([0.9, 0.8], [0.1, 0.8])
        0.875
    """
    first, second = np.asarray(higher, dtype=np.float64), np.sort(np.asarray(lower, dtype=np.float64))
    below, upto = np.searchsorted(second, first, "left"), np.searchsorted(second, first, "right")
    return float((below + upto).mean() / 2 / len(second))


def fit_familiarity(regions: torch.Tensor, others: torch.Tensor, coverage: float = 0.99) -> Familiarity:
    """
    Statistics of known images.

    Args:
        regions: (B, D), mean regions of known images, of which mean and covariance are taken.
        others: (C, D), those of other known images, of which a share of `coverage` is to be wholly familiar: images
            are nearer to a mean and covariance that they were part of.
        coverage: in (0, 1].

    Returns:
        [`Familiarity`], a module: regions (B, L, D) -> familiarity (B,), in (0, 1]. Distances are Mahalanobis' (Lee et
        al. 2018, equation 2), with the covariance of a probabilistic principal component analysis (Tipping and Bishop
        1999, equation 3).

    Raises:
        InputError: if there are fewer than 3 images.

    Examples:
        >>> import torch
        >>> from hf_captioner.explain import fit_familiarity
        >>> _ = torch.manual_seed(0)
        >>> familiarity = fit_familiarity(torch.randn(200, 8), torch.randn(200, 8))
        >>> familiarity(torch.zeros(1, 1, 8)).item(), familiarity(torch.full((1, 1, 8), 10.0)).item() < 1e-6
        (1.0, True)
    """
    rank = min(RANK, regions.shape[0] - 2, regions.shape[1] - 1)  # some of the variance must be left for the rest
    if rank < 1:
        raise InputError(f"`regions` must be at least 3 images of 2 channels, got {tuple(regions.shape)}")
    regions = regions.double()
    found = Familiarity(regions.shape[1], rank)
    mean = regions.mean(0)
    variances, directions = torch.linalg.eigh(torch.cov(regions.T))  # ascending
    least = torch.finfo(torch.float16).tiny  # the statistics may be kept in half precision
    found.mean.copy_(mean)
    found.directions.copy_(directions[:, -rank:].T)
    found.deviations.copy_(variances[-rank:].sqrt().clamp(min=least))
    found.rest.copy_(variances[:-rank].clamp(min=0).mean().sqrt().clamp(min=least))
    found.limit.copy_(found.distance(others[:, None]).quantile(coverage))
    return found


def save_calibration_picture(path: str | Path, report: dict[str, Any]) -> None:
    """
    The reliability diagram of words, before and after calibration, and the risk-coverage curve of captions.

    Args:
        path: file to write; its extension determines the format.
        report: with `temperature`, `words` (`reliability_before`, `reliability`, `ece_before`, `ece`) and
            `risk_coverage`, as [`risk_coverage`] gives it.

    Examples:
        >>> from PIL import Image
        >>> from hf_captioner.explain import expected_calibration_error as ece
        >>> from hf_captioner.explain import reliability, risk_coverage, save_calibration_picture
        >>> right, before, after = [True, True, False], [0.9, 0.9, 0.8], [0.7, 0.7, 0.6]
        >>> words = {"reliability_before": reliability(before, right), "reliability": reliability(after, right)}
        >>> words |= {"ece_before": ece(before, right), "ece": ece(after, right)}
        >>> report = {"temperature": 2.0, "words": words, "risk_coverage": risk_coverage([0.9, 0.1], [0.2, 0.8])}
        >>> save_calibration_picture("calibration.png", report)
        >>> Image.open("calibration.png").format
        'PNG'
    """
    # Figure instead of pyplot, which keeps global state and may look for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.5))
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    words, curve = report["words"], report["risk_coverage"]
    left.plot([0, 1], [0, 1], color="grey", linewidth=1)
    for name, label in (("_before", "temperature 1"), ("", f"temperature {report['temperature']:.2f}")):
        parts = words[f"reliability{name}"]
        points = [part["probability"] for part in parts], [part["right"] for part in parts]
        left.plot(*points, marker="o", label=f"{label}: ECE {words[f'ece{name}']:.3f}")
    left.set(xlabel="probability of a word", ylabel="share of words found in a reference", xlim=(0, 1), ylim=(0, 1))
    left.legend()
    right.plot(curve["coverage"], curve["risk"], label=f"by score: area {curve['area']:.3f}")
    right.axhline(curve["area_random"], color="grey", linewidth=1, label=f"by chance: area {curve['area_random']:.3f}")
    right.set(xlabel="share of captions kept", ylabel="risk: mean of 1 - min(CIDEr-D, 1)", xlim=(0, 1), ylim=(0, 1))
    right.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


__all__ = [
    "auroc",
    "expected_calibration_error",
    "fit_familiarity",
    "fit_temperature",
    "reliability",
    "risk_coverage",
    "save_calibration_picture",
]
