"""
Tests of the course's exercises, a file for each lesson. A check takes the reader's function, asks it with inputs of
its own, and either prints that the answer is right or raises a `WrongAnswer` that says what went wrong, often with
the likely reason. A function that still returns nothing is no wrong answer: the notebook runs on.
"""

import functools
from collections.abc import Callable

import torch


class WrongAnswer(AssertionError):
    """What is wrong with an answer."""


class _Unanswered(Exception):
    pass


def exercise(check: Callable) -> Callable:
    """A check that prints how it went, and takes an unanswered exercise for no mistake."""

    @functools.wraps(check)
    def run(answer: Callable) -> None:
        try:
            check(answer)
        except _Unanswered:
            print(f"{answer.__name__}: no answer yet, the function returns nothing.")
        else:
            print(f"{answer.__name__}: right.")

    return run


def ask(answer: Callable, *inputs):
    """What the reader's function returns for these inputs; if that is nothing, the check ends here."""
    result = answer(*inputs)
    if result is None or result is Ellipsis:
        raise _Unanswered
    return result


def say_if(wrong: bool, message: str) -> None:
    """Raises a [`WrongAnswer`] with this message if something is wrong."""
    if wrong:
        raise WrongAnswer(message)


def number(result) -> float:
    """A result that must be a number."""
    try:
        return float(result)
    except (TypeError, ValueError):
        raise WrongAnswer(f"The answer must be a number, but it is {result!r}.") from None


def tensor(result, shape: tuple[int, ...]) -> torch.Tensor:
    """A result that must be a tensor of this shape."""
    say_if(not isinstance(result, torch.Tensor), f"The answer must be a tensor, but it is {result!r}.")
    say_if(
        tuple(result.shape) != tuple(shape),
        f"The answer must have the shape {tuple(shape)}, but yours has {tuple(result.shape)}.",
    )
    return result.detach()
