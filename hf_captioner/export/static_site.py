"""A captioner as a web page: static files that caption photographs in the visitor's browser."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

from transformers import PreTrainedModel

from ..errors import InputError, brief
from ..models.processing_captioner import CaptionerProcessor
from .onnx_captioner import DECODER, ENCODER, SUFFIXES
from .onnx_graphs import check_generation, check_images, export_onnx

SOURCES = Path(__file__).with_name("site")
# What the page reads of an exported folder, under model/.
MODEL_FILES = (
    f"onnx/{ENCODER}{SUFFIXES[True]}",
    f"onnx/{DECODER}{SUFFIXES[True]}",
    "tokenizer.json",
    "generation_config.json",
    "config.json",
    "processor_config.json",
)
NPM_SECONDS = 900  # for the packages, which a slow connection takes minutes to bring, or for the build
NODE = "20.19 or newer, but not 21 or 22 before 22.12"  # as vite needs it
README = """---
title: Image captioner
emoji: 🖼️
colorFrom: blue
colorTo: yellow
sdk: static
pinned: false
---

Captions photographs in the visitor's browser, by [hf_captioner](https://pypi.org/project/hf-captioner/). Every file
that the page needs is in this folder, and photographs do not leave the device.
"""


def build_site(captioner: PreTrainedModel, processor: CaptionerProcessor, output: str | Path) -> Path:
    """
    Builds the page, with the captioner's graphs in 8 bits. The folder is there as a whole or not at all.

    Args:
        captioner: left unchanged.
        processor: the captioner's.
        output: the folder to write, new or empty.

    Returns:
        the folder.

    Raises:
        InputError: if there is something in the folder, the captioner cannot be exported or has a tokenizer or a way
            of resizing that the page does not know, Node.js or npm are missing or too old, or npm fails.
    """
    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"`output` must be a new or an empty folder, got {output}")
    check_generation(captioner.generation_config)
    check_images(processor)
    check_page_can(processor)
    npm = find_npm()
    output.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as temporary, TemporaryDirectory(prefix=".site.", dir=output.parent) as beside:
        page = Path(temporary, "page")
        shutil.copytree(SOURCES, page, ignore=shutil.ignore_patterns("node_modules", "dist"))
        # Nothing of these packages has to run while it is installed.
        run_npm([npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"], page)
        run_npm([npm, "run", "build"], page)
        exported = export_onnx(captioner, processor, Path(temporary, "exported"), int8=True)
        whole = Path(beside, "site")
        shutil.copytree(page / "dist", whole)
        for name in MODEL_FILES:
            (whole / "model" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(exported / name, whole / "model" / name)
        # By which the page knows how much of itself it has loaded.
        loaded = [*sorted(whole.glob("assets/*.wasm")), *(whole / "model" / name for name in MODEL_FILES)]
        sizes = {path.relative_to(whole).as_posix(): path.stat().st_size for path in loaded}
        (whole / "files.json").write_text(json.dumps(sizes, indent=1) + "\n", "utf-8")
        (whole / "README.md").write_text(README, "utf-8")
        if output.exists():
            output.rmdir()
        whole.rename(output)
    return output


def check_page_can(processor: CaptionerProcessor) -> None:
    """
    Raises:
        InputError: if the page does not know how the tokenizer decodes, or how images are resized.
    """
    decoder = json.loads(processor.tokenizer.backend_tokenizer.to_str())["decoder"] or {"type": None}
    kinds = [part["type"] for part in decoder.get("decoders", [decoder])]
    if kinds != ["Metaspace"] and kinds[0] != "ByteLevel":
        raise InputError(
            f"the tokenizer of a captioner on a page must decode by Metaspace or ByteLevel, got {decoder['type']}"
        )
    images = processor.image_processor
    if not images.do_resize or images.resample not in range(1, 6):
        got = f"resample {images.resample}" if images.do_resize else "no resizing"
        raise InputError(
            f"the image processor of a captioner on a page must resize by Pillow's filters 1 to 5, got {got}"
        )


def find_npm() -> str:
    """
    Raises:
        InputError: if Node.js is missing or too old, or npm is missing.
    """
    for name in ("node", "npm"):
        if shutil.which(name) is None:
            raise InputError(f"a page is built by Node.js and npm (https://nodejs.org), and {name} is not installed")
    said = subprocess.run([str(shutil.which("node")), "--version"], capture_output=True, text=True).stdout.strip()
    numbers = re.match(r"v(\d+)\.(\d+)", said)
    version = (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)
    if version < (20, 19) or (21, 0) <= version < (22, 12):
        raise InputError(f"Node.js must be {NODE}, got {said or 'no version'}")
    return str(shutil.which("npm"))


def run_npm(command: list[str], folder: Path) -> None:
    """
    Raises:
        InputError: if it fails, with what it says, or has not ended after `NPM_SECONDS`.
    """
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=NPM_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise InputError(f"`npm {command[1]}` must end within {NPM_SECONDS} seconds, but it did not") from error
    if done.returncode:
        lines = [line.strip() for line in (done.stderr + done.stdout).splitlines()]
        # npm ends with where its log lies, and begins with what went wrong.
        said = " ".join(line for line in lines if line and not line.startswith(("npm warn", "npm notice", ">")))
        raise InputError(f"`npm {command[1]}` failed: {brief(Exception(said))}")
