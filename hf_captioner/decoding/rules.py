"""Rules about words for `generate(logits_processor=...)`, for vocabularies of words and of parts of words alike."""

import string
from collections.abc import Callable, Iterable, Sequence

import torch
from transformers import LogitsProcessor, PreTrainedTokenizerBase

from ..errors import InputError
from ..metrics.collapse import BAD_ENDINGS
from ..models.tokenization_captioner import SPACES
from .words import no_words


class _WordRule(LogitsProcessor):
    """A rule that reads a row's words; they are as spaces part them, and the last one may still go on."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokens: list[str] = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        if not any(token.startswith(SPACES) for token in self.tokens):
            raise no_words(tokenizer)
        self.special = set(tokenizer.all_special_ids)
        self.eos = tokenizer.eos_token_id
        self.ids = {token: index for index, token in enumerate(self.tokens) if index not in self.special}

    def words(self, row: list[int]) -> list[str]:
        words: list[str] = []
        for index in row:
            if index in self.special:
                continue
            token = self.tokens[index]
            if token.startswith(SPACES) or not words:
                words.append("")
            words[-1] += token.lstrip("".join(SPACES))
        return words

    def forbidden(self, words: list[str]) -> list[int]:
        """The tokens that may not follow these words."""
        raise NotImplementedError

    def completing(self, words: list[str], phrases: Callable[[list[str]], Iterable[Sequence[str]]]) -> list[int]:
        """
        The tokens with which a phrase would have been said, the last of its words as far as its letters go.

        Args:
            words: said so far.
            phrases: gives phrases, given the words that are whole.
        """
        found = []
        for going_on in (False, True):  # a token that begins a word, or one that goes on with the last
            if going_on and not words:
                continue
            whole, begun = (words[:-1], words[-1]) if going_on else (words, "")
            for *before, last in phrases(whole):
                if whole[len(whole) - len(before) :] == before and last.startswith(begun):
                    rest = last[len(begun) :]
                    found += [self.ids.get(mark + rest) for mark in ([""] if going_on else SPACES)]
                    if not words:  # a caption may begin with a token that elsewhere goes on with a word
                        found.append(self.ids.get(rest))
        return [token for token in found if token is not None]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """`input_ids` (N, t), `scores` (N, vocabulary) -> scores."""
        scores = scores.clone()
        for place, row in enumerate(input_ids.tolist()):
            scores[place, self.forbidden(self.words(row))] = -torch.inf
        return scores


class MinimumWords(_WordRule):
    """
    A caption does not end before it has `least` words (not tokens). A prompt's words count.

    Raises:
        InputError: if `least` is below 1, or the tokenizer's tokens do not tell where a word begins.

    Examples:
        >>> import torch
        >>> from hf_captioner import train_tokenizer
        >>> from hf_captioner.decoding import MinimumWords
        >>> tokenizer = train_tokenizer(["a dog on a sofa"])
        >>> rule = MinimumWords(tokenizer, 3)
        >>> for text in ("a dog", "a dog on a sofa"):
        ...     row = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        ...     scores = rule(row, torch.zeros(1, len(tokenizer)))
        ...     print(text, "| may end here:", bool(scores[0, tokenizer.eos_token_id] == 0))
        a dog | may end here: False
        a dog on a sofa | may end here: True
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, least: int):
        if least < 1:
            raise InputError(f"`least` must be at least 1, got {least}")
        super().__init__(tokenizer)
        self.least = least

    def forbidden(self, words: list[str]) -> list[int]:
        return [self.eos] if len(words) < self.least else []


class NoBadEnding(_WordRule):
    """
    A caption does not end behind a determiner, preposition or conjunction (`metrics.collapse.BAD_ENDINGS`, English).
    One that is cut off at `max_new_tokens` may still stop there.

    Raises:
        InputError: if the tokenizer's tokens do not tell where a word begins.

    Examples:
        >>> import torch
        >>> from hf_captioner import train_tokenizer
        >>> from hf_captioner.decoding import NoBadEnding
        >>> tokenizer = train_tokenizer(["a dog on a sofa"])
        >>> rule = NoBadEnding(tokenizer)
        >>> for text in ("a dog on a", "a dog on a sofa"):
        ...     row = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        ...     scores = rule(row, torch.zeros(1, len(tokenizer)))
        ...     print(text, "| may end here:", bool(scores[0, tokenizer.eos_token_id] == 0))
        a dog on a | may end here: False
        a dog on a sofa | may end here: True
    """

    def forbidden(self, words: list[str]) -> list[int]:
        return [self.eos] if words and words[-1].strip(string.punctuation) in BAD_ENDINGS else []


