"""Words of several tokens: how many there may be, and their probabilities."""

import pytest
import torch
from testing.tiny_models import SYSTEMS, random_images, tiny_model
from transformers import LogitsProcessorList

from hf_captioner import train_tokenizer
from hf_captioner.decoding import WordLimit, word_probabilities
from hf_captioner.errors import InputError

TEXTS = ["a dog's ball, two caf\u00e9s", "a dog and the cats' red balls", "red dog"] * 3


@pytest.mark.parametrize("kind,size", [("word", 100), ("bpe", 280)])
def test_words_are_those_that_spaces_part(kind, size):
    tokenizer = train_tokenizer(TEXTS, kind, vocab_size=size)
    text = "a dog's ball, two caf\u00e9s"
    ids = tokenizer(text)["input_ids"]
    probabilities = torch.linspace(0.3, 0.9, len(ids)).tolist()
    words = word_probabilities(tokenizer, ids, probabilities)
    assert [word["word"] for word in words] == text.split()
    # each token's share is in the word whose text it gives; the end belongs to none
    at = 0
    for word in words:
        length = len(tokenizer(word["word"], add_special_tokens=False)["input_ids"])
        assert word["probability"] == pytest.approx(torch.tensor(probabilities[at : at + length]).prod().item())
        at += length
    assert at == len(ids) - 1
    if kind == "bpe":
        assert len(ids) > len(words) + 4, "words must have several tokens"


@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("system", ["additive", "vit_transformer"])
def test_a_limit_of_words(system, num_beams):
    tokenizer = train_tokenizer(TEXTS, "bpe", vocab_size=300)
    model = tiny_model(**SYSTEMS[system], vocab_size=len(tokenizer))
    letters = [token for token in range(4, len(tokenizer)) if len(tokenizer.convert_ids_to_tokens(token)) == 1]

    def captions(**options) -> list[str]:
        with torch.no_grad():
            tokens = model.generate(
                random_images(6), num_beams=num_beams, max_new_tokens=12, suppress_tokens=letters, **options
            )
        return tokenizer.batch_decode(tokens, skip_special_tokens=True)

    free = captions()
    limited = captions(logits_processor=LogitsProcessorList([WordLimit(tokenizer, 1)]))
    counts = [len(text.split()) for text in free]
    assert max(counts) > 1 and all(len(text.split()) <= 1 for text in limited)
    if num_beams == 1:  # until another word would begin, a greedy search says the same
        assert all(short.startswith("".join(text.split()[:1])) for text, short in zip(free, limited, strict=True))


def test_what_cannot_be_done():
    tokenizer = train_tokenizer(TEXTS)
    with pytest.raises(InputError, match="`most` must be at least 1, got 0"):
        WordLimit(tokenizer, 0)
    tokenizer.convert_ids_to_tokens = lambda ids: [f"t{token}" for token in ids]  # as of another kind of vocabulary
    with pytest.raises(InputError, match="must mark the spaces"):
        word_probabilities(tokenizer, [5, 6], [0.5, 0.5])
    with pytest.raises(InputError, match="must mark the spaces"):
        WordLimit(tokenizer, 2)
