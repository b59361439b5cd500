"""The result of every metric: additive statistics of each image, from which any set of images can be scored."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike


class NotAvailableError(RuntimeError):
    """A metric cannot be computed on this machine; the text says why."""


@dataclass(frozen=True)
class Scores:
    """One metric's scores of B images.

    Args:
        statistics: (B, S) float64, S numbers for each image, which can be summed over images.
        combine: computes scores (...) from sums of statistics (..., S). A corpus score is computed from the sums over
            its images; for BLEU and METEOR this is not the mean of the images' scores.

    Examples:
        >>> from hf_captioner.metrics import Scores
        >>> scores = Scores.from_mean([0.2, 0.4, 0.9])
        >>> round(scores.corpus, 2), scores.per_image
        (0.5, array([0.2, 0.4, 0.9]))
        >>> low, high = scores.confidence_interval()
        >>> bool(0.2 <= low < scores.corpus < high <= 0.9)
        True
    """

    statistics: np.ndarray
    combine: Callable[[np.ndarray], np.ndarray]

    @classmethod
    def from_mean(cls, per_image: ArrayLike) -> "Scores":
        """A metric whose corpus score is the mean over images of `per_image (B,)`."""
        values = np.asarray(per_image, np.float64)
        return cls(np.stack([values, np.ones_like(values)], axis=-1), _mean)

    @property
    def corpus(self) -> float:
        return float(self.combine(self.statistics.sum(axis=0)))

    @property
    def per_image(self) -> np.ndarray:
        """(B,)"""
        return self.combine(self.statistics)

    def confidence_interval(self, level: float = 0.95, resamples: int = 1000, seed: int = 0) -> tuple[float, float]:
        """Percentile bootstrap over images (Efron and Tibshirani 1993, chapter 13) of the corpus score.

        Images are sampled with replacement, and the corpus score is computed from their statistics. What depends on
        the whole corpus (CIDEr's document frequencies) is not resampled.

        Args:
            level: the interval's probability, between 0 and 1.
            resamples: number of resampled corpora.
            seed: seed of the sampling; with equal seeds the same images are sampled for every metric.

        Returns:
            The interval's lower and upper end.

        Raises:
            ValueError: `level` is not between 0 and 1, or `resamples` is below 1.
        """
        if not 0 < level < 1:
            raise ValueError(f"level must be between 0 and 1, got {level}")
        sums = resampled_sums(self.statistics, resamples, seed)
        low, high = np.quantile(self.combine(sums), [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)


def resampled_sums(statistics: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Sums of statistics (B, S) over `resamples` samples of B images with replacement: (resamples, S).

    Raises:
        ValueError: `resamples` is below 1.
    """
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    images = len(statistics)
    generator = np.random.default_rng(seed)
    # one resample at a time: the draws of 1,000 resamples of 40,000 images together would take 320 MB
    return np.stack(
        [np.bincount(generator.integers(images, size=images), minlength=images) @ statistics for _ in range(resamples)]
    )


def _mean(sums: np.ndarray) -> np.ndarray:
    return sums[..., 0] / sums[..., 1]
