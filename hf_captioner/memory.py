"""How a process keeps its memory, and how much that is."""

import ctypes
from pathlib import Path

# Parameters of glibc's mallopt (malloc.h).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """
    Lets the process keep what it frees, for its next allocation.

    glibc asks the kernel for every large piece of memory (from 32 MB on, often less) and hands it back when it is
    freed, and the kernel fills each new page with zeros when it is first touched: for a vision model, whose
    activations are allocated anew for every batch, that can take longer than what it computes. Results stay the same
    bit for bit. A process then never has less memory than it once needed, which is what the next batch needs anyway;
    so commands call this, and the package itself does not.

    Returns:
        whether the C library could be told; others than glibc have no such parameters.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no such function (musl, macOS), or no such handle (Windows)
        return False
    largest = 2**31 - 1
    return all(
        mallopt(parameter, value) == 1
        for parameter, value in [(_MMAP_MAX, 0), (_TRIM_THRESHOLD, largest), (_TOP_PAD, 2**26)]
    )


def memory_of(kind: str, process: int | None = None) -> float:
    """
    What Linux says of the memory of a process, in MB, or NaN where the system does not tell.

    Args:
        kind: `"VmRSS"`, what it has now, or `"VmHWM"`, the most that it has had; see proc(5).
        process: its number, by default this one.
    """
    status = Path(f"/proc/{'self' if process is None else process}/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1000 for line in lines if line.startswith(f"{kind}:")), float("nan"))
