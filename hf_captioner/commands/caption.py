"""`hf-captioner caption`: captions of any number of images, into files that a stopped run goes on with."""

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Annotated, Literal

import torch
from tqdm.auto import tqdm
from transformers import pipeline
from transformers.utils.logging import disable_progress_bar
from typer import Argument, Option

from ..checkpoints import PHOTOGRAPHS
from ..data.caption_files import check_suffix, text_cells, text_writer
from ..data.caption_store import CaptionStore, Existing
from ..data.image_files import ImageFile, ImageFiles, read_ahead
from ..decoding import word_probabilities
from ..errors import InputError, brief
from ..models.generation_captioner import GENERATION_BOUNDS
from ..models.pipeline_captioner import TASK, needs_images
from . import FOLDER_ERRORS
from .decoding_options import DecodingArguments, with_decoding

MAX_BEAMS = GENERATION_BOUNDS["num_beams"][1]
THREADS = min(16, 2 * (os.cpu_count() or 1))  # that read images


@dataclass(frozen=True)
class Settings:
    """On what the captions of a run depend."""

    model: str
    prompt: str
    num_beams: int | None
    min_score: float | None
    words: bool
    existing: str
    dtype: str
    decoding: DecodingArguments

    def flat(self) -> dict:
        """`None` where nothing was asked for, so that a run goes on that was begun before there was the question."""
        own = {name: value for name, value in asdict(self).items() if name != "decoding"}
        own["dtype"] = None if self.dtype == "auto" else self.dtype
        return own | self.decoding.settings()


@with_decoding
def caption(
    inputs: Annotated[
        list[str],
        Argument(
            metavar="INPUT",
            show_default=False,
            help="Images, folders with all that lies below, patterns, tables (Parquet, CSV, TSV, JSON, JSON lines) "
            "with images or with paths relative to the table, or - for such paths from standard input, one a line.",
        ),
    ],
    model: Annotated[
        str,
        Option(help="Folder or Hub name of a captioner.", show_default="the captioner of photographs in the package"),
    ] = PHOTOGRAPHS,
    output: Annotated[
        Path | None,
        Option(metavar="F.txt|.jsonl|.csv|.parquet", help="File for the captions instead of standard output."),
    ] = None,
    sidecar: Annotated[bool, Option("--sidecar", help="Write a .txt beside each image.")] = False,
    existing: Annotated[
        Existing, Option(help="What to do with an image that has a caption in the output or beside it.")
    ] = Existing.skip,
    num_beams: Annotated[
        int | None, Option(min=1, max=MAX_BEAMS, help="Beams of the search, by default the captioner's own.")
    ] = None,
    batch_size: Annotated[int, Option(min=1, help="Images at a time.")] = 16,
    prompt: Annotated[str, Option(help="Text that every caption begins with.")] = "",
    min_score: Annotated[
        float | None,
        Option(
            min=0,
            max=1,
            help="Abstain where the score is lower: the caption is null. By default the captioner's own least score, "
            "if it was calibrated to have one; 0 never abstains.",
        ),
    ] = None,
    score: Annotated[
        bool,
        Option(
            "--score",
            help="Show the score in text, too: the geometric mean of the tokens' probabilities, and with --decoding "
            "the score by which that search ranks.",
        ),
    ] = False,
    words: Annotated[bool, Option("--words", help="Give every word's probability.")] = False,
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16"],
        Option(
            help="Type of numbers. auto: the fastest way that says the same; float32: bit for bit what the model's "
            "own modules do; bfloat16: faster where a processor has it, but says something else of some images."
        ),
    ] = "auto",
    image_column: Annotated[str | None, Option(help="Column of tables, by default found by its usual names.")] = None,
    *,
    decoding: DecodingArguments,
) -> Callable[[], None]:
    """
    Caption images, whatever they are given as.

    \b
    hf-captioner caption photo.jpg
    hf-captioner caption photos --model outputs/quickstart --output captions.jsonl
    hf-captioner caption "photos/*.jpg" table.csv --model outputs/quickstart --output captions.parquet --num-beams 3
    hf-captioner caption photos --model outputs/quickstart --sidecar --existing append --max-words 8
    hf-captioner caption photo.jpg --decoding diverse --num-beam-groups 5 --num-return-sequences 5
    hf-captioner caption photo.jpg --decoding constrained --force-words "dog|dogs,frisbee" --num-beams 10
    find photos -name "*.jpg" | hf-captioner caption - --model outputs/quickstart --words --min-score 0.01

    On standard output and in .txt a line has the image, a tab and the caption. A line of .jsonl is an object with
    image, caption and score, or with image and error; CSV and Parquet have these as columns. With --decoding there is
    search_score as well, by which the search ranks, and with --num-return-sequences others, the captions after the
    first; in text these are further cells.

    The captioner in the package abstains on what is no photograph (drawings of shapes, noise, pages of text, blank
    images): the caption is null, or nothing in text. `--min-score 0` has it say something of every image.

    An image that cannot be read becomes a row with its error, the others go on, and the exit status is 1. A run that
    was stopped goes on where it was when it is started again; until it is through, its rows are in F.progress, or
    with text files alone in .captions.progress beside the first image.
    """
    if output is not None:
        check_suffix(output)
    settings = Settings(model, prompt, num_beams, min_score, words, existing.value, dtype, decoding)
    return partial(caption_images, inputs, image_column, settings, batch_size, output, sidecar, score)


