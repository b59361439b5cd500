"""Where images and captions come from: one function, one shape of data set."""

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from datasets import Dataset, DatasetDict, Image, List, Value, load_dataset, load_from_disk
from PIL import Image as PILImage
from tqdm.auto import tqdm

from .shapes import shapes_dataset

TABLE_LOADERS = {".parquet": "parquet", ".csv": "csv", ".tsv": "csv", ".txt": "csv", ".json": "json", ".jsonl": "json"}
CAPTION_FILES = ("metadata", "captions")  # names of the table in an image folder
IMAGE_COLUMNS = ("image", "file_name", "image_path", "filename", "path", "img")
CAPTION_COLUMNS = ("captions", "caption", "sentences", "text", "raw")


def load_captions(
    source: str,
    split: str | None = None,
    image_column: str | None = None,
    caption_columns: Sequence[str] | None = None,
    check_images: bool = True,
) -> Dataset:
    """
    Loads images and captions into one shape: a column `image`, a column `captions` (a list of texts), and whatever
    other columns the source has.

    Args:
        source: one of
            - `"shapes:rows=6000,seed=0"`: the generated [`shapes_dataset`];
            - a Parquet, CSV, TSV, JSON or JSON-lines table; images are bytes in it or paths relative to it, and rows
              of the same path become one image with several captions;
            - a folder of images with such a table named `metadata.*` or `captions.*`, a folder of Parquet files, or
              one that `Dataset.save_to_disk` wrote;
            - the name of a data set on the Hub.
        split: for the Hub and saved folders with several splits.
        image_column: by default the first there is of `IMAGE_COLUMNS`.
        caption_columns: one or several, each text or a list of texts, empty cells (null) left out; by default the
            first there is of `CAPTION_COLUMNS`.
        check_images: whether to decode every image now rather than find a broken one in the middle of training.

    Raises:
        ValueError: if there is no such column, a caption is empty or not text, an image cannot be read or lies
            outside the data folder; the message names the column, the row and the value.
        FileNotFoundError: if a local path does not exist.
    """
    dataset, folder = _open(source, split)
    image_column = _find_column(dataset, source, "image_column", image_column, IMAGE_COLUMNS)
    if caption_columns is None:
        caption_columns = [_find_column(dataset, source, "caption_columns", None, CAPTION_COLUMNS)]
    else:
        caption_columns = [
            _find_column(dataset, source, "caption_columns", column, CAPTION_COLUMNS) for column in caption_columns
        ]
    captions = _collect_captions(dataset, source, caption_columns)
    paths = None
    if isinstance(dataset.features[image_column], Value) and dataset.features[image_column].dtype.endswith("string"):
        paths = dataset[image_column][:]
        dataset, captions, paths = _merge_rows_of_an_image(dataset, captions, paths)
    dataset = dataset.remove_columns([column for column in {*caption_columns, "captions"} & {*dataset.column_names}])
    dataset = dataset.add_column("captions", captions, feature=List(Value("string")))
    if paths is not None:
        if folder is None:
            raise ValueError(f"`{image_column}` of {source} must hold images, got paths: {paths[0]!r}")
        absolute = [_inside(folder, path, f"`{image_column}[{row}]` of {source}") for row, path in enumerate(paths)]
        dataset = dataset.rename_column(image_column, "file_name") if image_column == "image" else dataset
        dataset = dataset.add_column("image", absolute)
    elif image_column != "image":
        dataset = dataset.rename_column(image_column, "image")
    dataset = dataset.cast_column("image", Image())
    if check_images:
        _check_images(dataset, source)
    return dataset


