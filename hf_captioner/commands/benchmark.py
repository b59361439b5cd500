"""
How fast captioners are, beside a bare loop, a tutorial's loop, transformers' own models, and their own last release.

    hf-captioner benchmark
    hf-captioner benchmark --parts decoding growth --systems additive cnn_transformer --output_dir outputs/benchmark
    hf-captioner benchmark --device cuda --output_dir outputs/benchmark --release

All that is compared takes turns in every round, in one process, and what is reported are ratios: medians over the
rounds of the other's time for an image divided by ours. Models have random weights and captions a fixed length. Parts:

- `decoding`: greedy and beam search of every system from regions, beside the same modules in a bare loop; soft
  attention beside a tutorial's loop, the Transformer without encoder layers beside `VisionEncoderDecoderModel` with a
  BERT decoder and beside BLIP's decoder, of its sizes.
- `training`: a training step from regions, with one caption for an image and with several, in single precision and in
  bfloat16.
- `growth`: how the time of a search grows with images, beams, words and regions.
- `memory`: the largest memory of a search beyond what model and regions need, each in a fresh process.
- `files`: from JPEG files to captions, and the parts of it alone, as `benchmark_speed` measures them.
- `export`: torch beside ONNX and int8, as `benchmark_export` measures them.

It prints a table in Markdown, and writes it to `--output_dir` with `benchmark.json` and `benchmark.png`. `--release`
adds a line to `--history`; what is there of a machine like this one is compared with what was measured.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import torch
import transformers
from torch import nn
from tqdm.auto import tqdm

from .. import __version__
from ..errors import InputError, brief
from ..files import replacing
from ..memory import memory_of
from . import benchmark_export, benchmark_speed, run
from .benchmark_loops import (
    LEAST_ROUNDS,
    SYSTEMS,
    TutorialCaptioner,
    bare_search,
    blip_decoder,
    blip_loss,
    blip_search,
    build,
    encoder_decoder_loss,
    encoder_decoder_search,
    in_turns,
    read_arguments,
    searched,
    vision_encoder_decoder,
)

PARTS = ("decoding", "training", "growth", "memory", "files", "export")
OURS, BARE, TUTORIAL, VED, BLIP = "ours", "bare loop", "tutorial's loop", "VisionEncoderDecoderModel", "BLIP"
GROWING = {"images": (1, 8, 32, 128), "beams": (1, 2, 5, 10), "words": (7, 14, 28, 56), "regions": (49, 100, 196, 400)}


@dataclass(kw_only=True)
class Arguments:
    """What is measured, and in which sizes."""

    parts: list[str] = field(default_factory=lambda: list(PARTS), metadata={"help": ", ".join(PARTS)})
    systems: list[str] = field(default_factory=lambda: list(SYSTEMS), metadata={"help": ", ".join(SYSTEMS)})
    regions: list[str] = field(
        default_factory=lambda: ["7x7x1280", "14x14x2048"], metadata={"help": "rows, columns and channels"}
    )
    batches: list[int] = field(default_factory=lambda: [1, 32, 128], metadata={"help": "images at once"})
    peers_batch: int = field(default=32, metadata={"help": "images at once of other people's models, at most"})
    beams: int = field(default=5, metadata={"help": "beams of beam search"})
    tokens: int = field(default=14, metadata={"help": "tokens of a caption"})
    captions: int = field(default=5, metadata={"help": "captions of an image in a training step"})
    training_images: int = field(default=8, metadata={"help": "images of a training step"})
    rounds: int = field(default=7, metadata={"help": "measurements, over which the medians are"})
    seconds: float = field(default=30, metadata={"help": f"after which a comparison ends, with {LEAST_ROUNDS} rounds"})
    vocab_size: int = field(default=10000, metadata={"help": "words"})
    hidden_size: int = field(default=512, metadata={"help": "width of all decoders"})
    layers: int = field(default=6, metadata={"help": "layers of a Transformer's encoder and of its decoder"})
    heads: int = field(default=8, metadata={"help": "heads of a Transformer's layers"})
    intermediate_size: int = field(default=2048, metadata={"help": "width of a Transformer's feed-forward sublayers"})
    data: str = field(default="shapes:rows=384,seed=1", metadata={"help": "photographs for `files` and `export`"})
    device: str = field(default="cpu", metadata={"help": "where to run"})
    threads: int | None = field(default=None, metadata={"help": "of torch; all cores by default"})
    small: bool = field(default=False, metadata={"help": "tiny sizes, to try the command"})
    output_dir: str | None = field(default=None, metadata={"help": "folder for the table, the numbers and the plot"})
    history: str = field(default="benchmarks/history.jsonl", metadata={"help": "a line for each release"})
    release: bool = field(default=False, metadata={"help": "add a line to the history"})
    memory_of: str | None = field(default=None, metadata={"help": "used by itself: one search in a fresh process"})

    def __post_init__(self):
        for name, known in (("parts", PARTS), ("systems", tuple(SYSTEMS))):
            for value in getattr(self, name):
                if value not in known:
                    raise InputError(f"`{name}` must be among {', '.join(known)}, got {value!r}")
        for text in self.regions:
            shape(text)
        for name in ("peers_batch", "beams", "tokens", "captions", "training_images", "rounds"):
            if getattr(self, name) < 1:
                raise InputError(f"`{name}` must be at least 1, got {getattr(self, name)}")
        if any(images < 1 for images in self.batches):
            raise InputError(f"`batches` must be at least 1 each, got {self.batches}")

    @property
    def sizes(self) -> dict[str, int]:
        names = ("vocab_size", "hidden_size", "layers", "heads", "intermediate_size")
        return {name: getattr(self, name) for name in names}


SMALL = dict(
    regions=["2x2x16"],
    batches=[1, 2],
    beams=2,
    tokens=3,
    captions=2,
    training_images=2,
    rounds=1,
    vocab_size=30,
    hidden_size=16,
    layers=1,
    heads=2,
    intermediate_size=16,
)
SMALL_GROWING = {"images": (1, 2), "beams": (1, 2), "words": (2, 3), "regions": (4, 9)}


def shape(text: str) -> tuple[int, int]:
    """`"7x7x1280"` is 49 regions of 1280 channels."""
    parts = text.split("x")
    if len(parts) != 3 or not all(part.isdecimal() and int(part) for part in parts):
        raise InputError(f"`regions` must be rows, columns and channels as in 7x7x1280, got {text!r}")
    return int(parts[0]) * int(parts[1]), int(parts[2])


@dataclass
class Comparison:
    """
    What is timed side by side.

    Attributes:
        work: of what kind, and in which sizes.
        runs: of each that takes part, what it does and for how many images.
        seconds: of every round.
    """

    work: dict
    runs: dict[str, tuple[Callable[[], object], int]]
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def measure(self, args: Arguments) -> None:
        runs = {name: function for name, (function, _) in self.runs.items()}
        self.seconds = in_turns(runs, args.rounds, args.device, args.seconds)

    def per_image(self, name: str) -> list[float]:
        return [seconds / self.runs[name][1] for seconds in self.seconds[name]]

    def ratio(self, name: str) -> float:
        """How many times as long as ours the other takes for an image."""
        pairs = zip(self.per_image(name), self.per_image(OURS), strict=True)
        return statistics.median(theirs / ours for theirs, ours in pairs)

    def described(self) -> dict:
        ratios = {name: self.ratio(name) for name in self.runs if name != OURS}
        counts = {name: count for name, (_, count) in self.runs.items()}
        return {**self.work, "counts": counts, "seconds": self.seconds, "ratios": ratios}


def decoding(args: Arguments) -> Iterator[Comparison]:
    for regions in args.regions:
        length, width = shape(regions)
        for system in args.systems:
            model = build(system, width, args.sizes).to(args.device)
            peers = {}
            if system == "additive":
                tutorial = TutorialCaptioner(width, args.hidden_size, args.vocab_size).to(args.device).eval()
                peers[TUTORIAL] = (tutorial.search, 2)  # one image takes as long as another
            if system == "vit_transformer":
                theirs = vision_encoder_decoder(width, args.sizes).to(args.device)
                blip = blip_decoder(width, args.sizes).to(args.device)
                peers[VED] = (partial(encoder_decoder_search, theirs), args.peers_batch)
                peers[BLIP] = (partial(blip_search, blip), args.peers_batch)
            for images in args.batches:
                features = torch.randn(images, length, width, device=args.device)
                for beams in (1, args.beams):
                    runs = {
                        OURS: (partial(searched, model, features, args.tokens, beams), images),
                        BARE: (partial(bare_search, model, features, args.tokens, beams), images),
                    }
                    for name, (search, most) in peers.items():
                        some = features[:most]
                        runs[name] = (partial(search, some, args.tokens, beams), len(some))
                    what = dict(system=system, regions=regions, batch=images, search=search_name(beams))
                    yield Comparison({"part": "decoding", **what}, runs)


def training(args: Arguments) -> Iterator[Comparison]:
    """
    From regions, as of a frozen vision model; a step of the optimiser included. In single precision, and once more in
    bfloat16 by autocast, as the recipes train: ours and transformers' models; a tutorial's loop knows of none.
    """
    for regions in args.regions:
        length, width = shape(regions)
        for system in [name for name in ("additive", "vit_transformer") if name in args.systems]:
            ours = build(system, width, args.sizes).to(args.device).train()
            ours.freeze_vision()
            losses = {OURS: (captioner_loss, ours)}
            if system == "additive":
                tutorial = TutorialCaptioner(width, args.hidden_size, args.vocab_size).to(args.device)
                losses[TUTORIAL] = (nn.Module.__call__, tutorial)
            else:
                theirs = vision_encoder_decoder(width, args.sizes).to(args.device).train()
                theirs.encoder.requires_grad_(False)
                losses[VED] = (encoder_decoder_loss, theirs)
                losses[BLIP] = (blip_loss, blip_decoder(width, args.sizes).to(args.device).train())
            features = torch.randn(args.training_images, length, width, device=args.device)
            for captions in sorted({1, args.captions}):
                size = (args.training_images, captions, args.tokens)
                labels = torch.randint(4, args.vocab_size, size, device=args.device)
                for dtype in (torch.float32, torch.bfloat16):
                    runs = {
                        name: (
                            step(loss, model, features, labels, dtype if name != TUTORIAL else torch.float32),
                            len(features),
                        )
                        for name, (loss, model) in losses.items()
                    }
                    how = f"{captions} captions an image" + (", bfloat16" if dtype == torch.bfloat16 else "")
                    what = dict(system=system, regions=regions, batch=args.training_images, search=how)
                    yield Comparison({"part": "training", **what}, runs)


def growth(args: Arguments) -> Iterator[Comparison]:
    """One size after the other, from 32 images, 5 beams, 14 words and 49 regions: ours and the bare loop."""
    sizes = SMALL_GROWING if args.small else GROWING
    usual = {"images": args.batches[len(args.batches) // 2], "beams": args.beams, "words": args.tokens}
    usual["regions"], width = shape(args.regions[0])
    for system in [name for name in ("additive", "cnn_transformer") if name in args.systems]:
        model = build(system, width, args.sizes).to(args.device)
        for name, values in sizes.items():
            for value in values:
                of = {**usual, name: value}
                features = torch.randn(of["images"], of["regions"], width, device=args.device)
                runs = {
                    OURS: (partial(searched, model, features, of["words"], of["beams"]), 1),
                    BARE: (partial(bare_search, model, features, of["words"], of["beams"]), 1),
                }
                yield Comparison({"part": "growth", "system": system, "grows": name, "to": value, **of}, runs)


def search_name(beams: int) -> str:
    return "greedy" if beams == 1 else f"beam {beams}"


def captioner_loss(model, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """As `train` calls it, which reads no logits."""
    return model(image_features=features, labels=labels, output_logits=False).loss


def step(
    loss: Callable, model, features: torch.Tensor, labels: torch.Tensor, dtype: torch.dtype = torch.float32
) -> Callable[[], None]:
    """A step of training, the optimiser's included, under autocast if `dtype` is not single precision."""
    learning = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-5, fused=True)  # the Trainer's

    def take() -> None:
        with torch.autocast(features.device.type, dtype, enabled=dtype != torch.float32):
            found = loss(model, features, labels)
        found.backward()
        optimizer.step()
        optimizer.zero_grad()

    return take


