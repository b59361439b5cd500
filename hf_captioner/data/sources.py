"""Where images and captions come from: one function, one shape of data set."""

import copy
import csv
import glob
import io
import json
import os
import posixpath
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow
from datasets import Dataset, DatasetDict, Features, Image, List, Value, load_dataset, load_from_disk
from datasets.exceptions import DatasetGenerationError
from tqdm.auto import tqdm

from ..errors import InputError, brief, listed, shown
from .formats import FORMATS, Problem, Report, find_images, lies_in, read_json, read_text, refuse
from .reading import NamedImage, decode_image, undecoded
from .shapes import shapes_dataset

TABLE_LOADERS = {".parquet": "parquet", ".csv": "csv", ".tsv": "csv", ".txt": "csv", ".json": "json", ".jsonl": "json"}
CAPTION_FILES = ("metadata", "captions")  # names of the table in an image folder
IMAGE_COLUMNS = ("image", "file_name", "image_path", "filename", "path", "img", "jpg", "jpeg", "png", "webp")
CAPTION_COLUMNS = ("captions", "caption", "sentences", "text", "raw", "txt")
FORMAT_NAMES = ", ".join((*FORMATS, "table", "webdataset"))
# Of webdataset shards: their keys of bookkeeping.
_SHARD_COLUMNS = ("__key__", "__url__")


def load_captions(
    source: str,
    split: str | None = None,
    image_column: str | None = None,
    caption_columns: Sequence[str] | None = None,
    check_images: bool = True,
    format: str | None = None,
    image_folder: str | None = None,
    left_out: list[str] | None = None,
) -> Dataset:
    """
    Loads images and captions into one shape: a column `image`, a column `captions` (a list of texts), and whatever
    other columns the source has.

    Args:
        source: one of
            - `"shapes:rows=6000,seed=0"`: the generated [`shapes_dataset`];
            - a Parquet, CSV, TSV, JSON or JSON-lines table; images are bytes in it or paths relative to it, and rows
              of the same path become one image with several captions;
            - COCO's `captions_*.json`, Karpathy's `dataset_*.json`, Flickr8k's `captions.txt` or `Flickr8k.token.txt`;
            - a folder of images with a table named `metadata.*` or `captions.*`, or with a `.txt` beside each image,
              one caption a line; a folder of Parquet files, of webdataset shards (`.tar`), or one that
              `Dataset.save_to_disk` wrote; a single `.tar`;
            - the name of a data set on the Hub.
        split: for sources with several splits.
        image_column: by default the first there is of `IMAGE_COLUMNS`.
        caption_columns: one or several, each text or a list of texts, empty cells (null) left out; by default the
            first there is of `CAPTION_COLUMNS`.
        check_images: whether to decode every image now rather than find a broken one in the middle of training.
        format: one of `FORMATS`, `"table"` or `"webdataset"`; told from the content by default.
        image_folder: the folder that paths are relative to, by default that of the source.
        left_out: if it is given, rows whose image is missing, lies outside the data folder or cannot be read are left
            out, and what is wrong with each is added to this list. By default the first of them is an error.

    Nothing is fetched and no file outside the data folder is read, whatever a table says: a column of paths is one of
    files in the folder, and other columns of images, sounds or films are given as they are stored, undecoded.

    Raises:
        InputError: if the source cannot be read, there is no such column, a caption is empty or not text, an image
            cannot be read or lies outside the data folder; the message names the file or column, the row and the
            value.
        FileNotFoundError: if a local path does not exist.

    Examples:
        >>> import json
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from hf_captioner.data import load_captions
        >>> Image.new("RGB", (64, 48), "red").save("wall.png")
        >>> row = {"image": "wall.png", "captions": ["a red wall", "nothing but red"]}
        >>> _ = Path("walls.jsonl").write_text(json.dumps(row))
        >>> data = load_captions("walls.jsonl")
        >>> data[0]["image"].size, data[0]["captions"]
        ((64, 48), ['a red wall', 'nothing but red'])
    """
    dataset, folder = open_source(source, split, format, image_folder)
    image_column, caption_columns = find_columns(dataset, source, image_column, caption_columns)
    captions, problems = collect_captions(dataset, source, caption_columns)
    _refuse_any(problems)
    paths = image_paths(dataset, source, image_column)
    if paths is not None:
        if folder is None:
            raise InputError(f"`{image_column}` of {source} must hold images, got paths: {paths[0]!r}")
        named = [(path, where(image_column, row, source)) for row, path in enumerate(paths)]
        good = _good_rows([path_problem(folder, path, name) for path, name in named], left_out)
        if len(good) < len(paths):
            dataset = dataset.select(good)
            captions, paths = [captions[row] for row in good], [paths[row] for row in good]
        dataset, captions, paths = _merge_rows_of_an_image(dataset, captions, paths)
    replaced = {*caption_columns, "captions"} | ({image_column} if paths is not None else set())
    kept = [column for column in dataset.column_names if column not in replaced]
    feature = List(Value("string"))
    if kept:
        dataset = dataset.select_columns(kept).add_column("captions", captions, feature=feature)
    else:  # a data set without columns has no rows either
        dataset = Dataset.from_dict({"captions": captions}, features=Features({"captions": feature}))
    if paths is not None and folder is not None:
        if image_column in ("image", "file_name") and "file_name" not in kept:
            dataset = dataset.add_column("file_name", paths)
        dataset = dataset.add_column("image", absolute_paths(folder, paths))
    elif image_column != "image":
        dataset = dataset.rename_column(image_column, "image")
    dataset = dataset.cast_column("image", NamedImage())
    if check_images:
        found = image_problems(dataset, source)
        if left_out is None:
            _refuse_any(problem for _, problem in found)
        else:
            unread = dict(found)
            dataset = dataset.select(_good_rows([unread.get(row) for row in range(len(dataset))], left_out))
    if not len(dataset):
        raise InputError(f"`source` must have at least one image that can be read, got none in {source}")
    return dataset


