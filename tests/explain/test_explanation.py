"""Words of an explanation, each against a slow reading of the caption."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from testing.tiny_models import SYSTEMS, tiny_model

from hf_captioner import CaptionerImageProcessor, CaptionerProcessor, train_tokenizer
from hf_captioner.errors import InputError
from hf_captioner.explain import METHODS, explain, token_maps
from hf_captioner.explain.explanation import END, OTHERS, begins_word, words_of

CAPTIONS = ["a dog's ball, on the grass.", "two dogs are playing with a ball", "the cat sleeps on a red sofa"]
IMAGE = Image.effect_mandelbrot((48, 20), (-2, -1.5, 1, 1.5), 60).convert("RGB")
BYTES = 300  # a vocabulary of all bytes and few merges: nearly every word is several tokens


class Parts(NamedTuple):
    model: torch.nn.Module
    processor: CaptionerProcessor
    kind: str


@pytest.fixture(scope="module", params=["word", "bpe"])
def parts(request):
    tokenizer = train_tokenizer(CAPTIONS, kind=request.param, vocab_size=BYTES)
    size = {"height": 32, "width": 32}
    processor = CaptionerProcessor(CaptionerImageProcessor(size=size), tokenizer)
    model = tiny_model(vocab_size=len(tokenizer), **SYSTEMS["additive"])
    with torch.no_grad():  # the likeliest tokens are letters, some of them behind a space
        model.lm_head.weight[4:256] *= 0.3 if request.param == "bpe" else 1
    return Parts(model, processor, request.param)


def test_punctuation_stands_apart_and_parts_of_words_do_not():
    for kind in ("word", "bpe"):
        tokenizer = train_tokenizer(CAPTIONS, kind=kind, vocab_size=BYTES)
        ids = tokenizer(CAPTIONS[0]).input_ids
        words = [tokenizer.decode([ids[place] for place in places]).strip() for places in words_of(tokenizer, ids)]
        assert words == ["a", "dog's", "ball", ",", "on", "the", "grass", ".", "<eos>"]
        assert all(begins_word(tokenizer, tokenizer.all_special_ids))


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"do_sample": True}], ids=["greedy", "beam", "sampled"])
@pytest.mark.parametrize("method", list(METHODS)[::2])
def test_words_are_those_of_the_caption(parts, options, method):
    model, processor, _ = parts
    torch.manual_seed(0)
    found = explain(model, processor, IMAGE, method, max_new_tokens=9, **options)
    torch.manual_seed(0)
    pixels = processor([IMAGE], return_tensors="pt")["pixel_values"]
    tokens = model.generate(pixels, max_new_tokens=9, **options)[0]
    assert found.caption == processor.tokenizer.decode(tokens, skip_special_tokens=True).strip()
    assert found.image.size == IMAGE.size and found.signed is (method == "gradient")
    ids = tokens[1:].tolist()
    maps = token_maps(model, pixels, tokens, method).numpy()
    logits = model(pixel_values=pixels, decoder_input_ids=tokens[None, :-1]).logits[0]
    said = logits.softmax(-1)[torch.arange(len(ids)), ids].tolist()
    places = words_of(processor.tokenizer, ids)
    assert len(places) == len(found.words) and max(map(len, places)) >= 1
    for word, where in zip(found.words, places, strict=True):
        assert word.probability == pytest.approx(np.prod([said[place] for place in where]), rel=1e-3)
        together = maps[where].sum(0) if method == "gradient" else maps[where].mean(0)
        np.testing.assert_allclose(word.map, together, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_other_words_go_on_to_their_end(parts):
    model, processor, _ = parts
    tokenizer = processor.tokenizer
    found = explain(model, processor, IMAGE, max_new_tokens=6, do_sample=False)
    pixels = processor([IMAGE], return_tensors="pt")["pixel_values"]
    tokens = model.generate(pixels, max_new_tokens=6)[0]
    longest = 0
    for word, where in zip(found.words, words_of(tokenizer, tokens[1:].tolist()), strict=True):
        before = tokens[: where[0] + 1].tolist()

        def chances(prefix):
            rows = torch.tensor([prefix])
            return model(pixel_values=pixels, decoder_input_ids=rows).logits[0, -1].softmax(-1)

        first = chances(before)
        first[tokens[where[0] + 1]] = 0
        expected = []
        for token in first.argsort(descending=True)[:OTHERS].tolist():
            ids, chance = [token], float(first[token])
            while len(ids) < 8 and token not in tokenizer.all_special_ids:
                after = chances(before + ids)
                if begins_word(tokenizer, [int(after.argmax())])[0]:
                    break
                ids.append(int(after.argmax()))
                chance *= float(after.max())
            longest = max(longest, len(ids))
            text = END if token == 3 else tokenizer.decode(ids).strip() or " ".join(
                tokenizer.decode([one]).strip() or tokenizer.convert_ids_to_tokens(one) for one in ids
            )  # fmt: skip
            expected.append((text, pytest.approx(chance, rel=1e-3)))
        assert list(word.others) == expected
    assert longest > 1 or parts.kind == "word"


def test_nothing_is_explained_behind_the_end(parts):
    model, processor, _ = parts
    found = explain(model, processor, IMAGE, max_new_tokens=4, forced_eos_token_id=3, num_beams=2)
    texts = [word.text for word in found.words]
    assert texts[-1] == END and END not in texts[:-1]


def test_a_captioner_without_attention_has_other_methods(parts):
    processor = parts.processor
    model = tiny_model(vocab_size=len(processor.tokenizer), **SYSTEMS["none"])
    with pytest.raises(InputError, match="gradient or occlusion"):
        explain(model, processor, IMAGE, max_new_tokens=3)
    found = explain(model, processor, IMAGE, "gradient", max_new_tokens=3)
    assert found.words[0].map.shape == (4, 4)
