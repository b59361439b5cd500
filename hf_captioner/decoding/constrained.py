"""Beam search for captions that say given words."""

from collections.abc import Sequence

import torch

from ..compat import DecodingSteps, special_tokens
from ..errors import InputError
from .beams import NEVER, Chosen, Running, search


class _Needs:
    """How many tokens are still missing until every group of phrases has one of its phrases in a caption."""

    def __init__(self, groups: list[list[list[int]]]):
        self.groups = groups
        self.shortest = [min(map(len, phrases)) for phrases in groups]
        self.total = sum(self.shortest)

    def after(self, sequences: torch.Tensor, vocabulary: int) -> torch.Tensor:
        """Generated tokens (N, t) -> what is missing behind each next token, (N, vocabulary)."""
        rows = len(sequences)
        needs = sequences.new_zeros((rows, vocabulary))
        saved = torch.zeros_like(needs)  # by a phrase that has begun: one at a time can go on
        for phrases, shortest in zip(self.groups, self.shortest, strict=True):
            said = sequences.new_zeros((rows, vocabulary), dtype=torch.bool)
            best = torch.zeros_like(needs)
            for phrase in phrases:
                tokens = sequences.new_tensor(phrase)
                if sequences.shape[1] >= len(phrase):
                    windows = sequences.unfold(1, len(phrase), 1)
                    said |= (windows == tokens).all(2).any(1, keepdim=True)
                for length in range(1, min(len(phrase), sequences.shape[1] + 1) + 1):
                    before = sequences[:, sequences.shape[1] - length + 1 :]
                    fits = (before == tokens[: length - 1]).all(1)  # (N,)
                    if length == len(phrase):
                        said[:, phrase[-1]] |= fits
                    else:
                        gain = max(shortest - (len(phrase) - length), 0)
                        at = phrase[length - 1]
                        best[:, at] = torch.maximum(best[:, at], fits * gain)
            needs += shortest * ~said
            saved = torch.maximum(saved, best.masked_fill(said, 0))
        return needs - saved


def constrained_beam_search(
    model,
    input_ids,
    logits_processor,
    stopping_criteria,
    generation_config,
    force_words_ids: Sequence | None = None,
    **model_kwargs,
):
    """
    Beam search for captions that say given words or phrases (Anderson et al. 2017, "Guided Open Vocabulary Image
    Captioning"; Hokamp and Liu 2017, "Lexically Constrained Decoding"). `num_beams` are shared by captions that lack
    none, one, two ... tokens of what must be said, so that a phrase that costs much now is not lost to cheaper words.
    A caption may end only when everything is said, and begins to say it when there is just room left. Words that must
    not be said are `bad_words_ids`. Without `force_words_ids` it is beam search.

        model.generate(pixel_values, custom_generate=constrained_beam_search, num_beams=10,
                       force_words_ids=[tokenizer(" dog", add_special_tokens=False)["input_ids"]])

    Args:
        force_words_ids: phrases as lists of tokens; a list of phrases in the place of one means one of them.

    Raises:
        InputError: if a phrase is empty, all do not fit into the length, or they cannot be said because tokens are
            forbidden.

    Examples:
        >>> import hf_captioner
        >>> from transformers import pipeline
        >>> from hf_captioner.data import shapes_dataset
        >>> from hf_captioner.decoding import constrained_beam_search
        >>> captioner, image = pipeline("image-captioning"), shapes_dataset(1)[0]["image"]
        >>> words = captioner.tokenizer([" dog", " ball"], add_special_tokens=False)["input_ids"]
        >>> [caption] = captioner(image, decoding=constrained_beam_search, force_words_ids=words, num_beams=6)
        >>> "dog" in caption["generated_text"] and "ball" in caption["generated_text"]
        True
    """
    words = force_words_ids if force_words_ids is not None else generation_config.force_words_ids or []
    groups = [
        [list(p) for p in (entry if entry and isinstance(entry[0], list | tuple) else [entry])] for entry in words
    ]
    if any(not phrase for phrases in groups for phrase in phrases):
        raise InputError(f"`force_words_ids` must be lists of tokens, none of them empty, got {words!r}")
    needs, prompt, limit = _Needs(groups), input_ids.shape[1], generation_config.max_length
    if needs.total > limit - prompt:
        raise InputError(
            f"`force_words_ids` must fit into the {limit - prompt} tokens of a caption, got {needs.total} tokens"
        )
    ends = special_tokens(generation_config)[1]
    refusal = (
        f"`force_words_ids` must be words that may be said, got {words!r}, some of them forbidden" if groups else None
    )

    def choose(step: torch.Tensor, running: Running, keep: int) -> Chosen:
        searches, beams, vocabulary = step.shape
        said = running.sequences[..., prompt:].flatten(0, 1)
        missing = needs.after(said, vocabulary).unflatten(0, (searches, beams))
        scores = step + running.scores[..., None]
        impossible = missing > limit - running.sequences.shape[2] - 1
        impossible[..., ends] |= missing[..., ends] > 0
        scores = scores.masked_fill(impossible, -torch.inf).flatten(1)
        banks = missing.flatten(1)
        values, places = [], []
        for need in range(needs.total + 1):
            value, place = scores.masked_fill(banks != need, -torch.inf).topk(min(keep, scores.shape[1]))
            values.append(value)
            places.append(place)
        # in turn: the best of those that lack nothing, of those that lack one token, ...; then the seconds
        score, place = torch.stack(values, 2).flatten(1), torch.stack(places, 2).flatten(1)
        order = (score <= 2 * NEVER).long().argsort(dim=1, stable=True)[:, :keep]
        score, place = score.gather(1, order), place.gather(1, order)
        return Chosen(score, place // vocabulary, place % vocabulary)

    steps = [DecodingSteps(model, generation_config, model_kwargs)]
    return search(steps, input_ids, logits_processor, stopping_criteria, generation_config, choose, refusal=refusal)
