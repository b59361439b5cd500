"""
How many captions a second `hf-captioner serve` gives when images that arrive together are captioned together, and when
each is captioned alone.

    python training/measure_serving.py --model outputs/quickstart --data shapes:rows=64,seed=1 --clients 16

Two servers, processes of their own, are asked in turn by so many clients at once, each of which sends its next image
when it has the last one's caption. Prints for each the captions a second (the median of the rounds), the time that a
client waited (the median and the 95th of a hundred), images in a batch, and the server's largest memory.
"""

import asyncio
import io
import os
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import httpx
import torch
from tqdm.auto import tqdm

from ..checkpoints import PHOTOGRAPHS
from ..errors import InputError
from ..memory import memory_of
from ..models.image_reading import to_rgb
from . import run
from .inputs import read_captions
from .parsing import CommandParser


@dataclass
class Arguments:
    """What to measure on."""

    data: str = field(metadata={"help": "images with their captions, which are not used"})
    model: str = field(default=PHOTOGRAPHS, metadata={"help": "folder of a captioner"})
    rows: int | None = field(default=None, metadata={"help": "of the first images only"})
    clients: int = field(default=16, metadata={"help": "that ask at the same time"})
    requests: int = field(default=128, metadata={"help": "of a round, an image each"})
    rounds: int = field(default=3, metadata={"help": "with each server, in turn"})
    batch_size: int = field(default=16, metadata={"help": "images together, beside 1"})
    num_beams: int | None = field(default=None, metadata={"help": "by default the captioner's own"})


@dataclass
class Measured:
    """Of one server: captions a second of every round, and the seconds of every request."""

    rates: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    captions: list[str | None] = field(default_factory=list)
    batch: float = 0.0
    memory: float = 0.0


def main(argv: list[str] | None = None) -> None:
    (args,) = CommandParser(Arguments, description=__doc__).parse(argv)
    dataset = read_captions(args.data, check_images=False)
    dataset = dataset.select(range(min(len(dataset), args.rows or len(dataset))))
    contents = [as_jpeg(to_rgb(image)) for image in dataset["image"]]
    found = {size: Measured() for size in (1, args.batch_size)}
    with ExitStack() as stack:
        servers = {size: stack.enter_context(server(args, size)) for size in found}
        for url, _ in servers.values():  # the first requests take longer
            asyncio.run(ask(url, contents[:1] * args.clients, args.clients))
        for _ in tqdm(range(args.rounds), desc="asking", unit="round"):
            for size, (url, _) in servers.items():
                many = [contents[place % len(contents)] for place in range(args.requests)]
                start = time.monotonic()
                answers = asyncio.run(ask(url, many, args.clients))
                found[size].rates.append(len(answers) / (time.monotonic() - start))
                found[size].seconds += [seconds for _, seconds in answers]
                found[size].captions += [caption for caption, _ in answers]
        for size, (url, process) in servers.items():
            counts = dict(line.rsplit(" ", 1) for line in httpx.get(f"{url}/metrics").text.splitlines())
            batches = float(counts["hf_captioner_batch_images_count"])
            found[size].batch = float(counts["hf_captioner_batch_images_sum"]) / batches
            found[size].memory = memory_of("VmHWM", process.pid)
    print(table(found, args))


def as_jpeg(image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()


@contextmanager
def server(args: Arguments, batch_size: int):
    """The address of a server that takes so many images together, and its process."""
    command = [sys.executable, "-m", "hf_captioner.commands.program", "serve", "--port", "0", "--model", args.model]
    command += ["--batch-size", str(batch_size), "--max-waiting", str(max(64, args.clients))]
    command += [] if args.num_beams is None else ["--num-beams", str(args.num_beams)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        if not line:
            raise InputError(f"`model` must be a captioner that can be served, got {args.model}")
        yield line.split(" at ")[1].split()[0], process
    finally:
        process.terminate()
        process.wait()


async def ask(url: str, contents: list[bytes], clients: int) -> list[tuple[str | None, float]]:
    """Captions of the images, and the seconds that each took."""
    missing = iter(list(enumerate(contents)))
    found: dict[int, tuple[str | None, float]] = {}

    async def one_client(client: httpx.AsyncClient) -> None:
        for place, content in missing:
            start = time.monotonic()
            response = await client.post(f"{url}/caption", content=content)
            response.raise_for_status()
            found[place] = response.json()["caption"], time.monotonic() - start

    async with httpx.AsyncClient(timeout=None, limits=httpx.Limits(max_connections=clients)) as client:
        await asyncio.gather(*(one_client(client) for _ in range(clients)))
    return [found[place] for place in range(len(contents))]


def table(found: dict[int, Measured], args: Arguments) -> str:
    lines = [
        f"{args.requests} requests of {args.clients} clients, {args.rounds} rounds with each server; torch "
        f"{torch.__version__}, {os.cpu_count()} cores\n",
        "| images together at most | captions a second | seconds, median | seconds, 95 of 100 | in a batch | MB |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for size, one in found.items():
        slow = statistics.quantiles(one.seconds, n=20)[-1]
        cells = (f"{statistics.median(one.rates):.1f}", f"{statistics.median(one.seconds):.3f}", f"{slow:.3f}")
        lines.append(f"| {size} | {' | '.join(cells)} | {one.batch:.1f} | {one.memory:.0f} |")
    alone, together = found.values()
    ratio = statistics.median(together.rates) / statistics.median(alone.rates)
    same = sum(a == b for a, b in zip(alone.captions, together.captions, strict=True)) / len(alone.captions)
    lines.append(f"\nTogether {ratio:.2f} times as many; {same:.1%} of the captions are the same.")
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
