"""Captioning and its scores."""

from collections.abc import Callable

import numpy as np

from hf_captioner.metrics import bleu, rouge_l

from . import ask, exercise, number, say_if

_CANDIDATES = [
    "a small red circle".split(),
    "there is a large blue square above a green circle".split(),
    "a red circle is right of a blue diamond".split(),
]
_REFERENCES = [
    ["there is a small red circle".split(), "a red circle that is small".split()],
    ["a large blue square above a small green circle".split(), "below a large blue square is a green circle".split()],
    ["a red circle to the right of a blue diamond".split(), "to the left of a red circle is a diamond".split()],
]


@exercise
def check_bleu(answer: Callable) -> None:
    """`answer(candidates, references)`: BLEU-4 of several images together."""
    right = bleu(_CANDIDATES, _REFERENCES)[3]
    value = number(ask(answer, _CANDIDATES, _REFERENCES))
    mean = float(right.per_image.mean())
    say_if(
        abs(value - mean) < 1e-4,
        "This is the mean of the images' own scores. BLEU adds up matches, possible "
        "matches and lengths over all images "
        "first, and divides once.",
    )
    sums = right.statistics.sum(axis=0)
    unpunished = float(right.combine(np.array([*sums[:8], 1e9, sums[9]])))
    say_if(
        abs(value - unpunished) < 1e-4,
        "The brevity penalty is missing: together these captions are shorter than their closest references.",
    )
    say_if(
        abs(value - right.corpus) > 1e-4, f"BLEU-4 of these captions is {right.corpus:.4f}, but you got {value:.4f}."
    )


@exercise
def check_rouge_l(answer: Callable) -> None:
    """`answer(candidate, references)`: ROUGE-L of one caption with several references."""
    candidate = "a red circle above a blue square".split()
    references = [
        "a circle above a square".split(),
        "there is a red circle and it lies above a large blue square".split(),
    ]
    right = rouge_l([candidate], [references]).corpus
    value = number(ask(answer, candidate, references))
    best = max(rouge_l([candidate], [[one]]).corpus for one in references)
    say_if(
        abs(value - best) < 1e-6,
        "This is the best F over the references. COCO's ROUGE-L takes the highest "
        "precision and the highest recall, each "
        "from whichever reference has it, and computes F from these two.",
    )
    say_if(abs(value - right) > 1e-6, f"ROUGE-L of this caption is {right:.4f}, but you got {value:.4f}.")


@exercise
def check_document_frequency(answer: Callable) -> None:
    """`answer(references, ngram)`: the number of images in whose references the n-gram occurs."""
    for ngram in (("a",), ("red", "circle"), ("green", "circle"), ("purple",)):
        value = number(ask(answer, _REFERENCES, ngram))
        right = sum(any(ngram in _ngrams(caption, len(ngram)) for caption in image) for image in _REFERENCES)
        captions = sum(ngram in _ngrams(caption, len(ngram)) for image in _REFERENCES for caption in image)
        words = " ".join(ngram)
        say_if(
            value == captions != right,
            f'"{words}" occurs in {captions} captions, but in the captions of {right} images: the '
            "document of CIDEr is an image with all its captions.",
        )
        say_if(value != right, f'"{words}" occurs in the captions of {right} images, but you got {value:g}.')


def _ngrams(words: list[str], n: int) -> list[tuple[str, ...]]:
    return list(zip(*(words[start:] for start in range(n)), strict=False))
