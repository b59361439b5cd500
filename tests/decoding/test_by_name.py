"""Searches and rules by name: in the pipeline they are what the callables are in generate()."""

import re

import numpy as np
import pytest
import torch
from PIL import Image
from testing.tiny_clip import tiny_clip
from testing.tiny_models import tiny_model
from transformers import LogitsProcessorList, pipeline

from hf_captioner import CaptionerImageProcessor, CaptionerProcessor, ImageCaptioningPipeline, train_tokenizer
from hf_captioner.decoding import (
    ClipScorer,
    MetricUtility,
    NoWords,
    WordLimit,
    constrained_beam_search,
    contrastive_reranking,
    diverse_beam_search,
    ensemble,
    generation_options,
    minimum_bayes_risk,
    stochastic_beam_search,
)
from hf_captioner.decoding.by_name import SEARCHES, TAKES
from hf_captioner.errors import InputError

WORDS = "a b c d e f g h i j k l m n o p q r s t u v w x y z one two three four five six seven eight nine ten"
MAX = dict(max_new_tokens=6)


def photos(count: int) -> list[Image.Image]:
    generator = np.random.default_rng(1)
    return [
        Image.fromarray(generator.integers(0, 60 + 60 * i, size=(20 + i, 24, 3), dtype=np.uint8)) for i in range(count)
    ]


def processor_of(kind="word") -> CaptionerProcessor:
    tokenizer = train_tokenizer([WORDS], kind, vocab_size={"word": 40, "bpe": 300}[kind])
    return CaptionerProcessor(CaptionerImageProcessor(size={"height": 32, "width": 32}), tokenizer)


def captioner(seed=0, **options) -> ImageCaptioningPipeline:
    model = tiny_model(seed, attention="additive")
    return pipeline("image-captioning", model=model, processor=processor_of(), device="cpu", **options)


@pytest.fixture(scope="module")
def pipe():
    return captioner()


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    return str(tiny_clip(tmp_path_factory.mktemp("clip"), WORDS.split()))


@pytest.fixture(scope="module")
def member(tmp_path_factory):
    """Another captioner with other preprocessing."""
    folder = tmp_path_factory.mktemp("member")
    model = tiny_model(1, attention="none")
    with torch.no_grad():
        model.lm_head.weight *= 2
    model.save_pretrained(folder)
    processor = processor_of()
    processor.image_processor.image_mean = [0.1, 0.6, 0.3]
    processor.save_pretrained(folder)
    return str(folder)


def ids(pipe, text):
    return pipe.tokenizer(text, add_special_tokens=False)["input_ids"]


def cases(pipe, member, clip_folder, images) -> dict[str, tuple[dict, dict]]:
    """For each search: options of the pipeline, and those of generate()."""
    from hf_captioner import RnnCaptionerForConditionalGeneration

    other = RnnCaptionerForConditionalGeneration.from_pretrained(member).eval()
    pixels = CaptionerProcessor.from_pretrained(member)(images=images, return_tensors="pt")["pixel_values"]
    sampled = dict(do_sample=True, top_k=0, num_beams=1)
    return {
        "diverse": (
            dict(num_beam_groups=3, diversity_penalty=2.0, num_return_sequences=3),
            dict(
                custom_generate=diverse_beam_search,
                num_beams=3,
                num_beam_groups=3,
                diversity_penalty=2.0,
                num_return_sequences=3,
            ),
        ),
        "constrained": (
            dict(force_words="seven eight, a|b", num_beams=4),
            dict(
                custom_generate=constrained_beam_search,
                num_beams=4,
                force_words_ids=[[ids(pipe, "seven eight")], [ids(pipe, "a"), ids(pipe, "b")]],
            ),
        ),
        "stochastic": (
            dict(num_beams=3, num_return_sequences=2),
            dict(custom_generate=stochastic_beam_search, num_beams=3, num_return_sequences=2),
        ),
        "ensemble": (
            dict(members=[member], num_beams=3),
            dict(custom_generate=ensemble, members=[other], member_pixel_values=[pixels], num_beams=3),
        ),
        "mbr": (
            dict(num_samples=4, utility="bleu_1"),
            dict(
                custom_generate=minimum_bayes_risk,
                utility=MetricUtility(pipe.tokenizer, "bleu_1"),
                num_return_sequences=4,
                **sampled,
            ),
        ),
        "rerank": (
            dict(reranker=clip_folder, num_samples=4, num_return_sequences=2),
            dict(
                custom_generate=contrastive_reranking,
                scorer=ClipScorer(clip_folder, pipe.tokenizer),
                images=images,
                num_return_sequences=4,
                num_best=2,
                **sampled,
            ),
        ),
    }


