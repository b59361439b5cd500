"""Searches that draw captions first and choose among them then."""

import torch
from transformers.generation import GenerateBeamEncoderDecoderOutput
from transformers.utils import ModelOutput


def said(model, tokens: torch.Tensor, prompt: int) -> list[list[int]]:
    """Generated tokens (N, T) -> for each row those behind the prompt, the end among them and nothing after it."""
    after = model.ends_before(tokens[:, prompt:])
    return [row[~gone].tolist() for row, gone in zip(tokens[:, prompt:], after, strict=True)]


def chosen(candidates: ModelOutput | torch.Tensor, rows: torch.Tensor, scores: torch.Tensor, prompt: int):
    """
    Of what `generate()` returned, some rows (n,), with the scores (n,) by which they were chosen. Attentions stay
    where they are, and `beam_indices` leads to them.
    """
    if isinstance(candidates, torch.Tensor):
        return candidates[rows]
    fields = dict(candidates)
    tokens, indices = fields.pop("sequences"), fields.pop("beam_indices", None)
    fields.pop("sequences_scores", None)
    if indices is None:  # of samples, each has a row of its own
        indices = torch.arange(len(tokens), device=tokens.device)[:, None].expand(-1, tokens.shape[1] - prompt)
    return GenerateBeamEncoderDecoderOutput(
        sequences=tokens[rows], sequences_scores=scores, beam_indices=indices[rows], **fields
    )
