"""
What each search does to the captions of one captioner: the first caption's CIDEr-D, how different five are, time.

    python training/measure_decoding.py --model outputs/quickstart --data shapes:rows=300,seed=1 \\
        --frequency_data shapes:rows=6000,seed=0 --output_dir outputs/decoding_shapes

All searches start from the same encoder outputs; times are the processor's for the searches alone, of all threads
together. Differences in CIDEr-D are to beam search with five beams, image by image. Words that must be said are drawn
from the words of the references, one for each image. Writes `decoding.json`, and the same numbers as a table,
`decoding.md`.
"""

import json
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import set_seed

from ..checkpoints import PHOTOGRAPHS
from ..decoding import MetricUtility, generation_options
from ..errors import InputError
from ..files import replacing
from ..metrics import CiderD, DocumentFrequency, Scores, bleu, tokenize
from ..metrics.collapse import ends_badly
from ..models.image_reading import to_rgb
from ..models.tokenization_captioner import decode_captions
from . import run
from .caption_sets import measure_sets
from .inputs import read_captioner, read_captions
from .parsing import CommandParser

BASE = "beam 5"
SET = {"num_return_sequences": 5}
SEARCHES: dict[str, dict[str, Any]] = {
    "greedy": {"num_beams": 1},
    BASE: {"num_beams": 5, **SET},
    "beam 10": {"num_beams": 10, **SET},
    **{
        f"diverse, {beams} beams, penalty {penalty}": {
            "decoding": "diverse",
            "num_beams": beams,
            "num_beam_groups": 5,
            "diversity_penalty": float(penalty),
            **SET,
        }
        for beams, penalty in ((5, "0.5"), (5, "4"), (10, "0.5"), (10, "4"))
    },
    "stochastic": {"decoding": "stochastic", "num_beams": 5, **SET},
    "5 samples": {"do_sample": True, "top_k": 0, "num_beams": 1, **SET},
    "mbr of 20, CIDEr-D": {"decoding": "mbr", "num_samples": 20},
    "mbr of 20, n-grams alike": {"decoding": "mbr", "num_samples": 20, "utility_frequency": None},
    "mbr of 20, BLEU-4": {"decoding": "mbr", "num_samples": 20, "utility": "bleu_4"},
    "mbr of 20, temperature 0.7": {"decoding": "mbr", "num_samples": 20, "temperature": 0.7},
    "beam 5, rules": {"num_beams": 5, "no_bad_ending": True, "no_repeated_words": True, "min_words": 6},
    "a forced word": {"decoding": "constrained", "num_beams": 10},
}


@dataclass
class Arguments:
    """What to measure on."""

    data: str = field(metadata={"help": "images with their captions"})
    output_dir: str = field(metadata={"help": "folder for decoding.json and decoding.md"})
    frequency_data: str = field(metadata={"help": "captions trained on, for the utility's document frequencies"})
    model: str = field(default=PHOTOGRAPHS, metadata={"help": "folder of a captioner"})
    rows: int | None = field(default=None, metadata={"help": "of the first images only"})
    forced: int = field(default=100, metadata={"help": "of the first images that must say a word"})
    batch_size: int = field(default=16, metadata={"help": "images at a time"})
    seed: int = field(default=0, metadata={"help": "of samples and of words that must be said"})


def main(argv: list[str] | None = None) -> None:
    (args,) = CommandParser(Arguments, description=__doc__).parse(argv)
    dataset = read_captions(args.data, check_images=False)
    dataset = dataset.select(range(min(len(dataset), args.rows or len(dataset))))
    known = [tokenize(captions) for captions in read_captions(args.frequency_data, check_images=False)["captions"][:]]
    model, processor = read_captioner(args.model)
    model.eval()
    utility = MetricUtility(processor.tokenizer, "cider_d", DocumentFrequency.from_references(known))
    forced = words_to_force(dataset, processor.tokenizer, args.forced, args.seed)

    set_seed(args.seed)
    found: dict[str, list[list[str]]] = {name: [] for name in SEARCHES}
    seconds = dict.fromkeys(SEARCHES, 0.0)
    for start in tqdm(range(0, len(dataset), args.batch_size), desc="captioning", unit="batch"):
        images = [to_rgb(image) for image in dataset[start : start + args.batch_size]["image"]]
        with torch.inference_mode():
            encoded = model.get_encoder()(**processor(images=images, return_tensors="pt"))
        for name, options in SEARCHES.items():
            if name == "a forced word":
                words = forced[start : start + len(images)]
                each = [
                    (one_image(encoded, place), {**options, "force_words": [word]}) for place, word in enumerate(words)
                ]
            elif name in ("mbr of 20, CIDEr-D", "mbr of 20, temperature 0.7"):
                each = [(encoded, {**options, "utility": utility})]
            else:
                each = [(encoded, options)]
            for part, wanted in each:
                wanted = dict(wanted)
                begin = time.process_time()
                settings = generation_options(wanted.pop("decoding", None), wanted, processor)
                tokens = model.generate(encoder_outputs=part, **settings)
                seconds[name] += time.process_time() - begin
                captions = decode_captions(processor.tokenizer, tokens)
                count = len(captions) // len(part[0])
                found[name] += [captions[place : place + count] for place in range(0, len(captions), count)]

    report = measure(found, seconds, dataset, forced)
    report["setting"] = {
        "model": args.model,
        "data": args.data,
        "images": len(dataset),
        "frequency_data": args.frequency_data,
        "batch_size": args.batch_size,
        "threads": torch.get_num_threads(),
        "seed": args.seed,
    }
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (("decoding.json", json.dumps(report, indent=2)), ("decoding.md", table(report))):
        with replacing(folder / name) as part:
            part.write_text(text + "\n", "utf-8")
    print(table(report))


