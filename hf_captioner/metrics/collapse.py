"""Signs of a collapsed captioner: the same caption for every image, or captions that stop in the middle."""

from collections.abc import Sequence

import numpy as np

from .cider import CiderD, DocumentFrequency
from .image_use_score import image_use
from .ptb_tokenizer import tokenize

# Words that do not end an English caption. Prepositions that are also adverbs ("a dog runs around") are not listed.
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


def repeats(words: Sequence[str], length: int = 3) -> bool:
    """Whether a caption says some `length` words in succession more than once ("a hat and a black hat and a")."""
    sequences = [tuple(words[start : start + length]) for start in range(len(words) - length + 1)]
    return len(set(sequences)) < len(sequences)


def collapse_checks(
    predictions: Sequence[str], references: Sequence[Sequence[str]], seed: int = 0
) -> dict[str, float | int]:
    """Numbers that reveal a collapsed captioner even if its metrics look acceptable; [`find_alarms`] judges them.

    Args:
        predictions: B captions.
        references: B lists of one or more captions.
        seed: seed of the shuffle.

    Returns:
        - `unique_ratio`: distinct captions / captions; near 0 if the same caption is given to every image.
        - `vocabulary`: number of different words used.
        - `mean_length`: mean number of words of a caption.
        - `bad_ending_rate`: share of captions for which [`ends_badly`] is true.
        - `repetition_rate`: share of captions that say some three words in succession more than once.
        - `cider_d` and `cider_d_shuffled`: of the captions, and of the same captions assigned to other images. The
            second is much lower if captions depend on their image.
        - `image_use`, `image_use_low` and `image_use_high`: CIDEr-D less the mean of five captions made for other
            images, and its 95 % interval, which includes 0 if captions do not depend on their image.

    Raises:
        ValueError: there are no predictions, or more or fewer than references.

    Examples:
        >>> from hf_captioner.metrics import collapse_checks
        >>> references = [["A dog runs."], ["Two cats on a sofa."], ["A man rides a horse."]]
        >>> checks = collapse_checks(["a man with a"] * 3, references)  # the same words for every image
        >>> round(checks["unique_ratio"], 2), checks["bad_ending_rate"], checks["image_use"]
        (0.33, 1.0, 0.0)
    """
    if not predictions or len(predictions) != len(references):
        raise ValueError(f"predictions must be one for each of the {len(references)} images, got {len(predictions)}")
    captions = tokenize(predictions)
    tokenized = [tokenize(reference) for reference in references]
    frequency = DocumentFrequency.from_references(tokenized)
    scorer = CiderD(frequency)
    use = image_use(captions, tokenized, frequency, seed)
    low, high = use.confidence_interval(seed=seed)
    cooked = scorer.cook(tokenized)
    order = np.random.default_rng(seed).permutation(len(captions))
    other = np.empty_like(order)
    other[order] = np.roll(order, 1)  # no image keeps its caption, unless it is the only one
    return {
        "unique_ratio": len({tuple(caption) for caption in captions}) / len(captions),
        "vocabulary": len({word for caption in captions for word in caption}),
        "mean_length": float(np.mean([len(caption) for caption in captions])),
        "bad_ending_rate": float(np.mean([ends_badly(caption) for caption in captions])),
        "repetition_rate": float(np.mean([repeats(caption) for caption in captions])),
        "cider_d": float(scorer.score(captions, cooked).mean()),
        "cider_d_shuffled": float(scorer.score([captions[image] for image in other], cooked).mean()),
        "image_use": use.corpus,
        "image_use_low": low,
        "image_use_high": high,
    }
