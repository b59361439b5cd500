"""`hf-captioner demo`: a page in the browser on which a captioner is tried."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

from typer import Option

from ..checkpoints import PHOTOGRAPHS
from ..errors import InputError
from .inputs import read_captioner

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp")  # of examples, which browsers show


def demo(
    model: Annotated[
        str,
        Option(help="Folder or Hub name of a captioner.", show_default="the captioner of photographs in the package"),
    ] = PHOTOGRAPHS,
    compare: Annotated[
        str | None, Option(help="Folder or Hub name of a second captioner, which a tab shows beside the first.")
    ] = None,
    examples: Annotated[
        Path | None, Option(help="Folder of images that visitors may choose from; they see these files.")
    ] = None,
    host: Annotated[str, Option(help="Address to listen on; 0.0.0.0 for all of this machine.")] = "127.0.0.1",
    port: Annotated[int, Option(min=0, max=65535, help="Port to listen on; 0 for one that is free.")] = 7860,
    max_waiting: Annotated[int, Option(min=1, help="Requests that may wait; others are refused.")] = 32,
    max_upload: Annotated[float, Option(min=0.001, help="MiB of an image's file.")] = 20.0,
) -> Callable[[], None]:
    """
    Try a captioner on a page in the browser.

    \b
    hf-captioner demo
    hf-captioner demo --model outputs/quickstart --compare outputs/another --examples photos

    The page shows captions with their scores, and where the captioner looked for each word; how captions are searched
    for is set there. The same is an API for gradio's clients (docs/demo.md). Nothing is asked of the network, and no
    files but the visitors' own and the examples are served.
    """
    return partial(serve_page, model, compare, examples, (host, port), max_waiting, max_upload)


def serve_page(
    model: str,
    compare: str | None,
    examples: Path | None,
    address: tuple[str, int],
    max_waiting: int,
    max_upload: float,
) -> None:
    """
    Serves until the process is told to stop.

    Raises:
        InputError: if there is no such captioner or folder, or the address cannot be listened on.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
    try:
        from .demo_page import DemoCaptioner, build, launch
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "hf_captioner":
            raise
        raise InputError(
            f"`hf-captioner demo` must have the package {error.name}: pip install 'hf_captioner[demo]'"
        ) from error
    shown = example_files(examples)
    captioners = [
        DemoCaptioner(name, *read_captioner(name, dtype="auto"))
        for name in [model, *([] if compare is None else [compare])]
    ]
    page = build(captioners, shown)
    launch(page, address, max_waiting, max_upload, shown)
    print(f"a page at {page.local_url} (Ctrl-C stops)", flush=True)
    page.block_thread()


def example_files(folder: Path | None) -> list[str]:
    """
    Raises:
        InputError: if there is no such folder, or no image in it.
    """
    if folder is None:
        return []
    if not folder.is_dir():
        raise InputError(f"`--examples` must be a folder, got {folder}")
    found = sorted(
        str(path.resolve()) for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file()
    )
    if not found:
        raise InputError(f"`--examples` must hold images ({', '.join(SUFFIXES)}), got none in {folder}")
    return found
