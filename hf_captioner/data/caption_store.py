"""Where the captions of a long run go, so that it can be stopped at any moment and go on."""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from enum import StrEnum
from pathlib import Path

from ..errors import InputError, shown
from ..files import replacing
from .caption_files import read_captions, write_captions
from .image_files import ImageFile, ImageFiles


class Existing(StrEnum):
    """What is done with an image that has a caption, in the output file or in the text file beside it."""

    skip = "skip"
    overwrite = "overwrite"
    append = "append"
    prepend = "prepend"

    def combine(self, old: str | None, new: str | None) -> str | None:
        """The caption to be written; a captioner that abstains (None) takes nothing away unless it is told to."""
        if not old or self is Existing.overwrite:
            return new
        if not new or self is Existing.skip:
            return old
        return f"{old} {new}" if self is Existing.append else f"{new} {old}"


def text_file(image: str) -> Path:
    """The text file that stands beside an image."""
    return Path(image).with_suffix(".txt")


def read_text(path: Path) -> str:
    """Of a text file, stripped; bytes that are not UTF-8 come back as they were when it is written."""
    return path.read_text("utf-8", "surrogateescape").strip() if path.exists() else ""


def write_text(path: Path, text: str) -> None:
    with replacing(path) as part:
        part.write_text(text + "\n", "utf-8", "surrogateescape")


_BEGINNING = b'{"settings": '  # of a file of progress, also where nothing else was written before the kill


class Progress:
    """
    What is done of a long work, as JSON lines that are only ever added: a work that was killed goes on from there.

    Args:
        path: of the file; a half-written last line is cut off.
        settings: on which the rows depend.

    Attributes:
        rows: those of earlier runs.

    Raises:
        InputError: if the file holds rows of other settings, or something else.
    """

    def __init__(self, path: Path, settings: dict):
        self.path = path
        if path.is_symlink():  # which a folder of somebody else's may hold
            raise InputError(f"{path} must be the progress of a run that was stopped, got a link")
        path.touch()
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        try:
            if not whole and not content.startswith(_BEGINNING[: len(content)]):
                raise ValueError(content[:80])
            lines = [json.loads(line) for line in whole.split(b"\n") if line]
            before = lines[0]["settings"] if lines else settings
            if not isinstance(before, dict) or not all(isinstance(row["image"], str) for row in lines[1:]):
                raise TypeError("other lines")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(f"{path} must be the progress of a run that was stopped, got {shown(error)}") from error
        for name, value in settings.items():
            if before.get(name) != value:
                raise InputError(
                    f"`{name}` must be as in the run that was stopped, {before.get(name)!r}, got {value!r}; without "
                    f"{path} it starts anew"
                )
        self.rows: list[dict] = lines[1:]
        os.truncate(path, len(whole))
        self._file = open(path, "a", encoding="ascii")  # noqa: SIM115
        # written with the first rows: a run that is refused before it has any does not bind the next one
        self._begin = [] if lines else [{"settings": settings}]

    def add(self, rows: Iterable[dict]) -> None:
        rows, self._begin = [*self._begin, *rows], []
        self._file.write("".join(json.dumps(row) + "\n" for row in rows))
        self._file.flush()

    def done(self) -> None:
        """The work is done, and saved elsewhere."""
        self._file.close()
        self.path.unlink()


class CaptionStore:
    """
    Takes captions to the output file, when all are there, and to the text files beside the images.

    What is to be written stands in a progress file first, the output's name with `.progress` at its end, or
    `.captions.progress` beside the first image: a run that was killed at any moment writes it once more and not twice.

    Args:
        images: all that the run is for.
        settings: on which the captions depend.
        existing: what is done with an image that has a caption where this run writes.
        output: a file of one of `caption_files.SUFFIXES`.
        sidecar: whether to write text files beside the images.
        score: whether text has the score.

    Attributes:
        rows: of this run, and of the stopped one that it goes on with, by the image's name.

    Raises:
        InputError: if the output or the progress file is of something else, or of a run with other settings.
    """

    def __init__(
        self,
        images: ImageFiles,
        settings: dict,
        existing: Existing,
        output: Path | None = None,
        sidecar: bool = False,
        score: bool = False,
    ):
        self.images, self.existing, self.output, self.sidecar, self.score = images, existing, output, sidecar, score
        self._before = {} if output is None else {row["image"]: row for row in read_captions(output)}
        self._progress = None
        if output is not None:
            output.parent.mkdir(parents=True, exist_ok=True)
            self._progress = Progress(output.with_name(f"{output.name}.progress"), settings)
        elif sidecar:
            folder = next((text_file(one.name).parent for one in images if os.path.isfile(one.name)), None)
            self._progress = None if folder is None else Progress(folder / ".captions.progress", settings)
        self.rows: dict[str, dict] = {row["image"]: row for row in self._progress.rows} if self._progress else {}
        for row in self.rows.values():
            self._write_beside(row)

    def missing(self, skipped: Callable[[], None]) -> Iterator[ImageFile]:
        """The images that are still to be captioned, in order; `skipped` is called for each other one."""
        owners: dict[Path, str] = {}
        for image in self.images:
            beside = text_file(image.name)
            owner = owners.setdefault(beside, image.name) if self.sidecar else image.name
            if image.name in self.rows:
                skipped()
            elif self.sidecar and beside == Path(image.name):
                yield replace(image, objection="its text file would be the image itself")
            elif owner != image.name:
                yield replace(image, objection=f"{beside} is the text file of {owner}")
            elif self.existing is Existing.skip and self._has_caption(image.name):
                skipped()
            else:
                yield image

    def add(self, rows: list[dict]) -> list[dict]:
        """Takes new rows, and gives them back with what the images had before."""
        rows = [self._combined(row) for row in rows]
        self.rows.update({row["image"]: row for row in rows})
        if self._progress:
            self._progress.add(rows)
        for row in rows:
            self._write_beside(row)
        return rows

    def finish(self) -> None:
        """Writes the output; rows of other images that it had are kept."""
        if self.output is not None:
            rows = dict(self._before)
            for name, row in self.rows.items():
                if rows.get(name, {}).get("caption") and ("error" in row or self.existing is Existing.skip):
                    continue  # an earlier caption is worth more than an error
                rows[name] = {key: value for key, value in row.items() if key != "beside"}
            write_captions(self.output, rows.values(), self.score)
        if self._progress:
            self._progress.done()

    def _has_caption(self, name: str) -> bool:
        """Wherever this run writes."""
        if self.output is None and not self.sidecar:
            return False
        in_output = self.output is None or bool(self._before.get(name, {}).get("caption"))
        return in_output and (not self.sidecar or bool(read_text(text_file(name))))

    def _combined(self, row: dict) -> dict:
        if "error" in row:
            return row
        if self.sidecar:
            beside = self.existing.combine(read_text(text_file(row["image"])), row["caption"])
            row = row | ({"beside": beside} if beside else {})
        old = self._before.get(row["image"], {}).get("caption")
        return row | {"caption": self.existing.combine(old, row["caption"])}

    def _write_beside(self, row: dict) -> None:
        if "beside" in row and read_text(text_file(row["image"])) != row["beside"]:
            write_text(text_file(row["image"]), row["beside"])
