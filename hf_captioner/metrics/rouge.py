"""ROUGE-L as the COCO caption evaluation computes it."""

from collections.abc import Sequence

import numpy as np

from .ngrams import check_references
from .scores import Scores

BETA = 1.2


def rouge_l(candidates: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> Scores:
    """ROUGE-L (Lin 2004, section 3): the F measure of the longest common subsequence, with beta = 1.2.

    Precision is the highest over the references, and so is recall; they may come from different references. As in
    COCO's code, an empty caption counts as one empty word, so it matches only an empty reference.

    Args:
        candidates: B captions, each a list of words.
        references: B lists of one or more captions, each a list of words.

    Returns:
        The scores (0 to 1); the corpus score is their mean.

    Raises:
        ValueError: there are more or fewer candidates than images, or an image has no reference.

    Examples:
        >>> from hf_captioner.metrics import rouge_l, tokenize
        >>> references = [tokenize(["A dog runs on grass.", "A dog."]), tokenize(["A cat."])]
        >>> scores = rouge_l(tokenize(["a dog runs", "two cats"]), references)
        >>> scores.per_image.round(2), round(scores.corpus, 2)
        (array([1., 0.]), 0.5)
    """
    check_references(candidates, references)
    return Scores.from_mean(np.array([_rouge_l(*pair) for pair in zip(candidates, references, strict=True)]))


def _rouge_l(candidate: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    candidate = candidate or [""]
    positions: dict[str, int] = {}  # of each word in the candidate, as the bits of an integer
    for place, word in enumerate(candidate):
        positions[word] = positions.get(word, 0) | 1 << place
    precision = recall = 0.0
    for reference in references:
        reference = reference or [""]
        common = _common_subsequence(positions, len(candidate), reference)
        precision = max(precision, common / len(candidate))
        recall = max(recall, common / len(reference))
    if precision == 0:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def _common_subsequence(positions: dict[str, int], length: int, words: Sequence[str]) -> int:
    """Length of the longest common subsequence, bit-parallel (Hyyro 2004, "Bit-parallel LCS-length computation
    revisited", figure 5): an integer holds a row of the dynamic-programming table; where the row rises, a bit is 0."""
    row = all_ones = (1 << length) - 1
    for word in words:
        matches = row & positions.get(word, 0)
        row = (row + matches) | (row - matches)
    return length - (row & all_ones).bit_count()
