"""Masks and positions."""

from collections.abc import Callable

import torch

from . import ask, exercise, say_if, tensor


@exercise
def check_window_mask(answer: Callable) -> None:
    """`answer(length, back)`: which places may look at which."""
    length, back = 6, 2
    distance = torch.arange(length)[:, None] - torch.arange(length)  # how far the column's place lies before the row's
    right = (distance >= 0) & (distance <= back)
    value = tensor(ask(answer, length, back), (length, length))
    say_if(value.dtype != torch.bool, f"The mask must be true or false (torch.bool), but yours is {value.dtype}.")
    say_if(
        bool((value == right.T).all()),
        "Rows and columns are exchanged, so that each place looks at later ones. The row is the place that looks, the "
        "column the one that is looked at.",
    )
    say_if(not bool(value.diagonal().all()), "Each place may look at itself: the diagonal must be true.")
    say_if(bool(value.triu(1).any()), "Some places look at later ones: nothing above the diagonal may be true.")
    say_if(bool((value == (distance >= 0)).all()), f"Each place sees everything before it, not just {back} places.")
    say_if(
        bool((value == right & (distance < back)).all()),
        f"The window is one too short: a place sees itself and {back} more.",
    )
    say_if(
        not bool((value == right).all()),
        f"With length {length} and {back} places back, the last row is {right[-1].int().tolist()}, but yours is "
        f"{value[-1].int().tolist()}.",
    )


@exercise
def check_masked_weights(answer: Callable) -> None:
    """`answer(scores, allowed)`: softmax over what is allowed."""
    scores = torch.tensor([[1.0, 3.0, 0.5, 2.0], [-4.0, -3.0, -5.0, 6.0]])
    allowed = torch.tensor([[True, False, True, True], [True, True, True, False]])
    right = scores.masked_fill(~allowed, -torch.inf).softmax(dim=-1)
    value = tensor(ask(answer, scores.clone(), allowed.clone()), (2, 4))
    say_if(
        torch.allclose(value, scores.softmax(dim=-1) * allowed),
        "The weights that are left do not sum to 1. Change the scores before the softmax, not the weights after it.",
    )
    say_if(
        torch.allclose(value, (scores * allowed).softmax(dim=-1)),
        "A score of 0 is a score like any other and still gets a weight. What may not be seen needs a score of minus "
        "infinity.",
    )
    turned = scores.masked_fill(allowed, -torch.inf).softmax(dim=-1)
    say_if(torch.allclose(value, turned), "The mask is the wrong way round: true means that looking is allowed.")
    say_if(
        not torch.allclose(value, right, atol=1e-6),
        f"The first row's weights are {right[0].tolist()}, but you got {value[0].tolist()}.",
    )


@exercise
def check_position(answer: Callable) -> None:
    """`answer(place, width)`: one sinusoidal position."""
    for place, width in ((3, 6), (11, 8)):
        angles = place / 10000 ** (torch.arange(0, width, 2) / width)
        right = torch.stack([angles.sin(), angles.cos()], dim=1).flatten()
        value = tensor(ask(answer, place, width), (width,))
        say_if(
            torch.allclose(value.float(), torch.cat([angles.sin(), angles.cos()]), atol=1e-5),
            "All sines come first here, then all cosines. Sine and cosine of each angle must stand side by side.",
        )
        each = place / 10000 ** (torch.arange(width) / width)
        say_if(
            torch.allclose(value[1].float(), each[1].cos(), atol=1e-5) and not torch.allclose(each[1].cos(), right[1]),
            "Each column has an angle of its own here. A sine and the cosine beside it have the same angle.",
        )
        say_if(
            not torch.allclose(value.float(), right, atol=1e-5),
            f"The position of place {place} with width {width} is {[round(number, 4) for number in right.tolist()]}, "
            f"but you got {[round(number, 4) for number in value.tolist()]}.",
        )
