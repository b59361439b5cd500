"""BLEU-1 to BLEU-4 as the COCO caption evaluation computes them."""

from collections.abc import Sequence
from functools import partial

import numpy as np

from .ngrams import ORDERS, NgramCounts, check_references, count_ngrams, flatten_references
from .scores import Scores

# The COCO code adds these to avoid 0 / 0, so equal scores need the same numbers. Because of them, an image without a
# single matching n-gram has a BLEU-4 of about 1e-4 instead of 0.
_TINY, _SMALL = 1e-15, 1e-9


def bleu(candidates: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> list[Scores]:
    """BLEU (Papineni et al. 2002) with the closest reference length, the shorter one when two are equally close.

    Args:
        candidates: B captions, each a list of words.
        references: B lists of one or more captions, each a list of words.

    Returns:
        The scores (0 to 1) of BLEU-1, 2, 3 and 4.

    Raises:
        ValueError: there are more or fewer candidates than images, or an image has no reference.

    Examples:
        >>> from hf_captioner.metrics import bleu, tokenize
        >>> candidates = tokenize(["A dog runs on grass."])
        >>> references = [tokenize(["A dog runs on the grass.", "A brown dog is running."])]
        >>> [round(scores.corpus, 2) for scores in bleu(candidates, references)]
        [1.0, 0.87, 0.79, 0.71]
    """
    check_references(candidates, references)
    captions, image = flatten_references(references)
    return bleu_from_counts(count_ngrams(candidates), count_ngrams(captions), image)


def bleu_from_counts(candidates: NgramCounts, references: NgramCounts, image: np.ndarray) -> list[Scores]:
    """As `bleu`, from counted n-grams; `image (R,)` is the candidate's row for each reference's row, ascending."""
    # clipping: an n-gram matches at most as often as it occurs in the reference that has it most often
    found, entries = candidates.find(references.ngram, image[references.row])
    most = np.zeros_like(candidates.count)
    np.maximum.at(most, entries, references.count[found])
    matched = candidates.sum_by_row_and_order(np.minimum(candidates.count, most))
    possible = np.maximum(candidates.length[:, None] - np.arange(ORDERS), 0)

    away = np.abs(references.length - candidates.length[image])
    by_closeness = np.lexsort((references.length, away, image))
    closest = references.length[by_closeness[np.searchsorted(image, np.arange(len(candidates.length)))]]

    statistics = np.column_stack([matched, possible, candidates.length, closest]).astype(np.float64)
    return [Scores(statistics, partial(_bleu, order=order)) for order in range(1, ORDERS + 1)]


def _bleu(sums: np.ndarray, order: int) -> np.ndarray:
    """BLEU-`order` from sums (..., 10) of matches (4), possible matches (4), candidate and reference length."""
    matched, possible = sums[..., :order], sums[..., ORDERS : ORDERS + order]
    precision = np.prod((matched + _TINY) / (possible + _SMALL), axis=-1) ** (1 / order)
    ratio = (sums[..., 2 * ORDERS] + _TINY) / (sums[..., 2 * ORDERS + 1] + _SMALL)
    return precision * np.exp(np.minimum(1 - 1 / ratio, 0))
