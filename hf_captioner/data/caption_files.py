"""Files of captions: what was written earlier, what is being written, and the text file beside an image."""

import csv
import json
from collections.abc import Iterable
from pathlib import Path

import pyarrow
import pyarrow.parquet

from ..errors import InputError
from ..files import replacing

SUFFIXES = (".txt", ".jsonl", ".csv", ".parquet")
COLUMNS = ("image", "caption", "score", "error", "words")
_WORDS = pyarrow.list_(pyarrow.struct([("word", pyarrow.string()), ("probability", pyarrow.float64())]))
_TYPES = dict(
    zip(COLUMNS, [pyarrow.string(), pyarrow.string(), pyarrow.float64(), pyarrow.string(), _WORDS], strict=True)
)


def check_suffix(path: Path) -> None:
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"`output` must end in {', '.join(SUFFIXES)}, got {str(path)!r}")


def text_cells(row: dict, score: bool = False) -> list[str]:
    """A row of text: image, caption, score if wanted, words if there are any; or image, nothing and the error."""
    if "cells" in row:  # as it was read
        return row["cells"]
    if "error" in row:
        return [row["image"], "", f"error: {row['error']}"]
    cells = [row["image"], row["caption"] or ""]
    if score:
        cells.append(f"{row['score']:.4f}")
    if "words" in row:
        cells.append(" ".join(f"{entry['word']} ({entry['probability']:.2f})" for entry in row["words"]))
    return cells


def text_writer(file):
    """Cells with tabs between them; one that holds a tab or a line break is quoted as in CSV."""
    return csv.writer(file, delimiter="\t", lineterminator="\n")


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
                        row.update({name: json.loads(row[name]) for name in ("score", "words") if name in row})
                else:
                    cells = csv.reader(file, delimiter="\t", strict=True)
                    rows = [{"image": row[0], "caption": row[1], "cells": row} for row in cells if row]
        for row in rows:
            if not isinstance(row["image"], str):
                raise TypeError(row["image"])
            row.setdefault("caption", None)
        if suffix in (".csv", ".parquet"):  # where every row has every column
            rows = [{n: v for n, v in row.items() if v is not None or n == "caption"} for row in rows]
            rows = [{n: v for n, v in row.items() if n != "caption" or "error" not in row} for row in rows]
        return rows
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, csv.Error, pyarrow.ArrowException) as error:
        raise InputError(f"`output` must be new or a file of captions, got {path} ({error!r})") from error


def write_captions(path: Path, rows: Iterable[dict], score: bool = False) -> None:
    """
    Writes rows with `image` and `caption` (None if there is none to be said), `score` and `words`, or `image` and
    `error`, in the format that the name's end says: text, JSON lines, CSV or Parquet. A reader finds the old file or
    the whole new one.
    """
    suffix, rows = path.suffix.lower(), list(rows)
    columns = [name for name in COLUMNS if name != "words" or any("words" in row for row in rows)]
    with replacing(path) as part:
        if suffix == ".parquet":
            schema = pyarrow.schema([(name, _TYPES[name]) for name in columns])
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema), part)
        else:
            with open(part, "w", encoding="utf-8", newline="") as file:
                if suffix == ".jsonl":
                    file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
                elif suffix == ".csv":
                    writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
                    writer.writeheader()
                    for row in rows:
                        if "words" in row:
                            row = row | {"words": json.dumps(row["words"], ensure_ascii=False)}
                        writer.writerow(row)
                else:
                    text_writer(file).writerows(text_cells(row, score) for row in rows)