@pytest.mark.parametrize("name", SEARCHES)
def test_a_name_is_its_callable(pipe, member, clip_folder, name, monkeypatch):
    generate = pipe.model.generate

    def seeded(**options):  # here, because the pipeline's loader of images draws numbers, too
        torch.manual_seed(2)
        return generate(**options)

    monkeypatch.setattr(pipe.model, "generate", seeded)
    images = photos(3)
    named, direct = cases(pipe, member, clip_folder, images)[name]
    pixels = pipe.processor(images=images, return_tensors="pt")["pixel_values"]
    found = pipe(images, batch_size=3, decoding=name, attention=True, **named, **MAX)
    full = dict(return_dict_in_generate=True, output_scores=True, output_attentions=True)
    expected = pipe.model.generate(pixel_values=pixels, **direct, **full, **MAX)
    flat = [caption for captions in found for caption in captions]
    texts = [text.strip() for text in pipe.tokenizer.batch_decode(expected.sequences, skip_special_tokens=True)]
    assert [caption["generated_text"] for caption in flat] == texts
    scores = [caption["search_score"] for caption in flat]
    assert scores == pytest.approx(expected.sequences_scores.tolist(), rel=1e-4, abs=1e-5)
    maps = pipe.model.attention_maps(expected)
    for caption, weights in zip(flat, maps, strict=True):
        torch.testing.assert_close(caption["attention"], weights[: len(caption["tokens"])], rtol=1e-3, atol=1e-5)
    if name not in ("mbr", "rerank", "stochastic"):  # one by one as in a batch
        singly = [caption for image in images for caption in pipe(image, decoding=name, **named, **MAX)]
        assert [caption["generated_text"] for caption in singly] == texts


def test_reranking_has_beams_too(pipe, clip_folder):
    images = photos(2)
    found = pipe(images, decoding="rerank", reranker=clip_folder, num_beams=4, num_return_sequences=4, **MAX)
    beams = pipe(images, num_beams=4, num_return_sequences=4, **MAX)
    scorer = ClipScorer(clip_folder, pipe.tokenizer)
    for image, captions, others in zip(images, found, beams, strict=True):
        texts = [caption["generated_text"] for caption in others]
        scores = scorer([image], [ids(pipe, text) for text in texts])
        assert [caption["generated_text"] for caption in captions] == [
            texts[place] for place in sorted(range(4), key=lambda place: -scores[place])
        ]


def test_options_of_the_pipeline_stay_when_a_call_adds_others():
    given = captioner(decoding="diverse", num_beam_groups=4, diversity_penalty=3.0, **MAX)
    image = photos(1)[0]
    options = dict(num_beam_groups=4, diversity_penalty=3.0, num_return_sequences=4)
    expected = captioner()(image, decoding="diverse", **options, **MAX)
    texts = [caption["generated_text"] for caption in expected]
    assert [caption["generated_text"] for caption in given(image, num_return_sequences=4)] == texts
    assert [caption["generated_text"] for caption in given(image)] == texts[:1]
    assert len(set(texts)) == 4


def test_rules_go_with_every_search(pipe):
    images = photos(4)
    free = pipe(images, num_beams=3, **MAX)
    said = sorted({word for (caption,) in free for word in caption["generated_text"].split()})[:3]
    rules = LogitsProcessorList([WordLimit(pipe.tokenizer, 4), NoWords(pipe.tokenizer, said)])
    pixels = pipe.processor(images=images, return_tensors="pt")["pixel_values"]
    tokens = pipe.model.generate(pixels, num_beams=3, logits_processor=rules, **MAX)
    expected = [text.strip() for text in pipe.tokenizer.batch_decode(tokens, skip_special_tokens=True)]
    wanted = dict(max_words=4, bad_words=",".join(said))
    found = pipe(images, num_beams=3, **wanted, **MAX)
    assert [caption["generated_text"] for (caption,) in found] == expected
    assert "search_score" not in found[0][0]
    for name in ("diverse", "stochastic", "mbr"):
        for (caption,) in pipe(images, decoding=name, min_words=2, suppress_tokens=[0, 1, 2], **wanted, **MAX):
            words = caption["generated_text"].split()
            assert 2 <= len(words) <= 4 and not set(words) & set(said)
    # a callable has the rules as well, and all other options as they are
    direct = pipe(images, decoding=diverse_beam_search, num_beams=3, num_beam_groups=3, **wanted, **MAX)
    named = pipe(images, decoding="diverse", num_beams=3, num_beam_groups=3, **wanted, **MAX)
    assert direct == named


