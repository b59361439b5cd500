"""One beam search, which the variants share: they say which continuations a search keeps."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from transformers.generation import GenerateBeamEncoderDecoderOutput
from transformers.utils import ModelOutput

from ..compat import DecodingSteps, special_tokens
from ..errors import InputError

NEVER = -1.0e9  # the score of a beam that is not there; finite, as in transformers


class Running(NamedTuple):
    """The S searches' k beams each, best first."""

    sequences: torch.Tensor  # (S, k, t)
    scores: torch.Tensor  # (S, k), by which beams are ranked
    log_probs: torch.Tensor  # (S, k), of the words so far


class Chosen(NamedTuple):
    """The continuations that a search keeps, best first; the first k of them may end."""

    scores: torch.Tensor  # (S, K)
    parents: torch.Tensor  # (S, K), beams of the same search
    tokens: torch.Tensor  # (S, K)


Choose = Callable[[torch.Tensor, Running, int], Chosen]


def best(scores: torch.Tensor, keep: int) -> Chosen:
    """Scores of all continuations (S, k, vocabulary) -> the `keep` best."""
    values, places = scores.flatten(1).topk(min(keep, scores[0].numel()))
    return Chosen(values, places // scores.shape[-1], places % scores.shape[-1])


def choose_best(step: torch.Tensor, running: Running, keep: int) -> Chosen:
    """Beam search: the words' log probabilities (S, k, vocabulary) are added up."""
    return best(step + running.scores[..., None], keep)


def _take(tensor: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """(S, k, ...) and (S, n) -> (S, n, ...)"""
    return tensor[torch.arange(len(tensor), device=tensor.device)[:, None], places]


def search(
    steps: Sequence[DecodingSteps],
    input_ids: torch.Tensor,
    logits_processor,
    stopping_criteria,
    generation_config,
    choose: Choose = choose_best,
    groups: int = 1,
    length_penalty: float | None = None,
    early_stopping: bool | str | None = None,
    refusal: str | None = None,
) -> ModelOutput | torch.Tensor:
    """
    Beam search as in transformers, with all searches of all images side by side.

    Args:
        steps: the models; of several, the mean of their probabilities counts, and attentions are those of the first.
        input_ids: prompts (B * num_beams, t).
        logits_processor, stopping_criteria, generation_config: as `generate()` has prepared them.
        choose: which continuations are kept.
        groups: searches for each image, which share its `num_beams`.
        length_penalty, early_stopping: by default those of `generation_config`.
        refusal: the message of the error if an image has no possible caption; without it one is returned that has
            impossible words, as in transformers.

    Returns:
        as `generate()` with beams: tokens (B * num_return_sequences, T), or an output that also has `log_probs`, the
        log probabilities of the returned sequences, which their scores may differ from.

    Raises:
        InputError: with `refusal`.
    """
    settings = generation_config
    penalty = settings.length_penalty if length_penalty is None else length_penalty
    early = settings.early_stopping if early_stopping is None else early_stopping
    pad, ends = special_tokens(settings)
    beams, prompt, device = settings.num_beams // groups, input_ids.shape[1], input_ids.device
    searches, limit = len(input_ids) // beams, settings.max_length
    keep = max(2, 1 + len(ends)) * beams

    sequences = input_ids.new_full((searches, beams, limit), pad)
    sequences[..., :prompt] = input_ids.unflatten(0, (searches, beams))
    indices = input_ids.new_full((searches, beams, limit - prompt), -1)  # the rows that words came from
    # All beams begin alike, so the first alone counts at first.
    scores = torch.zeros((searches, beams), device=device)
    scores[:, 1:] = NEVER
    log_probs = scores
    done_sequences, done_indices = sequences.clone(), indices.clone()
    done_scores = done_log_probs = torch.full_like(scores, NEVER)
    done = torch.zeros_like(scores, dtype=torch.bool)
    open_ = torch.ones((searches, 1), dtype=torch.bool, device=device)  # can a running beam still be among the best?
    offset = torch.arange(searches, device=device)[:, None] * beams
    kept: dict[str, tuple[Any, ...]] = {}

    length = prompt
    while True:
        rows = sequences[..., :length].flatten(0, 1)
        outputs = [step(rows) for step in steps]
        logits = [output.logits[:, -1].float() for output in outputs]
        words = torch.stack([each.log_softmax(-1) for each in logits])  # (models, N, vocabulary)
        words = words[0] if len(steps) == 1 else words.logsumexp(0) - torch.tensor(float(len(steps))).log()
        words = logits_processor(rows, words)
        if settings.return_dict_in_generate:
            found = {
                "scores": words if settings.output_scores else None,
                "logits": logits[0] if settings.output_logits else None,
                "decoder_attentions": outputs[0].decoder_attentions if settings.output_attentions else None,
                "cross_attentions": outputs[0].cross_attentions if settings.output_attentions else None,
                "decoder_hidden_states": outputs[0].decoder_hidden_states if settings.output_hidden_states else None,
            }
            kept = {name: (*kept.get(name, ()), value) for name, value in found.items()}
        words = words.unflatten(0, (searches, beams))

        chosen = choose(words, Running(sequences[..., :length], scores, log_probs), keep)
        new_log_probs = _take(log_probs, chosen.parents) + _take(words, chosen.parents).gather(
            2, chosen.tokens[..., None]
        ).squeeze(2)
        new_sequences, new_indices = _take(sequences, chosen.parents), _take(indices, chosen.parents)
        new_sequences[..., length] = chosen.tokens
        new_indices[..., length - prompt] = chosen.parents + offset
        hits = stopping_criteria(new_sequences[..., : length + 1].flatten(0, 1), kept.get("scores"))
        hits = hits.unflatten(0, chosen.tokens.shape)  # (S, K)

        # What has ended, if it was among the first, competes with what ended before.
        may_end = hits & (torch.arange(hits.shape[1], device=device) < beams) & open_
        if early is True:
            may_end &= ~done.all(1, keepdim=True)
        ended = (chosen.scores / (length + 1 - prompt) ** penalty).masked_fill(~may_end, -torch.inf)
        done_scores, order = torch.cat([done_scores, ended], 1).topk(beams)
        done_sequences = _take(torch.cat([done_sequences, new_sequences], 1), order)
        done_indices = _take(torch.cat([done_indices, new_indices], 1), order)
        done_log_probs = _take(torch.cat([done_log_probs, new_log_probs], 1), order)
        done = _take(torch.cat([done, may_end], 1), order)

        # The others go on, in their order.
        order = hits.long().argsort(dim=1, stable=True)[:, :beams]
        sequences, indices = _take(new_sequences, order), _take(new_indices, order)
        scores, log_probs = _take(chosen.scores + hits * NEVER, order), _take(new_log_probs, order)
        for step in steps:
            step.reorder(indices[..., length - prompt].flatten())
        length += 1

        reach = limit - prompt if early == "never" and penalty > 0 else length - prompt
        worst = torch.where(done, done_scores.min(1, keepdim=True)[0], NEVER)
        open_ &= (scores.max(1, keepdim=True)[0] / reach**penalty > worst).any(1, keepdim=True)
        if not open_.any() or (early is True and done.all()) or hits.all():
            break

    if refusal is not None and not (done_scores > NEVER / 2).any(1).all():
        raise InputError(refusal)
    # The best of all groups first, then their seconds.
    by_image = (-1, groups)
    order = done_scores.unflatten(0, by_image).argsort(dim=1, descending=True, stable=True)  # (B, G, k)
    order = (order * beams + torch.arange(beams, device=device)).transpose(1, 2).flatten(1)  # places among G * k
    order = order[:, : settings.num_return_sequences]

    def returned(tensor: torch.Tensor) -> torch.Tensor:
        return _take(tensor.unflatten(0, by_image).flatten(1, 2), order).flatten(0, 1)

    done_indices = returned(done_indices)
    longest = int((done_indices >= 0).sum(1).max())
    tokens = returned(done_sequences)[:, : prompt + longest]
    if not settings.return_dict_in_generate:
        return tokens
    encoded = steps[0].kwargs["encoder_outputs"]
    result = GenerateBeamEncoderDecoderOutput(
        sequences=tokens,
        sequences_scores=returned(done_scores) if settings.output_scores else None,
        beam_indices=done_indices[:, :longest],
        encoder_attentions=getattr(encoded, "attentions", None) if settings.output_attentions else None,
        encoder_hidden_states=getattr(encoded, "hidden_states", None) if settings.output_hidden_states else None,
        past_key_values=steps[0].kwargs.get("past_key_values"),
        **{name: None if values[0] is None else values for name, values in kept.items()},
    )
    result.log_probs = returned(done_log_probs)
    return result
