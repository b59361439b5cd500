"""Files of captions: what was written earlier, what is being written, and the text file beside an image."""

import csv
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TextIO

import pyarrow
import pyarrow.parquet

from ..errors import InputError, shown
from ..files import replacing

SUFFIXES = (".txt", ".jsonl", ".csv", ".parquet")
COLUMNS = ("image", "caption", "score", "error", "words", "search_score", "others")
SOME = ("words", "search_score", "others")  # columns that are there if a row has them
JSON_CELLS = ("score", "words", "search_score", "others")  # of CSV
_WORDS = pyarrow.list_(pyarrow.struct([("word", pyarrow.string()), ("probability", pyarrow.float64())]))
_OTHERS = pyarrow.list_(
    pyarrow.struct([("caption", pyarrow.string()), ("score", pyarrow.float64()), ("search_score", pyarrow.float64())])
)
_TYPES = {
    "image": pyarrow.string(),
    "caption": pyarrow.string(),
    "score": pyarrow.float64(),
    "error": pyarrow.string(),
    "words": _WORDS,
    "search_score": pyarrow.float64(),
    "others": _OTHERS,
}

# What reading a file of something else may raise; JSON that is nested too deeply the last.
_BROKEN = (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError)


def check_suffix(path: Path) -> None:
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"`output` must end in {', '.join(SUFFIXES)}, got {str(path)!r}")


def text_cells(row: dict, score: bool = False) -> list[str]:
    """
    A row of text: image, caption, scores if wanted, words if there are any, then further captions and their scores; or
    image, nothing and the error.
    """
    if "cells" in row:  # as it was read
        return row["cells"]
    if "error" in row:
        return [row["image"], "", f"error: {row['error']}"]
    cells = [row["image"], row["caption"] or "", *_scores(row, score)]
    if "words" in row:
        cells.append(" ".join(f"{entry['word']} ({entry['probability']:.2f})" for entry in row["words"]))
    for other in row.get("others", []):
        cells += [other["caption"] or "", *_scores(other, score)]
    return cells


def _scores(row: dict, wanted: bool) -> list[str]:
    return [f"{row[name]:.4f}" for name in ("score", "search_score") if wanted and name in row]


def text_writer(file):
    """Cells with tabs between them; one that holds a tab or a line break is quoted as in CSV."""
    return csv.writer(_Lines(file), delimiter="\t")


class _Lines:
    """
    A file whose rows end with a line feed. `csv` quotes the cells that hold a character with which it ends rows, and
    reads a carriage return outside of quotes as the end of one: so it is left to end them with both.
    """

    def __init__(self, file: TextIO):
        self.file = file

    def write(self, row: str) -> None:
        self.file.write(row.removesuffix("\r\n") + "\n")


def read_captions(path: Path) -> list[dict]:
    """
    Rows that `write_captions` wrote; none if there is no such file.

    Raises:
        InputError: if it is something else.
    """
    if not path.exists():
        return []
    suffix = path.suffix.lower()
    try:
        if suffix == ".parquet":
            rows = pyarrow.parquet.read_table(path).to_pylist()
        else:
            with open(path, encoding="utf-8", newline="") as file:
                if suffix == ".jsonl":
                    rows = [json.loads(line) for line in file if line.strip()]
                elif suffix == ".csv":
                    rows = [
                        {name: cell for name, cell in row.items() if cell != ""}
                        for row in csv.DictReader(file, strict=True)
                    ]
                    for row in rows:
                        row.update({name: json.loads(row[name]) for name in JSON_CELLS if name in row})
                else:
                    cells = csv.reader(file, delimiter="\t", strict=True)
                    rows = [{"image": row[0], "caption": row[1], "cells": row} for row in cells if row]
        for row in rows:
            row.setdefault("caption", None)
            if not isinstance(row["image"], str) or not isinstance(row["caption"], str | None):
                raise TypeError(row)
        if suffix in (".csv", ".parquet"):  # where every row has every column
            rows = [{n: v for n, v in row.items() if v is not None or n == "caption"} for row in rows]
            rows = [{n: v for n, v in row.items() if n != "caption" or "error" not in row} for row in rows]
        return rows
    except (*_BROKEN, csv.Error, pyarrow.ArrowException, OSError) as error:
        if getattr(error, "errno", None) is not None:  # pyarrow's own have none
            raise
        raise InputError(f"`output` must be new or a file of captions, got {path} ({shown(error)})") from error


def write_captions(
    path: Path, rows: Iterable[dict], score: bool = False, columns: Sequence[str] | None = None
) -> None:
    """
    Writes rows with `image` and `caption` (None if there is none to be said), `score`, `words`, `search_score` and
    `others` (captions with their scores), or `image` and `error`, in the format that the name's end says: text, JSON
    lines, CSV or Parquet. A reader finds the old file or the whole new one.

    Args:
        path: of the file.
        rows: what it holds.
        score: whether text has the score.
        columns: of CSV and Parquet, by default all of `COLUMNS` but those of `SOME` that no row has.
    """
    suffix, rows = path.suffix.lower(), list(rows)
    if columns is None:
        columns = [name for name in COLUMNS if name not in SOME or any(name in row for row in rows)]
    with replacing(path) as part:
        if suffix == ".parquet":
            schema = pyarrow.schema([(name, _TYPES[name]) for name in columns])
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema), part)
        else:
            with open(part, "w", encoding="utf-8", newline="") as file:
                if suffix == ".jsonl":
                    file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
                elif suffix == ".csv":
                    writer = csv.DictWriter(_Lines(file), columns, extrasaction="ignore")
                    writer.writeheader()
                    for row in rows:
                        lists = {name: row[name] for name in ("words", "others") if name in row}
                        writer.writerow(row | {n: json.dumps(v, ensure_ascii=False) for n, v in lists.items()})
                else:
                    text_writer(file).writerows(text_cells(row, score) for row in rows)
