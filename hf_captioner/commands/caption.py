"""`hf-captioner caption`: captions of any number of images, into files that a stopped run goes on with."""

import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Annotated, Literal

from tqdm.auto import tqdm
from typer import Argument, Option

from ..checkpoints import PHOTOGRAPHS
from ..data.caption_files import check_suffix, text_cells, text_writer
from ..data.caption_store import CaptionStore, Existing
from ..data.image_files import ImageFile, ImageFiles
from ..errors import InputError
from .bulk import BatchCaptioner, caption_in_processes
from .bulk_ray import caption_on_ray, check_folder, ray_cluster
from .captioner import MAX_BEAMS, Settings
from .decoding_options import DecodingArguments, with_decoding


@with_decoding
def caption(
    inputs: Annotated[
        list[str],
        Argument(
            metavar="INPUT",
            show_default=False,
            help="Images, folders with all that lies below, patterns, tables (Parquet, CSV, TSV, JSON, JSON lines) "
            "with images or with paths relative to the table, webdataset shards (.tar), or - for such paths from "
            "standard input, one a line.",
        ),
    ],
    model: Annotated[
        str,
        Option(help="Folder or Hub name of a captioner.", show_default="the captioner of photographs in the package"),
    ] = PHOTOGRAPHS,
    output: Annotated[
        Path | None,
        Option(
            metavar="F.txt|.jsonl|.csv|.parquet",
            help="File for the captions instead of standard output; with --ray-address a folder for Parquet files.",
        ),
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
    processes: Annotated[
        int | None,
        Option(
            min=1,
            max=1024,
            help="Processes that caption, each with a model of its own.",
            show_default="one, or with --ray-address as many as there is room for",
        ),
    ] = None,
    ray_address: Annotated[
        str | None,
        Option(
            metavar="HOST:PORT|auto|local",
            help="Ray cluster that captions: this machine must be one of its nodes, and all must see the images, the "
            "model and the output at the same paths. local: one of this machine alone, which ends with the run.",
        ),
    ] = None,
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
    with text files alone in .captions.progress beside the first image. On a Ray cluster every file of the output
    folder is written as a whole, and those that are there are left as they are.
    """
    if output is not None and ray_address is None:
        check_suffix(output)
    settings = Settings(model, prompt, num_beams, min_score, words, existing.value, dtype, decoding)
    if decoding.seed is not None or decoding.decoding in ("stochastic", "mbr", "rerank"):
        if (processes or 1) > 1:
            raise InputError(f"`--processes` must be 1 with a search that draws samples, got {processes}")
        if ray_address is not None:
            raise InputError(f"`--ray-address` must be left out with a search that draws samples, got {ray_address}")
    if ray_address is not None:
        if sidecar or existing is not Existing.skip:
            name = "--sidecar" if sidecar else f"--existing {existing}"
            raise InputError(f"`{name}` must be left out with `--ray-address`, whose captions are files of their own")
        work = (batch_size, processes)
        return partial(caption_in_cluster, inputs, image_column, settings, work, check_folder(output), ray_address)
    work = (batch_size, processes or 1)
    return partial(caption_images, inputs, image_column, settings, work, output, sidecar, score)


def caption_images(
    inputs: list[str],
    image_column: str | None,
    settings: Settings,
    work: tuple[int, int],
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
            for rows in caption_batches(store.missing(bar.update), settings, *work):
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
    silent = sum("error" not in row and row["caption"] is None for row in store.rows.values())
    report(len(store.rows), silent, unread, output)


def caption_in_cluster(
    inputs: list[str],
    image_column: str | None,
    settings: Settings,
    work: tuple[int, int | None],
    output: Path,
    address: str,
) -> None:
    images = ImageFiles(inputs, image_column)
    with ray_cluster(address):
        silent, unread = caption_on_ray(images, settings, output, *work)
    report(len(images), silent, unread, output)


def report(images: int, silent: int, unread: int, output: Path | None) -> None:
    """What became of so many images, and the exit status."""
    where = f" ({output} says why)" if output is not None and unread else ""
    abstained = f"{silent} abstained, because the score is too low, " if silent else ""
    print(f"{images - unread - silent} captioned, {abstained}{unread} could not be read{where}", file=sys.stderr)
    if unread:
        raise SystemExit(1)


def caption_batches(
    images: Iterator[ImageFile], settings: Settings, batch_size: int, processes: int
) -> Iterator[list[dict]]:
    first = next(images, None)
    if first is None:  # nothing to be done, and no model needed
        return
    if processes > 1:
        yield from caption_in_processes(chain([first], images), settings, batch_size, processes)
        return
    yield from BatchCaptioner(settings).batches(chain([first], images), batch_size)


def show(rows: list[dict], score: bool) -> None:
    """Captions on standard output, errors on standard error."""
    text_writer(sys.stdout).writerows(text_cells(row, score) for row in rows if "error" not in row)
    sys.stdout.flush()
    for row in rows:
        if "error" in row:
            tqdm.write(f"error: {row['image']}: {row['error']}", file=sys.stderr)
