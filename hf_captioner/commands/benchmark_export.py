"""
A captioner in torch beside its exports: the same captions, how fast, how large?

    python training/benchmark_export.py --data shapes:rows=100,seed=2 --model outputs/quickstart
    python training/benchmark_export.py --data photos/validation.parquet --rows 200 --output_dir outputs/exports

Exports the captioner, then captions the same images by torch (float32 and bfloat16) and by onnxruntime (float32 and
int8), each in a process of its own, one image at a time and in batches. Prints a table in Markdown: `equal`, the
share of captions that are those of torch in float32, for every number of beams; images a second from pictures in
memory to captions, the median of the rounds, which take the systems in turn; the largest memory of the process; the
size of the weights.
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from tqdm.auto import tqdm
from transformers import pipeline

from ..checkpoints import PHOTOGRAPHS
from ..errors import InputError
from ..export import OnnxCaptioner
from ..export.onnx_graphs import export_onnx
from . import run
from .inputs import read_captioner, read_captions
from .parsing import CommandParser

SYSTEMS = ("torch float32", "torch bfloat16", "onnx float32", "onnx int8")


@dataclass(kw_only=True)
class Arguments:
    """What is captioned, and how often."""

    data: str = field(metadata={"help": "a source of images, see `hf-captioner evaluate`"})
    model: str = field(default=PHOTOGRAPHS, metadata={"help": "a captioner, by default the one in the package"})
    rows: int = field(default=200, metadata={"help": "the first images that are captioned"})
    num_beams: list[int] = field(default_factory=lambda: [1, 5], metadata={"help": "beams"})
    batch_size: int = field(default=16, metadata={"help": "images of a batch"})
    rounds: int = field(default=3, metadata={"help": "how often each is timed"})
    output_dir: str | None = field(default=None, metadata={"help": "where benchmark.json goes"})
    system: str | None = field(default=None, metadata={"help": "one alone, without a table: " + ", ".join(SYSTEMS)})
    exported: str | None = field(default=None, metadata={"help": "folder of the exports, for one system"})


def measure(args: Arguments) -> dict:
    """One system in this process: its captions by number of beams, images a second, and the memory."""
    images = read_captions(args.data, check_images=False)[: args.rows]["image"]
    if args.system.startswith("torch"):
        captioner = pipeline("image-captioning", model=args.model, dtype=getattr(torch, args.system.split()[1]))
    else:
        captioner = OnnxCaptioner(args.exported, quantized=args.system.endswith("int8"))
    found: dict = {"captions": {}, "images a second": {}}
    for beams in args.num_beams:
        for size in (1, args.batch_size):
            some = images[: min(32, len(images))] if size == 1 else images
            start = time.perf_counter()
            captions = captioner(some, num_beams=beams, batch_size=size)
            found["images a second"][f"{beams} beams, batch {size}"] = len(some) / (time.perf_counter() - start)
        found["captions"][str(beams)] = [each[0]["generated_text"] for each in captions]
    found["memory in MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return found


def table(args: Arguments) -> dict:
    """All systems, by turns."""
    rounds: dict[str, list[dict]] = {system: [] for system in SYSTEMS}
    with TemporaryDirectory() as folder:
        captioner = read_captioner(args.model)
        for int8 in (False, True):
            export_onnx(*captioner, folder, int8)
        weights = sum(tensor.numel() for tensor in captioner[0].state_dict().values())
        sizes = {system: weights * size for system, size in zip(SYSTEMS, (4, 2), strict=False)}
        for system, end in zip(SYSTEMS[2:], ("model.onnx", "quantized.onnx"), strict=True):
            sizes[system] = sum(path.stat().st_size for path in Path(folder, "onnx").glob(f"*{end}"))
        options = [
            f"--{name}={value}"
            for name, value in asdict(args).items()
            if name in ("data", "model", "rows", "batch_size")
        ]
        options += ["--num_beams", *map(str, args.num_beams), "--exported", folder]
        for _ in tqdm(range(args.rounds), desc="rounds"):
            for system in SYSTEMS:
                command = [sys.executable, "-m", main.__module__, *options, "--system", system]
                done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
                rounds[system].append(json.loads(done.stdout))
    reference = rounds[SYSTEMS[0]][0]["captions"]
    found = {}
    for system, measured in rounds.items():
        captions = measured[0]["captions"]
        same = {
            f"equal, {beams} beams": sum(map(str.__eq__, captions[beams], reference[beams])) / len(reference[beams])
            for beams in reference
        }
        speeds = {
            name: statistics.median(each["images a second"][name] for each in measured)
            for name in measured[0]["images a second"]
        }
        memory = statistics.median(each["memory in MB"] for each in measured)
        found[system] = {**same, **speeds, "memory in MB": memory, "weights in MB": sizes[system] / 1e6}
    return found


def as_markdown(found: dict) -> str:
    names = list(found[SYSTEMS[0]])
    lines = [f"| | {' | '.join(names)} |", f"|{' --- |' * (len(names) + 1)}"]
    for system, values in found.items():
        cells = [f"{value:.1%}" if name.startswith("equal") else f"{value:.1f}" for name, value in values.items()]
        lines.append(f"| {system} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    (args,) = CommandParser(Arguments, description=__doc__).parse(argv)
    if args.system is not None:
        if args.system not in SYSTEMS:
            raise InputError(f"`system` must be one of {', '.join(SYSTEMS)}, got {args.system!r}")
        print(json.dumps(measure(args)))
        return
    found = table(args)
    print(as_markdown(found))
    if args.output_dir is not None:
        Path(args.output_dir).mkdir(parents=True, exist_ok=True)
        Path(args.output_dir, "benchmark.json").write_text(json.dumps({**asdict(args), "found": found}, indent=2))


if __name__ == "__main__":
    run(main)