def memory(args: Arguments) -> list[dict]:
    """The peak of greedy and of beam search, each in a process of its own."""
    found = []
    images = 2 if args.small else 64
    for regions in args.regions:
        for name in [*(one for one in args.systems if one in ("additive", "vit_transformer")), VED, BLIP]:
            peaks = {}
            for beams in (1, args.beams):
                work = {"name": name, "regions": regions, "images": images, "beams": beams}
                command = [sys.executable, "-m", f"{__package__}.benchmark", "--memory_of", json.dumps(work)]
                for option in ("device", "tokens", *args.sizes):
                    command += [f"--{option}", str(getattr(args, option))]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
                peaks[search_name(beams)] = json.loads(done.stdout.splitlines()[-1]) if not done.returncode else None
            greedy, beam = peaks.values()
            ratio = beam / greedy if greedy and beam else None
            what = {"part": "memory", "system": name, "regions": regions, "batch": images}
            found.append({**what, "MB": peaks, "beam / greedy": ratio})
    return found


def peak_of(args: Arguments, work: dict) -> float:
    """MB that one search needs beyond what was there before it."""
    length, width = shape(work["regions"])
    name, beams = work["name"], work["beams"]
    make, search = {
        VED: (vision_encoder_decoder, encoder_decoder_search),
        BLIP: (blip_decoder, blip_search),
    }.get(name, (lambda *sizes: build(name, *sizes), searched))
    model = make(width, args.sizes).to(args.device)
    features = torch.randn(work["images"], length, width, device=args.device)
    search(model, features[:1], 2, 1)  # libraries make their own buffers
    if args.device != "cpu":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        search(model, features, args.tokens, beams)
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    Path("/proc/self/clear_refs").write_text("5")  # the peak is from now on (proc(5))
    before = memory_of("VmRSS")
    search(model, features, args.tokens, beams)
    return memory_of("VmHWM") - before