@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_a_forced_word_is_said_in_every_caption(kind):
    processor = processor_of(kind)
    model = tiny_model(attention="additive", vocab_size=len(processor.tokenizer))
    captions = 0
    for place, word in enumerate((WORDS.split() * 2)[:50:5]):
        options = generation_options("constrained", {"force_words": word, "num_beams": 4}, processor)
        generator = torch.Generator().manual_seed(place)
        pixels = torch.randn((10, 3, 32, 32), generator=generator)
        rows = model.generate(pixels, max_new_tokens=9, **options)
        texts = processor.tokenizer.batch_decode(rows, skip_special_tokens=True)
        assert all(re.search(rf"(?<![a-z0-9]){word}(?![a-z0-9])", text) for text in texts)
        captions += len(texts)
    assert captions == 100


IGNORED = [(name, option) for name, takes in TAKES.items() for option in sorted(set.union(*TAKES.values()) - takes)]


def test_what_a_search_ignores_is_refused(pipe):
    assert len(IGNORED) > 50
    for name, option in IGNORED:
        with pytest.raises(InputError, match=f"`{option}` must be (given|left out) with `decoding`.*, got 3$"):
            generation_options(name, {option: 3}, pipe.processor)


@pytest.mark.parametrize(
    "decoding, options, message",
    [
        ("diverze", {}, "`decoding` must be one of diverse, .*; got 'diverze'"),
        ("constrained", {"force_words": "zebra"}, "`force_words` must be words that the captioner knows, got 'zebra'"),
        ("constrained", {"force_words": "a,,b"}, "`force_words` must be texts with commas"),
        ("constrained", {"force_words": "a", "force_words_ids": [[5]]}, "got both"),
        ("ensemble", {}, "`members` must be the folders of the other captioners, got none"),
        ("ensemble", {"members": "/nowhere"}, "`members` must be folders or names of captioners, got '/nowhere'"),
        ("mbr", {"num_samples": 0}, "`num_samples` must be at least 1, got 0"),
        ("mbr", {"utility": "spice"}, "`utility` must be one of"),
        ("mbr", {"utility_frequency": "/nowhere"}, "`utility_frequency` must be a file"),
        ("mbr", {"utility": max, "utility_frequency": "x"}, "with a function as `utility`"),
        ("rerank", {}, "`reranker` must be the folder of a CLIP model, got none"),
        ("rerank", {"reranker": "/nowhere"}, "`reranker` must be a folder with a CLIP model"),
        ("rerank", {"reranker": "x", "num_samples": 3, "num_beams": 2}, "`num_beams` must be left out with `num_samp"),
        ("rerank", {"reranker": "x", "temperature": 2.0}, "`temperature` must be left out without `num_samples`"),
        (None, {"min_words": 5, "max_words": 4}, "`min_words` must be at most `max_words`, 4, got 5"),
        (None, {"bad_words": ""}, "`bad_words` must be texts with commas between them, none of them empty, got ''"),
    ],
)
def test_one_line_says_what_is_wrong(pipe, decoding, options, message):
    with pytest.raises(InputError, match=message) as refused:
        generation_options(decoding, options, pipe.processor)
    assert "\n" not in str(refused.value)[:100]


def test_members_have_one_vocabulary(pipe, tmp_path):
    tiny_model(attention="none").save_pretrained(tmp_path)
    tokenizer = train_tokenizer(["other words " + WORDS], vocab_size=40)
    CaptionerProcessor(CaptionerImageProcessor(size={"height": 32, "width": 32}), tokenizer).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="`members` must have the captioner's vocabulary"):
        generation_options("ensemble", {"members": [str(tmp_path)]}, pipe.processor)


def test_without_the_package_a_callable_works_and_a_name_says_what_is_missing(pipe, monkeypatch):
    """As where the pipeline's file was loaded from the Hub."""
    image = photos(1)[0]
    options = dict(num_beams=4, num_beam_groups=2, **MAX)
    expected = pipe(image, decoding=diverse_beam_search, **options)
    monkeypatch.setattr(ImageCaptioningPipeline, "named_options", None)
    assert pipe(image, decoding=diverse_beam_search, **options) == expected
    with pytest.raises(ValueError, match="`decoding` must be a callable where the package hf_captioner is not"):
        pipe(image, decoding="diverse", **options)
    assert pipe(image, num_beams=3, **MAX)[0]["generated_text"]
