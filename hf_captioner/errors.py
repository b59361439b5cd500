"""The errors that are the user's to mend: a message names the thing, the rule and the value."""


class InputError(ValueError):
    """What was given breaks a rule. A command prints its text as one line and no traceback."""
