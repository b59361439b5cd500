"""How much of a captioner's score comes from looking at the image."""

from collections.abc import Sequence

import numpy as np

from .cider import CiderD, DocumentFrequency
from .ngrams import NgramCounts, count_ngrams
from .scores import Scores

SHUFFLES = 5


def image_use(
    candidates: Sequence[Sequence[str]],
    references: Sequence[Sequence[Sequence[str]]],
    document_frequency: DocumentFrequency | None = None,
    seed: int = 0,
) -> Scores:
    """CIDEr-D that captions lose when they are handed to other images: an image's score minus the mean score of five
    captions that were made for others. It is 0 for a captioner that does not look, however well it writes, and needs
    neither annotated objects nor another model.

    Args:
        candidates: B captions, each a list of words.
        references: B lists of one or more captions, each a list of words.
        document_frequency: for CIDEr-D, by default counted in the references.
        seed: of the choice of others.

    Returns:
        The scores (-10 to 10); the corpus score is their mean. A single image scores 0.

    Examples:
        >>> from hf_captioner.metrics import image_use, tokenize
        >>> references = [tokenize([text]) for text in ("A dog runs.", "Two cats sleep.", "A man rides a horse.")]
        >>> round(image_use(tokenize(["a dog runs", "two cats sleep", "a man rides a horse"]), references).corpus, 2)
        8.27
        >>> image_use(tokenize(["a dog runs"] * 3), references).corpus  # the same for all images
        0.0
    """
    scorer = CiderD(document_frequency or DocumentFrequency.from_references(references))
    cooked = scorer.cook(references)
    counts = count_ngrams(candidates)
    own = scorer.score_counts(counts, cooked)
    others = other_images(len(candidates), SHUFFLES, seed)
    if not len(others):
        return Scores.from_mean(np.zeros(len(candidates)))
    lost = [own - scorer.score_counts(_at(counts, images), cooked) for images in others]
    return Scores.from_mean(np.mean(lost, axis=0))


def other_images(count: int, shuffles: int, seed: int) -> np.ndarray:
    """For each of `count` images other images, a different one in each shuffle: (shuffles, count), or fewer shuffles
    where there are not so many others."""
    order = np.random.default_rng(seed).permutation(count)
    others = np.empty((min(shuffles, count - 1), count), np.int64)
    for step, row in enumerate(others, start=1):
        row[order] = np.roll(order, step)
    return others


def _at(counts: NgramCounts, images: np.ndarray) -> NgramCounts:
    """The same captions in other rows: row i is what row `images[i]` was; every row moves to one place."""
    place = np.empty_like(images)
    place[images] = np.arange(len(images))
    row = place[counts.row]
    entries = np.lexsort((row, counts.ngram))
    return NgramCounts(
        counts.ngram[entries], row[entries], counts.order[entries], counts.count[entries], counts.length[images]
    )
