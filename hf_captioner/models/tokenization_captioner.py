"""Trains tokenizers on a data set's captions, and decodes generated tokens to text."""

from collections.abc import Iterable, Sequence

import torch
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE, WordLevel
from tokenizers.trainers import BpeTrainer, WordLevelTrainer
from transformers import TokenizersBackend

SPECIAL_TOKENS = {"unk_token": "<unk>", "pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}  # ids 0 to 3
KINDS = ("word", "bpe")

_SPACE = "\u2581"  # stands for the space in front of a word, so that decoding restores the spacing
SPACES = (_SPACE, "\u0120")  # how tokens say that a space stands before them: word-level, byte-level


def _normalizer() -> normalizers.Normalizer:
    """
    Lower-cases, and removes spaces in front of punctuation and clitics: captions that come tokenised
    ("a dog 's ball .") and ordinary text give the same tokens.
    """
    return normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Lowercase(),
            # and the character that stands for a space, which would come back as one
            normalizers.Replace(Regex(rf"[\s\p{{Cc}}{_SPACE}]+"), " "),
            normalizers.Replace(Regex(r"[\u2018\u2019]"), "'"),
            normalizers.Replace(Regex(r" (?=[.,;:!?%)\]}])"), ""),
            normalizers.Replace(Regex(r" (?=(?:n't|'(?:s|m|d|ll|re|ve|t))\b)"), ""),
            normalizers.Strip(),
        ]
    )


def _word_level(captions, vocab_size, min_frequency) -> Tokenizer:
    tokenizer = Tokenizer(WordLevel(unk_token=SPECIAL_TOKENS["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme="always"),
            # splits into clitics ('s), words or numbers, and single punctuation marks, each with the space before it
            pre_tokenizers.Split(
                Regex(rf"'[\p{{L}}\p{{M}}]+|{_SPACE}?[\p{{L}}\p{{M}}\p{{N}}]+|{_SPACE}?[^{_SPACE}]|{_SPACE}"),
                "isolated",
            ),
        ]
    )
    tokenizer.decoder = decoders.Metaspace(replacement=_SPACE, prepend_scheme="always")
    trainer = WordLevelTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=list(SPECIAL_TOKENS.values()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    return tokenizer


def _byte_level_bpe(captions, vocab_size, min_frequency) -> Tokenizer:
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=list(SPECIAL_TOKENS.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    return tokenizer


def train_tokenizer(
    captions: Iterable[str],
    kind: str = "word",
    vocab_size: int = 10000,
    min_frequency: int = 1,
    model_max_length: int = 64,
) -> TokenizersBackend:
    """
    Trains a tokenizer that is saved, loaded (`AutoTokenizer`) and called like every tokenizer of transformers.

    Text is lower-cased. Calling it appends `<eos>`, as labels need; decoding gives readable text. Ids are the same
    for every tokenizer: `<unk>` 0, `<pad>` 1, `<bos>` 2, `<eos>` 3.

    Args:
        captions: the training captions.
        kind: `"word"`: one id per word or punctuation mark, `<unk>` for those not in the vocabulary; `"bpe"`:
            byte-level byte-pair encoding (Sennrich et al. 2016), which can represent any text.
        vocab_size: maximum number of tokens, special ones included.
        min_frequency: how often a word (or a merge) must occur to be kept.
        model_max_length: maximum number of tokens of a caption, `<eos>` included; longer ones are truncated.

    Returns:
        transformers' `TokenizersBackend`.

    Raises:
        ValueError: if the kind is unknown, there is no caption, or `vocab_size` leaves no room.
        TypeError: if a caption is not text.

    Examples:
        >>> from hf_captioner import train_tokenizer
        >>> tokenizer = train_tokenizer(["a dog runs", "a dog sleeps"])
        >>> tokens = tokenizer("A dog flies")["input_ids"]
        >>> tokens, tokenizer.decode(tokens, skip_special_tokens=True)
        ([4, 5, 0, 3], 'a dog')
    """
    if kind not in KINDS:
        raise ValueError(f"`kind` must be one of {', '.join(KINDS)}, got {kind!r}")
    smallest = len(SPECIAL_TOKENS) + (1 if kind == "word" else 256)
    if vocab_size < smallest:
        raise ValueError(f"`vocab_size` must be at least {smallest} for kind {kind!r}, got {vocab_size}")
    normalizer = _normalizer()
    count = 0

    def texts():
        nonlocal count
        for index, caption in enumerate(captions):
            if not isinstance(caption, str):
                raise TypeError(f"`captions[{index}]` must be text, got {type(caption).__name__}: {caption!r}")
            count += 1
            yield normalizer.normalize_str(caption)

    # Read before training: an exception inside the trainer's iterator would lose its message.
    normalized = list(texts())
    if not any(normalized):
        raise ValueError(f"`captions` must hold some text, got {count} captions without any")
    tokenizer = (_word_level if kind == "word" else _byte_level_bpe)(normalized, vocab_size, min_frequency)
    tokenizer.normalizer = normalizer
    eos = SPECIAL_TOKENS["eos_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {eos}", pair=f"$A $B {eos}", special_tokens=[(eos, tokenizer.token_to_id(eos))]
    )
    return TokenizersBackend(
        tokenizer_object=tokenizer,
        model_max_length=model_max_length,
        padding_side="right",
        clean_up_tokenization_spaces=False,
        **SPECIAL_TOKENS,
    )


def decode_captions(tokenizer, tokens) -> list[str]:
    """Generated ids (N, T), an array or a tensor, -100 or padding at the end, -> texts without special tokens."""
    tokens = torch.as_tensor(tokens)
    tokens = tokens.masked_fill(tokens < 0, tokenizer.pad_token_id)
    return [text.strip() for text in tokenizer.batch_decode(tokens, skip_special_tokens=True)]


def starts_of_words(tokenizer, tokens: Sequence[int]) -> list[bool]:
    """For each token, whether it stands behind a space."""
    return [token.startswith(SPACES) for token in tokenizer.convert_ids_to_tokens(list(tokens))]


def token_texts(tokenizer, tokens: Sequence[int]) -> list[str]:
    """The text that each token adds to a caption, special tokens by their names."""
    return [tokenizer.decode([token]).strip() or tokenizer.convert_ids_to_tokens([token])[0] for token in tokens]
