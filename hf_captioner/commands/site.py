"""
Builds a web page that captions photographs in the visitor's browser, without a server.

    hf-captioner site --output outputs/site
    hf-captioner site --output outputs/site --model outputs/quickstart
    python -m http.server --directory outputs/site

Any static host serves the folder, under any address; for a static Space of the Hub:

    hf upload NAME outputs/site --repo-type space

The captioner is exported with 8-bit weights. Building needs Node.js with npm, which fetches onnxruntime-web; the page
itself fetches nothing from elsewhere.
"""

from dataclasses import dataclass, field
from pathlib import Path

from ..checkpoints import PHOTOGRAPHS
from ..export.static_site import build_site
from . import run
from .inputs import read_captioner, refusing
from .parsing import CommandParser


@dataclass(kw_only=True)
class Arguments:
    """Where the page is written, and whose captions it shows."""

    output: str = field(metadata={"help": "folder to write, new or empty"})
    model: str = field(
        default=PHOTOGRAPHS, metadata={"help": "folder or Hub name of a captioner, by default the one in the package"}
    )


def main(argv: list[str] | None = None) -> None:
    (args,) = CommandParser(Arguments, description=__doc__).parse(argv)
    with refusing(FileExistsError, NotADirectoryError, PermissionError, what="`output` must be a folder to write: "):
        folder = build_site(*read_captioner(args.model), args.output)
    size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    print(f"{folder}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    run(main)
