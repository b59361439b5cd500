"""Minimum Bayes risk."""

from collections.abc import Callable, Sequence

import torch
from transformers.generation import GenerateBeamEncoderDecoderOutput

from ..compat import draw_samples
from ..errors import InputError

Utility = Callable[[list[list[int]], list[list[int]]], Sequence[float]]


def minimum_bayes_risk(
    model,
    input_ids,
    logits_processor,
    stopping_criteria,
    generation_config,
    utility: Utility | None = None,
    **model_kwargs,
):
    """
    Of `num_return_sequences` sampled captions, the one that is on average most like the others (Freitag et al. 2022,
    "High Quality Rather than High Model Probability"). One caption is returned for each image.

        model.generate(pixel_values, custom_generate=minimum_bayes_risk, do_sample=True, num_return_sequences=20,
                       utility=utility)

    Args:
        utility: `utility(captions, references)` takes two lists of n captions as lists of tokens, the start and all
            after the end left out, and returns n numbers: how good each caption is if its reference is right.

    Returns:
        as `generate()`; `sequences_scores` are the mean utilities.

    Raises:
        InputError: without `utility` or `do_sample=True`, or with beams.
    """
    if utility is None or not generation_config.do_sample or generation_config.num_beams != 1:
        raise InputError(
            "minimum_bayes_risk must be given `utility`, `do_sample=True` and `num_beams=1`, got "
            f"{utility!r}, {generation_config.do_sample} and {generation_config.num_beams}"
        )
    count, prompt = generation_config.num_return_sequences, input_ids.shape[1]
    samples = draw_samples(
        model,
        input_ids,
        logits_processor=logits_processor,
        stopping_criteria=stopping_criteria,
        generation_config=generation_config,
        **model_kwargs,
    )
    tokens = samples.sequences if generation_config.return_dict_in_generate else samples
    after = model.ends_before(tokens[:, prompt:])
    captions = [row[~gone].tolist() for row, gone in zip(tokens[:, prompt:], after, strict=True)]
    pairs = [
        (image + i, image + j) for image in range(0, len(captions), count) for i in range(count) for j in range(count)
    ]
    values = utility([captions[i] for i, _ in pairs], [captions[j] for _, j in pairs])
    means = torch.as_tensor(values, dtype=torch.float, device=tokens.device).view(-1, count, count).mean(2)
    scores, best = means.max(1)
    rows = best + torch.arange(len(best), device=best.device) * count
    if not generation_config.return_dict_in_generate:
        return tokens[rows]
    fields = {name: value for name, value in samples.items() if name != "sequences"}
    return GenerateBeamEncoderDecoderOutput(
        sequences=tokens[rows],
        sequences_scores=scores,
        beam_indices=rows[:, None].expand(-1, tokens.shape[1] - prompt),
        **fields,
    )