def _good_rows(problems: list[Problem | None], left_out: list[str] | None) -> list[int]:
    """The rows without a problem; the others are refused, or left out and noted."""
    if left_out is None:
        _refuse_any(problems)
    else:
        left_out.extend(problem[1] for problem in problems if problem is not None)
    return [row for row, problem in enumerate(problems) if problem is None]


def where(column: str, row: int, source: str) -> str:
    return f"`{column}[{row}]` of {source}"


def _refuse_any(problems: Iterable[Problem | None]) -> None:
    for problem in problems:
        if problem is not None:
            refuse(problem)


def open_source(
    source: str,
    split: str | None = None,
    format: str | None = None,
    image_folder: str | None = None,
    report: Report = refuse,
) -> tuple[Dataset, Path | None]:
    """
    The raw table of a source, and the folder that its paths are relative to; `None` for images from elsewhere.

    Raises:
        InputError, FileNotFoundError: as [`load_captions`].
    """
    if format is not None and format not in FORMAT_NAMES.split(", "):
        raise InputError(f"`format` must be one of {FORMAT_NAMES}, got {format!r}")
    if source.split(":")[0] == "shapes":
        return shapes_dataset(**_shapes_settings(source)), None
    path = Path(source)
    try:
        exists = bool(source) and path.exists()
    except (OSError, ValueError) as error:  # too long, or with a NUL
        raise InputError(f"`source` must be a path or the name of a data set, got {shown(source)}") from error
    if not exists:
        if path.is_absolute() or source.startswith((".", "~")) or path.suffix.lower() in (*TABLE_LOADERS, ".tar"):
            raise FileNotFoundError(f"`source` does not exist: {source}")
        if not source:
            raise InputError(f"`source` must be a path or the name of a data set, got {source!r}")
        return _undecoded(_pick_split(_loaded(source, load_dataset, source), source, split)), None
    dataset, folder = _open_path(path, split, format, image_folder, report)
    if not len(dataset):
        raise InputError(f"`source` must have at least one row, got none in {source}")
    return _undecoded(dataset), folder


def _undecoded(dataset: Dataset) -> Dataset:
    """
    With columns of images, sounds and films as they are stored: decoding a cell without bytes would read whatever file
    or address it names. The images of [`load_captions`] are decoded when their paths have been checked.
    """

    def plain(feature: Any) -> Any:
        if isinstance(feature, dict):
            return {name: plain(part) for name, part in feature.items()}
        if isinstance(feature, list):
            return [plain(part) for part in feature]
        feature = copy.copy(feature)
        if getattr(feature, "decode", False) is True:
            feature.decode = False
        if hasattr(feature, "feature"):  # lists
            feature.feature = plain(feature.feature)
        return feature

    features = Features({name: plain(feature) for name, feature in dataset.features.items()})
    return dataset if features == dataset.features else dataset.cast(features)


