"""`hf-captioner convert`: another project's captioner becomes one of ours."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from ..errors import InputError


def convert(
    captioner: Annotated[
        str,
        Argument(metavar="FOLDER_OR_NAME", show_default=False, help="The captioner, a folder or a Hub repository."),
    ],
    output: Annotated[Path, Option(help="Folder to write, new or empty.", show_default=False)],
    revision: Annotated[
        str | None, Option(help="Branch, tag, commit or pull request (refs/pr/1) of the Hub repository.")
    ] = None,
) -> Callable[[], None]:
    """
    Turn a VisionEncoderDecoderModel of transformers into a captioner of ours: the same captions, sooner.

    \b
    hf-captioner convert their_vit_gpt2 --output vit_gpt2

    Encoders: ViT, DeiT, Swin; decoder: GPT-2. The weights must be in safetensors; many Hub repositories that have a
    pickle alone have a pull request that adds them, which --revision names. Both models are run on random images
    before anything is written, and must give the same logits.
    """
    return partial(convert_folder, captioner, output, revision)


def convert_folder(captioner: str, output: Path, revision: str | None) -> None:
    from ..sharing import convert_captioner  # here: transformers' model and its own take a second to import

    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"`--output` must be a new or an empty folder, got {output}")
    difference = convert_captioner(captioner, output, revision)
    print(f"captioner: {output}, whose logits differ by at most {difference:.1e}")
