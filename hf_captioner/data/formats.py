"""
Annotation files of published data sets and folders that people have, each read into rows by one small function.

A row is a dictionary with `file_name`, a path relative to a folder of images, `captions`, and whatever else there is.
"""

import csv
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError, shown

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
# Where images are, seen from the folder of their annotations, in the archives as they are published.
IMAGE_FOLDERS = ("images", "Images", "Flicker8k_Dataset", "Flickr8k_Dataset", "flickr8k", "flickr30k-images")
_TOKEN_LINE = re.compile(r"(?P<name>.+)#\d+\t(?P<caption>.*)")


# What is wrong with a row: its kind, as `validate` reports it, and a text with the place, the rule and the value.
Problem = tuple[str, str]
# What readers do with it. A loader refuses the first one; whoever collects them lets the reader go on without the row.
Report = Callable[[Problem], None]


def refuse(problem: Problem) -> None:
    """
    Raises:
        InputError: in any case.
    """
    raise InputError(problem[1])


@dataclass(frozen=True)
class Format:
    """
    Attributes:
        recognises: whether a file or folder has this format, from its name and the beginning of its content.
        read: its rows, of one split where it has several.
        has_splits: whether it may have several.
    """

    recognises: Callable[[Path], bool]
    read: Callable[[Path, str | None, Report], list[dict[str, Any]]]
    has_splits: bool = False


def read_text(path: Path) -> str:
    """
    Raises:
        InputError: if the file is empty or not UTF-8.
    """
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"`source` must be text in UTF-8, got {path} ({error})") from error
    if not text.strip():
        raise InputError(f"`source` must not be empty, got {path}")
    return text


def read_json(path: Path) -> Any:
    text = read_text(path)
    try:
        return json.loads(text)
    except ValueError as error:  # broken, or a number of more digits than Python converts
        raise InputError(f"`source` must be JSON, got {path} ({error})") from error
    except RecursionError as error:
        raise InputError(f"`source` must be JSON, got {path}, nested too deeply") from error


def lies_in(folder: Path, path: Path) -> bool:
    """
    Whether a file is in a folder, links resolved. The files of a download from the Hub are links out of their folder,
    `snapshots/REVISION`, into `blobs` beside it.
    """
    target = Path(os.path.realpath(path))  # which, other than `resolve()`, has an answer for a link to itself
    if target.is_relative_to(folder.resolve()):
        return True
    home = folder.resolve().parent
    blobs = home.with_name("blobs")
    return home.name == "snapshots" and blobs.resolve() == blobs and target.is_relative_to(blobs)


def _first_line(path: Path) -> str:
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        return file.readline().strip()


def _is_json(path: Path, *keys: str) -> bool:
    """Whether the file is one JSON object with these keys, judged by its text: it may be large and is read later."""
    if path.suffix.lower() != ".json" or not path.is_file():
        return False
    text = path.read_text("utf-8-sig", errors="replace")
    return text.lstrip().startswith("{") and all(f'"{key}"' in text for key in keys)


