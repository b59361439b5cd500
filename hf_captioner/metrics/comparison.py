"""Is one captioner better than another, or was it chance? Paired bootstrap over images, and Holm's correction."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from .cider import CiderD, DocumentFrequency
from .scores import Scores, resampled_sums

LOWER_IS_BETTER = ("chair_i", "chair_s")
# Scores of one image that differ by less than this are the same: sums in another order differ in the last digits.
TIE = 1e-9


@dataclass(frozen=True)
class Difference:
    """One metric of two captioners on the same images.

    Args:
        first, second: the corpus scores.
        interval: 95 % bootstrap interval of `first - second`.
        p: two-sided, of the hypothesis that there is no difference.
        p_holm: the same after Holm's correction for the number of pairs of captioners.
        wins, losses, ties: numbers of images on which the first captioner is better, worse, or neither.

    Examples:
        >>> from hf_captioner.metrics import Scores, compare_scores
        >>> ours, theirs = Scores.from_mean([0.9, 0.8, 0.7, 0.9]), Scores.from_mean([0.5, 0.6, 0.7, 0.4])
        >>> found = compare_scores({"ours": {"cider_d": ours}, "theirs": {"cider_d": theirs}})
        >>> difference = found["ours", "theirs"]["cider_d"]
        >>> round(difference.difference, 3), difference.wins, difference.losses, difference.ties
        (0.275, 3, 0, 1)
    """

    first: float
    second: float
    interval: tuple[float, float]
    p: float
    p_holm: float
    wins: int
    losses: int
    ties: int

    @property
    def difference(self) -> float:
        return self.first - self.second


def compare_scores(
    captioners: Mapping[str, Mapping[str, Scores]], resamples: int = 10_000, level: float = 0.95, seed: int = 0
) -> dict[tuple[str, str], dict[str, Difference]]:
    """Compares every pair of captioners by every metric that both have.

    Paired bootstrap (Efron and Tibshirani 1993; Koehn 2004): images are drawn with replacement, the same ones for all
    captioners and metrics, and corpus scores are computed from the drawn images' statistics. BLEU and METEOR are
    scores of a corpus, so their counts are added up before the score is computed; CIDEr's document frequencies are
    those of all references and stay as they are. The interval has the percentiles of the resampled differences, and p
    is twice the smaller share of resampled differences on one side of 0, that of no difference included on both, at
    least 2 / (resamples + 1).

    Holm's correction (1979) is for the pairs of captioners within one metric. Metrics are not corrected for: most of
    them measure nearly the same, so choose the one that counts before you look.

    Args:
        captioners: from a captioner's name to its scores by metric; all of the same B images in the same order.
        resamples: number of resampled corpora.
        level: the intervals' probability, between 0 and 1.
        seed: of the resampling.

    Returns:
        From each pair of names to the differences by metric.

    Raises:
        ValueError: there are fewer than two captioners, `resamples` is below 1, `level` is not between 0 and 1, or
            captioners have scores of different numbers of images.

    Examples:
        >>> from hf_captioner.metrics import compare_scores, score_captions
        >>> references = [["A dog runs."], ["Two cats on a sofa."], ["A man rides a horse."]]
        >>> said = {"first": ["a dog runs", "two cats", "a man"], "second": ["a dog", "a cat", "a man rides"]}
        >>> scores = {name: score_captions(captions, references, ["rouge_l"])[0] for name, captions in said.items()}
        >>> difference = compare_scores(scores)["first", "second"]["rouge_l"]
        >>> difference.wins, difference.losses
        (2, 1)
        >>> difference.interval[0] < 0 < difference.interval[1]  # it may have been chance
        True
    """
    if len(captioners) < 2:
        raise ValueError(f"captioners must be at least two, got {len(captioners)}")
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}")
    # BLEU-1 to 4 share their statistics, which are summed once.
    arrays = {id(score.statistics): score.statistics for scores in captioners.values() for score in scores.values()}
    sizes = sorted({len(statistics) for statistics in arrays.values()})
    if len(sizes) != 1:
        raise ValueError(f"captioners must have scores of as many images, got {sizes}")
    ends = np.cumsum([statistics.shape[1] for statistics in arrays.values()])
    sums = resampled_sums(np.concatenate(list(arrays.values()), axis=1), resamples, seed)
    resampled = dict(zip(arrays, np.split(sums, ends[:-1], axis=1), strict=True))

    pairs = list(combinations(captioners, 2))
    found: dict[tuple[str, str], dict[str, Difference]] = {pair: {} for pair in pairs}
    for metric in dict.fromkeys(name for scores in captioners.values() for name in scores):
        lower = metric in LOWER_IS_BETTER
        compared = {
            (one, other): _difference(captioners[one][metric], captioners[other][metric], resampled, level, lower)
            for one, other in pairs
            if metric in captioners[one] and metric in captioners[other]
        }
        corrected = holm([difference.p for difference in compared.values()])
        for (pair, difference), p in zip(compared.items(), corrected, strict=True):
            found[pair][metric] = replace(difference, p_holm=p)
    return found


def _difference(
    first: Scores, second: Scores, resampled: Mapping[int, np.ndarray], level: float, lower_is_better: bool
) -> Difference:
    """`resampled` has the sums of each array of statistics, by the array's `id`; `p_holm` is not corrected yet."""
    first_sums, second_sums = (resampled[id(scores.statistics)] for scores in (first, second))
    differences = first.combine(first_sums) - second.combine(second_sums)
    low, high = np.quantile(differences, [(1 - level) / 2, (1 + level) / 2])
    # A difference of 0 is on both sides.
    smaller = min(np.sum(differences <= TIE), np.sum(differences >= -TIE))
    p = min(1.0, 2 * (int(smaller) + 1) / (len(differences) + 1))
    better = first.per_image - second.per_image
    if lower_is_better:
        better = -better
    wins, losses = int((better > TIE).sum()), int((better < -TIE).sum())
    ties = len(better) - wins - losses
    return Difference(first.corpus, second.corpus, (float(low), float(high)), p, p, wins, losses, ties)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979, "A Simple Sequentially Rejective Multiple Test Procedure"): the smallest of m
    values times m, the next times m - 1, and so on, none smaller than the one before it and none above 1.

    Args:
        p_values: m numbers between 0 and 1.

    Returns:
        the corrected ones, in the order of `p_values`.

    Examples:
        >>> from hf_captioner.metrics import holm
        >>> [round(p, 2) for p in holm([0.01, 0.04, 0.03])]
        [0.03, 0.06, 0.06]
    """
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, p_values[place] * (len(p_values) - rank)))
        corrected[place] = largest
    return corrected


def agreement(
    first: Sequence[Sequence[str]], second: Sequence[Sequence[str]], document_frequency: DocumentFrequency
) -> dict[str, float]:
    """How much two captioners say the same, right or wrong.

    Args:
        first, second: B captions each, lists of words.
        document_frequency: of the references.

    Returns:
        - `same`: share of images with the same caption, word for word;
        - `word_overlap`: mean over images of the number of distinct words in both captions, divided by that of
            distinct words in either (two empty captions overlap as a whole);
        - `mutual_cider_d`: mean over images of CIDEr-D (0 to 10) with the other's caption as the only reference, and
            over both directions.

    Raises:
        ValueError: one captioner has more captions than the other.

    Examples:
        >>> from hf_captioner.metrics import DocumentFrequency, agreement, tokenize
        >>> frequency = DocumentFrequency.from_references([tokenize(["A dog runs."]), tokenize(["Two cats."])])
        >>> first, second = tokenize(["a dog runs", "two cats"]), tokenize(["a dog runs", "three cats"])
        >>> {name: round(value, 2) for name, value in agreement(first, second, frequency).items()}
        {'same': 0.5, 'word_overlap': 0.67, 'mutual_cider_d': 4.38}
    """
    overlaps = [_overlap(set(one), set(other)) for one, other in zip(first, second, strict=True)]
    scorer = CiderD(document_frequency)
    mutual = [
        scorer.score(said, scorer.cook([[caption] for caption in other])).mean()
        for said, other in ((first, second), (second, first))
    ]
    return {
        "same": float(np.mean([list(one) == list(other) for one, other in zip(first, second, strict=True)])),
        "word_overlap": float(np.mean(overlaps)),
        "mutual_cider_d": float(np.mean(mutual)),
    }


def _overlap(first: set[str], second: set[str]) -> float:
    return len(first & second) / len(first | second) if first or second else 1.0