def caption_images(
    inputs: list[str],
    image_column: str | None,
    settings: Settings,
    batch_size: int,
    output: Path | None,
    sidecar: bool,
    score: bool,
) -> None:
    images = ImageFiles(inputs, image_column)
    if sidecar and images.tables:
        raise InputError(f"`--sidecar` must have image files to stand beside, got images inside of {images.tables[0]}")
    try:
        store = CaptionStore(images, settings.flat(), Existing(settings.existing), output, sidecar, score)
        with tqdm(total=len(images), desc="captioning", unit="image", disable=None) as bar:  # None: on a terminal
            for rows in caption_batches(store.missing(bar.update), settings, batch_size):
                rows = store.add(rows)
                bar.update(len(rows))
                if output is None:
                    show([row for row in rows if not sidecar or "error" in row], score)
        store.finish()
    except BrokenPipeError:
        raise
    except OSError as error:  # no permission, no room left; an image that cannot be read is a row
        raise InputError(f"{error.filename} must be a file that can be written, got {error.strerror}") from error
    unread = sum("error" in row for row in store.rows.values())
    where = f" ({output} says why)" if output is not None and unread else ""
    silent = sum("error" not in row and row["caption"] is None for row in store.rows.values())
    abstained = f"{silent} abstained, because the score is too low, " if silent else ""
    captioned = len(store.rows) - unread - silent
    print(f"{captioned} captioned, {abstained}{unread} could not be read{where}", file=sys.stderr)
    if unread:
        raise SystemExit(1)


def caption_batches(images: Iterator[ImageFile], settings: Settings, batch_size: int) -> Iterator[list[dict]]:
    first = next(images, None)
    if first is None:  # nothing to be done, and no model needed
        return
    captioner = Captioner(settings)
    batch = []
    for one in read_ahead(captioner.read, chain([first], images), THREADS, THREADS + 2 * batch_size):
        batch.append(one)
        if len(batch) == batch_size:
            yield captioner.rows(batch)
            batch = []
    if batch:
        yield captioner.rows(batch)


def show(rows: list[dict], score: bool) -> None:
    """Captions on standard output, errors on standard error."""
    text_writer(sys.stdout).writerows(text_cells(row, score) for row in rows if "error" not in row)
    sys.stdout.flush()
    for row in rows:
        if "error" in row:
            tqdm.write(f"error: {row['image']}: {row['error']}", file=sys.stderr)


class Captioner:
    """The pipeline, step by step: reading is done ahead of the model by threads, an image that fails alone."""

    def __init__(self, settings: Settings):
        self.settings = settings
        disable_progress_bar()  # of weights being loaded; there is one of images
        try:
            self.pipeline = pipeline(TASK, model=settings.model, dtype=settings.dtype)
        except FOLDER_ERRORS as error:
            reason = brief(error).split(" See the original errors")[0]  # behind it is a traceback
            raise InputError(
                f"`--model` must be the folder or Hub name of a captioner, got {settings.model!r}: {reason}"
            ) from error
        self.tokenizer = self.pipeline.processor.tokenizer
        own = self.pipeline.model.config.min_score or 0
        self.min_score = own if settings.min_score is None else settings.min_score
        self.options = settings.decoding.options(
            self.pipeline.model, self.pipeline.processor, num_beams=settings.num_beams
        )
        self.keep_image = needs_images(self.options.get("custom_generate"))

    def read(self, image: ImageFile, prompt: str | None = None):
        """An image as the model takes it; its caption begins with the prompt, by default that of the settings."""
        prompt = self.settings.prompt if prompt is None else prompt
        return self.pipeline.preprocess(image.source(), prompt=prompt, keep_image=self.keep_image)

    def rows(self, batch: list) -> list[dict]:
        """Of pairs of an image and what reading it gave."""
        inputs = [read for _, read in batch if not isinstance(read, Exception)]
        captions = iter(self.captions(inputs) if inputs else [])
        rows = []
        for image, read in batch:
            if isinstance(read, Exception):
                rows.append({"image": image.name, "error": brief(read)})
            else:
                rows.append({"image": image.name, **next(captions)})
        return rows

    def captions(self, inputs: list) -> Iterator[dict]:
        together = type(inputs[0])(
            {
                name: torch.cat([one[name] for one in inputs]) if name != "images" else [one[name] for one in inputs]
                for name in inputs[0]
            }
        )
        try:
            outputs = self.pipeline.forward(together, generate_kwargs=self.options)
        except InputError:
            raise
        except ValueError as error:  # as of a prompt that is longer than a caption may be
            raise InputError(f"the captioner must be able to do what the options say, got: {error}") from error
        for index in range(len(inputs)):
            found, *others = self.pipeline.postprocess({name: one[index : index + 1] for name, one in outputs.items()})
            row = self.scored(found)
            if self.settings.decoding.num_return_sequences is not None:
                row["others"] = [self.scored(other) for other in others]
            if self.settings.words:
                probabilities = [token["probability"] for token in found["tokens"]]
                said = outputs["sequences"][index, 0, -outputs["log_probabilities"].shape[-1] :]
                row["words"] = word_probabilities(self.tokenizer, said[: len(probabilities)].tolist(), probabilities)
            yield row

    def scored(self, found: dict) -> dict:
        """A caption, or none if its score is too low, with its scores."""
        caption = None if found["score"] < self.min_score else found["generated_text"]
        return {"caption": caption, **{name: found[name] for name in ("score", "search_score") if name in found}}