def files(args: Arguments) -> dict:
    """Images a second of the whole and of what its parts alone would allow, for each type of numbers."""
    sizes = dict(rows=6, group=2, rounds=1, batch_size=2) if args.small else {}
    of = benchmark_speed.Arguments(data=args.data, **sizes)
    found = benchmark_speed.measure(of)
    print(benchmark_speed.table(of, found) + "\n")
    rates = {}
    for dtype, spent in found["seconds"].items():
        whole, *parts = (statistics.median(spent[part]) for part in benchmark_speed.PARTS)
        # all cores read, and then all compute
        alone = parts[0] / (os.cpu_count() or 1) + sum(parts[1:])
        rates[dtype] = {"images a second": of.group / whole, "of what the parts allow": alone / whole}
    return {"part": "files", "rates": rates}


def export(args: Arguments) -> dict:
    sizes = dict(rows=2, rounds=1, num_beams=[1], batch_size=2) if args.small else dict(rows=96)
    of = benchmark_export.Arguments(data=args.data, **sizes)
    found = benchmark_export.table(of)
    print(benchmark_export.as_markdown(found) + "\n")
    return {"part": "export", "found": found}


def machine(args: Arguments) -> dict:
    """What the numbers depend on beside the program."""
    model = platform.processor() or platform.machine()
    flags: list[str] = []
    if os.path.exists("/proc/cpuinfo"):
        lines = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
        lines = {name.strip(): value.strip() for name, value in lines.items()}
        model = lines.get("model name", model)
        flags = [
            flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in lines.get("flags", "").split()
        ]
    found = {"processor": model, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "instructions": flags}
    if hasattr(os, "sysconf"):
        found["memory in GB"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9)
    if args.device != "cpu":
        found["device"] = torch.cuda.get_device_name(args.device)
    found |= {"torch": torch.__version__, "transformers": transformers.__version__}
    return found | {"python": platform.python_version(), "load": round(os.getloadavg()[0], 2)}


