"""The images that are to be captioned: files, folders, patterns, tables, and lists of these from standard input."""

import csv
import glob
import hashlib
import io
import json
import os
import sys
import tarfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pyarrow
import pyarrow.parquet
from PIL import Image, UnidentifiedImageError

from ..errors import InputError, brief, listed, shown
from ..files import open_picture
from .formats import IMAGE_SUFFIXES, lies_in
from .sources import IMAGE_COLUMNS

Read = TypeVar("Read")
TABLE_SUFFIXES = (".parquet", ".csv", ".tsv", ".json", ".jsonl")
SHARD_SUFFIX = ".tar"


class Place(NamedTuple):
    """Where a file lies in another one: that one's path, the first byte, and how many there are."""

    path: str
    start: int
    size: int


@dataclass(frozen=True)
class ImageFile:
    """
    One image that has not been read yet.

    Attributes:
        name: its path, or table and row of one that a table holds, as in `photos.parquet[3]`, or shard and member, as
            in `photos.tar[0003.jpg]`.
        content: the bytes of one that a table holds.
        objection: why it is not to be read.
        place: of one that lies in a shard.
    """

    name: str
    content: bytes | None = None
    objection: str | None = None
    place: Place | None = None

    def source(self) -> str | Image.Image:
        """
        What the pipeline takes: the path, or the image of the bytes.

        Raises:
            OSError: if there is an objection, no such file, or no image in the bytes.
        """
        if self.objection is not None:
            raise OSError(self.objection)
        content = self.content
        if self.place is not None:
            with open(self.place.path, "rb") as shard:
                shard.seek(self.place.start)
                content = shard.read(self.place.size)
        if content is not None:
            try:
                return open_picture(io.BytesIO(content))
            except UnidentifiedImageError as error:  # which shows an address in memory
                raise OSError(f"cannot identify an image in {len(content)} bytes") from error
        if not os.path.isfile(self.name):
            # names that are not UTF-8 are shown as in `_add_file`
            raise FileNotFoundError("no such file" + (", or its name is not UTF-8" if "\\udc" in self.name else ""))
        return self.name


@dataclass(frozen=True)
class _TableOfImages:
    """Rows, from `start` until before `stop`, of a Parquet file that holds the images themselves; a few at a time."""

    path: str
    column: str
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[ImageFile]:
        row = self.start
        try:
            file = pyarrow.parquet.ParquetFile(self.path)
            groups, first = self._groups(file.metadata)
            for batch in file.iter_batches(batch_size=16, row_groups=groups, columns=[self.column]):
                cells = batch.column(0)[max(0, self.start - first) : max(0, self.stop - first)]
                first += batch.num_rows
                for cell in cells.to_pylist():
                    content = cell.get("bytes") if isinstance(cell, dict) else cell
                    objection = None if isinstance(content, bytes) else "the table must hold the image, got none"
                    yield ImageFile(f"{self.path}[{row}]", content, objection)
                    row += 1
        except (OSError, pyarrow.ArrowException) as error:
            raise InputError(
                f"{self.path} must be a table that can be read, got {brief(error)} at row {row}"
            ) from error

    def _groups(self, metadata: pyarrow.parquet.FileMetaData) -> tuple[list[int], int]:
        """The row groups in which the rows lie, and the first row of the first of them."""
        groups: list[int] = []
        rows = first = 0
        for group in range(metadata.num_row_groups):
            count = metadata.row_group(group).num_rows
            if rows < self.stop and rows + count > self.start:
                first = first if groups else rows
                groups.append(group)
            rows += count
        return groups, first


Part = Sequence[ImageFile | _TableOfImages]


def images_of(part: Part) -> Iterator[ImageFile]:
    """The images of a part that [`ImageFiles.parts`] gave, read from their table as they are asked for."""
    return chain.from_iterable([one] if isinstance(one, ImageFile) else one for one in part)


def size_of(part: Part) -> int:
    """How many images that is; tables are not read for it."""
    return sum(1 if isinstance(one, ImageFile) else len(one) for one in part)


