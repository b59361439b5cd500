"""The column of images of a table: the images themselves, or paths of files in the data folder."""

import os
import posixpath
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from datasets import Dataset, Image, Value
from tqdm.auto import tqdm

from ..errors import InputError, shown
from .formats import Problem, lies_in
from .reading import decode_image, undecoded


def where(column: str, row: int, source: str) -> str:
    """How errors name a cell."""
    return f"`{column}[{row}]` of {source}"


def image_paths(dataset: Dataset, source: str, column: str) -> list[str] | None:
    """
    The paths in an image column, with the same spelling for the same file; `None` if the column has the images
    themselves.

    Raises:
        InputError: if it has neither, or both.
    """
    feature = dataset.features[column]
    if isinstance(feature, Value) and feature.dtype.endswith("string"):
        return [posixpath.normpath(path) if path else "" for path in dataset[column][:]]
    is_struct = isinstance(feature, dict) and {"bytes", "path"} <= set(feature)
    if not is_struct and not isinstance(feature, Image):
        if isinstance(feature, Value) and feature.dtype.endswith("binary"):
            return None
        kind = getattr(feature, "dtype", type(feature).__name__)
        first = next((cell for cell in dataset[column] if cell is not None), None)
        raise InputError(f"`{column}` of {source} must hold images or their paths, got {kind} such as {shown(first)}")
    # A table from elsewhere may have paths in place of bytes: `datasets` would read any file or address they name.
    raw = dataset.select_columns([column])
    raw = raw if is_struct else raw.cast_column(column, Image(decode=False))
    cells = raw.with_format("arrow")[:].column(column).combine_chunks()
    without = cells.field("bytes").is_null().to_pylist()
    if not any(without):
        return None
    if not all(without):
        row = without.index(True)
        raise InputError(
            f"{where(column, row, source)} must hold the image as the others do, got {cells.field('path')[row]}"
        )
    return [posixpath.normpath(path) if path else "" for path in cells.field("path").to_pylist()]


def absolute_paths(folder: Path, paths: Iterable[str]) -> list[str | None]:
    """Paths in a folder, links resolved; `None` for one that is none."""

    def absolute(path: str) -> str | None:
        try:
            return os.path.realpath(folder / path) if path else None
        except (OSError, ValueError):  # too long, or with a NUL
            return None

    return [absolute(path) for path in paths]


def path_problem(folder: Path, path: str, what: str) -> Problem | None:
    """What is wrong with an image's path: it must be a file in the folder, links resolved."""
    try:
        resolved = Path(os.path.realpath(folder / path))  # which has an answer for a link to itself, as in `lies_in`
        is_file = resolved.is_file()
    except (OSError, ValueError):  # too long, or with a NUL
        return "image-missing", f"{what} must be a path, got {shown(path)}"
    if not path:
        return "image-missing", f"{what} must be a path, got {path!r}"
    if not lies_in(folder, resolved):
        return "image-outside", f"{what} must lie inside {folder}, got {shown(path)}"
    if not is_file:
        return "image-missing", f"{what} must be a file in {folder}, got {shown(path)}"
    return None


def image_problems(dataset: Dataset, source: str) -> Iterator[tuple[int, Problem]]:
    """The rows of a data set whose `image` cannot be read, and what is wrong with each."""
    raw = undecoded(dataset)

    def problem(row: int) -> str | None:
        try:
            decode_image(raw[row]["image"], where("image", row, source))
        except InputError as error:
            return str(error)
        return None

    pool = ThreadPoolExecutor()
    try:
        results = pool.map(problem, range(len(raw)), chunksize=64)
        for row, found in enumerate(tqdm(results, total=len(raw), desc="checking images", unit="image", leave=False)):
            if found is not None:
                yield row, ("image-unreadable", found)
    finally:
        pool.shutdown(cancel_futures=True)  # whoever asked may stop at the first
