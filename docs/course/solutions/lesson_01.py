"""Captioning and its scores."""

import math
from collections import Counter


def _ngrams(words, n):
    return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]


def corpus_bleu(candidates, references):
    matched, possible = [0] * 4, [0] * 4
    length = closest = 0
    for candidate, captions in zip(candidates, references, strict=True):
        length += len(candidate)
        closest += min((abs(len(one) - len(candidate)), len(one)) for one in captions)[1]
        for n in range(1, 5):
            most = Counter()
            for one in captions:
                most |= Counter(_ngrams(one, n))  # | keeps the larger count of each n-gram
            matched[n - 1] += (Counter(_ngrams(candidate, n)) & most).total()  # & keeps the smaller one
            possible[n - 1] += max(len(candidate) - n + 1, 0)
    if min(matched) == 0:
        return 0.0
    precision = math.prod(hit / all_ for hit, all_ in zip(matched, possible, strict=True)) ** (1 / 4)
    return precision * min(1.0, math.exp(1 - closest / length))


def _longest_common(one, other):
    row = [0] * (len(other) + 1)
    for word in one:
        above, row = row, [0]
        for place, match in enumerate(other):
            row.append(above[place] + 1 if word == match else max(row[-1], above[place + 1]))
    return row[-1]


def rouge_l_of_several(candidate, references):
    common = [_longest_common(candidate, one) for one in references]
    precision = max(common) / len(candidate)
    recall = max(length / len(one) for length, one in zip(common, references, strict=True))
    if precision == 0:
        return 0.0
    return (1 + 1.2**2) * precision * recall / (recall + 1.2**2 * precision)


def document_frequency(references, ngram):
    n = len(ngram)
    return sum(any(ngram in _ngrams(caption, n) for caption in captions) for captions in references)