def _open_path(
    path: Path, split: str | None, format: str | None, image_folder: str | None, report: Report
) -> tuple[Dataset, Path]:
    home = path if path.is_dir() else path.parent
    given = home if image_folder is None else find_images(path, "", image_folder)
    if format not in (None, "table", "webdataset"):
        return _open_format(path, split, format, image_folder, report)
    if format is None and path.is_file():
        for name, candidate in FORMATS.items():
            if candidate.recognises(path):
                return _open_format(path, split, name, image_folder, report)
    shards = _files_in(path, "*.tar") if path.is_dir() else [path] if path.suffix.lower() == ".tar" else []
    if format == "webdataset" or (path.is_file() and shards):
        _without_splits(path, split)
        return _read_shards(path, shards), given
    if path.is_file():
        _without_splits(path, split)
        if path.suffix.lower() not in TABLE_LOADERS:
            raise InputError(f"`source` must be a table ({', '.join(TABLE_LOADERS)}), got {path}")
        return _read_table([path], report), given
    if (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
        _check_saved(path)
        return _pick_split(_loaded(str(path), load_from_disk, str(path)), str(path), split), given
    for name in CAPTION_FILES:
        for suffix in TABLE_LOADERS:
            table = path / f"{name}{suffix}"
            if table.is_file():
                _check_inside(path, table)
                for kind, candidate in FORMATS.items():
                    if format is None and candidate.recognises(table):
                        return _open_format(table, split, kind, image_folder, report)
                _without_splits(path, split)
                return _read_table([table], report), given
    if parquet := _files_in(path, "*.parquet"):
        _without_splits(path, split)
        return _read_table(parquet, report), given
    if shards:
        _without_splits(path, split)
        return _read_shards(path, shards), given
    if format is None and FORMATS["text_files"].recognises(path):
        return _open_format(path, split, "text_files", image_folder, report)
    raise InputError(
        "`source` must hold a table named metadata.* or captions.*, Parquet files, tar shards, a saved data set, or "
        f"images with a .txt beside each, got {path}"
    )


def _files_in(folder: Path, pattern: str) -> list[Path]:
    found = sorted(path for path in folder.rglob(pattern) if path.is_file())
    for path in found:
        _check_inside(folder, path)
    return found


def _check_inside(folder: Path, path: Path) -> None:
    if not lies_in(folder, path):
        raise InputError(f"`source` must hold files that lie inside {folder}, got {path}, which leads out of it")


def _check_saved(folder: Path) -> None:
    """The files of `Dataset.save_to_disk` name others, which `load_from_disk` reads wherever they are."""
    parts = [folder]
    if (folder / "dataset_dict.json").exists():
        names = [str(name) for name in _entries(folder / "dataset_dict.json", "splits")]
        parts = [folder / name for name in names]
    for part in parts:
        _check_inside(folder, part)
        for entry in _entries(part / "state.json", "_data_files"):
            _check_inside(folder, part / str(entry.get("filename") if isinstance(entry, dict) else entry))


def _entries(path: Path, name: str) -> list:
    """A list in one of the files of a saved data set."""
    if not path.is_file():
        raise InputError(f"`source` must be what Dataset.save_to_disk writes, got {path.parent} without {path.name}")
    content = read_json(path)
    found = content.get(name) if isinstance(content, dict) else None
    if not isinstance(found, list):
        raise InputError(f"`{name}` of {path} must be a list, got {shown(found)}")
    return found


def _without_splits(path: Path, split: str | None) -> None:
    if split is not None:
        raise InputError(f"`split` must be left out, for {path} has no splits, got {split!r}")


def _open_format(
    path: Path, split: str | None, name: str, image_folder: str | None, report: Report
) -> tuple[Dataset, Path]:
    if not FORMATS[name].has_splits:
        _without_splits(path, split)
    rows = FORMATS[name].read(path, split, report)
    if not rows:
        raise InputError(f"`source` must have at least one row, got none in {path}")
    folder = find_images(path, rows[0]["file_name"], image_folder)
    return Dataset.from_dict({column: [row[column] for row in rows] for column in rows[0]}), folder


def _shapes_settings(source: str) -> dict[str, int]:
    if not re.fullmatch(r"shapes:rows=\d+(,seed=\d+)?", source):
        raise InputError(f"`source` must be like shapes:rows=6000,seed=0, got {source}")
    return {name: int(value) for name, value in (pair.split("=") for pair in source.split(":")[1].split(","))}


def _loaded(source: str, load, *args, **kwargs):
    """What a function of `datasets` returns; its errors name the source and their first cause."""
    try:
        return load(*args, **kwargs)
    except (OSError, ValueError, DatasetGenerationError, pyarrow.ArrowException, tarfile.TarError) as error:
        cause: BaseException = error
        while isinstance(cause, DatasetGenerationError) and cause.__cause__ is not None:
            cause = cause.__cause__
        raise InputError(
            f"`source` must be data that can be read, got {source} ({type(cause).__name__}: {brief(cause)})"
        ) from error


def _read_table(paths: list[Path], report: Report) -> Dataset:
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
            return _loaded(str(path), Dataset.from_dict, columns)
        # "NA" and "null" are texts like others; only an empty cell is a missing one.
        options = {"sep": separator, "keep_default_na": False, "na_values": [""], "index_col": False}
    names = ", ".join(str(path) for path in paths[:3])
    files = [glob.escape(str(path)) for path in paths]
    return _loaded(names, load_dataset, kind, data_files=files, split="train", **options)


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


def _read_shards(path: Path, shards: list[Path]) -> Dataset:
    """webdataset: members of a tar file whose names differ in their ending alone are one row."""
    if not shards:
        raise InputError(f"`source` must hold tar files, got {path}")
    files = [str(shard) for shard in shards]
    dataset = _loaded(str(path), load_dataset, "webdataset", data_files=files, split="train")
    if "json" in dataset.column_names:
        for name in dataset.features["json"]:
            if name in (*CAPTION_COLUMNS, "image_id"):
                dataset = dataset.add_column(name, [cell[name] for cell in dataset["json"][:]])
        dataset = dataset.remove_columns("json")
    if "txt" in dataset.column_names:
        texts = [[line for line in (text or "").splitlines() if line.strip()] for text in dataset["txt"][:]]
        dataset = dataset.remove_columns("txt").add_column("txt", texts)
    return dataset.remove_columns([name for name in _SHARD_COLUMNS if name in dataset.column_names])


def _pick_split(dataset: Dataset | DatasetDict, source: str, split: str | None) -> Dataset:
    if isinstance(dataset, Dataset):
        return dataset
    if split is None and len(dataset) == 1:
        (split,) = dataset
    if split not in dataset:
        raise InputError(f"`split` of {source} must be one of {', '.join(dataset)}, got {split!r}")
    return dataset[split]


def find_columns(
    dataset: Dataset, source: str, image_column: str | None, caption_columns: Sequence[str] | None
) -> tuple[str, list[str]]:
    """
    The columns of images and captions, those that are named or the first there are of their usual names.

    Raises:
        InputError: if there is none.
    """
    image = _find_column(dataset, source, "image_column", image_column, IMAGE_COLUMNS)
    names = [None] if caption_columns is None else caption_columns
    return image, [_find_column(dataset, source, "caption_columns", name, CAPTION_COLUMNS) for name in names]


def _find_column(dataset, source: str, field: str, wanted: str | None, known: Sequence[str]) -> str:
    present = dataset.column_names
    if wanted is not None:
        if wanted not in present:
            raise InputError(f"`{field}` of {source} must be one of {listed(present)}, got {wanted!r}")
        return wanted
    for name in known:
        if name in present:
            return name
    raise InputError(f"`{field}` must be named: {source} has none of {', '.join(known)}, but {listed(present)}")


def collect_captions(dataset: Dataset, source: str, columns: Sequence[str]) -> tuple[list[list[str]], list[Problem]]:
    """The captions of every row, and what is wrong with some of them."""
    captions: list[list[str]] = [[] for _ in range(len(dataset))]
    faulty: set[int] = set()
    problems = []
    for column in columns:
        for row, cell in enumerate(dataset[column][:]):
            for text in [] if cell is None else cell if isinstance(cell, list) else [cell]:
                if isinstance(text, str) and text.strip():
                    captions[row].append(text)
                    continue
                faulty.add(row)
                kind = "caption-empty" if isinstance(text, str) else "caption-not-text"
                problems.append(
                    (kind, f"{where(column, row, source)} must be text that is not empty, got {shown(text)}")
                )
    names = ", ".join(columns)
    for row, texts in enumerate(captions):
        if not texts and row not in faulty:
            message = f"`{names}` of {source} must hold a caption in every row, row {row} has none"
            problems.append(("caption-missing", message))
    return captions, problems


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


def _merge_rows_of_an_image(dataset, captions, paths):
    first: dict[str, int] = {}
    for row, path in enumerate(paths):
        keeper = first.setdefault(path, row)
        if keeper != row:
            captions[keeper] = captions[keeper] + captions[row]
    rows = list(first.values())
    return dataset.select(rows), [captions[row] for row in rows], [paths[row] for row in rows]


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