def _field(record: Any, name: str, kind: type | tuple[type, ...], where: str) -> Any:
    value = record.get(name) if isinstance(record, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        raise InputError(f"`{name}` of {where} must be {' or '.join(k.__name__ for k in kinds)}, got {shown(value)}")
    return value


def read_coco(path: Path, split: str | None, report: Report = refuse) -> list[dict[str, Any]]:
    """COCO's `captions_*.json` (Chen et al. 2015): `images`, and `annotations` that belong to them by `image_id`."""
    content = read_json(path)
    rows: dict[Any, dict] = {}
    for place, image in enumerate(_field(content, "images", list, str(path))):
        where = f"images[{place}] of {path}"
        number = _field(image, "id", (int, str), where)
        if number in rows:
            raise InputError(f"`id` of {where} must be another for every image, got {number!r} twice")
        rows[number] = {"file_name": _field(image, "file_name", str, where), "image_id": number, "captions": []}
    for place, annotation in enumerate(_field(content, "annotations", list, str(path))):
        where = f"annotations[{place}] of {path}"
        number = _field(annotation, "image_id", (int, str), where)
        if number not in rows:
            report(("row-unreadable", f"`image_id` of {where} must be one of `images`, got {number!r}"))
        elif not isinstance(annotation.get("caption"), str):
            message = f"`caption` of {where} must be text, got {annotation.get('caption')!r}"
            report(("caption-not-text", message))
        else:
            rows[number]["captions"].append(annotation["caption"])
    return list(rows.values())


def read_karpathy(path: Path, split: str | None, report: Report = refuse) -> list[dict[str, Any]]:
    """
    Karpathy and Fei-Fei's `dataset_*.json` (2015): `images` with `filename`, `split` and `sentences`. Several splits
    are joined by plus signs, as in `"train+restval"`.
    """
    images = _field(read_json(path), "images", list, str(path))
    splits = list(dict.fromkeys(_field(image, "split", str, f"images of {path}") for image in images))
    wanted = splits if split is None and len(splits) == 1 else (split or "").split("+")
    for name in wanted:
        if name not in splits:
            raise InputError(f"`split` of {path} must be one of {', '.join(splits)}, or several with +, got {split!r}")
    rows = []
    for place, image in enumerate(images):
        where = f"images[{place}] of {path}"
        if image["split"] in wanted:
            sentences = _field(image, "sentences", list, where)
            home = _field(image, "filepath", str, where) if image.get("filepath") else ""
            name = Path(home, _field(image, "filename", str, where))
            captions = [_field(sentence, "raw", str, f"sentences of {where}") for sentence in sentences]
            rows.append({"file_name": name.as_posix(), "captions": captions})
    return rows


def _grouped(pairs: Iterator[tuple[str, str]]) -> list[dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    for name, caption in pairs:
        rows.setdefault(name, {"file_name": name, "captions": []})["captions"].append(caption)
    return list(rows.values())


def read_flickr_token(path: Path, split: str | None, report: Report = refuse) -> list[dict[str, Any]]:
    """`Flickr8k.token.txt` and `results_20130124.token`: lines of `name.jpg#0`, a tab and a caption."""

    def pairs():
        for number, line in enumerate(read_text(path).splitlines(), start=1):
            if not line.strip():
                continue
            match = _TOKEN_LINE.fullmatch(line)
            if match is None:
                message = f"line {number} of {path} must be name.jpg#0, a tab and a caption, got {line[:80]!r}"
                report(("row-unreadable", message))
                continue
            # The published file of Flickr8k has captions of a "....jpg.1" that is no image.
            if match["name"].lower().endswith(IMAGE_SUFFIXES):
                yield match["name"], match["caption"]

    return _grouped(pairs())


def read_flickr_csv(path: Path, split: str | None, report: Report = refuse) -> list[dict[str, Any]]:
    """Flickr8k's and Flickr30k's `captions.txt`: comma-separated with the header `image,caption`."""
    reader = csv.reader(read_text(path).splitlines()[1:], strict=True)

    def pairs():
        try:
            for number, cells in enumerate(reader, start=2):
                if not cells:
                    continue
                if len(cells) < 2:
                    report(
                        ("row-unreadable", f"line {number} of {path} must be an image and a caption, got {cells!r}")
                    )
                    continue
                yield cells[0], ",".join(cells[1:])  # some captions have commas and no quotes
        except csv.Error as error:
            raise InputError(f"line {reader.line_num + 1} of {path} must be comma-separated text ({error})") from error

    return _grouped(pairs())


def images_below(folder: Path) -> list[Path]:
    """All image files in a folder and below it, in the order of their names."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())


def read_texts_beside(folder: Path, split: str | None, report: Report = refuse) -> list[dict[str, Any]]:
    """A folder of images with a `.txt` beside each, one caption a line."""
    rows = []
    for image in images_below(folder):
        text = image.with_suffix(".txt")
        if not text.is_file():
            message = f"every image of {folder} must have a text beside it, got {image} without {text.name}"
            report(("caption-missing", message))
            continue
        if not lies_in(folder, text):
            report(("row-unreadable", f"{text} must lie inside {folder}, got a link to {text.resolve()}"))
            continue
        try:
            captions = [line.strip() for line in read_text(text).splitlines() if line.strip()]
        except InputError as error:
            report(("caption-empty", str(error)))
            continue
        rows.append({"file_name": image.relative_to(folder).as_posix(), "captions": captions})
    return rows


# In the order in which they are tried.
FORMATS = {
    "karpathy": Format(lambda path: _is_json(path, "images", "sentences"), read_karpathy, has_splits=True),
    "coco": Format(lambda path: _is_json(path, "images", "annotations"), read_coco),
    "flickr_token": Format(
        lambda path: path.suffix in (".txt", ".token") and bool(_TOKEN_LINE.fullmatch(_first_line(path))),
        read_flickr_token,
    ),
    "flickr_csv": Format(
        lambda path: path.suffix == ".txt" and _first_line(path).replace(" ", "") == "image,caption", read_flickr_csv
    ),
    "text_files": Format(
        lambda path: path.is_dir() and any(image.with_suffix(".txt").is_file() for image in images_below(path)),
        read_texts_beside,
    ),
}


def find_images(source: Path, first: str, image_folder: str | None) -> Path:
    """
    The folder that an annotation file's paths are relative to: the one that is named, or the first that has the first
    image of the file's own folder, of those in it that published archives have, and of those named in `IMAGE_FOLDERS`.

    Raises:
        InputError: if there is no such folder, or none has the image.
    """
    if image_folder is not None:
        if not Path(image_folder).is_dir():
            raise InputError(f"`image_folder` must be a folder, got {image_folder!r}")
        return Path(image_folder)
    home = source if source.is_dir() else source.parent
    # COCO: annotations/captions_val2017.json beside val2017/
    published = [home.parent / part for part in re.findall(r"(?:train|val|test)\d{4}", source.name)]
    for folder in (home, *published, *(home / name for name in IMAGE_FOLDERS)):
        if (folder / first).is_file():
            return folder
    raise InputError(f"`image_folder` must be named: {shown(first)} of {source} is not in {home}")
