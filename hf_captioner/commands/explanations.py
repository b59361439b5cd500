"""
Do explanations show what a captioner names, and what it needed to name it? As a table, for captioners trained on
shapes.

    python training/measure_explanations.py --models outputs/quickstart outputs/shapes_cnn_transformer --rows 200

Over every word that names a shape, in greedy captions that are one of the image's references, or with `--references`
in the first reference, put into the mouth of a captioner that seldom finds one: *pointing*, the share of maps whose
largest cell has its centre in the object's box (as `measure_pointing.py` has it), and the mean areas under the curves
of the word's probability as cells are covered, the heaviest first (*deletion*: smaller is better), and uncovered in
the same order (*insertion*: larger is better). Every method that a captioner allows stands beside maps of random
numbers.
"""

from dataclasses import dataclass, field

import torch
from tqdm.auto import tqdm

from ..data import shapes_dataset
from ..data.shapes import is_hit, named_objects
from ..errors import InputError
from ..explain import METHODS, deletion_and_insertion, token_maps
from ..models.tokenization_captioner import decode_captions
from . import run
from .inputs import read_captioner
from .parsing import CommandParser

COLUMNS = ("pointing", "deletion", "insertion")


@dataclass
class Arguments:
    """What to measure on."""

    models: list[str] = field(metadata={"help": "folders of captioners trained on shapes"})
    rows: int = field(default=200, metadata={"help": "number of images"})
    seed: int = field(default=1, metadata={"help": "seed of the shapes; use another one than for training"})
    references: bool = field(default=False, metadata={"help": "explain each image's first reference"})


def possible_methods(model, pixel_values: torch.Tensor, tokens: torch.Tensor) -> list[str]:
    """Those of `METHODS` that a captioner has what is needed for."""
    found = []
    for name in METHODS:
        try:
            token_maps(model, pixel_values, tokens, name)
        except InputError:
            continue
        found.append(name)
    return found


def measure(model, processor, dataset, references: bool) -> tuple[float, dict[str, list[tuple[float, ...]]]]:
    """
    The share of greedy captions that are a reference word for word, and for each method and `random` the `COLUMNS` of
    every word that names a shape.
    """
    methods, exact, found = None, 0, {}
    generator = torch.Generator().manual_seed(0)
    for row in tqdm(dataset, desc="explaining", unit="image"):
        pixels = processor([row["image"]], return_tensors="pt")["pixel_values"]
        tokens = model.generate(pixels, num_beams=1)[0]
        if methods is None:
            methods = possible_methods(model, pixels, tokens)
            found = {name: [] for name in (*methods, "random")}
        (caption,) = decode_captions(processor.tokenizer, tokens[None])
        exact += caption in row["captions"]
        if references:
            caption = row["captions"][0]
            tokens = torch.tensor([int(tokens[0]), *processor.tokenizer(caption).input_ids])
        elif caption not in row["captions"]:
            continue
        objects = named_objects(processor.tokenizer.convert_ids_to_tokens(tokens[1:].tolist()), caption, row)
        maps = {name: token_maps(model, pixels, tokens, name) for name in methods}
        maps["random"] = torch.rand(maps["occlusion"].shape, generator=generator)
        for name, weights in maps.items():
            for place, box in objects:
                areas = deletion_and_insertion(model, pixels, tokens, place, weights[place])
                found[name].append((float(is_hit(weights[place], box)), *areas))
    return exact / len(dataset), found


def table(model: str, exact: float, found: dict[str, list[tuple[float, ...]]]) -> str:
    """One captioner's part of the table; the standard error of a mean stands behind it."""
    lines = []
    for name, values in found.items():
        rows = torch.tensor(values).reshape(-1, len(COLUMNS))
        errors = rows.std(0) / max(len(rows), 1) ** 0.5
        cells = [f"{mean:.3f} ± {error:.3f}" for mean, error in zip(rows.mean(0), errors, strict=True)]
        lines.append(f"| {model} | {exact:.3f} | {len(rows)} | {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    (args,) = CommandParser(Arguments, description=__doc__).parse(argv)
    dataset = shapes_dataset(args.rows, args.seed)
    heads = ("captioner", "exact match", "words", "method", *COLUMNS)
    print(f"| {' | '.join(heads)} |\n{'| --- ' * len(heads)}|")
    for name in args.models:
        model, processor = read_captioner(name)
        print(
            table(name.rstrip("/").rpartition("/")[2], *measure(model.eval(), processor, dataset, args.references)),
            flush=True,
        )


if __name__ == "__main__":
    run(main)
