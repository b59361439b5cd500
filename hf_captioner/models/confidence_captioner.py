"""How far a captioner can be believed: the probabilities of its words, and whether it knows such images."""

import torch
from torch import nn


def token_log_probabilities(logits: torch.Tensor, tokens: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """
    The log-probability of every token under softmax(logits / temperature), which is calibrated when the temperature is
    (Guo et al. 2017, equation 9).

    Args:
        logits: (N, T, vocab_size).
        tokens: (N, T).
        temperature: above 1 for smaller probabilities of likely words, below 1 for larger ones.

    Returns:
        (N, T), in single precision.
    """
    scaled = logits.float() / temperature
    return scaled.gather(-1, tokens[..., None])[..., 0] - scaled.logsumexp(-1)


class Familiarity(nn.Module):
    """
    How much an image is like those that the captioner knows, in (0, 1]: 1 up to a limit of its distance to them, and
    from there e times less for every further standard deviation.

    The distance is Mahalanobis' of the mean region, as in Lee et al. 2018, equation 2, with one class, and with the
    covariance of a probabilistic principal component analysis (Tipping and Bishop 1999, equation 3): the variances
    along the main directions, and one for all the rest, which a few hundred images suffice to estimate. The regions
    are those that the decoder sees.

    Args:
        size: channels of a region (D).
        rank: number of main directions (R).

    Attributes:
        mean: (D), of the mean regions of known images.
        directions: (R, D), orthonormal.
        deviations: (R), along the directions.
        rest: the deviation in every other direction.
        limit: a distance that few known images exceed.
    """

    mean: torch.Tensor
    directions: torch.Tensor
    deviations: torch.Tensor
    rest: torch.Tensor
    limit: torch.Tensor

    def __init__(self, size: int, rank: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("directions", torch.zeros(rank, size))
        self.register_buffer("deviations", torch.ones(rank))
        self.register_buffer("rest", torch.ones(()))
        self.register_buffer("limit", torch.full((), torch.inf))

    def distance(self, regions: torch.Tensor) -> torch.Tensor:
        """Regions (B, L, D) -> distance in standard deviations (B,), in single precision."""
        mean, directions = self.mean.float(), self.directions.float()
        difference = regions.float().mean(1) - mean  # (B, D)
        along = difference @ directions.T  # (B, R)
        rest = (difference - along @ directions) / self.rest.float()
        return torch.cat([along / self.deviations.float(), rest], dim=1).norm(dim=1)

    def forward(self, regions: torch.Tensor) -> torch.Tensor:
        """Regions (B, L, D) -> familiarity (B,)."""
        return torch.exp(-(self.distance(regions) - self.limit.float()).clamp(min=0))


__all__ = ["Familiarity", "token_log_probabilities"]
