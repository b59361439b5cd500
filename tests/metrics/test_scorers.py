"""BLEU, ROUGE-L, CIDEr-D and CIDEr against pycocoevalcap and against the papers' formulas written out."""

import math
from collections import Counter

import numpy as np
import pytest
from testing.caption_corpora import flickr8k_corpus, generated_corpus

from hf_captioner.metrics import Cider, CiderD, DocumentFrequency, bleu, chair, image_use, meteor_exact_stem, rouge_l

CORPORA = {"generated": lambda: generated_corpus(300, seed=0), "flickr8k": flickr8k_corpus}


def cider(candidates, references, kind=CiderD):
    scorer = kind(DocumentFrequency.from_references(references))
    return scorer.score(candidates, scorer.cook(references))


def ngrams(words, n):
    return Counter(tuple(words[start : start + n]) for start in range(len(words) - n + 1))


def slow_bleu(candidates, references, n):
    matched, possible = [0] * n, [0] * n
    length = closest = 0
    for candidate, captions in zip(candidates, references, strict=True):
        length += len(candidate)
        closest += min((abs(len(caption) - len(candidate)), len(caption)) for caption in captions)[1]
        for order in range(1, n + 1):
            most = Counter()
            for caption in captions:
                most |= ngrams(caption, order)
            matched[order - 1] += (ngrams(candidate, order) & most).total()
            possible[order - 1] += ngrams(candidate, order).total()
    precision = math.prod(m / p for m, p in zip(matched, possible, strict=True)) ** (1 / n)
    return precision * min(1, math.exp(1 - closest / length))


def slow_lcs(a, b):
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, word in enumerate(a):
        for j, other in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if word == other else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


def slow_rouge_l(candidate, captions):
    if not candidate:
        return 1.0 if [] in captions else 0.0
    precision = max(slow_lcs(candidate, caption) / len(candidate) for caption in captions)
    recall = (
        max(slow_lcs(candidate, caption) / len(caption) for caption in captions if caption) if any(captions) else 0
    )
    return (1 + 1.2**2) * precision * recall / (recall + 1.2**2 * precision) if precision else 0.0


def slow_cider(candidates, references, clipped):
    """Equations 1 to 4 of Vedantam et al. 2015."""
    frequency = Counter()
    for captions in references:
        frequency.update({gram for caption in captions for n in range(1, 5) for gram in ngrams(caption, n)})

    def vector(words, n, normalise):
        counts = ngrams(words, n)
        total = counts.total() if normalise else 1
        return {g: h / total * math.log(len(references) / max(1, frequency[g])) for g, h in counts.items()}

    def norm(weights):
        return math.sqrt(sum(weight**2 for weight in weights.values()))

    scores = []
    for candidate, captions in zip(candidates, references, strict=True):
        score = 0
        for caption in captions:
            for n in range(1, 5):
                c, s = vector(candidate, n, not clipped), vector(caption, n, not clipped)
                if norm(c) == 0 or norm(s) == 0:
                    continue
                overlap = sum((min(weight, s[g]) if clipped else weight) * s[g] for g, weight in c.items() if g in s)
                # lengths as COCO's code has them: one word and none are the same
                penalty = math.exp(-((max(len(candidate), 1) - max(len(caption), 1)) ** 2) / (2 * 6**2))
                score += overlap / (norm(c) * norm(s)) * (penalty if clipped else 1)
        scores.append(10 * score / 4 / len(captions))
    return scores


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_bleu_equals_the_formula(order):
    candidates, references = generated_corpus(150, seed=1)
    assert bleu(candidates, references)[order - 1].corpus == pytest.approx(slow_bleu(candidates, references, order))


def test_bleu_takes_the_shorter_of_two_equally_close_references():
    scores = bleu([["a", "b", "c"]], [[["a", "b", "c", "d"], ["a", "b"]]])
    assert scores[0].corpus == pytest.approx(1)  # against the longer one: exp(1 - 4 / 3)


def test_rouge_l_equals_the_formula():
    candidates, references = generated_corpus(150, seed=2)
    expected = [slow_rouge_l(*pair) for pair in zip(candidates, references, strict=True)]
    np.testing.assert_allclose(rouge_l(candidates, references).per_image, expected, atol=1e-12)
    assert 0.05 < np.mean(expected) < 0.95


@pytest.mark.parametrize(("kind", "clipped"), [(Cider, False), (CiderD, True)])
def test_cider_equals_the_paper(kind, clipped):
    candidates, references = generated_corpus(150, seed=3)
    expected = slow_cider(candidates, references, clipped)
    np.testing.assert_allclose(cider(candidates, references, kind), expected, atol=1e-9)
    assert np.std(expected) > 1


