"""Signs of a captioner that has collapsed: it says the same of every image, or stops in the middle."""

from collections.abc import Sequence

import numpy as np

from .cider import CiderD, DocumentFrequency
from .ptb_tokenizer import tokenize

# Words that do not end an English caption. Prepositions that are adverbs as well ("a dog runs around") are missing.
BAD_ENDINGS = frozenset(
    (
        "a an the this these those his its their my your our some each every "
        "of in on at to for from with into onto upon among between beside beneath against toward towards during "
        "near like per via without within "
        "and or but nor while because as if than that which who whose"
    ).split()
)


def ends_badly(words: Sequence[str]) -> bool:
    """Whether a caption ends in a determiner, preposition or conjunction ("a man with a"), or is empty."""
    return not words or words[-1] in BAD_ENDINGS


def collapse_checks(
    predictions: Sequence[str], references: Sequence[Sequence[str]], seed: int = 0
) -> dict[str, float | int]:
    """Numbers that give a collapsed captioner away even where its metrics look usable.

    Args:
        predictions: B captions.
        references: B lists of one or more captions.
        seed: of the shuffling.

    Returns:
        - `unique_ratio`: different captions / captions; near 0 if the same caption is given to every image.
        - `vocabulary`: number of different words used.
        - `mean_length`: words a caption.
        - `bad_ending_rate`: share of captions of which [`ends_badly`] is true.
        - `cider_d` and `cider_d_shuffled`: of the captions, and of the captions handed to other images. A captioner
          that looks at its image loses most of its score.

    Raises:
        ValueError: there are no predictions, or more or fewer than references.
    """
    if not predictions or len(predictions) != len(references):
        raise ValueError(f"predictions must be one for each of the {len(references)} images, got {len(predictions)}")
    captions = tokenize(predictions)
    tokenized = [tokenize(reference) for reference in references]
    scorer = CiderD(DocumentFrequency.from_references(tokenized))
    cooked = scorer.cook(tokenized)
    order = np.random.default_rng(seed).permutation(len(captions))
    other = np.empty_like(order)
    other[order] = np.roll(order, 1)  # no image keeps its caption, unless it is the only one
    return {
        "unique_ratio": len({tuple(caption) for caption in captions}) / len(captions),
        "vocabulary": len({word for caption in captions for word in caption}),
        "mean_length": float(np.mean([len(caption) for caption in captions])),
        "bad_ending_rate": float(np.mean([ends_badly(caption) for caption in captions])),
        "cider_d": float(scorer.score(captions, cooked).mean()),
        "cider_d_shuffled": float(scorer.score([captions[image] for image in other], cooked).mean()),
    }
