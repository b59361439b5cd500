"""CIDEr-D that is lost by shuffling images."""

import numpy as np
import pytest
from testing.caption_corpora import generated_corpus

from hf_captioner.metrics import CaptionMetrics, CiderD, DocumentFrequency, image_use
from hf_captioner.metrics.image_use_score import SHUFFLES, other_images


def test_equal_to_scoring_the_shuffled_captions():
    candidates, references = generated_corpus(40, seed=1)
    frequency = DocumentFrequency.from_references(references)
    scorer = CiderD(frequency)
    own = [scorer.score([c], scorer.cook([r]))[0] for c, r in zip(candidates, references, strict=True)]
    lost = np.zeros(40)
    for images in other_images(40, SHUFFLES, seed=0):
        for image, other in enumerate(images):
            lost[image] += own[image] - scorer.score([candidates[other]], scorer.cook([references[image]]))[0]
    scores = image_use(candidates, references)
    np.testing.assert_allclose(scores.per_image, lost / SHUFFLES, atol=1e-12)
    low, high = scores.confidence_interval()
    assert low < scores.corpus < high and scores.corpus > 0


def test_every_shuffle_gives_every_image_another():
    others = other_images(7, 5, seed=3)
    assert others.shape == (5, 7)
    for row in others:
        assert sorted(row) == list(range(7)) and not (row == np.arange(7)).any()
    assert all(len(set(column)) == 5 for column in others.T)
    assert other_images(3, 5, seed=0).shape == (2, 3) and other_images(1, 5, seed=0).shape == (0, 1)


def test_a_parrot_does_not_use_its_image():
    things = ["dog", "cat", "horse", "boat", "train", "bird"]
    words = dict(references=[[f"a {thing} is here", f"there is a {thing}"] for thing in things], metrics=["image_use"])
    looking = CaptionMetrics().compute(predictions=[f"a {thing} is here" for thing in things], **words)
    parrot = CaptionMetrics().compute(predictions=["a dog is here"] * 6, **words)
    assert looking["image_use"] > 3 and parrot["image_use"] == pytest.approx(0, abs=1e-9)
    alone = CaptionMetrics().compute(predictions=["a dog"], references=[["a dog"]], metrics=["image_use"])
    assert alone["image_use"] == 0