class ImageFiles:
    """
    Finds images, each once however often it is named.

    Args:
        inputs: paths of images, of folders (with all that lies below, hidden files and what is not named like an image
            left out), of tables (Parquet, CSV, TSV, JSON, JSON lines) with images or with paths relative to the table;
            webdataset shards (`.tar`; of each key the first member that is named like an image); patterns
            (`photos/**/*.jpg`, `shards/*.tar`); `-` for such paths from standard input, one a line. What does not
            exist is kept, so that it is reported in its place.
        image_column: column of the tables, by default the first there is of `IMAGE_COLUMNS`.

    Attributes:
        tables: tables and shards that hold the images themselves.

    Raises:
        InputError: if there is no image at all, a table has no such column, or a table or shard cannot be read.
    """

    def __init__(self, inputs: Iterable[str], image_column: str | None = None):
        self.image_column = image_column
        found: dict[str, ImageFile | _TableOfImages] = {}
        self.tables: list[str] = []
        for name in inputs:
            lines = (os.fsdecode(line.rstrip(b"\r\n")) for line in sys.stdin.buffer) if name == "-" else [name]
            for path in lines:
                if path.startswith(("http://", "https://")):
                    found[path] = ImageFile(path, objection="images must be files; the pipeline takes addresses")
                elif path:
                    self._add(os.path.normpath(path), found)
        self._found = list(found.values())
        if not len(self):
            raise InputError(f"`INPUT` must hold images, got none in {', '.join(inputs)}")

    def __len__(self) -> int:
        return size_of(self._found)

    def __iter__(self) -> Iterator[ImageFile]:
        return images_of(self._found)

    def parts(self, size: int) -> list[Part]:
        """The images in order, so many in each part and what is left in the last; tables are not read for it."""
        parts: list[list[ImageFile | _TableOfImages]] = []
        room = 0
        for one in self._found:
            start, stop = (0, 1) if isinstance(one, ImageFile) else (one.start, one.stop)
            while start < stop:
                if not room:
                    parts.append([])
                    room = size
                count = min(room, stop - start)
                parts[-1].append(one if isinstance(one, ImageFile) else replace(one, start=start, stop=start + count))
                start, room = start + count, room - count
        return list(parts)

    def digest(self) -> str:
        """Is another for other images, by their names and order."""
        digest = hashlib.sha256()
        for one in self._found:
            name = one.name if isinstance(one, ImageFile) else f"{one.path}[{one.start}:{one.stop}]"
            digest.update(f"{name}\0".encode())
        return digest.hexdigest()

    def _add(self, path: str, found: dict) -> None:
        if os.path.isdir(path):
            for folder, folders, files in os.walk(path):
                folders[:] = sorted(name for name in folders if not name.startswith("."))
                for name in sorted(files):
                    if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith("."):
                        self._add_file(os.path.join(folder, name), found)
        elif path.lower().endswith(TABLE_SUFFIXES) and os.path.isfile(path):
            self._add_table(path, found)
        elif path.lower().endswith(SHARD_SUFFIX) and os.path.isfile(path):
            self._add_shard(path, found)
        elif glob.has_magic(path) and not os.path.exists(path) and (matches := glob.glob(path, recursive=True)):
            for match in sorted(matches):
                # of what a pattern matches, files that are no images are not meant
                if os.path.isdir(match) or match.lower().endswith((*IMAGE_SUFFIXES, *TABLE_SUFFIXES, SHARD_SUFFIX)):
                    self._add(match, found)
        else:
            self._add_file(path, found)

    def _add_file(self, path: str, found: dict) -> None:
        # A name that is no text could not be written down. Shown readably it names no file, and is reported as that.
        name = path.encode("utf-8", "backslashreplace").decode()
        found.setdefault(name, ImageFile(name))

    def _add_table(self, path: str, found: dict) -> None:
        try:
            cells = self._column(path)
        except (OSError, csv.Error, ValueError, RecursionError, pyarrow.ArrowException) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{path} must be a table that can be read, got {brief(error)}") from error
        if isinstance(cells, _TableOfImages):
            self._holds_images(path)
            found.setdefault(path, cells)
            return
        folder = Path(path).parent
        for row, cell in enumerate(cells):
            name = f"{path}[{row}]"
            if not isinstance(cell, str) or not cell:
                found.setdefault(name, ImageFile(name, objection=f"the table must hold a path, got {shown(cell)}"))
            elif not _is_inside(folder, cell):  # a table from elsewhere must not make us read what lies elsewhere
                objection = f"the path must lie in the table's folder, got {shown(cell)}"
                found.setdefault(name, ImageFile(name, objection=objection))
            else:
                self._add_file(os.path.normpath(os.path.join(os.path.dirname(path), cell)), found)

    def _add_shard(self, path: str, found: dict) -> None:
        """Of a webdataset shard, members whose names up to the first dot are the same belong together."""
        self._holds_images(path)
        before = None
        try:
            with tarfile.open(path, "r:") as shard:
                for member in shard:
                    folder, _, base = member.name.rpartition("/")
                    stem, _, ending = base.partition(".")
                    key = (folder, stem)
                    if not member.isreg() or member.issparse() or not stem or key == before:
                        continue
                    if f".{ending.lower()}" in IMAGE_SUFFIXES:
                        before = key
                        name = f"{path}[{member.name}]".encode("utf-8", "backslashreplace").decode()
                        found.setdefault(name, ImageFile(name, place=Place(path, member.offset_data, member.size)))
                    shard.members = []  # type: ignore[attr-defined] # which it keeps of all otherwise
        except (OSError, tarfile.TarError) as error:
            raise InputError(f"{path} must be a tar file that can be read, got {error}") from error

    def _holds_images(self, path: str) -> None:
        if path not in self.tables:
            self.tables.append(path)

    def _column(self, path: str) -> list | _TableOfImages:
        """The cells of a table's image column."""
        suffix = Path(path).suffix.lower()
        if suffix == ".parquet":
            schema = pyarrow.parquet.read_schema(path)
            column = self._column_name(path, schema.names)
            kind = schema.field(column).type
            if pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind):
                return pyarrow.parquet.read_table(path, columns=[column]).column(0).to_pylist()
            return _TableOfImages(path, column, 0, pyarrow.parquet.read_metadata(path).num_rows)
        with open(path, encoding="utf-8-sig", newline="" if suffix in (".csv", ".tsv") else None) as file:
            if suffix in (".csv", ".tsv"):
                # strict: a quote that nobody closes would swallow the rows behind it
                reader = csv.DictReader(file, delimiter="\t" if suffix == ".tsv" else ",", strict=True)
                if reader.fieldnames is None:
                    raise InputError(f"{path} must be a table with a header, got an empty file")
                column = self._column_name(path, reader.fieldnames)
                return [row[column] for row in reader]
            rows = json.load(file) if suffix == ".json" else [json.loads(line) for line in file if line.strip()]
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows) or not rows:
            raise InputError(f"{path} must be a table, a list of at least one object, got {shown(rows)}")
        column = self._column_name(path, list(rows[0]))
        return [row.get(column) for row in rows]

    def _column_name(self, path: str, present: Sequence[str]) -> str:
        for name in IMAGE_COLUMNS if self.image_column is None else [self.image_column]:
            if name in present:
                return name
        wanted = "found among its columns" if self.image_column is None else f"a column of {path}"
        raise InputError(f"`image_column` must be {wanted} ({listed(present)}), got {self.image_column or path!r}")


def _is_inside(folder: Path, path: str) -> bool:
    try:
        return lies_in(folder, folder / path)
    except (OSError, ValueError):  # too long, or with a NUL: no file, which is reported when it is read
        return True


def read_ahead(
    function: Callable[[Read], Any], images: Iterable[Read], threads: int, ahead: int
) -> Iterator[tuple[Read, Any]]:
    """
    `function` of every image, or of every batch of them, computed by threads, at most `ahead` before it is asked for.

    Returns:
        pairs of image and result, in order; an exception is a result as well.
    """

    def attempt(image: Read):
        try:
            return function(image)
        except Exception as error:  # decoders raise whatever they like: struct.error, IndexError, zlib.error...
            return error

    pool = ThreadPoolExecutor(threads)
    pending: deque[tuple[Read, Future]] = deque()
    try:
        for image in images:
            pending.append((image, pool.submit(attempt, image)))
            if len(pending) > ahead:
                first, future = pending.popleft()
                yield first, future.result()
        for first, future in pending:
            yield first, future.result()
    finally:
        pool.shutdown(cancel_futures=True)