def one_image(encoded, place: int):
    """An encoder's output (of B images) for one of them."""
    rows = {
        name: value[place : place + 1] if isinstance(value, torch.Tensor) else value for name, value in encoded.items()
    }
    return type(encoded)(**rows)


def words_to_force(dataset: Dataset, tokenizer, count: int, seed: int) -> list[str]:
    """
    For each of the first `count` images a word of other images' references, of three letters or more, which occurs in
    at least one image of 200 and which the captioner knows.
    """
    words = [{word for caption in tokenize(captions) for word in caption} for captions in dataset["captions"][:]]
    often = Counter(word for each in words for word in each)
    known = [
        word
        for word, images in sorted(often.items())
        if images * 200 >= len(words)
        and len(word) > 2
        and word.isalpha()
        and tokenizer.unk_token_id not in tokenizer(word, add_special_tokens=False)["input_ids"]
    ]
    if not known:
        raise InputError("`data` must have captions with words that the captioner knows, got none")
    chance = random.Random(seed)
    return [chance.choice(known) for _ in range(min(count, len(words)))]


def measure(found: dict, seconds: dict[str, float], dataset: Dataset, forced: list[str]) -> dict[str, Any]:
    """The report's numbers; CIDEr-D and BLEU-4 as fractions, intervals of 95 % over images."""
    references = dataset["captions"][:]
    truths = [tokenize(captions) for captions in references]
    frequency = DocumentFrequency.from_references(truths)
    scorer = CiderD(frequency)
    cooked = scorer.cook(truths)

    def best(name: str) -> tuple[list[list[str]], Any, slice]:
        words = tokenize([captions[0] for captions in found[name]])
        part = slice(0, len(words))
        return words, scorer.score(words, cooked.take(range(len(words)))), part

    _, base, _ = best(BASE)
    rows = {}
    for name in SEARCHES:
        if not found[name]:
            continue
        words, values, part = best(name)
        scores, difference = Scores.from_mean(values), Scores.from_mean(values - base[part])
        row: dict[str, Any] = {
            "options": {key: value for key, value in SEARCHES[name].items() if value is not None},
            "images": len(words),
            "cider_d": scores.corpus,
            "cider_d_interval": scores.confidence_interval(),
            "to_beam_5": difference.corpus,
            "to_beam_5_interval": difference.confidence_interval(),
            "bleu_4": bleu(words, truths[part])[3].corpus,
            "bad_endings": sum(map(ends_badly, words)) / len(words),
            "words": sum(map(len, words)) / len(words),
            "cpu_milliseconds_per_image": 1000 * seconds[name] / len(words),
        }
        if len(found[name][0]) > 1:
            row["sets"] = measure_sets(found[name], references, frequency)
        if name == "a forced word":
            said = [word in text for word, text in zip(forced, words, strict=False)]
            row["said"] = sum(said)
        rows[name] = row
    return {"searches": rows}


def table(report: dict) -> str:
    """The report in Markdown, scores times 100."""
    titles = [
        "search",
        "CIDEr-D of the first",
        "to beam 5",
        "BLEU-4",
        "words",
        "distinct-1",
        "distinct-2",
        "self-CIDEr",
    ]
    titles += ["mBLEU-4", "different of 5", "CIDEr-D of the set's best", "CPU ms an image"]
    lines = [f"| {' | '.join(titles)} |", "| --- |" + " ---: |" * (len(titles) - 1)]

    def number(value: float, factor: float = 100) -> str:
        return f"{factor * value:.1f}"

    for name, row in report["searches"].items():
        sets = row.get("sets")
        low, high = row["to_beam_5_interval"]
        cells = [
            name if row["images"] == report["setting"]["images"] else f"{name} ({row['images']} images)",
            number(row["cider_d"]),
            "" if name == BASE else f"{100 * row['to_beam_5']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})",
            number(row["bleu_4"]),
            number(row["words"], 1),
            *(
                [number(sets[key]) for key in ("distinct_1", "distinct_2", "self_cider", "m_bleu_4")]
                + [number(sets["different"], 1), number(sets["best_cider_d"])]
                if sets
                else [""] * 6
            ),
            f"{row['cpu_milliseconds_per_image']:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    forced = report["searches"].get("a forced word")
    if forced:
        lines += ["", f"A forced word was said in {forced['said']} of {forced['images']} captions."]
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