def table(found: list[dict]) -> str:
    """In Markdown, how many times as long as ours the others take."""
    others = [name for name in (BARE, TUTORIAL, VED, BLIP) if any(name in one.get("ratios", {}) for one in found)]
    lines = [
        f"| work | system | regions | images | how | images/s | {' | '.join(others)} |",
        "| --- | --- | --- | ---: | --- | ---: |" + " ---: |" * len(others),
    ]
    for one in found:
        if one["part"] in ("decoding", "training"):
            rate = one["counts"][OURS] / statistics.median(one["seconds"][OURS])
            cells = [f"{one['ratios'][name]:.2f}" if name in one["ratios"] else "" for name in others]
            what = [one["part"], one["system"], one["regions"], str(one["batch"]), one["search"], f"{rate:.1f}"]
            lines.append(f"| {' | '.join([*what, *cells])} |")
    if len(lines) == 2:
        lines = []
    for one in found:
        if one["part"] == "growth":
            if one["to"] == next(each["to"] for each in found if each.get("grows") == one["grows"]):
                lines += ["", f"Milliseconds of {one['system']}, ours and the bare loop's, as {one['grows']} grow:"]
            ours, bare = (1000 * statistics.median(one["seconds"][name]) for name in (OURS, BARE))
            lines.append(f"{one['to']}: {ours:.1f}, {bare:.1f}")
        if one["part"] == "memory":
            peaks = ", ".join(
                f"{name} {'failed' if peak is None else f'{peak:.0f} MB'}" for name, peak in one["MB"].items()
            )
            lines += ["", f"Memory of {one['system']} for {one['batch']} images, {one['regions']}: {peaks}"]
        if one["part"] == "files":
            for dtype, rate in one["rates"].items():
                share = f"{rate['of what the parts allow']:.0%} of what its parts alone allow"
                lines += ["", f"JPEG files to captions, {dtype}: {rate['images a second']:.1f} images/s, {share}"]
    return "\n".join(lines)


