"""How different the captions are that one image gets: self-CIDEr, mBLEU and distinct n-grams."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from .bleu_score import bleu
from .cider import CiderD, DocumentFrequency
from .scores import Scores

DIVERSITY = ("self_cider", "m_bleu_1", "m_bleu_2", "m_bleu_3", "m_bleu_4", "distinct_1", "distinct_2")


def caption_diversity(
    sets: Sequence[Sequence[Sequence[str]]], document_frequency: DocumentFrequency
) -> dict[str, Scores]:
    """How different the captions of each image are: self-CIDEr (Wang and Chan 2019), mBLEU (Shetty et al. 2017) and
    distinct n-grams (Li et al. 2016).

    Args:
        sets: for each of B images its captions, each a list of words.
        document_frequency: of a corpus of references, for self-CIDEr.

    Returns:
        The scores (0 to 1) by name, `DIVERSITY`. `self_cider`: 0 if all captions of an image are the same, 1 if no two
        share a word. `m_bleu_1` to `m_bleu_4`: BLEU of a caption with the others of its image as references, the
        lower, the more different. `distinct_1`, `distinct_2`: distinct n-grams divided by the number of words.

    Examples:
        >>> from hf_captioner.metrics import DocumentFrequency, caption_diversity, tokenize
        >>> sets = [tokenize(["a dog", "a dog", "a dog"]), tokenize(["a cat", "two cats sleep", "cats"])]
        >>> scores = caption_diversity(sets, DocumentFrequency.from_references(sets))
        >>> scores["self_cider"].per_image.round(2), scores["distinct_1"].per_image.round(2)
        (array([0.  , 0.77]), array([0.33, 0.83]))
    """
    scores = {"self_cider": self_cider(sets, document_frequency)}
    scores |= {f"m_bleu_{order}": score for order, score in enumerate(m_bleu(sets), start=1)}
    return scores | {f"distinct_{order}": distinct_n(sets, order) for order in (1, 2)}


def self_cider(sets: Sequence[Sequence[Sequence[str]]], document_frequency: DocumentFrequency) -> Scores:
    """Self-CIDEr (Wang and Chan 2019, section 3.2): with K (m, m) the CIDEr-D between an image's m captions, and s the
    roots of K's singular values, -log(max s / sum s) / log m. It is 0 if all captions are the same and 1 if no two
    share a word.

    As in the authors' code, K has CIDEr-D of the earlier caption of a pair against the later one on both sides of its
    diagonal, for CIDEr-D depends on which of two captions is the reference.

    Args:
        sets: for each of B images its captions, each a list of words.
        document_frequency: of a corpus of references.

    Returns:
        The scores; the corpus score is their mean. A set of fewer than two captions, or without any n-gram that has
        a weight, scores 0.
    """
    pairs = [[(i, j) for i in range(len(captions)) for j in range(i, len(captions))] for captions in sets]
    candidates = [captions[i] for captions, places in zip(sets, pairs, strict=True) for i, _ in places]
    references = [[captions[j]] for captions, places in zip(sets, pairs, strict=True) for _, j in places]
    scorer = CiderD(document_frequency)
    found = iter(scorer.score(candidates, scorer.cook(references)) if candidates else ())
    scores = []
    for captions, places in zip(sets, pairs, strict=True):
        kernel = np.zeros((len(captions), len(captions)))
        for i, j in places:
            kernel[i, j] = kernel[j, i] = next(found)
        roots = np.sqrt(np.linalg.svd(kernel, compute_uv=False))
        known = len(captions) > 1 and roots.max() > 0
        scores.append(-np.log(roots.max() / roots.sum()) / np.log(len(captions)) if known else 0.0)
    return Scores.from_mean(scores)


def m_bleu(sets: Sequence[Sequence[Sequence[str]]]) -> list[Scores]:
    """mBLEU: BLEU of a caption with the other captions of its image as references (Shetty et al. 2017), so the lower,
    the more different they are. The corpus score is the mean over i of the corpus BLEU of all images' i-th
    captions, as in the code that the field uses.

    Args:
        sets: for each of B images its captions, each a list of words. Images with fewer captions than others have no
            part in the last i, those with a single caption in none.

    Returns:
        The scores (0 to 1) of mBLEU-1, 2, 3 and 4.
    """
    most = max((len(captions) for captions in sets), default=0)
    by_place: list[np.ndarray] = []
    combine: list[Callable[[np.ndarray], np.ndarray]] = []
    for place in range(most):
        images = [image for image, captions in enumerate(sets) if len(captions) > max(place, 1)]
        if images:
            candidates = [sets[image][place] for image in images]
            others = [[*sets[image][:place], *sets[image][place + 1 :]] for image in images]
            scores = bleu(candidates, others)
            combine = [score.combine for score in scores]
            by_place.append(_spread(scores[0].statistics, images, len(sets)))
    if not by_place:
        return [Scores.from_mean(np.zeros(len(sets))) for _ in range(4)]
    statistics = np.concatenate(by_place, axis=1)  # the same for all four
    return [Scores(statistics, partial(_mean_over_places, score)) for score in combine]


def _spread(statistics: np.ndarray, images: Sequence[int], count: int) -> np.ndarray:
    """Rows of these images among all (count, S), and zeros for the others."""
    spread = np.zeros((count, statistics.shape[1]))
    spread[images] = statistics
    return spread


def _mean_over_places(score: Callable[[np.ndarray], np.ndarray], sums: np.ndarray) -> np.ndarray:
    """The mean score from sums (..., places * 10); places where nothing was said are left out."""
    by_place = sums.reshape(*sums.shape[:-1], -1, 10)
    said = by_place.any(axis=-1)
    return (score(by_place) * said).sum(axis=-1) / np.maximum(said.sum(axis=-1), 1)


def distinct_n(sets: Sequence[Sequence[Sequence[str]]], order: int) -> Scores:
    """Distinct n-grams of an image's captions, divided by the number of their words (Li et al. 2016, "A
    Diversity-Promoting Objective Function for Neural Conversation Models"); Div-n in Shetty et al. 2017.

    Args:
        sets: for each of B images its captions, each a list of words.
        order: n.

    Returns:
        The scores (0 to 1); the corpus score is their mean. A set without words scores 0.
    """
    scores = []
    for captions in sets:
        ngrams = {tuple(words[start : start + order]) for words in captions for start in range(len(words) - order + 1)}
        scores.append(len(ngrams) / max(sum(map(len, captions)), 1))
    return Scores.from_mean(scores)
