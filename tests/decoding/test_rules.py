"""Rules about words, with vocabularies of words and of parts of words."""

import re

import pytest
import torch
from testing.tiny_models import SYSTEMS, random_images, tiny_model
from transformers import LogitsProcessorList

from hf_captioner import train_tokenizer
from hf_captioner.decoding import (
    MinimumWords,
    NoBadEnding,
    NoRepeatedWords,
    NoUnknownWord,
    NoWords,
    WholeWords,
    constrained_beam_search,
)
from hf_captioner.metrics.collapse import ends_badly

TEXTS = ["a dog with a red ball", "two cats on the mat and a dog", "a red dog"] * 3


def tokenizer_of(kind):
    return train_tokenizer(TEXTS, kind, vocab_size={"word": 100, "bpe": 275}[kind])


def allowed(rule, tokenizer, text, following):
    """Whether `following` (the end where empty) may be the next token behind a text."""
    row = tokenizer(text, add_special_tokens=False)["input_ids"]
    token = tokenizer(following, add_special_tokens=False)["input_ids"][0] if following else tokenizer.eos_token_id
    scores = rule(torch.tensor([[tokenizer.bos_token_id, *row]]), torch.zeros(1, len(tokenizer)))
    return bool(scores[0, token] == 0)


@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_each_rule(kind):
    tokenizer = tokenizer_of(kind)
    assert not allowed(MinimumWords(tokenizer, 3), tokenizer, "red dog", "")
    assert allowed(MinimumWords(tokenizer, 3), tokenizer, "a red dog", "")
    assert not allowed(NoBadEnding(tokenizer), tokenizer, "a dog with", "")
    assert allowed(NoBadEnding(tokenizer), tokenizer, "a dog with", "a")
    assert allowed(NoBadEnding(tokenizer), tokenizer, "a dog", "")
    scores = NoUnknownWord(tokenizer)(torch.tensor([[2]]), torch.zeros(1, len(tokenizer)))
    assert scores[0].isinf().nonzero().flatten().tolist() == [tokenizer.unk_token_id]


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_captions_keep_the_rules(kind, num_beams):
    tokenizer = tokenizer_of(kind)
    model = tiny_model(**SYSTEMS["additive"], vocab_size=len(tokenizer))
    with torch.no_grad():
        inside = [i for i in range(4, len(tokenizer)) if tokenizer.convert_ids_to_tokens(i)[0] not in "\u2581\u0120"]
        model.lm_head.weight[inside] *= 0.2  # mostly words that begin, so that captions repeat themselves
    options = dict(num_beams=num_beams, max_new_tokens=24)
    rules = [
        MinimumWords(tokenizer, 3),
        NoBadEnding(tokenizer),
        NoRepeatedWords(tokenizer, 2),
        NoUnknownWord(tokenizer),
    ]
    tokens = model.generate(random_images(8), logits_processor=LogitsProcessorList(rules), **options)
    read = rules[0].words
    for row in tokens.tolist():
        words = read(row)
        pairs = list(zip(words, words[1:], strict=False))
        assert len(pairs) == len(set(pairs))
        assert tokenizer.unk_token_id not in row
        if tokenizer.eos_token_id in row[1:]:
            assert len(words) >= 3 and not ends_badly(words)
    free = [read(row) for row in model.generate(random_images(8), **options).tolist()]
    assert any(len(set(zip(words, words[1:], strict=False))) < len(words) - 1 for words in free)


@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_words_that_are_not_said(kind):
    tokenizer = tokenizer_of(kind)
    rule = NoWords(tokenizer, ["mat", "a red dog", "zebra xyz"])
    assert not allowed(rule, tokenizer, "on the", "mat") or kind == "bpe"
    model = tiny_model(**SYSTEMS["additive"], vocab_size=len(tokenizer))
    words = [word for word in {*" ".join(TEXTS).split()} if word != "ball"]
    free = model.generate(random_images(12), num_beams=3, max_new_tokens=12)
    said = {word for row in free.tolist() for word in rule.words(row)} & set(words)
    bad = sorted(said or {"a"})
    rules = LogitsProcessorList([NoWords(tokenizer, bad)])
    for num_beams in (1, 3):
        rows = model.generate(random_images(12), num_beams=num_beams, max_new_tokens=12, logits_processor=rules)
        assert not {word for row in rows.tolist() for word in rule.words(row)} & set(bad)
    # a phrase is refused at its last word, and its words in another order are not
    ends = tokenizer(" ".join(["a", "red", "dog"]), add_special_tokens=False)["input_ids"]
    scores = rule(torch.tensor([[tokenizer.bos_token_id, *ends[:-1]]]), torch.zeros(1, len(tokenizer)))
    assert scores[0, ends[-1]] == -torch.inf
    other = tokenizer("red a dog", add_special_tokens=False)["input_ids"]
    scores = rule(torch.tensor([[tokenizer.bos_token_id, *other[:-1]]]), torch.zeros(1, len(tokenizer)))
    assert scores[0, other[-1]] == 0


def test_a_forced_word_stays_whole():
    """In parts of words "cat" could go on as "cats"."""
    tokenizer = tokenizer_of("bpe")
    model = tiny_model(**SYSTEMS["additive"], vocab_size=len(tokenizer))
    letters = [tokenizer.convert_tokens_to_ids(letter) for letter in "stga"]
    with torch.no_grad():
        model.lm_head.weight[letters] *= 2.0  # so that words go on
    phrase = tokenizer("dog", add_special_tokens=False)["input_ids"]
    rule = WholeWords(tokenizer, [phrase])
    options = dict(custom_generate=constrained_beam_search, force_words_ids=[phrase], num_beams=4, max_new_tokens=8)
    free = model.generate(random_images(20), **options)
    kept = model.generate(random_images(20), logits_processor=LogitsProcessorList([rule]), **options)
    stays = re.compile(r"(?<!\w)dog(?!\w)")  # what follows may be a mark
    assert all(map(stays.search, tokenizer.batch_decode(kept, skip_special_tokens=True)))
    assert not all(map(stays.search, tokenizer.batch_decode(free, skip_special_tokens=True)))
