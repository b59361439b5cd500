"""A caption explained word by word: one structure, by whatever method, that pictures and pages show."""

import string
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import PreTrainedModel

from ..models.image_processing_captioner import to_rgb
from ..models.processing_captioner import CaptionerProcessor
from ..models.tokenization_captioner import decode_captions, starts_of_words, token_texts
from .methods import SIGNED, log_probabilities, token_maps

END = "(end)"  # what pictures call the end of a caption
OTHERS = 5  # words that might have stood in place of one
LONGEST = 8  # tokens of such a word
PUNCTUATION = "".join(set(string.punctuation) - set("'-"))  # these two stand inside of words


@dataclass(frozen=True)
class ExplainedWord:
    """
    A word of a caption, what else might have stood there, and where the captioner looked for it.

    Attributes:
        text: as it is read; the end of a caption is "(end)".
        probability: of the word after those before it, by the model alone, without what steered the search.
        others: the likeliest words with another first token, and their probabilities.
        map: (h, w), where the captioner looked.

    Examples:
        >>> import numpy as np
        >>> from hf_captioner.explain import ExplainedWord
        >>> word = ExplainedWord("circle", 0.8, (("square", 0.1),), np.array([[0.0, 0.7], [0.2, 0.1]]))
        >>> [int(place) for place in np.unravel_index(word.map.argmax(), word.map.shape)]  # row and column
        [0, 1]
    """

    text: str
    probability: float
    others: tuple[tuple[str, float], ...]
    map: np.ndarray


@dataclass(frozen=True)
class Explanation:
    """
    A caption of an image, explained word by word; [`explain`] makes it.

    Attributes:
        image: upright and RGB, in its own size. The grid of the maps covers all of it.
        caption: the text.
        words: the caption's words, punctuation apart from them, and the end if it came to one.
        method: that made the maps.

    Examples:
        >>> import numpy as np
        >>> from hf_captioner.data import shapes_dataset
        >>> from hf_captioner.explain import ExplainedWord, Explanation
        >>> word = ExplainedWord("circle", 0.8, (("square", 0.1),), np.array([[0.0, 0.7], [0.2, -0.1]]))
        >>> explanation = Explanation(shapes_dataset(1)[0]["image"], "circle", (word,), "occlusion")
        >>> explanation.signed, bool(explanation.words[0].map.min() < 0)  # something speaks against a circle
        (True, True)
    """

    image: Image.Image
    caption: str
    words: tuple[ExplainedWord, ...]
    method: str

    @property
    def signed(self) -> bool:
        """Whether the maps say what speaks against a word (negative), too."""
        return self.method in SIGNED


def begins_word(tokenizer, tokens: Sequence[int]) -> list[bool]:
    """
    For each token, whether a word begins with it: it stands behind a space, or is punctuation or special. Where a
    tokenizer's tokens do not tell of spaces, each is a word.
    """
    if not any(starts_of_words(tokenizer, range(len(tokenizer)))):
        return [True] * len(tokens)
    texts = tokenizer.convert_ids_to_tokens(list(tokens))
    return [
        behind_space or token in tokenizer.all_special_ids or not text.strip(PUNCTUATION)
        for token, text, behind_space in zip(tokens, texts, starts_of_words(tokenizer, tokens), strict=True)
    ]


def words_of(tokenizer, tokens: Sequence[int]) -> list[list[int]]:
    """The places of each word's tokens."""
    number = np.cumsum(begins_word(tokenizer, tokens))
    return [list(places) for _, places in groupby(range(len(tokens)), key=lambda place: number[place])]


def text_of(tokenizer, tokens: Sequence[int], ends: Sequence[int]) -> str:
    """A word's text."""
    if list(tokens)[0] in ends:
        return END
    return tokenizer.decode(list(tokens)).strip() or " ".join(token_texts(tokenizer, tokens))