def test_repeating_a_word_gains_in_plain_cider_only():
    references = [[["a", "red", "dog"]], [["a", "blue", "cat"]], [["a", "green", "bird"]]]
    once, often = [["red", "cat"], ["cat"], ["bird"]], [["red", "red", "red", "cat"], ["cat"], ["bird"]]
    assert cider(often, references, Cider)[0] > cider(once, references, Cider)[0] + 0.1
    assert cider(often, references, CiderD)[0] < cider(once, references, CiderD)[0]


@pytest.mark.parametrize("corpus", CORPORA)
def test_equal_to_pycocoevalcap(corpus):
    scorers = pytest.importorskip("pycocoevalcap.bleu.bleu"), pytest.importorskip("pycocoevalcap.rouge.rouge")
    cider_module = pytest.importorskip("pycocoevalcap.cider.cider")
    candidates, references = CORPORA[corpus]()
    answers = {image: [" ".join(candidate)] for image, candidate in enumerate(candidates)}
    truths = {image: [" ".join(caption) for caption in captions] for image, captions in enumerate(references)}

    totals, per_image = scorers[0].Bleu(4).compute_score(truths, answers, verbose=0)
    for order, scores in enumerate(bleu(candidates, references)):
        assert scores.corpus == pytest.approx(totals[order], abs=1e-9)
        np.testing.assert_allclose(scores.per_image, per_image[order], atol=1e-9, rtol=0)

    total, per_image = scorers[1].Rouge().compute_score(truths, answers)
    assert rouge_l(candidates, references).corpus == pytest.approx(total, abs=1e-9)
    np.testing.assert_allclose(rouge_l(candidates, references).per_image, per_image, atol=1e-9, rtol=0)

    total, per_image = cider_module.Cider().compute_score(truths, answers)
    assert cider(candidates, references).mean() == pytest.approx(total, abs=1e-9)
    np.testing.assert_allclose(cider(candidates, references), per_image, atol=1e-9, rtol=0)
    assert total > 0.1


def test_a_space_inside_a_token_cuts_it_for_ngrams_only_as_in_coco():
    coco = pytest.importorskip("pycocoevalcap.bleu.bleu"), pytest.importorskip("pycocoevalcap.rouge.rouge")
    candidates = [["3\u00a01/2", "miles"], ["a", "dog"]]
    references = [[["3", "miles"], ["1/2", "miles", "away"]], [["a", "dog"]]]
    answers = {image: [" ".join(candidate)] for image, candidate in enumerate(candidates)}
    truths = {image: [" ".join(caption) for caption in captions] for image, captions in enumerate(references)}
    _, per_image = coco[0].Bleu(1).compute_score(truths, answers, verbose=0)
    np.testing.assert_allclose(bleu(candidates, references)[0].per_image, per_image[0], atol=1e-9)
    _, per_image = coco[1].Rouge().compute_score(truths, answers)
    np.testing.assert_allclose(rouge_l(candidates, references).per_image, per_image, atol=1e-9)


@pytest.mark.parametrize(
    ("candidate", "captions"),
    [
        ([], [["a", "dog"]]),
        (["a", "dog"], [[]]),
        ([], [[]]),
        (["dog"], [["dog"]]),
        (["dog"] * 300, [["dog"]]),
    ],
)
def test_degenerate_captions_score_finite_numbers(candidate, captions):
    candidates, references = [candidate, ["x"]], [captions, [["y"]]]
    scores = [score.per_image for score in (*bleu(candidates, references), rouge_l(candidates, references))]
    scores += [cider(candidates, references), cider(candidates, references, Cider)]
    assert np.isfinite(scores).all()
    if not candidate and captions != [[]]:
        assert max(score[0] for score in scores) == 0


@pytest.mark.parametrize("metric", [bleu, rouge_l, meteor_exact_stem, image_use, cider])
@pytest.mark.parametrize("more", ["candidates", "references"])
def test_captions_and_references_must_be_as_many(metric, more):
    candidates, references = [["a", "dog"], ["a", "cat"]], [[["a", "dog"]], [["two", "cats"], ["a", "cat"]]]
    if more == "candidates":
        candidates.append(["a", "bird"])
    else:
        references.append([["a", "bird"]])
    message = f"candidates must be one for each of the {len(references)} images, got {len(candidates)}"
    with pytest.raises(ValueError, match=message):
        metric(candidates, references)


@pytest.mark.parametrize("metric", [bleu, rouge_l, meteor_exact_stem, image_use, cider])
def test_every_image_must_have_a_reference(metric):
    with pytest.raises(ValueError, match=r"references\[0\] must hold at least one caption, got none"):
        metric([["a", "dog"], ["a", "cat"]], [[], [["a", "cat"]]])


def test_chair_takes_a_list_of_references_for_every_caption():
    with pytest.raises(ValueError, match="references must be one list for each of the 2 captions, got 1"):
        chair([["a"], ["b"]], [["dog"], ["cat"]], [[]])
