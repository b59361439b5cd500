"""Wrong answers to the exercises of lesson 1."""

from collections import Counter

from solutions import lesson_01 as solutions


def wrong_bleu(candidates, references):
    """The mean over images, which is what one computes first."""
    pairs = zip(candidates, references, strict=True)
    return sum(solutions.corpus_bleu([one], [truths]) for one, truths in pairs) / len(candidates)


def bleu_without_brevity(candidates, references):
    padded = [[one for one in truths] for truths in references]
    matched, possible = [0] * 4, [0] * 4
    for candidate, captions in zip(candidates, padded, strict=True):
        for n in range(1, 5):
            most = Counter()
            for one in captions:
                most |= Counter(solutions._ngrams(one, n))
            matched[n - 1] += (Counter(solutions._ngrams(candidate, n)) & most).total()
            possible[n - 1] += len(candidate) - n + 1
    product = 1.0
    for hit, all_ in zip(matched, possible, strict=True):
        product *= hit / all_
    return product**0.25


def best_rouge(candidate, references):
    return max(solutions.rouge_l_of_several(candidate, [one]) for one in references)


def frequency_in_captions(references, ngram):
    return sum(ngram in solutions._ngrams(one, len(ngram)) for captions in references for one in captions)


# the check, its solution, a plausible wrong answer, and what the check says to it
EXERCISES = [
    ("check_bleu", "corpus_bleu", wrong_bleu, "mean of the images' own scores"),
    ("check_bleu", "corpus_bleu", bleu_without_brevity, "brevity penalty is missing"),
    ("check_rouge_l", "rouge_l_of_several", best_rouge, "highest precision and the highest recall"),
    ("check_document_frequency", "document_frequency", frequency_in_captions, "an image with all its captions"),
]
