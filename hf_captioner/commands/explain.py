"""`hf-captioner explain`: where a captioner looked for each word of an image's caption, as a page or a picture."""

from collections.abc import Callable
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
from transformers.utils.logging import disable_progress_bar
from typer import Argument, Option

from ..checkpoints import PHOTOGRAPHS
from ..errors import InputError
from ..explain import METHODS, Explanation, explain, save_animation, save_grid, write_page
from ..models.image_processing_captioner import open_image
from .inputs import read_captioner, refusing

SUFFIXES = (".html", ".png", ".webp")
Method = StrEnum("Method", list(METHODS))


def explain_image(
    image: Annotated[str, Argument(metavar="IMAGE", show_default=False, help="File or URL.")],
    output: Annotated[
        Path,
        Option("--output", "-o", metavar="F.html|.png|.webp", show_default=False, help="File for the explanation."),
    ],
    model: Annotated[
        str,
        Option(help="Folder or Hub name of a captioner.", show_default="the captioner of photographs in the package"),
    ] = PHOTOGRAPHS,
    method: Annotated[
        Method, Option(help="What says where the captioner looked; gradient and occlusion need no attention.")
    ] = Method.attention,
    num_beams: Annotated[
        int | None, Option(min=1, help="Beams of the search, by default the captioner's own.")
    ] = None,
    sample: Annotated[bool, Option("--sample", help="Draw the caption at random rather than search for it.")] = False,
    seed: Annotated[int, Option(help="Of the sample.")] = 0,
    borders: Annotated[bool, Option("--borders", help="Show the borders of the regions in a picture.")] = False,
) -> Callable[[], None]:
    """
    Show where a captioner looked for each word.

    \b
    hf-captioner explain photo.jpg -o page.html
    hf-captioner explain photo.jpg --model outputs/quickstart --output words.png --method occlusion --borders
    hf-captioner explain photo.jpg --model outputs/quickstart --output words.webp --num-beams 3

    .html is a page: one file that needs no network. Hover over the words, or step with the arrow keys; click a region
    to see which words looked there. .png has one panel a word, .webp shows them one after the other.
    """
    if output.suffix.lower() not in SUFFIXES:
        raise InputError(f"`--output` must end in one of {', '.join(SUFFIXES)}, got {output.name}")
    if sample and num_beams is not None:
        raise InputError(f"`--num-beams` must be left out with --sample, got {num_beams}")
    return partial(write_explanation, image, output, model, method.value, num_beams, sample, seed, borders)


def write_explanation(
    image: str, output: Path, model: str, method: str, num_beams: int | None, sample: bool, seed: int, borders: bool
) -> None:
    disable_progress_bar()  # of weights being loaded
    with refusing(OSError, ValueError, what=f"`IMAGE` must be an image, got {image}: "):
        opened = open_image(image)
        opened.load()
    captioner, processor = read_captioner(model)
    captioner.eval()
    options: dict = {"do_sample": True, "num_beams": 1, "top_k": 0} if sample else {}
    if num_beams is not None:
        options["num_beams"] = num_beams
    torch.manual_seed(seed)
    found = explain(captioner, processor, opened, method, **options)
    with refusing(OSError, what=f"{output} must be a file that can be written: "):
        write(output, found, Path(image).name, borders)
    print(found.caption)


def write(path: Path, explanation: Explanation, name: str, borders: bool) -> None:
    suffix = path.suffix.lower()
    if suffix == ".html":
        write_page(path, explanation, name)
    elif suffix == ".png":
        save_grid(path, [explanation], borders=borders)
    else:
        save_animation(path, explanation, borders=borders)
