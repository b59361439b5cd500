"""Soft attention: how spread its maps are, what they cover, where they look."""

import math
from collections.abc import Callable

import torch

from . import ask, exercise, number, say_if, tensor


@exercise
def check_entropy(answer: Callable) -> None:
    """`answer(weights)`: entropy of attention weights (L,)."""
    spread = torch.tensor([0.1, 0.2, 0.3, 0.4])
    right = -(spread * spread.log()).sum().item()
    value = number(ask(answer, spread))
    say_if(abs(value + right) < 1e-4, "The sign is wrong: logarithms of numbers below 1 are negative.")
    say_if(
        abs(value - right / math.log(2)) < 1e-4,
        "This is the entropy in bits. Here the logarithm is the natural one, so that equal weights give log L.",
    )
    say_if(abs(value - right / 4) < 1e-4, "This is the mean over the regions. The entropy is the sum.")
    say_if(abs(value - right) > 1e-4, f"The entropy of {spread.tolist()} is {right:.4f}, but you got {value:.4f}.")
    value = number(ask(answer, torch.tensor([0.0, 1.0, 0.0])))
    say_if(
        value != value,
        "With a weight of 0 you get 0 times minus infinity, which is no number. Such a region contributes 0.",
    )
    say_if(abs(value) > 1e-4, f"If one region has all the weight, the entropy is 0, but you got {value:.4f}.")


@exercise
def check_coverage(answer: Callable) -> None:
    """`answer(weights, real)`: the penalty of equation 14 for each of some captions."""
    torch.manual_seed(0)
    weights = (2 * torch.randn(3, 5, 4)).softmax(dim=-1)
    real = torch.tensor([[True] * 5, [True] * 3 + [False] * 2, [True] * 2 + [False] * 3])
    value = tensor(ask(answer, weights, real), (3,))
    summed = (weights * real[..., None]).sum(dim=1)
    right = ((1 - summed) ** 2).sum(dim=1)
    say_if(
        torch.allclose(value, ((1 - weights.sum(dim=1)) ** 2).sum(dim=1), atol=1e-5),
        "You added up the weights of all steps. Those behind a caption's end (`real` is false) do not count.",
    )
    say_if(
        torch.allclose(value, ((1 - weights) ** 2 * real[..., None]).sum(dim=(1, 2)), atol=1e-5),
        "The weights of a region are first added up over the steps, and only then is the distance to 1 squared.",
    )
    say_if(not torch.allclose(value, right, atol=1e-5), f"The penalties are {right}, but you got {value}.")


@exercise
def check_centre(answer: Callable) -> None:
    """`answer(weights, size)`: where a map (h, w) looks on average, (x, y) in pixels of a picture of that size."""
    weights = torch.tensor([[0.0, 0.0, 0.5], [0.0, 0.1, 0.4]])
    x, y = (number(part) for part in ask(answer, weights, 60))
    right = (0.1 * 30 + 0.9 * 50, 0.5 * 15 + 0.5 * 45)
    found = f"The centre is ({right[0]:.1f}, {right[1]:.1f}), but you got ({x:.1f}, {y:.1f})."
    say_if(abs(x - right[1]) + abs(y - right[0]) < 1e-3, "x and y are swapped: x counts columns, y counts rows.")
    say_if(
        abs(x - right[0] + 10) + abs(y - right[1] + 15) < 1e-3,
        "You used the upper left corners of the regions. Their centres lie half a region further right and down.",
    )
    say_if(
        (x, y) == (50, 15),
        "This is the centre of the region with the highest weight. On average means: weighted by all weights.",
    )
    say_if(abs(x - right[0]) + abs(y - right[1]) > 1e-3, found)
