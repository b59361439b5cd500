"""
Everything about a source of images and captions that a training would trip over, found in one run.

Loading stops at the first fault. Here every row is looked at, and what is found is a list, with tables of the words
and an estimate of the time and disk that training takes.
"""

import hashlib
import io
import time
from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset, Image
from tqdm.auto import tqdm

from ..errors import InputError
from ..files import open_picture
from .duplicates import Pictures, difference_hash
from .formats import Problem
from .image_column import absolute_paths, image_paths, image_problems, path_problem, where
from .sources import collect_captions, find_columns, open_source

SMALLEST_SIDE = 32  # pixels; a vision model sees one or two regions of such an image
LONGEST_CAPTION = 60  # words; the tokenizer cuts captions after 64 tokens
MIN_FREQUENCIES = (1, 2, 3, 5, 10)
SAMPLE = 64  # images that are timed
FEATURE_BYTES = 49 * 2048 * 4  # of an image: 7 x 7 regions of a ResNet-50 in single precision


@dataclass(frozen=True)
class Defect:
    """
    Attributes:
        kind: such as `"image-missing"`.
        source: in which it is.
        message: the place, the rule and the value.
    """

    kind: str
    source: str
    message: str


@dataclass
class Report:
    """
    Attributes:
        defects: all that were found.
        sources: of each source `images`, `captions`, and `words` (mean a caption).
        lengths: number of captions by their number of words.
        vocabulary: for each minimum frequency the number of `words` that are kept, and the share of words in captions
            that are `unknown` then: in the training source, and in the evaluation's if there is one.
        estimates: `seconds_reading` an epoch of the first source on one core, measured on a sample, and
            `feature_cache_gb` for regions of a ResNet-50.
    """

    defects: list[Defect] = field(default_factory=list)
    sources: dict[str, dict[str, float]] = field(default_factory=dict)
    lengths: dict[int, int] = field(default_factory=dict)
    vocabulary: list[dict[str, float]] = field(default_factory=list)
    estimates: dict[str, float] = field(default_factory=dict)

    def add(self, source: str, *problems: Problem) -> None:
        """Adds what is wrong in a source."""
        self.defects += [Defect(kind, source, message) for kind, message in problems]

    def to_dict(self) -> dict[str, Any]:
        """What `json.dumps` takes."""
        return asdict(self)

    def text(self) -> str:
        """The report for people."""
        lines = [f"{defect.kind:>18}  {defect.message}" for defect in self.defects]
        lines += [f"\n{len(self.defects)} defects" if self.defects else "no defects"]
        for name, found in self.sources.items():
            lines.append(
                f"{name}: {found['images']:.0f} images, {found['captions']:.0f} captions of {found['words']:.1f} words"
            )
        if self.vocabulary:
            lines.append("\nmin_frequency  words  unknown in training  in evaluation")
            for row in self.vocabulary:
                unknown = f"{100 * row['unknown']:18.2f} %"
                unseen = f"{100 * row['unknown_evaluation']:11.2f} %" if "unknown_evaluation" in row else ""
                lines.append(f"{row['min_frequency']:13.0f} {row['words']:6.0f} {unknown} {unseen}")
        if self.lengths:
            lines.append("\nwords  captions")
            lines += [f"{length:5d} {count:9d}" for length, count in self.lengths.items()]
        for name, value in self.estimates.items():
            lines.append(f"{name}: {value:.3g}")
        return "\n".join(lines)


def validate(
    source: str,
    evaluation: str | None = None,
    *,
    split: str | None = None,
    evaluation_split: str | None = None,
    image_column: str | None = None,
    caption_columns: Sequence[str] | None = None,
    format: str | None = None,
    image_folder: str | None = None,
) -> Report:
    """
    Finds everything that is wrong with a source of images and captions, and counts what is in it. What is wrong is
    reported, not raised.

    Args:
        source: training data, as for [`load_captions`].
        evaluation: data that must not have images of the training data.
        split, evaluation_split, image_column, caption_columns, format, image_folder: as for [`load_captions`].

    Returns:
        all defects, and the tables. Kinds of defects: `source` (it cannot be read at all), `row-unreadable`,
        `columns-disagree` (a row has more or fewer fields than the header), `caption-empty`,
        `caption-not-text`, `caption-missing`, `caption-duplicate` (twice at one image), `caption-long`,
        `caption-file-name`, `image-missing`, `image-outside`, `image-unreadable`, `image-tiny`, `image-duplicate`
        (the same bytes), `image-near-duplicate` (the same picture), `image-in-both` (training and evaluation).

    Examples:
        >>> import json
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from hf_captioner.data import validate
        >>> Image.new("RGB", (64, 48), "red").save("wall.png")
        >>> row = {"image": "wall.png", "captions": ["a red wall", "", "a red wall"]}
        >>> _ = Path("walls.json").write_text(json.dumps([row, {"image": "gone.png", "captions": ["a dog"]}]))
        >>> sorted(defect.kind for defect in validate("walls.json").defects)
        ['caption-duplicate', 'caption-empty', 'image-missing']
    """
    report = Report()
    columns = dict(image_column=image_column, caption_columns=caption_columns)
    options = dict(format=format, image_folder=image_folder)
    captions: list[list[list[str]]] = []
    pictures = None
    for name, part in ((source, split), (evaluation, evaluation_split)):
        if name is None:
            continue
        try:
            found, pictures = _check(report, name, part, pictures, **options, **columns)
            captions.append(found)
        except (InputError, FileNotFoundError) as error:
            report.add(name, ("source", str(error)))
    if captions:
        _tables(report, *captions)
    return report


