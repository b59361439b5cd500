"""Contrastive reranking and utilities of minimum Bayes risk against slow, plain versions."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from testing.tiny_clip import WORDS, tiny_clip
from testing.tiny_models import SYSTEMS, random_images, tiny_model

from hf_captioner import train_tokenizer
from hf_captioner.decoding import ClipScorer, MetricUtility, contrastive_reranking
from hf_captioner.errors import InputError
from hf_captioner.metrics import CiderD, DocumentFrequency, bleu, clip_score, rouge_l, tokenize

FULL = dict(return_dict_in_generate=True, output_scores=True, output_attentions=True, max_new_tokens=7)
TEXTS = ["dog runs", "red cat", "dog dog red", "cat runs red", "runs", "red red red dog"]


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    return tiny_clip(tmp_path_factory.mktemp("clip"))


def photos(count: int) -> list[Image.Image]:
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(256, size=(16, 16, 3), dtype=np.uint8)) for _ in range(count)]


def test_the_scorer_is_clip_score_where_that_is_positive(clip_folder):
    tokenizer = train_tokenizer([" ".join(WORDS)])
    images = photos(2)
    rows = [tokenizer(text)["input_ids"] for text in TEXTS]
    found = np.array(ClipScorer(clip_folder, tokenizer)(images, rows))
    expected = clip_score(TEXTS, [images[0]] * 3 + [images[1]] * 3, clip_folder).per_image
    np.testing.assert_allclose(np.maximum(found, 0), expected, atol=1e-5)
    assert (expected > 0).any() and (found < 0).any(), "both signs must be tried"
    with pytest.raises(InputError, match="`reranker` must be a folder with a CLIP model, got 'openai/clip'"):
        ClipScorer("openai/clip", tokenizer)


def by_sines(images, captions):
    """Another number for every caption, and as little like the captioner's own order as can be."""
    each = len(captions) // len(images)
    return [
        images[place // each] * sum(math.sin(7 * token + step) for step, token in enumerate(row))
        for place, row in enumerate(captions)
    ]


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("drawn", ["beams", "samples"])
def test_reranking_is_sorting_what_generate_gives(system, drawn):
    model, pixels = tiny_model(**SYSTEMS[system]), random_images()
    own = dict(num_beams=4) if drawn == "beams" else dict(do_sample=True, top_k=0)
    options = dict(FULL, num_return_sequences=4, **own)
    weights = [1.0, -0.5, 2.0]  # of each image, as its stand-in
    torch.manual_seed(5)
    candidates = model.generate(pixels, **options)
    after = model.ends_before(candidates.sequences[:, 1:])
    captions = [row[~gone].tolist() for row, gone in zip(candidates.sequences[:, 1:], after, strict=True)]
    scores = by_sines(weights, captions)
    for best in (1, 3):
        rows = [
            4 * image + place
            for image in range(3)
            for place in sorted(range(4), key=lambda place: -scores[4 * image + place])[:best]
        ]
        torch.manual_seed(5)
        found = model.generate(
            pixels, custom_generate=contrastive_reranking, scorer=by_sines, images=weights, num_best=best, **options
        )
        assert found.sequences_scores.tolist() == pytest.approx([scores[row] for row in rows])
        assert found.sequences.tolist() == candidates.sequences[rows].tolist()
        if model.config.attends:
            torch.testing.assert_close(model.attention_maps(found), model.attention_maps(candidates)[rows])
    torch.manual_seed(5)
    plain = model.generate(
        pixels,
        custom_generate=contrastive_reranking,
        scorer=by_sines,
        images=weights,
        max_new_tokens=7,
        num_return_sequences=4,
        **own,
    )
    assert len(plain) == 3 and isinstance(plain, torch.Tensor)


def test_one_candidate_is_what_the_captioner_says():
    model, pixels = tiny_model(), random_images()
    found = model.generate(
        pixels, custom_generate=contrastive_reranking, scorer=by_sines, images=[1, 2, 3], num_beams=3, max_new_tokens=7
    )
    assert torch.equal(found, model.generate(pixels, num_beams=3, max_new_tokens=7))


def test_what_reranking_cannot_do():
    model, pixels = tiny_model(), random_images()
    given = dict(custom_generate=contrastive_reranking, scorer=by_sines, images=[1, 2, 3])
    with pytest.raises(InputError, match="must be given `scorer` and `images`"):
        model.generate(pixels, custom_generate=contrastive_reranking, num_beams=2)
    with pytest.raises(InputError, match="got 2 sampled beams"):
        model.generate(pixels, num_beams=2, do_sample=True, **given)
    with pytest.raises(InputError, match="`num_best` must be 1 to 2"):
        model.generate(pixels, num_beams=2, num_return_sequences=2, num_best=3, **given)


@pytest.mark.parametrize("metric", ["cider_d", "bleu_2", "rouge_l"])
def test_a_utility_is_the_metric_of_each_pair(metric):
    tokenizer = train_tokenizer([" ".join(WORDS)])
    known = DocumentFrequency.from_references([[tokenize([text])[0]] for text in TEXTS])
    utility = MetricUtility(tokenizer, metric, known if metric == "cider_d" else None)
    pairs = [(a, b) for a in TEXTS for b in [*TEXTS, TEXTS[0]]]
    found = utility(*([tokenizer(text)["input_ids"] for text in side] for side in zip(*pairs, strict=True)))
    for (candidate, reference), value in zip(pairs, found, strict=True):
        one, other = tokenize([candidate]), [tokenize([reference])]
        if metric == "cider_d":
            scorer = CiderD(known)
            expected = scorer.score(one, scorer.cook(other))[0]
        else:
            expected = (bleu(one, other)[1] if metric == "bleu_2" else rouge_l(one, other)).per_image[0]
        assert value == pytest.approx(expected, abs=1e-9)


def test_a_utility_without_frequencies_weighs_all_alike():
    """Whatever the size of the corpus is said to be."""
    tokenizer = train_tokenizer([" ".join(WORDS)])
    empty = DocumentFrequency(np.empty(0, np.uint64), np.empty(0), 1000)
    rows = [tokenizer(text)["input_ids"] for text in TEXTS]
    first = MetricUtility(tokenizer)(rows, rows[::-1])
    np.testing.assert_allclose(first, MetricUtility(tokenizer, "cider_d", empty)(rows, rows[::-1]))
    assert first.max() > 0
    with pytest.raises(InputError, match="`utility` must be one of bleu_1.*got 'spice'"):
        MetricUtility(tokenizer, "spice")
    with pytest.raises(InputError, match="`utility_frequency` must be left out with `utility` 'bleu_4'"):
        MetricUtility(tokenizer, "bleu_4", empty)
