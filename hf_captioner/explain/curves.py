"""What a map is worth: a word loses its probability with what a good map shows, and gets it back with it."""

import torch
from transformers import PreTrainedModel

from .methods import covered, of_versions


@torch.no_grad()
def deletion_and_insertion(
    model: PreTrainedModel,
    pixel_values: torch.Tensor,
    tokens: torch.Tensor,
    place: int,
    weights: torch.Tensor,
    steps: int = 20,
) -> tuple[float, float]:
    """
    Areas under the curves of one token's probability (Petsiuk et al. 2018, "RISE") as cells of the image are covered,
    the heaviest of its map first, and as they are uncovered in the same order. A good map has a small first and a
    large second area. Where the paper covers in grey and uncovers a blurred image, both are in the image's mean colour
    here: flat shapes can be told from their blur.

    Args:
        model: a captioner in evaluation mode.
        pixel_values: (1, C, H, W).
        tokens: (T + 1), start token first.
        place: which of the T tokens behind it.
        weights: (h, w), the token's map.
        steps: parts of the curves, of as equal numbers of cells as can be.

    Returns:
        deletion and insertion, each between 0 and 1.

    Examples:
        >>> import torch
        >>> from transformers import ResNetConfig
        >>> from hf_captioner import RnnCaptionerConfig, RnnCaptionerForConditionalGeneration
        >>> from hf_captioner.explain import deletion_and_insertion, token_maps
        >>> vision = ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic")
        >>> config = RnnCaptionerConfig(vision_config=vision, vocab_size=40, hidden_size=16)
        >>> model, image = RnnCaptionerForConditionalGeneration(config).eval(), torch.randn(1, 3, 32, 32)
        >>> tokens = torch.tensor([2, 7, 9, 3])
        >>> maps = token_maps(model, image, tokens, "occlusion")
        >>> deletion, insertion = deletion_and_insertion(model, image, tokens, place=1, weights=maps[1], steps=4)
        >>> 0 < deletion < 1, 0 < insertion < 1
        (True, True)
    """
    ranks = weights.flatten().argsort(descending=True, stable=True).argsort()
    counts = torch.arange(steps + 1, device=ranks.device) * len(ranks) // steps
    first = (ranks < counts[:, None]).unflatten(-1, weights.shape)  # (steps + 1, h, w)
    versions = covered(pixel_values, torch.cat([first, ~first]))
    curves = of_versions(model, tokens, versions)[:, place].exp().unflatten(0, (2, -1))
    share = counts.to(curves.dtype) / len(ranks)
    deletion, insertion = torch.trapezoid(curves, share).tolist()
    return deletion, insertion


__all__ = ["deletion_and_insertion"]
