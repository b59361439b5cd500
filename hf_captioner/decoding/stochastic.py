"""Stochastic beam search."""

import torch

from ..compat import DecodingSteps
from .beams import NEVER, Chosen, Running, best, search


def perturbed(parent: torch.Tensor, log_probs: torch.Tensor) -> torch.Tensor:
    """
    Gumbel-perturbed log probabilities of continuations whose maximum is their parent's (Kool et al. 2019, B.3).

    Args:
        parent: the parents' perturbed log probabilities (S, k).
        log_probs: of all continuations (S, k, vocabulary).
    """
    uniform = torch.rand_like(log_probs).clamp(min=torch.finfo(log_probs.dtype).tiny, max=1 - 2**-24)
    noisy = log_probs - torch.log(-torch.log(uniform))
    below = noisy - noisy.amax(-1, keepdim=True)
    gap = parent[..., None] - noisy + torch.log(-torch.expm1(below))
    scores = parent[..., None] - gap.clamp(min=0) - torch.log1p(torch.exp(-gap.abs()))
    return torch.where(parent[..., None] > NEVER / 2, scores, torch.full_like(scores, 2 * NEVER))


def stochastic_beam_search(model, input_ids, logits_processor, stopping_criteria, generation_config, **model_kwargs):
    """
    `num_beams` different captions drawn from the model without replacement (Kool, van Hoof and Welling 2019,
    "Stochastic Beams and Where to Find Them"): a beam search by log probabilities with Gumbel noise. `length_penalty`
    and `early_stopping` do not apply. The first caption is an ordinary sample.

        model.generate(pixel_values, custom_generate=stochastic_beam_search, num_beams=10, num_return_sequences=10)

    `sequences_scores` are the perturbed log probabilities, descending; `outputs.log_probs` are the captions' own.

    Examples:
        >>> import hf_captioner, torch
        >>> from transformers import pipeline
        >>> from hf_captioner.data import shapes_dataset
        >>> from hf_captioner.decoding import stochastic_beam_search
        >>> captioner, image = pipeline("image-captioning"), shapes_dataset(1)[0]["image"]
        >>> _ = torch.manual_seed(0)
        >>> captions = captioner(image, decoding=stochastic_beam_search, num_beams=5, num_return_sequences=5)
        >>> len({caption["generated_text"] for caption in captions})
        5
    """

    def normalised(rows, scores):
        return logits_processor(rows, scores).log_softmax(-1)

    def choose(step: torch.Tensor, running: Running, keep: int) -> Chosen:
        return best(perturbed(running.scores, step + running.log_probs[..., None]), keep)

    steps = [DecodingSteps(model, generation_config, model_kwargs)]
    # no score of a continuation is above its beginning's, so that "can no longer be among the best" is exact
    return search(steps, input_ids, normalised, stopping_criteria, generation_config, choose, 1, 0.0, False)
