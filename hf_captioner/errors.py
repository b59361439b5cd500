"""Errors caused by what the user gave. A message names the thing, the rule that it breaks and its value."""

from collections.abc import Iterable


class InputError(ValueError):
    """Invalid input from the user. A command prints the message as one line, without a traceback."""


def shown(value: object, most: int = 80) -> str:
    """A value as an error shows it: its beginning, if it is long."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)"


def one_line(error: BaseException) -> str:
    """What another library says, or what kind of error it is if it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def brief(error: BaseException, most: int = 300) -> str:
    """What another library says in one line, without the rest of a list of all that it knows."""
    text = one_line(error)
    return text if len(text) <= most else f"{text[:most]}..."


def listed(names: Iterable[str]) -> str:
    """Names in one line, whatever is in them."""
    return ", ".join(" ".join(name.split()) for name in names)
