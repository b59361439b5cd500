"""The paired bootstrap against scoring every resample, its intervals on simulated corpora, Holm, agreement."""

import math
import random
from collections import Counter

import numpy as np
import pytest
from testing.caption_corpora import generated_corpus

from hf_captioner.metrics import (
    DocumentFrequency,
    Scores,
    agreement,
    bleu,
    caption_metrics,
    compare_scores,
    holm,
)

THREE = ("bleu_4", "rouge_l", "cider_d")


def scores_of(candidates, references, metrics=THREE):
    return caption_metrics.score_words(candidates, references, metrics)


def spoiled(captions, share, seed):
    """The same captions with that share of their words replaced by words of other captions."""
    generator = random.Random(seed)
    words = [word for caption in captions for word in caption]
    return [
        [generator.choice(words) if generator.random() < share else word for word in caption] for caption in captions
    ]


def corpus(images, seed):
    """Tokenised candidates and references, five an image: a sentence, a third of its words replaced each time."""
    generator = random.Random(seed)
    vocabulary = [f"w{number}" for number in range(400)]
    weights = [1 / (rank + 1) for rank in range(400)]
    sentences = [generator.choices(vocabulary, weights, k=generator.randint(6, 14)) for _ in range(images)]
    several = [spoiled(sentences, 1 / 3, seed=generator.random()) for _ in range(6)]
    return several[0], [list(captions) for captions in zip(*several[1:], strict=True)]


def test_the_same_captioner_twice():
    candidates, references = generated_corpus(60, seed=1)
    twice = {name: scores_of(candidates, references) for name in ("one", "other")}
    found = compare_scores(twice, resamples=200)[("one", "other")]
    for metric in THREE:
        assert found[metric].p == found[metric].p_holm == 1 and found[metric].difference == 0
        assert found[metric].interval == pytest.approx((0, 0), abs=1e-12)
        assert (found[metric].wins, found[metric].losses, found[metric].ties) == (0, 0, 60)


def test_equal_to_scoring_each_resample():
    """BLEU of the drawn corpora; CIDEr-D has the document frequencies of all images."""
    first, references = generated_corpus(30, seed=2)
    second = spoiled(first, 0.3, seed=3)
    names = ("bleu_2", "cider_d")
    scores = {name: scores_of(said, references, names) for name, said in (("a", first), ("b", second))}
    found = compare_scores(scores, resamples=150, seed=5)[("a", "b")]

    frequency = DocumentFrequency.from_references(references)
    generator = np.random.default_rng(5)
    slow = {name: [] for name in names}
    for _ in range(150):
        drawn = generator.integers(30, size=30)
        truths = [references[image] for image in drawn]
        one, other = ([said[image] for image in drawn] for said in (first, second))
        slow["bleu_2"].append(bleu(one, truths)[1].corpus - bleu(other, truths)[1].corpus)
        cider = [caption_metrics.score_words(said, truths, ["cider_d"], frequency) for said in (one, other)]
        slow["cider_d"].append(cider[0]["cider_d"].corpus - cider[1]["cider_d"].corpus)
    for name, differences in slow.items():
        np.testing.assert_allclose(found[name].interval, np.quantile(differences, [0.025, 0.975]), atol=1e-9)
        below, above = (sum(sign * d <= 1e-9 for d in differences) for sign in (1, -1))
        assert found[name].p == pytest.approx(min(1, 2 * (min(below, above) + 1) / 151))
    assert found["cider_d"].difference > 0 and found["cider_d"].interval[0] != found["cider_d"].interval[1]


def test_wins_and_losses_by_hand_and_lower_is_better():
    better = Scores.from_mean([0.5, 0.2, 0.2, 0.1, 0.9])
    worse = Scores.from_mean([0.4, 0.2 + 1e-12, 0.3, 0.0, 0.0])
    found = compare_scores({"a": {"x": better, "chair_s": better}, "b": {"x": worse, "chair_s": worse}}, resamples=50)
    difference = found[("a", "b")]["x"]
    assert (difference.wins, difference.losses, difference.ties) == (3, 1, 1)
    assert difference.difference == pytest.approx(0.2, abs=1e-9)
    lower = found[("a", "b")]["chair_s"]
    assert (lower.wins, lower.losses, lower.ties) == (1, 3, 1) and lower.difference == difference.difference


def test_the_order_of_captioners_turns_the_sign_alone():
    first, references = generated_corpus(40, seed=8)
    one, other = scores_of(first, references), scores_of(spoiled(first, 0.2, 1), references)
    forth = compare_scores({"a": one, "b": other}, resamples=100)[("a", "b")]
    back = compare_scores({"b": other, "a": one}, resamples=100)[("b", "a")]
    for metric in THREE:
        assert forth[metric].p == back[metric].p and forth[metric].wins == back[metric].losses
        assert forth[metric].interval == pytest.approx((-back[metric].interval[1], -back[metric].interval[0]))


