"""Words, which are one token in one vocabulary and several in another."""

import math
from collections.abc import Sequence

import torch
from transformers import LogitsProcessor, PreTrainedTokenizerBase

from ..errors import InputError
from ..models.tokenization_captioner import starts_of_words


def no_words(tokenizer: PreTrainedTokenizerBase) -> InputError:
    return InputError(
        "a tokenizer must mark the spaces in its tokens, as `train_tokenizer`'s do, to tell words from tokens, got "
        f"{type(tokenizer).__name__} of {tokenizer.name_or_path!r}"
    )


class WordLimit(LogitsProcessor):
    """
    Lets a caption end before it has more than `most` words: after that many no token may begin another, so that the
    search looks for the best caption of this length rather than cut a longer one. A prompt's words count.

        model.generate(pixel_values, logits_processor=LogitsProcessorList([WordLimit(processor.tokenizer, 8)]))

    Raises:
        InputError: if `most` is below 1, or the tokenizer's tokens do not tell where a word begins.

    Examples:
        >>> import torch
        >>> from hf_captioner import train_tokenizer
        >>> from hf_captioner.decoding import WordLimit
        >>> tokenizer = train_tokenizer(["a dog on a sofa"])
        >>> tokens = tokenizer("a dog", add_special_tokens=False)["input_ids"]
        >>> row = torch.tensor([[tokenizer.bos_token_id, *tokens]])
        >>> scores = WordLimit(tokenizer, 2)(row, torch.zeros(1, len(tokenizer)))
        >>> scores[0, tokens[1]].item(), scores[0, tokenizer.eos_token_id].item()  # no third word, but the end
        (-inf, 0.0)
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, most: int):
        if most < 1:
            raise InputError(f"`most` must be at least 1, got {most}")
        self.most = most
        self.starts = torch.tensor(starts_of_words(tokenizer, range(len(tokenizer))))  # (vocabulary)
        if not self.starts.any():
            raise no_words(tokenizer)
        # a caption may begin with a token that elsewhere goes on with a word
        self.begins = torch.ones_like(self.starts)
        self.begins[tokenizer.all_special_ids] = False

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """`input_ids` (N, t), `scores` (N, vocabulary) -> scores."""
        self.starts, self.begins = self.starts.to(scores.device), self.begins.to(scores.device)
        words = self.begins[input_ids[:, 1:2]].sum(1) + self.starts[input_ids[:, 2:]].sum(1)  # behind the start token
        full = words >= self.most  # (N,)
        return scores.masked_fill(full[:, None] & self.starts, -torch.inf)


def places_of_words(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[tuple[str, list[int]]]:
    """
    A caption's words, as spaces part them, each with the places of its tokens.

    Args:
        tokenizer: of `ids`.
        ids: the tokens; special ones (the end) belong to no word.

    Raises:
        InputError: if the tokenizer's tokens do not tell where a word begins.
    """
    special = set(tokenizer.all_special_ids)
    words: list[list[int]] = []
    for place, (token, starts) in enumerate(zip(ids, starts_of_words(tokenizer, ids), strict=True)):
        if token in special:
            continue
        if starts or not words:
            words.append([])
        words[-1].append(place)
    if len(words) < len(tokenizer.decode(list(ids), skip_special_tokens=True).split()):
        raise no_words(tokenizer)
    return [(tokenizer.decode([ids[place] for place in places]).strip(), places) for places in words]


def word_probabilities(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], probabilities: Sequence[float]
) -> list[dict[str, str | float]]:
    """
    A caption's words, as spaces part them, each with the product of its tokens' probabilities.

    Args:
        tokenizer: of `ids`.
        ids: the tokens; special ones (the end) belong to no word.
        probabilities: as many, in (0, 1].

    Returns:
        dictionaries with `word` and `probability`.

    Raises:
        ValueError: if there are more or fewer probabilities than tokens.
        InputError: if the tokenizer's tokens do not tell where a word begins.

    Examples:
        >>> from hf_captioner import train_tokenizer
        >>> from hf_captioner.decoding import word_probabilities
        >>> tokenizer = train_tokenizer(["a dog"], kind="bpe", vocab_size=262)  # too few tokens for whole words
        >>> tokens = tokenizer("a cat")["input_ids"]
        >>> word_probabilities(tokenizer, tokens, [0.5] * len(tokens))
        [{'word': 'a', 'probability': 0.5}, {'word': 'cat', 'probability': 0.0625}]
    """
    if len(ids) != len(probabilities):
        raise ValueError(f"`probabilities` must be one for each of {len(ids)} tokens, got {len(probabilities)}")
    return [
        {"word": word, "probability": math.prod(probabilities[place] for place in places)}
        for word, places in places_of_words(tokenizer, ids)
    ]
