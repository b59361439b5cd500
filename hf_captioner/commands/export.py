"""
Writes a captioner as ONNX, which runs without torch.

    hf-captioner export --output outputs/exported
    hf-captioner export --model outputs/quickstart --output outputs/quickstart --int8

The folder is complete: `onnx/` with the vision model and one step of the decoder, tokenizer, preprocessing of images
and settings of generation. onnxruntime, numpy, Pillow and tokenizers are all that it needs:

    from hf_captioner.export import OnnxCaptioner
    OnnxCaptioner("outputs/exported")("photo.jpg", num_beams=3)

In the captioner's own folder, `onnx/` is added to what is there. With --int8 the files have 8-bit weights, a
third of the size, and names that end in `_quantized`.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..checkpoints import PHOTOGRAPHS
from ..export.onnx_graphs import export_onnx
from . import run
from .inputs import read_captioner
from .parsing import CommandParser


@dataclass(kw_only=True)
class Arguments:
    """What is exported, and where to."""

    output: str = field(metadata={"help": "folder to write"})
    model: str = field(
        default=PHOTOGRAPHS, metadata={"help": "folder or Hub name of a captioner, by default the one in the package"}
    )
    int8: bool = field(default=False, metadata={"help": "8-bit weights"})
    format: Literal["onnx"] = field(default="onnx", metadata={"help": "of what is written"})


def main(argv: list[str] | None = None) -> None:
    (args,) = CommandParser(Arguments, description=__doc__).parse(argv)
    folder = export_onnx(*read_captioner(args.model), args.output, args.int8)
    for path in sorted(Path(folder, "onnx").iterdir()):
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    run(main)