def test_holm_corrects_for_several_pairs():
    # R: p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1, 1] and holm([]) == []
    candidates, references = corpus(300, seed=4)
    scores = {f"{share}": scores_of(spoiled(candidates, share, 1), references) for share in (0.0, 0.02, 0.5)}
    found = compare_scores(scores, resamples=400)
    assert list(found) == [("0.0", "0.02"), ("0.0", "0.5"), ("0.02", "0.5")]
    for metric in THREE:
        p = [by_metric[metric].p for by_metric in found.values()]
        assert [by_metric[metric].p_holm for by_metric in found.values()] == holm(p)
        assert found[("0.0", "0.5")][metric].p_holm == pytest.approx(3 * 2 / 401)


def test_what_only_some_measured_is_left_out():
    a, b = Scores.from_mean([1.0, 0.0]), Scores.from_mean([0.0, 0.0])
    assert list(compare_scores({"a": {"x": a, "y": a}, "b": {"x": b}}, 10)[("a", "b")]) == ["x"]


@pytest.mark.parametrize(
    "captioners,options,message",
    [
        ({"a": {}}, {}, "captioners must be at least two, got 1"),
        ({"a": {"x": [1.0]}, "b": {"x": [1.0, 2.0]}}, {}, r"as many images, got \[1, 2\]"),
        ({"a": {"x": [1.0]}, "b": {"x": [1.0]}}, {"level": 95}, "level must be between 0 and 1, got 95"),
        ({"a": {"x": [1.0]}, "b": {"x": [1.0]}}, {"resamples": 0}, "resamples must be at least 1, got 0"),
    ],
)
def test_errors_name_the_field(captioners, options, message):
    scores = {name: {m: Scores.from_mean(v) for m, v in found.items()} for name, found in captioners.items()}
    with pytest.raises(ValueError, match=message):
        compare_scores(scores, **options)


@pytest.mark.slow
def test_five_percent_of_the_words_are_told_apart_on_a_thousand_images():
    candidates, references = corpus(1000, seed=6)
    metrics = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider", "cider_d")
    scores = {
        "whole": scores_of(candidates, references, metrics),
        "spoiled": scores_of(spoiled(candidates, 0.05, seed=7), references, metrics),
    }
    found = compare_scores(scores, resamples=1000)[("whole", "spoiled")]
    for metric in metrics:
        assert found[metric].interval[0] > 0 and found[metric].p < 0.01, (metric, found[metric])


@pytest.mark.slow
@pytest.mark.parametrize(("corpora", "error"), [(200, 0.04), pytest.param(1000, 0.02, marks=pytest.mark.long)])
def test_intervals_hold_the_true_difference_in_95_of_100_corpora(corpora, error):
    """Corpora are drawn from a large population, whose own difference is the true one."""
    candidates, references = corpus(6000, seed=9)
    first = scores_of(spoiled(candidates, 0.1, 1), references)
    second = scores_of(spoiled(candidates, 0.15, 2), references)
    generator = np.random.default_rng(10)
    images = 400
    held = Counter()
    for number in range(corpora):
        rows = generator.integers(len(candidates), size=images)
        drawn = {
            name: {metric: Scores(score.statistics[rows], score.combine) for metric, score in scores.items()}
            for name, scores in (("a", first), ("b", second))
        }
        found = compare_scores(drawn, resamples=600, seed=number)[("a", "b")]
        for metric in THREE:
            low, high = found[metric].interval
            held[metric] += low <= first[metric].corpus - second[metric].corpus <= high
    coverage = {metric: held[metric] / corpora for metric in THREE}
    print(coverage)
    assert all(abs(share - 0.95) < error for share in coverage.values()), coverage


def slow_cider_d(candidate, reference, frequency, images):
    """Equation 4 of Vedantam et al. 2015 for a single reference."""

    def vector(words, n):
        counts = Counter(tuple(words[s : s + n]) for s in range(len(words) - n + 1))
        return {gram: count * math.log(images / max(1, frequency[gram])) for gram, count in counts.items()}

    total = 0
    for n in range(1, 5):
        c, r = vector(candidate, n), vector(reference, n)
        norms = math.hypot(*c.values()) * math.hypot(*r.values())
        if norms:
            total += sum(min(weight, r[gram]) * r[gram] for gram, weight in c.items() if gram in r) / norms
    apart = max(len(candidate), 1) - max(len(reference), 1)
    return 10 * total / 4 * math.exp(-(apart**2) / (2 * 6**2))


def test_agreement_against_an_obvious_version():
    first, references = generated_corpus(25, seed=11)
    second = [caption if image % 4 else list(reversed(caption)) for image, caption in enumerate(first)]
    frequency = Counter()
    for captions in references:
        frequency.update({tuple(c[s : s + n]) for c in captions for n in range(1, 5) for s in range(len(c) - n + 1)})
    found = agreement(first, second, DocumentFrequency.from_references(references))
    pairs = list(zip(first, second, strict=True))
    assert found["same"] == sum(a == b for a, b in pairs) / 25
    overlap = [len({*a} & {*b}) / len({*a, *b}) if a or b else 1 for a, b in pairs]
    assert found["word_overlap"] == pytest.approx(sum(overlap) / 25)
    mutual = [slow_cider_d(*pair, frequency, 25) for a, b in pairs for pair in ((a, b), (b, a))]
    assert found["mutual_cider_d"] == pytest.approx(sum(mutual) / 50)
