"""Tables as they are stored, Parquet, CSV, JSON and webdataset shards, as a data set: whatever columns they have."""

import csv
import glob
import io
import json
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow
from datasets import Dataset, load_dataset
from datasets.exceptions import DatasetGenerationError

from ..errors import InputError, brief, shown
from .formats import Report, read_text

TABLE_LOADERS = {".parquet": "parquet", ".csv": "csv", ".tsv": "csv", ".txt": "csv", ".json": "json", ".jsonl": "json"}
# Of webdataset shards: their keys of bookkeeping.
_SHARD_COLUMNS = ("__key__", "__url__")


def loaded(source: str, load, *args, **kwargs):
    """What a function of `datasets` returns; its errors become an `InputError` with the source and the first cause."""
    try:
        return load(*args, **kwargs)
    except (OSError, ValueError, DatasetGenerationError, pyarrow.ArrowException, tarfile.TarError) as error:
        cause: BaseException = error
        while isinstance(cause, DatasetGenerationError) and cause.__cause__ is not None:
            cause = cause.__cause__
        raise InputError(
            f"`source` must be data that can be read, got {source} ({type(cause).__name__}: {brief(cause)})"
        ) from error


def read_table(paths: list[Path], report: Report) -> Dataset:
    """
    A table in a file, or in several Parquet files.

    Args:
        paths: the files, whose ending says how they are read, see `TABLE_LOADERS`.
        report: is told of every row that cannot be read, and left out.

    Raises:
        InputError: if nothing can be read, a column has values of several types, or a name that no column can have.
    """
    kind = TABLE_LOADERS[paths[0].suffix.lower()]
    options: dict[str, Any] = {}
    if kind != "parquet":
        (path,) = paths
        text = read_text(path)  # whose errors are plainer than those of the readers below
        if kind == "json":
            return _from_rows(path, _json_rows(path, text, report))
        separator = "\t" if path.suffix.lower() == ".tsv" else ","
        columns = _csv_columns(path, text, separator, report)
        if columns is not None:
            return loaded(str(path), Dataset.from_dict, columns)
        # "NA" and "null" are texts like others; only an empty cell is a missing one.
        options = {"sep": separator, "keep_default_na": False, "na_values": [""], "index_col": False}
    names = ", ".join(str(path) for path in paths[:3])
    files = [glob.escape(str(path)) for path in paths]
    return loaded(names, load_dataset, kind, data_files=files, split="train", **options)


def _csv_columns(path: Path, text: str, separator: str, report: Report) -> dict[str, list[str | None]] | None:
    """
    Reports rows that do not have as many fields as the header, which pandas would shift or fill, and returns the
    columns without them, as text; `None` if there are no such rows, and no NUL either, at which pandas before 3.1 cuts
    a text off.
    """
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        header = next(reader)
        rows, bad = [], False
        for cells in reader:
            if len(cells) == len(header):
                rows.append(cells)
            elif cells:
                bad = True
                place = f"the row that ends in line {reader.line_num} of {path}"
                message = f"{place} must have {len(header)} fields as the header has, got {len(cells)}: {cells[:3]}"
                report(("columns-disagree", message))
    except csv.Error as error:
        raise InputError(
            f"`source` must be data that can be read, got {path} (line {reader.line_num}: {error})"
        ) from error
    if not rows:
        raise InputError(f"`source` must have at least one row, got none in {path}")
    _check_names(path, header)
    if not bad and "\0" not in text:
        return None
    return {name: [row[place] or None for row in rows] for place, name in enumerate(header)}


def _json_rows(path: Path, text: str, report: Report) -> list[dict]:
    """The objects of a JSON file: a list of them, one, or one on each line; what is none is reported."""
    lines = path.suffix.lower() == ".jsonl"
    named: list[tuple[str, Any]]
    if not lines:
        try:
            content = json.loads(text)
        except json.JSONDecodeError as error:
            lines = text.count("\n") > 0 and _is_object(text.splitlines()[0])  # JSON lines under another name
            if not lines:
                raise InputError(f"`source` must be data that can be read, got {path} ({error})") from error
        except RecursionError as error:
            raise InputError(f"`source` must be data that can be read, got {path}, nested too deeply") from error
    if lines:
        named = [(f"line {number}", line) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
        content = [_object(line) for _, line in named]
    elif isinstance(content, dict):
        content, named = [content], [("the content", content)]
    elif isinstance(content, list):
        named = [(f"row {number}", row) for number, row in enumerate(content)]
    else:
        raise InputError(f"`source` must be a list of JSON objects, got {shown(content)} in {path}")
    rows = []
    for row, (place, raw) in zip(content, named, strict=True):
        if isinstance(row, dict):
            rows.append(row)
        else:
            value = repr(raw[:80]) if isinstance(raw, str) else shown(raw)
            report(("row-unreadable", f"{place} of {path} must be a JSON object, got {value}"))
    return rows


def _object(line: str) -> Any:
    try:
        return json.loads(line)
    except (json.JSONDecodeError, RecursionError):
        return None


def _is_object(line: str) -> bool:
    return isinstance(_object(line), dict)


def _check_names(path: Path, columns: Iterable[str]) -> None:
    for name in columns:
        if "\0" in name:  # Arrow reads a name no further
            raise InputError(f"`source` must have names of columns without NUL, got {name!r} in {path}")


def _from_rows(path: Path, rows: list[dict]) -> Dataset:
    columns = {name: [row.get(name) for row in rows] for name in dict.fromkeys(name for row in rows for name in row)}
    if not columns:
        raise InputError(f"`source` must have at least one row, got none in {path}")
    _check_names(path, columns)
    try:
        return Dataset.from_dict(columns)
    except (pyarrow.ArrowException, OverflowError, TypeError, ValueError) as error:
        for name, cells in columns.items():
            try:
                pyarrow.array(cells)
            except (pyarrow.ArrowException, OverflowError, TypeError, ValueError):
                found = _first_other(cells)
                raise InputError(f"`{name}` of {path} must be of one type in all rows, got {found}") from error
        raise InputError(f"`source` must be data that can be read, got {path} ({error})") from error


def _first_other(cells: list) -> str:
    """The first cell that is of another type than those before it, and its row."""
    first = next(cell for cell in cells if cell is not None)
    other = next((row for row, cell in enumerate(cells) if cell is not None and type(cell) is not type(first)), None)
    return shown(first) if other is None else f"{shown(first)} and in row {other} {shown(cells[other])}"


def read_shards(path: Path, shards: list[Path], fields: Sequence[str]) -> Dataset:
    """
    webdataset: members of a tar file whose names differ in their ending alone are one row. Of a `.json` member these
    fields become columns.
    """
    if not shards:
        raise InputError(f"`source` must hold tar files, got {path}")
    files = [str(shard) for shard in shards]
    dataset = loaded(str(path), load_dataset, "webdataset", data_files=files, split="train")
    if "json" in dataset.column_names:
        for name in dataset.features["json"]:
            if name in fields:
                dataset = dataset.add_column(name, [cell[name] for cell in dataset["json"][:]])
        dataset = dataset.remove_columns("json")
    if "txt" in dataset.column_names:
        texts = [[line for line in (text or "").splitlines() if line.strip()] for text in dataset["txt"][:]]
        dataset = dataset.remove_columns("txt").add_column("txt", texts)
    return dataset.remove_columns([name for name in _SHARD_COLUMNS if name in dataset.column_names])