@torch.no_grad()
def other_words(
    model: PreTrainedModel, tokenizer, pixel_values: torch.Tensor, tokens: torch.Tensor, starts: Sequence[int]
) -> list[tuple[tuple[str, float], ...]]:
    """
    The likeliest words with another first token than the caption's. A word of several tokens is the likeliest first
    token, followed by the likeliest next ones up to where another word begins.

    Args:
        model: a captioner in evaluation mode.
        tokenizer: its tokenizer.
        pixel_values: (1, C, H, W).
        tokens: (T + 1), start token first.
        starts: the places among the T where words begin.

    Returns:
        for each start, `OTHERS` pairs of a word and its probability, the likeliest first token first.
    """
    encoded = model.get_encoder()(pixel_values=pixel_values)

    def logits_of(rows: torch.Tensor) -> torch.Tensor:
        return model(encoder_outputs=encoded, decoder_input_ids=rows, use_cache=False).logits.float()

    first = logits_of(tokens[None, :-1])[0, list(starts)].softmax(-1)  # (W, vocabulary)
    likely, ids = first.scatter(1, tokens[1:][list(starts)][:, None], 0).topk(OTHERS)
    # One row for each: the caption up to there, the other word, and behind it what no earlier place depends on.
    rows = nn.functional.pad(tokens[None], (0, LONGEST), value=model.config.pad_token_id)
    rows = rows.repeat(len(starts) * OTHERS, 1)
    lengths = torch.tensor(starts, device=tokens.device).repeat_interleave(OTHERS) + 1
    number = torch.arange(len(rows), device=tokens.device)
    rows[number, lengths] = ids.flatten()
    found = [[token] for token in ids.flatten().tolist()]
    chances = likely.flatten().clone()
    special = set(tokenizer.all_special_ids)
    going_on = torch.tensor([word[0] not in special for word in found], device=tokens.device)
    for _ in range(LONGEST - 1):
        if not going_on.any():
            break
        active = number[going_on]
        now = rows[active, : int(lengths[active].max()) + 1]
        last = logits_of(now)[torch.arange(len(active), device=tokens.device), lengths[active]].softmax(-1)
        chance, token = last.max(-1)
        begins = begins_word(tokenizer, token.tolist())
        for row, new, p, ended in zip(active.tolist(), token.tolist(), chance.tolist(), begins, strict=True):
            if ended:
                going_on[row] = False
                continue
            found[row].append(new)
            chances[row] *= p
            lengths[row] += 1
            rows[row, lengths[row]] = new
    texts = [text_of(tokenizer, word, model.eos_token_ids) for word in found]
    pairs = list(zip(texts, chances.tolist(), strict=True))
    return [tuple(pairs[start : start + OTHERS]) for start in range(0, len(pairs), OTHERS)]


def explain(
    model: PreTrainedModel, processor: CaptionerProcessor, image: Image.Image, method: str = "attention", **options
) -> Explanation:
    """
    Captions an image and says where the captioner looked for each word.

    The map of a word of several tokens is the mean of its tokens' attention, or the sum of what their
    log-probabilities owe to each region.

    Args:
        model: a captioner of any family in evaluation mode.
        processor: its processor.
        image: any mode and size.
        method: one of `METHODS`.
        **options: of `generate()`, such as `num_beams` or `do_sample`; of several sequences the first is explained.

    Returns:
        [`Explanation`], whose words have maps (h, w) over the grid of regions.

    Raises:
        InputError: if the method is unknown or the model lacks what it needs.

    Examples:
        >>> import hf_captioner
        >>> from transformers import pipeline
        >>> from hf_captioner.data import shapes_dataset
        >>> from hf_captioner.explain import explain, write_page
        >>> captioner = pipeline("image-captioning")
        >>> explanation = explain(captioner.model, captioner.processor, shapes_dataset(1)[0]["image"], num_beams=3)
        >>> {word.map.shape for word in explanation.words}
        {(9, 9)}
        >>> write_page("explained.html", explanation)
    """
    image = to_rgb(image)
    pixels = processor([image], return_tensors="pt")["pixel_values"].to(model.device, model.dtype)
    tokens = model.generate(pixels, **options)[0]
    tokens = tokens[: 1 + int((~model.ends_before(tokens[None, 1:])).sum())]  # without padding behind the end
    maps = token_maps(model, pixels, tokens, method).float().cpu()
    with torch.no_grad():
        said = log_probabilities(model, tokens, pixel_values=pixels)[0].cpu()
    ids = tokens[1:].tolist()
    words = words_of(processor.tokenizer, ids)
    others = other_words(model, processor.tokenizer, pixels, tokens, [places[0] for places in words])
    return Explanation(
        image,
        decode_captions(processor.tokenizer, tokens[None].cpu())[0],
        tuple(
            ExplainedWord(
                text_of(processor.tokenizer, [ids[place] for place in places], model.eos_token_ids),
                said[places].sum().exp().item(),
                alternatives,
                (maps[places].sum(0) if method in SIGNED else maps[places].mean(0)).numpy(),
            )
            for places, alternatives in zip(words, others, strict=True)
        ),
        method,
    )


__all__ = ["END", "ExplainedWord", "Explanation", "explain", "other_words", "words_of"]
