"""Words, which are one token in one vocabulary and several in another."""

import math
from collections.abc import Sequence

import torch
from transformers import LogitsProcessor

from ..errors import InputError

_SPACES = ("\u2581", "\u0120")  # how tokens say that a space stands before them: word-level, byte-level


def _starts_of_words(tokenizer) -> torch.BoolTensor:
    """(vocabulary), whether the token stands behind a space."""
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    starts = torch.tensor([token.startswith(_SPACES) for token in tokens])
    if not starts.any():
        raise InputError(
            "words can be told from tokens if those begin with the space's mark, as `train_tokenizer` makes them, got "
            f"{type(tokenizer).__name__} with {tokens[-1]!r}"
        )
    return starts


class WordLimit(LogitsProcessor):
    """
    Lets a caption end before it has more than `most` words: after that many no token may begin another, so that the
    search looks for the best caption of this length rather than cut a longer one. A prompt's words count.

        model.generate(pixel_values, logits_processor=LogitsProcessorList([WordLimit(processor.tokenizer, 8)]))

    Raises:
        InputError: if `most` is below 1, or the tokenizer's tokens do not tell where a word begins.
    """

    def __init__(self, tokenizer, most: int):
        if most < 1:
            raise InputError(f"`most` must be at least 1, got {most}")
        self.most, self.starts = most, _starts_of_words(tokenizer)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """`input_ids` (N, t), `scores` (N, vocabulary) -> scores."""
        self.starts = self.starts.to(scores.device)
        full = self.starts[input_ids].sum(1) >= self.most  # (N,)
        return scores.masked_fill(full[:, None] & self.starts, -torch.inf)


def word_probabilities(tokenizer, ids: Sequence[int], probabilities: Sequence[float]) -> list[dict]:
    """
    A caption's words, as spaces part them, each with the product of its tokens' probabilities.

    Args:
        tokenizer: of `ids`.
        ids: the tokens; special ones (the end) belong to no word.
        probabilities: as many, in (0, 1].

    Returns:
        dictionaries with `word` and `probability`.

    Raises:
        InputError: if the tokenizer's tokens do not tell where a word begins.
    """
    starts = _starts_of_words(tokenizer)
    words: list[tuple[list[int], list[float]]] = []
    for token, probability in zip(ids, probabilities, strict=True):
        if token in tokenizer.all_special_ids:
            continue
        if starts[token] or not words:
            words.append(([], []))
        words[-1][0].append(token)
        words[-1][1].append(probability)
    return [{"word": tokenizer.decode(tokens).strip(), "probability": math.prod(each)} for tokens, each in words]
