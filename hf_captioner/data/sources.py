"""Where images and captions come from: one function, one shape of data set."""

import copy
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, Features, List, Value, load_dataset, load_from_disk

from ..errors import InputError, listed, shown
from .formats import FORMATS, Problem, Report, find_images, lies_in, read_json, refuse
from .image_column import absolute_paths, image_paths, image_problems, path_problem, where
from .reading import NamedImage
from .shapes import shapes_dataset
from .tables import TABLE_LOADERS, loaded, read_shards, read_table

CAPTION_FILES = ("metadata", "captions")  # names of the table in an image folder
IMAGE_COLUMNS = ("image", "file_name", "image_path", "filename", "path", "img", "jpg", "jpeg", "png", "webp")
CAPTION_COLUMNS = ("captions", "caption", "sentences", "text", "raw", "txt")
SHARD_FIELDS = (*CAPTION_COLUMNS, "image_id")  # of a webdataset's .json
FORMAT_NAMES = ", ".join((*FORMATS, "table", "webdataset"))


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
        return _undecoded(_pick_split(loaded(source, load_dataset, source), source, split)), None
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
        return read_shards(path, shards, SHARD_FIELDS), given
    if path.is_file():
        _without_splits(path, split)
        if path.suffix.lower() not in TABLE_LOADERS:
            raise InputError(f"`source` must be a table ({', '.join(TABLE_LOADERS)}), got {path}")
        return read_table([path], report), given
    if (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
        _check_saved(path)
        return _pick_split(loaded(str(path), load_from_disk, str(path)), str(path), split), given
    for name in CAPTION_FILES:
        for suffix in TABLE_LOADERS:
            table = path / f"{name}{suffix}"
            if table.is_file():
                _check_inside(path, table)
                for kind, candidate in FORMATS.items():
                    if format is None and candidate.recognises(table):
                        return _open_format(table, split, kind, image_folder, report)
                _without_splits(path, split)
                return read_table([table], report), given
    if parquet := _files_in(path, "*.parquet"):
        _without_splits(path, split)
        return read_table(parquet, report), given
    if shards:
        _without_splits(path, split)
        return read_shards(path, shards, SHARD_FIELDS), given
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


def _merge_rows_of_an_image(dataset, captions, paths):
    first: dict[str, int] = {}
    for row, path in enumerate(paths):
        keeper = first.setdefault(path, row)
        if keeper != row:
            captions[keeper] = captions[keeper] + captions[row]
    rows = list(first.values())
    return dataset.select(rows), [captions[row] for row in rows], [paths[row] for row in rows]
