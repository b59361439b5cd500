"""Tokenizers: ids, readable decoding, round trips."""

import pytest
from transformers import AutoTokenizer

from hf_captioner import train_tokenizer

CAPTIONS = [
    "A dog 's ball .",
    "A man in a T-shirt , holding a dog 's leash , isn't running .",
    "Two dogs (one brown) run !",
    'The "big" dog\u2019s ball costs 3.50 $ .',
    "a man a plan a dog",
]


@pytest.fixture(params=["word", "bpe"])
def tokenizer(request):
    return train_tokenizer(CAPTIONS, kind=request.param)


def test_ids_of_the_special_tokens(tokenizer):
    assert tokenizer.convert_tokens_to_ids(["<unk>", "<pad>", "<bos>", "<eos>"]) == [0, 1, 2, 3]
    assert (tokenizer.unk_token_id, tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (
        0,
        1,
        2,
        3,
    )
    ids = tokenizer("a dog")["input_ids"]
    assert ids[-1] == 3 and 2 not in ids


@pytest.mark.parametrize(
    "text,expected",
    [
        ("A dog 's ball .", "a dog's ball."),
        ("a dog's ball.", "a dog's ball."),
        ("a dog\u2019s   ball  .", "a dog's ball."),
        ("a man in a T-shirt , running !", "a man in a t-shirt, running!"),
        ("two dogs (one brown) run", "two dogs (one brown) run"),
        ("is n't a dog", "isn't a dog"),
        ('"big" 3.50 $', '"big" 3.50 $'),
    ],
)
def test_decoding_gives_readable_text(tokenizer, text, expected):
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True).strip() == expected


def test_split_and_written_captions_have_the_same_ids(tokenizer):
    assert tokenizer("A dog 's ball .")["input_ids"] == tokenizer("a dog's ball.")["input_ids"]


def test_saved_and_loaded(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for text in [*CAPTIONS, "unseen zebra", "\u6f22\u5b57 \U0001f600"]:
        assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert loaded.decode(loaded("a dog 's ball .")["input_ids"], skip_special_tokens=True).strip() == "a dog's ball."


def test_bpe_knows_every_text():
    tokenizer = train_tokenizer(CAPTIONS, kind="bpe")
    for text in ("zebra", "\u6f22\u5b57 \U0001f600", "l'\u00e9t\u00e9"):
        ids = tokenizer(text)["input_ids"]
        assert 0 not in ids and tokenizer.decode(ids, skip_special_tokens=True).strip() == text


def test_rare_words_are_unknown():
    tokenizer = train_tokenizer(CAPTIONS, min_frequency=2)
    vocabulary = set(tokenizer.get_vocab())
    assert "\u2581dog" in vocabulary and "\u2581plan" not in vocabulary and "'s" in vocabulary
    assert 0 in tokenizer("a plan")["input_ids"]
    assert len(train_tokenizer(CAPTIONS, vocab_size=8)) == 8


def test_long_captions_are_cut_but_end():
    tokenizer = train_tokenizer(CAPTIONS, model_max_length=6)
    ids = tokenizer("a dog " * 20, truncation=True)["input_ids"]
    assert len(ids) == 6 and ids[-1] == 3


@pytest.mark.parametrize(
    "arguments,error,message",
    [
        (dict(captions=CAPTIONS, kind="letters"), ValueError, "letters"),
        (dict(captions=["a", 3]), TypeError, r"captions\[1\].*3"),
        (dict(captions=[]), ValueError, "captions"),
        (dict(captions=["", " "]), ValueError, "captions"),
        (dict(captions=CAPTIONS, vocab_size=4), ValueError, "vocab_size"),
        (dict(captions=CAPTIONS, kind="bpe", vocab_size=100), ValueError, "vocab_size"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        train_tokenizer(**arguments)
