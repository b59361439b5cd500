"""
From JPEG files to captions, and the parts of it alone, with each type of numbers (`dtype`): how fast, and the same?

    python training/benchmark_speed.py --data photos/validation.parquet --rows 512
    python training/benchmark_speed.py --data shapes:rows=64,seed=1 --model outputs/quickstart --num_beams 1

The images are written as JPEG files and captioned group by group; of every group each type takes its turn, so that a
machine that has other work slows down all of them alike. Prints a table in Markdown: images a second from files to
captions, reading included; the median over the groups of how many times faster than float32 that is, and likewise for
the vision model and the search alone; the share of captions that are those of float32; CIDEr-D, and its difference to
float32's with a 95 % interval over images. The first group warms up, `--rounds` groups after it are timed, the others
count for captions alone. Stopped with Ctrl-C, it reports what it has.
"""

import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from tqdm.auto import tqdm
from transformers import Pipeline, pipeline

from ..checkpoints import PHOTOGRAPHS
from ..errors import InputError
from ..files import replacing
from ..metrics import CiderD, DocumentFrequency, Scores, tokenize
from ..models.image_reading import to_rgb
from ..models.machine_captioner import DTYPES
from ..models.pipeline_captioner import TASK
from . import run
from .inputs import read_captions
from .parsing import CommandParser

BASE = "float32"
PARTS = ("files to captions", "reading", "vision model", "search")


@dataclass(kw_only=True)
class Arguments:
    """What is captioned, and how."""

    data: str = field(metadata={"help": "images with captions, see `hf-captioner evaluate`"})
    model: str = field(default=PHOTOGRAPHS, metadata={"help": "a captioner, by default the one in the package"})
    rows: int = field(default=512, metadata={"help": "the first images that are captioned"})
    num_beams: int | None = field(default=None, metadata={"help": "beams, by default the captioner's own"})
    batch_size: int = field(default=32, metadata={"help": "images of a batch"})
    group: int = field(default=64, metadata={"help": "images that each type captions in its turn"})
    rounds: int = field(default=5, metadata={"help": "groups that are timed"})
    output: str | None = field(default=None, metadata={"help": "file for the numbers, as JSON"})

    def __post_init__(self):
        for name in ("rows", "batch_size", "group", "rounds"):
            if getattr(self, name) < 1:
                raise InputError(f"`{name}` must be at least 1, got {getattr(self, name)}")


def timed(function: Callable) -> tuple:
    start = time.perf_counter()
    return function(), time.perf_counter() - start


def measure(args: Arguments) -> dict:
    """Of every type, its captions and the seconds of every timed group: from files to captions, and of the parts."""
    dataset = read_captions(args.data, check_images=False)
    dataset = dataset.select(range(min(args.rows, len(dataset))))
    captioners = {dtype: pipeline(TASK, model=args.model, dtype=dtype) for dtype in DTYPES}
    captions: dict[str, list[str]] = {dtype: [] for dtype in DTYPES}
    seconds: dict[str, dict[str, list[float]]] = {dtype: {part: [] for part in PARTS} for dtype in DTYPES}
    groups = range(0, len(dataset), args.group)
    done = 0
    with TemporaryDirectory() as folder:
        try:
            for number, start in enumerate(tqdm(groups, desc="captioning", unit="group")):
                images = dataset[start : start + args.group]["image"]
                paths = [Path(folder, f"{start + row}.jpg") for row in range(len(images))]
                for path, image in zip(paths, images, strict=True):
                    to_rgb(image).save(path, quality=90)
                found = {dtype: one_group(args, captioner, paths, number) for dtype, captioner in captioners.items()}
                for dtype, (texts, spent) in found.items():
                    captions[dtype] += texts
                    for part, value in spent.items():
                        seconds[dtype][part].append(value)
                done += len(images)
        except KeyboardInterrupt:
            print("stopped; this is of the groups that all types have captioned")
    return {"captions": captions, "seconds": seconds, "references": dataset["captions"][:done]}


@torch.inference_mode()
def one_group(args: Arguments, captioner: Pipeline, paths: list[Path], number: int) -> tuple[list[str], dict]:
    """The captions of these files and, if the group is timed, the seconds that the whole and its parts take."""
    model, options = captioner.model, {} if args.num_beams is None else {"num_beams": args.num_beams}
    found, whole = timed(lambda: captioner(paths, batch_size=args.batch_size, **options))
    texts = [one[0]["generated_text"] for one in found]
    if not 0 < number <= args.rounds:
        return texts, {}
    read, reading = timed(lambda: [captioner.preprocess(path)["pixel_values"] for path in paths])
    batches = torch.cat(read).to(model.device, model.dtype).split(args.batch_size)
    encoded, vision = timed(lambda: [captioner.precision.encode(model, part) for part in batches])
    _, search = timed(lambda: [model.generate(encoder_outputs=one, **options) for one in encoded])
    return texts, dict(zip(PARTS, (whole, reading, vision, search), strict=True))


def table(args: Arguments, found: dict) -> str:
    """In Markdown; CIDEr-D times 100."""
    truths = [tokenize(texts) for texts in found["references"]]
    scorer = CiderD(DocumentFrequency.from_references(truths))
    cooked = scorer.cook(truths)
    values = {dtype: scorer.score(tokenize(texts), cooked) for dtype, texts in found["captions"].items()}
    lines = [
        "| | images a second | from files | vision model | search | same captions | CIDEr-D | to float32 |",
        "| --- |" + " ---: |" * 7,
    ]
    for dtype in sorted(DTYPES, key=lambda name: name != BASE):
        spent, before = found["seconds"][dtype], found["seconds"][BASE]
        texts, base = found["captions"][dtype], found["captions"][BASE]
        cells = [dtype]
        whole = spent["files to captions"]
        cells.append(f"{args.group / statistics.median(whole):.1f}" if whole else "")
        for part in ("files to captions", "vision model", "search"):
            ratios = [first / second for first, second in zip(before[part], spent[part], strict=True)]
            cells.append(f"{statistics.median(ratios):.2f}" if ratios else "")
        cells.append(f"{sum(map(str.__eq__, texts, base)) / len(base):.1%}")
        difference = Scores.from_mean(values[dtype] - values[BASE])
        low, high = difference.confidence_interval()
        cells.append(f"{100 * values[dtype].mean():.2f}")
        cells.append(
            "" if dtype == BASE else f"{100 * difference.corpus:+.2f} ({100 * low:+.2f} to {100 * high:+.2f})"
        )
        lines.append(f"| {' | '.join(cells)} |")
    reading = [one for part in found["seconds"].values() for one in part["reading"]]
    if reading:
        lines += [
            "",
            f"Reading alone, one image after the other: {args.group / statistics.median(reading):.0f} a second.",
        ]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    (args,) = CommandParser(Arguments, description=__doc__).parse(argv)
    before = os.getloadavg()[0]
    found = measure(args)
    print(
        f"{len(found['references'])} images, batches of {args.batch_size}, {torch.get_num_threads()} threads, torch "
        f"{torch.__version__}; load of the machine {before:.1f} before, {os.getloadavg()[0]:.1f} after\n"
    )
    print(table(args, found))
    if args.output is not None:
        with replacing(Path(args.output)) as part:
            part.write_text(json.dumps({"setting": asdict(args), **found}, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    run(main)
