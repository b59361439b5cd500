"""Files that are there as a whole or not at all, and files of pictures."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from PIL import Image

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# As in `models/image_reading.py`, which travels to the Hub and can import nothing from here, nor data and metrics
# anything from there.
FORMATS = (
    *("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF", "MPO", "PPM", "JPEG2000"),
    *("DIB", "ICO", "PSD", "QOI", "SGI", "PCX", "TGA"),
)


def open_picture(file: str | os.PathLike | IO[bytes]) -> Image.Image:
    """`PIL.Image.open` for files of those formats; it raises what that raises."""
    Image.init()  # which makes Pillow's list of formats complete
    return Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """
    The path to write to in place of `path`, which it becomes at the end: a reader finds the old file or the whole new
    one. If writing fails, the old one stays and nothing is left beside it.
    """
    part = path.with_name(f".{path.name}.part")
    part.unlink(missing_ok=True)  # of a run that was killed, or a link that somebody has laid to another file
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def why_not_written(error: BaseException) -> str | None:
    """
    The reason, on one line, if an error says that there was no room for a file; otherwise `None`. torch and
    safetensors raise errors of their own in place of an `OSError`, and torch says no more than that it failed.
    """
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror)
    text = str(error)
    line = text.strip().split("\n")[0]
    if any(os.strerror(number) in text for number in NO_ROOM):
        return line
    if any(sign in text for sign in ("PytorchStreamWriter", "inline_container", "iostream error")):
        return f"the disk may be full: {line}"
    return None