def _check(
    report: Report, source: str, split, others: Pictures | None, image_column, caption_columns, format, image_folder
) -> tuple[list[list[str]], Pictures]:
    """Adds the defects of one source; `others` are the images of the other one. Returns its captions and images."""
    dataset, folder = open_source(source, split, format, image_folder, lambda problem: report.add(source, problem))
    image_column, caption_columns = find_columns(dataset, source, image_column, caption_columns)
    captions, problems = collect_captions(dataset, source, caption_columns)
    report.add(source, *problems)
    paths = image_paths(dataset, source, image_column)
    names = [str(row) for row in range(len(dataset))] if paths is None else paths
    good = list(range(len(dataset)))
    if paths is not None and folder is not None:
        good = []
        for row, path in enumerate(paths):
            problem = path_problem(folder, path, where(image_column, row, source))
            if problem is None:
                good.append(row)
            else:
                report.add(source, problem)
        dataset = dataset.remove_columns(image_column).add_column("image", absolute_paths(folder, paths))
    elif image_column != "image":
        dataset = dataset.rename_column(image_column, "image")
    images = dataset.select(good).select_columns(["image"]).cast_column("image", Image())
    unreadable = dict(image_problems(images, source))
    for place, (kind, message) in unreadable.items():
        here, there = where("image", place, source), where("image", good[place], source)
        report.add(source, (kind, message.replace(here, there)))
    by_image: dict[str, list[str]] = {}
    for row, texts in enumerate(captions):
        by_image.setdefault(names[row], []).extend(texts)
        _check_captions(report, source, row, texts, names[row] if paths is not None else "")
    for name, texts in by_image.items():
        for text, count in Counter(_plain(text) for text in texts).items():
            if count > 1:
                message = f"captions of image {name} of {source} must differ, got {text!r} {count} times"
                report.add(source, ("caption-duplicate", message))
    pictures = _check_images(report, source, images, good, names, unreadable, others)
    total = sum(map(len, captions))
    report.sources[source] = {
        "images": len(by_image),
        "captions": total,
        "words": sum(len(_plain(text).split()) for texts in captions for text in texts) / max(total, 1),
    }
    if others is None:
        report.estimates["feature_cache_gb"] = len(by_image) * FEATURE_BYTES / 1e9
    return captions, pictures


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).rstrip(" .")


def _check_captions(report: Report, source: str, row: int, texts: list[str], path: str) -> None:
    for text in texts:
        place = f"a caption of row {row} of {source}"
        words = text.split()
        if len(words) > LONGEST_CAPTION:
            message = f"{place} must have at most {LONGEST_CAPTION} words, got {len(words)}: {text[:60]!r}..."
            report.add(source, ("caption-long", message))
        stem = Path(path).stem.lower()
        if path and text.strip().lower() in (path.lower(), Path(path).name.lower(), stem):
            message = f"{place} must describe the image, got its file's name {text!r}"
            report.add(source, ("caption-file-name", message))


def _check_images(
    report: Report,
    source: str,
    images: Dataset,
    rows: list[int],
    names: list[str],
    unreadable: Container[int],
    others: Pictures | None,
) -> Pictures:
    """Sizes, and pictures that are there twice, in this source or in the other one. Returns those of this one."""
    raw = images.cast_column("image", Image(decode=False))
    here, done = Pictures(), set()
    seconds, timed = 0.0, 0
    for place, row in enumerate(tqdm(rows, desc="comparing images", unit="image", leave=False)):
        if place in unreadable or names[row] in done:  # rows of the same path are one image
            continue
        done.add(names[row])
        start = time.perf_counter()
        cell = raw[place]["image"]
        content = cell["bytes"] if cell["bytes"] is not None else Path(cell["path"]).read_bytes()
        with open_picture(io.BytesIO(content)) as image:
            size, picture = image.size, difference_hash(image)
        if timed < SAMPLE:
            seconds, timed = seconds + time.perf_counter() - start, timed + 1
        what = where("image", row, source)
        if min(size) < SMALLEST_SIDE:
            message = f"{what} must have sides of at least {SMALLEST_SIDE} pixels, got {size[0]} x {size[1]}"
            report.add(source, ("image-tiny", message))
        digest = hashlib.sha256(content).digest()
        if (twin := here.twin(digest, picture)) is not None:
            kind, how = ("image-duplicate", "file") if twin[1] else ("image-near-duplicate", "picture")
            report.add(source, (kind, f"{what} must be another image, got the same {how} as {twin[0]}"))
        if others is not None and (twin := others.twin(digest, picture)) is not None:
            how = "file" if twin[1] else "picture"
            report.add(source, ("image-in-both", f"{what} must not be in training, got the same {how} as {twin[0]}"))
        here.add(what, digest, picture)
    if others is None and timed:
        report.estimates["seconds_reading"] = seconds / timed * len(done)
    return here


def _tables(report: Report, captions: list[list[str]], evaluation: list[list[str]] | None = None) -> None:
    words = [_plain(text).split() for texts in captions for text in texts]
    counts = Counter(word for text in words for word in text)
    unseen = None
    if evaluation is not None:
        unseen = Counter(word for texts in evaluation for text in texts for word in _plain(text).split())
    for least in MIN_FREQUENCIES if counts else ():
        kept = {word for word, count in counts.items() if count >= least}
        row = {"min_frequency": least, "words": len(kept), "unknown": _unknown(counts, kept)}
        if unseen:
            row["unknown_evaluation"] = _unknown(unseen, kept)
        report.vocabulary.append(row)
    report.lengths = dict(sorted(Counter(map(len, words)).items()))


def _unknown(counts: Counter, kept: set[str]) -> float:
    return sum(count for word, count in counts.items() if word not in kept) / sum(counts.values())
