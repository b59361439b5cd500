"""Reads the images of a data set: from the table's bytes or the file that it names, never from an address."""

import io
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image as PILImage
from PIL import ImageOps

from ..errors import InputError, one_line
from ..files import open_picture


def image_bytes(cell: dict[str, Any] | None, where: str) -> bytes:
    """
    The content of an image, from a cell of a column of `datasets.Image(decode=False)`.

    Args:
        cell: `bytes`, or a `path` that has been checked to lie in the data's folder.
        where: the cell's place, for the error.

    Raises:
        InputError: if there is no image in the cell, or its file cannot be read.
    """
    if cell is None or (cell["bytes"] is None and not cell["path"]):
        raise InputError(f"{where} must be an image that can be read, got no image")
    if cell["bytes"] is not None:
        return cell["bytes"]
    try:
        return Path(cell["path"]).read_bytes()
    except (OSError, ValueError) as error:
        raise InputError(f"{where} must be an image that can be read, got {cell['path']!r} ({error})") from error


def decode_image(cell: dict[str, Any] | None, where: str) -> PILImage.Image:
    """
    The picture, upright as `datasets` gives it. Arguments are those of [`image_bytes`].

    Raises:
        InputError: if there is none, or it cannot be decoded; the message names the place and the file.
    """
    content = image_bytes(cell, where)
    try:
        image = open_picture(io.BytesIO(content))
        image.load()
        if image.mode == "F" and not np.isfinite(np.asarray(image)).all():
            raise ValueError("numbers that are not finite")
        return ImageOps.exif_transpose(image)
    except Exception as error:  # decoders raise whatever they like: struct.error, IndexError, zlib.error...
        name = f"{len(content)} bytes" if cell is None or not cell["path"] else repr(cell["path"])
        if isinstance(error, PILImage.UnidentifiedImageError):  # whose own text is an address in memory
            reason = "cannot identify an image"
        else:
            reason = one_line(error)
        raise InputError(f"{where} must be an image that can be read, got {name} ({reason})") from error


def undecoded(dataset: datasets.Dataset) -> datasets.Dataset:
    """The column `image` alone, with the cells that the functions above take."""
    return dataset.select_columns(["image"]).cast_column("image", datasets.Image(decode=False))


class NamedImage(datasets.Image):
    """A column of images whose errors name the file. `datasets` would also fetch the address that a cell names."""

    def decode_example(self, value: dict[str, Any], token_per_repo_id: dict | None = None) -> PILImage.Image:
        return decode_image(value, "`image`")