def plot(found: list[dict], path: Path) -> None:
    """Ratios as bars, growth as lines."""
    from matplotlib.figure import Figure

    bars = [
        (f"{one['system']}, {one['regions']}, {one['batch']}, {one['search']}: {name}", ratio)
        for one in found
        for name, ratio in one.get("ratios", {}).items()
        if one["part"] != "growth"
    ]
    growing = [one for one in found if one["part"] == "growth"]
    figure = Figure(figsize=(14, 2 + 0.16 * max(len(bars), 20)), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(3, 2))
    axes = left.subplots()
    axes.barh([label for label, _ in bars], [ratio for _, ratio in bars])
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set(xscale="log", xlabel="time for an image, divided by ours")
    axes.tick_params(axis="y", labelsize=5)
    axes.invert_yaxis()
    for panel, name in zip(right.subplots(2, 2).flat, GROWING, strict=True):
        for system in dict.fromkeys(one["system"] for one in growing):
            points = [one for one in growing if one["system"] == system and one["grows"] == name]
            seconds = [statistics.median(one["seconds"][OURS]) for one in points]
            panel.plot([one["to"] for one in points], seconds, marker="o", label=system)
        panel.set(xlabel=name, ylabel="seconds", xscale="log", yscale="log")
    if growing:
        panel.legend()
    figure.savefig(path, dpi=150)