def _open(source: str, split: str | None) -> tuple[Dataset, Path | None]:
    """The raw table, and the folder that its paths are relative to."""
    if source.split(":")[0] == "shapes":
        return shapes_dataset(**_shapes_settings(source)), None
    path = Path(source)
    if path.is_file():
        if path.suffix not in TABLE_LOADERS:
            raise ValueError(f"`source` must be a table ({', '.join(TABLE_LOADERS)}), got {source}")
        return _read_table([path]), path.parent
    if path.is_dir():
        if (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
            return _pick_split(load_from_disk(source), source, split), path
        for name in CAPTION_FILES:
            for suffix in TABLE_LOADERS:
                if (path / f"{name}{suffix}").is_file():
                    return _read_table([path / f"{name}{suffix}"]), path
        parquet = sorted(path.rglob("*.parquet"))
        if parquet:
            return _read_table(parquet), path
        raise ValueError(
            "`source` must hold a table named metadata.* or captions.*, Parquet files or a saved data set, "
            f"got {source}"
        )
    if path.is_absolute() or source.startswith((".", "~")) or path.suffix in TABLE_LOADERS:
        raise FileNotFoundError(f"`source` does not exist: {source}")
    return _pick_split(load_dataset(source), source, split), None


def _shapes_settings(source: str) -> dict[str, int]:
    if not re.fullmatch(r"shapes:rows=\d+(,seed=\d+)?", source):
        raise ValueError(f"`source` must be like shapes:rows=6000,seed=0, got {source}")
    return {name: int(value) for name, value in (pair.split("=") for pair in source.split(":")[1].split(","))}


def _read_table(paths: list[Path]) -> Dataset:
    options = {"sep": "\t"} if paths[0].suffix == ".tsv" else {}
    files = [str(path) for path in paths]
    return load_dataset(TABLE_LOADERS[paths[0].suffix], data_files=files, split="train", **options)


def _pick_split(dataset: Dataset | DatasetDict, source: str, split: str | None) -> Dataset:
    if isinstance(dataset, Dataset):
        return dataset
    if split is None and len(dataset) == 1:
        (split,) = dataset
    if split not in dataset:
        raise ValueError(f"`split` of {source} must be one of {', '.join(dataset)}, got {split!r}")
    return dataset[split]


def _find_column(dataset, source: str, field: str, wanted: str | None, known: Sequence[str]) -> str:
    present = dataset.column_names
    if wanted is not None:
        if wanted not in present:
            raise ValueError(f"`{field}` of {source} must be one of {', '.join(present)}, got {wanted!r}")
        return wanted
    for name in known:
        if name in present:
            return name
    raise ValueError(f"`{field}` must be named: {source} has none of {', '.join(known)}, but {', '.join(present)}")


def _collect_captions(dataset, source: str, columns: Sequence[str]) -> list[list[str]]:
    captions: list[list[str]] = [[] for _ in range(len(dataset))]
    for column in columns:
        for row, cell in enumerate(dataset[column][:]):
            if cell is None:
                continue
            for text in cell if isinstance(cell, list) else [cell]:
                if not isinstance(text, str) or not text.strip():
                    raise ValueError(f"`{column}[{row}]` of {source} must be text that is not empty, got {text!r}")
                captions[row].append(text)
    for row, texts in enumerate(captions):
        if not texts:
            raise ValueError(
                f"`{', '.join(columns)}` of {source} must hold a caption in every row, row {row} has none"
            )
    return captions


def _merge_rows_of_an_image(dataset, captions, paths):
    first: dict[str, int] = {}
    for row, path in enumerate(paths):
        keeper = first.setdefault(path, row)
        if keeper != row:
            captions[keeper] = captions[keeper] + captions[row]
    rows = list(first.values())
    return dataset.select(rows), [captions[row] for row in rows], [paths[row] for row in rows]


def _inside(folder: Path, path: str, what: str) -> str:
    """The file's absolute path, links resolved, if it lies in the folder."""
    if not path:
        raise ValueError(f"{what} must be a path, got {path!r}")
    root = folder.resolve()
    resolved = (root / path).resolve()
    if not resolved.is_relative_to(root):
        raise ValueError(f"{what} must lie inside {folder}, got {path!r}")
    if not resolved.is_file():
        raise ValueError(f"{what} must be a file in {folder}, got {path!r}")
    return str(resolved)


def _check_images(dataset: Dataset, source: str) -> None:
    raw = dataset.select_columns(["image"]).cast_column("image", Image(decode=False))

    def problem(row: int) -> str | None:
        image = raw[row]["image"]
        if image is None:
            return "no image"
        try:
            Image().decode_example(image)
        except (OSError, SyntaxError, ValueError, PILImage.DecompressionBombError) as error:
            name = image["path"] or f"{len(image['bytes'] or b'')} bytes"
            return f"{name} ({error})".replace("\n", " ")
        return None

    with ThreadPoolExecutor() as pool:
        results = pool.map(problem, range(len(raw)), chunksize=64)
        for row, found in enumerate(tqdm(results, total=len(raw), desc="checking images", unit="image", leave=False)):
            if found is not None:
                pool.shutdown(cancel_futures=True)
                raise ValueError(f"`image[{row}]` of {source} must be an image that can be read, got {found}")
