"""Sets of captions: self-CIDEr by its equation, mBLEU by pycocoevalcap, distinct n-grams by counting."""

import math
import random
from collections import Counter

import numpy as np
import pytest
from testing.caption_corpora import WORDS, generated_corpus

from hf_captioner.metrics import CiderD, DocumentFrequency, Scores, caption_diversity
from hf_captioner.metrics.diversity import DIVERSITY, distinct_n, m_bleu, self_cider


def sets_of(images, size, seed):
    generator = random.Random(seed)

    def caption():
        return [generator.choice(WORDS) for _ in range(generator.choice([0, 1, 3, 5, 8]))]

    return [[caption() for _ in range(size)] for _ in range(images)]


REFERENCES = generated_corpus(40, seed=0)[1]
FREQUENCY = DocumentFrequency.from_references(REFERENCES)


def test_self_cider_by_its_equation():
    """One pair at a time, as the authors' code computes it: the upper triangle, mirrored; roots of singular values."""
    sets = sets_of(12, 5, seed=1)
    scorer = CiderD(FREQUENCY)
    expected = []
    for captions in sets:
        kernel = np.zeros((5, 5))
        for i in range(5):
            for j in range(i, 5):
                kernel[i, j] = kernel[j, i] = scorer.score([captions[i]], scorer.cook([[captions[j]]]))[0]
        roots = np.sqrt(np.linalg.svd(kernel)[1])
        ratio = max(roots) / sum(roots)
        expected.append(-math.log10(ratio) / math.log10(5))
    scores = self_cider(sets, FREQUENCY)
    np.testing.assert_allclose(scores.per_image, expected, atol=1e-12)
    assert scores.corpus == pytest.approx(np.mean(expected)) and 0.3 < scores.corpus < 1


def test_self_cider_is_0_for_equal_captions_and_1_for_strangers():
    strangers = [[word] * 4 for word in ("red", "dog", "two")]
    same = [["a", "red", "dog"]] * 3
    scores = self_cider([strangers, same, [["a"]], [[], []], [["dog"], ["dog"], ["red"]]], FREQUENCY)
    assert scores.per_image[:4] == pytest.approx([1, 0, 0, 0], abs=1e-6)
    # K has the blocks [[c, c], [c, c]] and [c]: singular values 2 c, c and 0
    expected = -math.log(math.sqrt(2) / (math.sqrt(2) + 1)) / math.log(3)
    assert scores.per_image[4] == pytest.approx(expected, abs=1e-6)


def test_m_bleu_equals_pycocoevalcaps_over_the_places():
    scorer = pytest.importorskip("pycocoevalcap.bleu.bleu")
    sets = sets_of(30, 4, seed=2)
    expected = []
    for place in range(4):
        candidates = {image: [" ".join(captions[place])] for image, captions in enumerate(sets)}
        others = {
            image: [" ".join(words) for words in captions[:place] + captions[place + 1 :]]
            for image, captions in enumerate(sets)
        }
        expected.append(scorer.Bleu(4).compute_score(others, candidates, verbose=0)[0])
    found = [score.corpus for score in m_bleu(sets)]
    np.testing.assert_allclose(found, np.mean(expected, axis=0), atol=1e-12)
    assert found[0] > found[3] > 0


def test_m_bleu_of_sets_of_several_sizes():
    """An image without a caption at a place has no part there, one with a single caption nowhere."""
    sets = [[["a", "dog"], ["a", "dog"], ["a", "cat"]], [["two", "dogs"], ["two", "cats"]], [["alone"]]]
    by_hand = [
        (2 + 1) / 4,  # "a dog" in full, "two" of "two dogs"
        (2 + 1) / 4,
        1 / 2,  # "a" of "a cat"
    ]
    assert m_bleu(sets)[0].corpus == pytest.approx(np.mean(by_hand))
    assert m_bleu([[["alone"]]])[0].corpus == 0


def test_distinct_n_by_counting():
    sets = sets_of(20, 3, seed=3)
    for order in (1, 2, 3):
        expected = []
        for captions in sets:
            seen = Counter()
            for words in captions:
                seen.update(zip(*(words[start:] for start in range(order)), strict=False))
            expected.append(len(seen) / max(1, sum(map(len, captions))))
        assert distinct_n(sets, order).per_image == pytest.approx(expected)


def test_all_of_them_and_their_intervals():
    found = caption_diversity(sets_of(25, 5, seed=4), FREQUENCY)
    assert tuple(found) == DIVERSITY
    for score in found.values():
        assert isinstance(score, Scores)
        low, high = score.confidence_interval(resamples=100)
        assert low <= score.corpus <= high and low < high
    varied, same = ([[words, other] for words, other in sets_of(25, 2, 5)], [[w, w] for w, _ in sets_of(25, 2, 5)])
    more, less = (caption_diversity(sets, FREQUENCY) for sets in (varied, same))
    assert more["self_cider"].corpus > less["self_cider"].corpus == pytest.approx(0, abs=1e-6)
    assert more["m_bleu_4"].corpus < less["m_bleu_4"].corpus
    assert more["distinct_2"].corpus > less["distinct_2"].corpus