def history_line(found: list[dict], described: dict) -> dict:
    ratios = {
        f"{one['part']} {one['system']} {one['regions']} {one['batch']} {one['search']}: {name}": round(ratio, 3)
        for one in found
        for name, ratio in one.get("ratios", {}).items()
        if one["part"] != "growth"
    }
    for one in found:
        if one["part"] == "memory" and one["beam / greedy"] is not None:
            ratios[f"memory {one['system']} {one['regions']} {one['batch']}: beam / greedy"] = round(
                one["beam / greedy"], 3
            )
        if one["part"] == "files":
            for dtype, rate in one["rates"].items():
                ratios[f"files {dtype}: of what the parts allow"] = round(rate["of what the parts allow"], 3)
    date = datetime.now(UTC).strftime("%Y-%m-%d")
    return {"version": __version__, "date": date, "machine": described, "ratios": ratios}


def like(one: dict, other: dict) -> bool:
    """Whether two machines can be compared: what is on them may be another version."""
    names = ("processor", "cores", "threads", "device")
    return all(one.get(name) == other.get(name) for name in names)


def read_history(path: Path) -> list[dict]:
    """
    Raises:
        InputError: if it is something else.
    """
    if not path.exists():
        return []
    try:
        lines = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]
        for line in lines:
            line["machine"].get, line["ratios"].items, line["version"], line["date"]  # noqa: B018
        return lines
    except (ValueError, LookupError, TypeError, AttributeError, OSError) as error:
        raise InputError(f"`history` must be lines that `--release` wrote, got {path} ({brief(error)})") from error


def changes(line: dict, before: list[dict]) -> str:
    """How ratios differ from those of the last release that was measured on such a machine; the largest first."""
    last = next((one for one in reversed(before) if like(one["machine"], line["machine"])), None)
    if last is None:
        return "No release was measured on a machine like this one."
    common = {name: ratio / last["ratios"][name] for name, ratio in line["ratios"].items() if last["ratios"].get(name)}
    lines = [f"Ratios now, and at {last['version']} ({last['date']}) on a machine like this one:"]
    for name, change in sorted(common.items(), key=lambda one: -abs(one[1] - 1)):
        lines.append(f"{change - 1:+.1%}  {name}: {line['ratios'][name]:.3f}, {last['ratios'][name]:.3f}")
    return "\n".join(lines)


def measure(args: Arguments) -> list[dict]:
    torch.manual_seed(0)
    found = []
    # Generation first, as in a process that only captions: training leaves memory behind that is used again without
    # being asked of the system, which makes the copies of others' beam search cheaper.
    for part, make in (("decoding", decoding), ("growth", growth), ("training", training)):
        if part in args.parts:
            for comparison in tqdm(make(args), desc=part, unit="comparison"):
                comparison.measure(args)
                found.append(comparison.described())
    if "memory" in args.parts:
        found += memory(args)
    found += [make(args) for part, make in (("files", files), ("export", export)) if part in args.parts]
    return found


def main(argv: list[str] | None = None) -> None:
    args = read_arguments(Arguments, SMALL, argv, __doc__)
    if args.memory_of is not None:
        print(peak_of(args, json.loads(args.memory_of)))
        return
    history = Path(args.history)
    before = read_history(history)
    described = machine(args)
    found = measure(args)
    text, line = table(found), history_line(found, described)
    report = [", ".join(f"{name} {value}" for name, value in described.items()), "", text, "", changes(line, before)]
    print("\n".join(report))
    if args.output_dir is not None:
        output = Path(args.output_dir)
        output.mkdir(parents=True, exist_ok=True)
        (output / "benchmark.md").write_text("\n".join(report) + "\n", "utf-8")
        plot(found, output / "benchmark.png")
        with replacing(output / "benchmark.json") as part:
            numbers = {"setting": asdict(args), "machine": described, "found": found}
            part.write_text(json.dumps(numbers, indent=2) + "\n", "utf-8")
    if args.release:
        history.parent.mkdir(parents=True, exist_ok=True)
        with open(history, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    run(main)
