"""Diverse beam search."""

import torch

from ..compat import DecodingSteps, special_tokens
from ..errors import InputError
from .beams import Chosen, Running, best, search


def diverse_beam_search(
    model,
    input_ids,
    logits_processor,
    stopping_criteria,
    generation_config,
    num_beam_groups: int | None = None,
    diversity_penalty: float | None = None,
    **model_kwargs,
):
    """
    Diverse beam search (Vijayakumar et al. 2018, "Diverse Beam Search for Improved Description of Complex Scenes"):
    `num_beams` in groups, one after the other at every step, and a word costs a group `diversity_penalty` for every
    beam of an earlier group that has chosen it at this step (Hamming diversity), by default 0.5. One group is beam
    search.

        model.generate(pixel_values, custom_generate=diverse_beam_search, num_beams=10, num_beam_groups=5,
                       diversity_penalty=1.0, num_return_sequences=5)

    Sequences come with each group's best first, these by their scores, then the seconds, so that `num_beam_groups` of
    them are one of every group. Their scores have the penalties in them; `outputs.log_probs` has not.

    Raises:
        InputError: if the groups do not divide the beams, or the penalty is negative.

    Examples:
        >>> import hf_captioner
        >>> from transformers import pipeline
        >>> from hf_captioner.data import shapes_dataset
        >>> from hf_captioner.decoding import diverse_beam_search
        >>> captioner, image = pipeline("image-captioning"), shapes_dataset(1)[0]["image"]
        >>> options = dict(num_beams=4, num_beam_groups=4, diversity_penalty=4.0, num_return_sequences=4)
        >>> captions = captioner(image, decoding=diverse_beam_search, **options)
        >>> len({caption["generated_text"] for caption in captions})
        4
    """
    groups = num_beam_groups or generation_config.num_beam_groups or 1
    # `generate()` fills in 0 where a generation configuration says nothing
    penalty = (generation_config.diversity_penalty or 0.5) if diversity_penalty is None else diversity_penalty
    beams = generation_config.num_beams
    if groups < 1 or beams % groups:
        raise InputError(f"`num_beam_groups` must divide `num_beams` ({beams}), got {groups}")
    if penalty < 0:
        raise InputError(f"`diversity_penalty` must not be negative, got {penalty}")
    ends = torch.tensor(special_tokens(generation_config)[1], device=input_ids.device)

    def choose(step: torch.Tensor, running: Running, keep: int) -> Chosen:
        scores = (step + running.scores[..., None]).unflatten(0, (-1, groups))  # (B, G, k, vocabulary)
        counts = torch.zeros_like(scores[:, 0, 0])  # (B, vocabulary): how often earlier groups chose a word
        chosen = []
        for group in range(groups):
            found = best(scores[:, group] - penalty * counts[:, None], keep)
            going_on = torch.isin(found.tokens, ends).long().argsort(dim=1, stable=True)[:, : beams // groups]
            words = found.tokens.gather(1, going_on)
            counts.scatter_add_(1, words, torch.ones_like(words, dtype=counts.dtype))
            chosen.append(found)
        return Chosen(*(torch.stack(each, 1).flatten(0, 1) for each in zip(*chosen, strict=True)))

    steps = [DecodingSteps(model, generation_config, model_kwargs)]
    return search(steps, input_ids, logits_processor, stopping_criteria, generation_config, choose, groups)
