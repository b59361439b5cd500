"""Errors caused by what the user gave. A message names the thing, the rule that it breaks and its value."""


class InputError(ValueError):
    """Invalid input from the user. A command prints the message as one line, without a traceback."""