class NoRepeatedWords(_WordRule):
    """
    No sequence of `size` words occurs twice. As words are written from left to right, a word is refused as soon as its
    letters so far would repeat one, even if more letters could make it another.

    Raises:
        InputError: if `size` is below 1, or the tokenizer's tokens do not tell where a word begins.

    Examples:
        >>> import torch
        >>> from hf_captioner import train_tokenizer
        >>> from hf_captioner.decoding import NoRepeatedWords
        >>> tokenizer = train_tokenizer(["a dog and a cat"])
        >>> row = tokenizer("a dog and a", add_special_tokens=False, return_tensors="pt")["input_ids"]
        >>> scores = NoRepeatedWords(tokenizer, size=2)(row, torch.zeros(1, len(tokenizer)))
        >>> tokenizer.convert_ids_to_tokens(scores[0].isinf().nonzero().flatten().tolist())  # "a dog" was said
        ['▁dog']
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, size: int = 3):
        if size < 1:
            raise InputError(f"`size` must be at least 1, got {size}")
        super().__init__(tokenizer)
        self.size = size

    def forbidden(self, words: list[str]) -> list[int]:
        def said(whole: list[str]) -> list[list[str]]:
            return [whole[at : at + self.size] for at in range(len(whole) - self.size + 1)]

        return self.completing(words, said)


class NoWords(_WordRule):
    """
    Words or phrases that are not said, whatever tokens they could be made of. As words are written from left to right,
    a word is refused as soon as its letters so far are a forbidden one, even if more letters could make it another.

    Args:
        phrases: texts; what the vocabulary lacks cannot be said anyway.

    Raises:
        InputError: if the tokenizer's tokens do not tell where a word begins.

    Examples:
        >>> import torch
        >>> from hf_captioner import train_tokenizer
        >>> from hf_captioner.decoding import NoWords
        >>> tokenizer = train_tokenizer(["a fire truck and a truck on fire"])
        >>> row = tokenizer("a fire", add_special_tokens=False, return_tensors="pt")["input_ids"]
        >>> scores = NoWords(tokenizer, ["fire truck", "and"])(row, torch.zeros(1, len(tokenizer)))
        >>> tokenizer.convert_ids_to_tokens(scores[0].isinf().nonzero().flatten().tolist())
        ['▁truck', '▁and']
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, phrases: Sequence[str]):
        super().__init__(tokenizer)
        rows = [tokenizer(phrase, add_special_tokens=False)["input_ids"] for phrase in phrases]
        self.phrases = [self.words(row) for row in rows if row and tokenizer.unk_token_id not in row]

    def forbidden(self, words: list[str]) -> list[int]:
        return self.completing(words, lambda whole: self.phrases)


class WholeWords(LogitsProcessor):
    """
    Behind given words no letters follow that would make them others ("dog" stays "dog", and is not "dogs"), in
    vocabularies of parts of words. For words that must be said.

    Args:
        phrases: lists of tokens.

    Raises:
        InputError: if the tokenizer's tokens do not tell where a word begins.

    Examples:
        >>> import torch
        >>> from hf_captioner import train_tokenizer
        >>> from hf_captioner.decoding import WholeWords
        >>> tokenizer = train_tokenizer(["dog dogs doghouse"], kind="bpe", vocab_size=300)
        >>> dog = tokenizer(" dog", add_special_tokens=False)["input_ids"]
        >>> scores = WholeWords(tokenizer, [dog])(torch.tensor([dog]), torch.zeros(1, len(tokenizer)))
        >>> letters, end = tokenizer.convert_tokens_to_ids("s"), tokenizer.eos_token_id
        >>> scores[0, letters].item(), scores[0, end].item()  # not "dogs", but the end
        (-inf, 0.0)
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, phrases: Sequence[Sequence[int]]):
        tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        if not any(token.startswith(SPACES) for token in tokens):
            raise no_words(tokenizer)
        special = set(tokenizer.all_special_ids)
        self.phrases = [torch.tensor(phrase) for phrase in phrases]
        letters = [index not in special and token[:1].isalnum() for index, token in enumerate(tokens)]
        self.letters = torch.tensor(letters)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """`input_ids` (N, t), `scores` (N, vocabulary) -> scores."""
        said = torch.zeros(len(input_ids), dtype=torch.bool, device=scores.device)
        for phrase in self.phrases:
            if input_ids.shape[1] >= len(phrase):
                said |= (input_ids[:, -len(phrase) :] == phrase.to(input_ids.device)).all(1)
        return scores.masked_fill(said[:, None] & self.letters.to(scores.device), -torch.inf)


class NoUnknownWord(LogitsProcessor):
    """
    The unknown word is never said. A tokenizer without one (byte-level BPE) has nothing to forbid.

    Args:
        tokenizer: of the captions.

    Examples:
        >>> import torch
        >>> from hf_captioner import train_tokenizer
        >>> from hf_captioner.decoding import NoUnknownWord
        >>> tokenizer = train_tokenizer(["a dog runs"])
        >>> scores = NoUnknownWord(tokenizer)(torch.tensor([[tokenizer.bos_token_id]]), torch.zeros(1, len(tokenizer)))
        >>> tokenizer.convert_ids_to_tokens(scores[0].isinf().nonzero().flatten().tolist())
        ['<unk>']
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.unknown = tokenizer.unk_token_id

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """`input_ids` (N, t), `scores` (N, vocabulary) -> scores."""
        if self.unknown is None:
            return scores
        scores = scores.clone()
        scores[:, self.unknown] = -torch.inf
        return scores
