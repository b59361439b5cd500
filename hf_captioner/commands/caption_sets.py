"""Sets of captions, several for each image: how different they are, and how good the best one is."""

from collections.abc import Sequence

import numpy as np

from ..metrics import CiderD, DocumentFrequency, tokenize
from ..metrics.diversity import caption_diversity


def measure_sets(
    sets: Sequence[Sequence[str]],
    references: Sequence[Sequence[str]],
    frequency: DocumentFrequency | None = None,
) -> dict[str, float]:
    """
    Args:
        sets: for each of B images its captions, the best first.
        references: of each image.
        frequency: for CIDEr-D, by default that of the references.

    Returns:
        - the measures of [`caption_diversity`];
        - `different`: how many different captions an image has, on average.
        - `best_cider_d`: mean over images of the highest CIDEr-D among its captions, which one would have if one knew
          how to choose.
    """
    words = [tokenize(captions) for captions in sets]
    truths = [tokenize(captions) for captions in references]
    frequency = frequency or DocumentFrequency.from_references(truths)
    scorer = CiderD(frequency)
    image = np.repeat(np.arange(len(words)), [len(captions) for captions in words])
    flat = [caption for captions in words for caption in captions]
    best = np.zeros(len(words))
    np.maximum.at(best, image, scorer.score(flat, scorer.cook(truths).take(image)))
    return {
        **{name: score.corpus for name, score in caption_diversity(words, frequency).items()},
        "different": float(np.mean([len({tuple(caption) for caption in captions}) for captions in words])),
        "best_cider_d": float(best.mean()),
    }
