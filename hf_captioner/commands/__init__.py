"""What is run from a shell, one file a command: it reads arguments, calls the other rooms and prints."""

import os
import sys
from collections.abc import Callable

from huggingface_hub.errors import StrictDataclassError

from ..errors import InputError
from ..files import why_not_written
from ..memory import keep_freed_memory

# What reading a captioner's folder may raise: transformers trips over files of wrong types before our classes see
# them.
FOLDER_ERRORS = (AttributeError, LookupError, OSError, StrictDataclassError, TypeError, ValueError)


def run(main: Callable[[list[str]], None], argv: list[str] | None = None) -> None:
    """
    A command's `main` as a program. What the user has to mend, a full disk included, is one line on standard error and
    exit status 2; with `--debug`, and for every other error, which is a fault of ours, there is a traceback. To be
    stopped (Ctrl-C) or to have nobody who reads on (`| head`) is no error: no words, and the shell's own status.

    Args:
        main: called with the arguments.
        argv: the arguments, by default those of the process.
    """
    keep_freed_memory()
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    # transformers has an option of the same name, which is followed by what to look for ("underflow_overflow").
    following = [*argv[1:], "-"]
    argv = [part for part, after in zip(argv, following, strict=False) if part != "--debug" or after[:1] != "-"]
    try:
        try:
            main(argv)
        finally:
            sys.stdout.flush()  # here, where it is known what to do if nobody reads
    except InputError as error:
        if debug:
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except BrokenPipeError:
        # What is left in the buffer is written at exit, where it would fail once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    except Exception as error:
        reason = why_not_written(error)
        if debug or reason is None:
            raise
        print(f"error: {reason}", file=sys.stderr)
        raise SystemExit(2) from None
