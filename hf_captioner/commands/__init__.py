"""What is run from a shell, one file a command: it reads arguments, calls the other rooms and prints."""

import sys
from collections.abc import Callable

from huggingface_hub.errors import StrictDataclassError


def run(main: Callable[[], None]) -> None:
    """A command's `main` as a program: what the user can mend is one line on standard error."""
    try:
        main()
    except (ValueError, TypeError, FileNotFoundError, StrictDataclassError) as error:
        if "--debug" in sys.argv:
            raise
        raise SystemExit(f"error: {' '.join(str(error).split())}") from None
