r"""
Compares captioners on the same images: is one better than another, or was it chance?

    hf-captioner compare outputs/quickstart_evaluation/captions.json results.json --data shapes:rows=200,seed=1 \
        --output_dir outputs/comparison
    hf-captioner compare outputs/quickstart outputs/dot results.json --data shapes:rows=200,seed=1 --num_beams 3 \
        --output_dir outputs/comparison_of_three

A captioner is a file of captions in the COCO results format, from anybody's model, or a captioner's folder or Hub
name, which captions the images first, as `evaluate` does, into a folder below `output_dir`.

Writes `comparison.json`: every captioner's metrics, and for every pair of captioners each metric's difference with its
95 % interval and p value (paired bootstrap over images, Holm's correction for several pairs), on how many images one
is better, and how much the two say the same. `comparison.html` is one file without network that shows these numbers
and the images on which captioners differ most, with captions, references, and where captioners looked if they were
given as folders.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset

from ..errors import InputError
from ..explain import ShownImage, ShownMaps, write_comparison_page
from ..metrics import DocumentFrequency, agreement, compare_scores, score_captions, tokenize
from ..metrics.comparison import LOWER_IS_BETTER
from ..metrics.scores import Scores
from ..models.tokenization_captioner import decode_captions, token_texts
from . import evaluate, run
from .captioning import Images, caption_images, describe_data, image_ids, versions, write_json
from .decoding_options import DecodingArguments
from .evaluate import MeasuringArguments, objects_in, read_given
from .inputs import SourceArguments, read_captioner, read_captions
from .parsing import CommandParser

MAIN_METRIC = "cider_d"  # by which images are chosen for the page, where it was measured


@dataclass
class Arguments(MeasuringArguments):
    """What to compare, on what, and how."""

    output_dir: str = field(metadata={"help": "folder for comparison.json and comparison.html"})
    names: list[str] | None = field(
        default=None, metadata={"help": "what to call the captioners, in their order; by their paths by default"}
    )
    resamples: int = field(default=10_000, metadata={"help": "number of resampled corpora"})
    seed: int = field(default=0, metadata={"help": "of the resampling, and of the images drawn for the page"})
    page_images: int = field(
        default=150, metadata={"help": "images on the page: two thirds with large differences, one third at random"}
    )
    num_beams: int | None = field(
        default=None, metadata={"help": "of captioners given as folders or Hub names; by default their own"}
    )
    batch_size: int = field(default=32, metadata={"help": "images at a time"})

    def __post_init__(self):
        for name, least in (("resamples", 1), ("page_images", 0), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise InputError(f"`{name}` must be at least {least}, got {getattr(self, name)}")
        super().__post_init__()


def main(argv: list[str] | None = None) -> None:
    parser = CommandParser(Arguments, SourceArguments, description=__doc__)
    parser.add_argument("captioners", nargs="+", help="files of captions, or captioners' folders or Hub names")
    args, source, positional = parser.parse(argv)
    sources = positional.captioners
    names = name_captioners(sources, args.names)
    frequency = args.frequency()
    dataset = read_captions(args.data, args.split, check_images=False, **source.source_options())
    ids = image_ids(dataset, args.id_column)
    known = objects_in(dataset, ids, args.instances)
    references = dataset["captions"][:]

    folder = Path(args.output_dir)
    captions = {
        name: captions_of(args, source, name, dataset, ids) for name, source in zip(names, sources, strict=True)
    }
    scores: dict[str, dict[str, Scores]] = {}
    missing: dict[str, str] = {}
    for name, texts in captions.items():
        scores[name], missing = score_captions(
            texts,
            references,
            args.metrics,
            document_frequency=frequency,
            images=Images(dataset) if args.clip_folder is not None else None,
            clip_folder=args.clip_folder,
            java_dir=args.java_dir,
            **known,
        )
    words = {name: tokenize(texts) for name, texts in captions.items()}
    frequency = frequency or DocumentFrequency.from_references([tokenize(truths) for truths in references])
    differences = compare_scores(scores, args.resamples, seed=args.seed)
    report = {
        **describe_data(args, dataset, ids),
        "captioners": [
            {
                "name": name,
                "source": source,
                "captions_sha256": hashlib.sha256(json.dumps(captions[name]).encode()).hexdigest(),
                "metrics": {metric: score.corpus for metric, score in scores[name].items()},
                "intervals_95": {metric: score.confidence_interval() for metric, score in scores[name].items()},
            }
            for name, source in zip(names, sources, strict=True)
        ],
        "comparisons": [
            {
                "a": pair[0],
                "b": pair[1],
                "metrics": {metric: as_json(found) for metric, found in by_metric.items()},
                "agreement": agreement(words[pair[0]], words[pair[1]], frequency),
            }
            for pair, by_metric in differences.items()
        ],
        "not_available": missing,
        "lower_is_better": list(LOWER_IS_BETTER),
        "method": method(args, len(differences)),
        "resamples": args.resamples,
        "seed": args.seed,
        "versions": versions(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "comparison.json", report)
    write_page(args, report, sources, captions, scores, dataset, ids)
    show(report)
    print(f"\ncomparison: {folder / 'comparison.json'}, {folder / 'comparison.html'}")


def name_captioners(sources: Sequence[str], names: Sequence[str] | None) -> list[str]:
    """
    One name for each captioner: what was given, or as much of the end of its path as tells it from the others. The
    folder says more than the file's name where that is `captions.json`.

    Raises:
        InputError: if there are fewer than two captioners, or not as many different names.
    """
    if len(sources) < 2:
        raise InputError(f"`captioners` must be at least two, got {len(sources)}")
    if names is None:
        parts = [Path(source).with_suffix("").parts if is_file(source) else Path(source).parts for source in sources]
        parts = [part[:-1] if part[-1] == "captions" and len(part) > 1 else part for part in parts]
        length = next((n for n in range(1, 9) if len({part[-n:] for part in parts}) == len(parts)), None)
        if length is None:  # the same captioner twice
            return [f"{part[-1]} ({number})" for number, part in enumerate(parts, start=1)]
        return ["/".join(part[-length:]) for part in parts]
    if len(names) != len(sources) or len(set(names)) != len(names):
        raise InputError(f"`names` must be another for each of the {len(sources)} captioners, got {names}")
    return list(names)


def is_file(source: str) -> bool:
    """Whether a captioner is a file of captions; a name of the Hub may end in anything."""
    return Path(source).is_file() or (source.endswith(".json") and not Path(source).is_dir())


def captions_of(args: Arguments, source: str, name: str, dataset: Dataset, ids: list[int]) -> list[str]:
    """A captioner's captions in the order of the data set's rows; the first of those that a file has of an image."""
    settings = {name: getattr(args, name) for name in ("data", "split", "id_column", "num_beams", "batch_size")}
    folder = Path(args.output_dir, "captions", "".join(c if c.isalnum() or c in "-_." else "_" for c in name))
    if is_file(source):
        sets, _ = read_given(evaluate.Arguments(captions=source, output_dir=str(folder), **settings), dataset, ids)
        return [texts[0] for texts in sets]
    settings = evaluate.Arguments(model=source, output_dir=str(folder), **settings)
    state = PartialState(cpu=not torch.accelerator.is_available())
    found = caption_images(settings, DecodingArguments(), dataset, ids, state)
    if found.errors:  # the others would be compared on other images
        raise InputError(next(iter(found.errors.values())))
    return [texts[0] for texts in found.sets]


def as_json(found) -> dict:
    values = asdict(found) | {"difference": found.difference}
    return {
        "a": values["first"],
        "b": values["second"],
        "difference": values["difference"],
        "interval_95": list(values["interval"]),
        **{name: values[name] for name in ("p", "p_holm", "wins", "losses", "ties")},
    }


def method(args: Arguments, pairs: int) -> dict[str, str]:
    """How the numbers were computed, in sentences for a report."""
    corrected = (
        f"Holm's correction for the {pairs} pairs of captioners" if pairs > 1 else "no correction, for one pair"
    )
    return {
        "difference": "Differences are the first captioner's score minus the second's.",
        "interval_95": (
            f"Intervals have the 2.5 and 97.5 % points of {args.resamples} resampled corpora (paired bootstrap): "
            "images are drawn with replacement, the same for all captioners and metrics, and each corpus is scored as "
            "a whole."
        ),
        "corpus_metrics": (
            "BLEU and METEOR are scores of a corpus: their counts of each image are added up before the score is "
            "computed. CIDEr's document frequencies are those of "
            f"{args.document_frequency or 'all references'} and are not resampled."
        ),
        "p": (
            "p is two-sided, twice the share of resampled differences on the rarer side of 0, at least "
            f"2 / {args.resamples + 1}; {corrected} within each metric. It is not corrected for the number of "
            "metrics: choose the one that counts before looking."
        ),
        "wins": "Better, worse and same count images by the metric of the single image.",
        "tokens": "Words are those of the COCO caption evaluation.",
    }


def write_page(
    args: Arguments,
    report: dict,
    sources: Sequence[str],
    captions: Mapping[str, Sequence[str]],
    scores: Mapping[str, Mapping[str, Scores]],
    dataset: Dataset,
    ids: Sequence[int],
) -> None:
    by_metric = {
        metric: np.stack([scores[name][metric].per_image for name in captions], axis=1)
        for metric in dict.fromkeys(metric for found in scores.values() for metric in found)
    }
    main = by_metric[MAIN_METRIC if MAIN_METRIC in by_metric else next(iter(by_metric))]  # (B, captioners)
    rows = rows_to_show(main, args.page_images, args.seed)
    pictures = dataset.select_columns(["image", "captions"]).select(rows)
    maps = [
        [None] * len(rows)
        if is_file(source)
        else maps_of(args, source, pictures, [captions[name][row] for row in rows])
        for source, name in zip(sources, captions, strict=True)
    ]
    shown = [
        ShownImage(
            ids[row],
            picture["image"],
            [texts[row] for texts in captions.values()],
            picture["captions"],
            {metric: values[row].tolist() for metric, values in by_metric.items()},
            [found[place] for found in maps],
        )
        for place, (row, picture) in enumerate(zip(rows, pictures, strict=True))
    ]
    *before, last = captions
    title = f"{', '.join(before)} and {last}"
    write_comparison_page(Path(args.output_dir, "comparison.html"), title, report, shown)


def rows_to_show(values: np.ndarray, count: int, seed: int) -> list[int]:
    """
    Rows for the page: for every pair of captioners those with the largest differences on either side, and others at
    random, so that the page does not show extremes alone.

    Args:
        values: (B, captioners), of one metric.
        count: at most so many.
        seed: of the draw.
    """
    chosen: dict[int, None] = {}
    pairs = list(combinations(range(values.shape[1]), 2))
    ranked = []
    for one, other in pairs:
        order = np.argsort(values[:, one] - values[:, other], kind="stable")
        ranked += [order, order[::-1]]
    for place in range(len(values)):
        for order in ranked:
            if len(chosen) < 2 * count // 3:
                chosen[int(order[place])] = None
    for row in np.random.default_rng(seed).permutation(len(values)):
        if len(chosen) < count:
            chosen[int(row)] = None
    return list(chosen)


@torch.inference_mode()
def maps_of(args: Arguments, source: str, pictures: Dataset, texts: Sequence[str]) -> list[ShownMaps | None]:
    """Where a captioner looked when it said these captions; `None` if it does not attend, or says something else."""
    model, processor = read_captioner(source)
    if not model.config.attends:
        return [None] * len(texts)
    model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    if args.num_beams is not None:
        model.generation_config.update(num_beams=args.num_beams)
    found: list[ShownMaps | None] = []
    for start in range(0, len(texts), args.batch_size):
        images = pictures[start : start + args.batch_size]["image"]
        inputs = processor(images=images, return_tensors="pt").to(model.device)
        outputs = model.generate(**inputs, output_attentions=True, return_dict_in_generate=True)
        said = decode_captions(processor.tokenizer, outputs.sequences.cpu())
        maps = model.attention_maps(outputs).float().cpu().numpy()
        rows = zip(said, texts[start : start + len(said)], outputs.sequences[:, 1:].tolist(), maps, strict=True)
        for text, expected, tokens, weights in rows:
            words = token_texts(processor.tokenizer, tokens)
            kept = [place for place, token in enumerate(tokens) if token not in processor.tokenizer.all_special_ids]
            same = text == expected and kept
            found.append(ShownMaps([words[place] for place in kept], weights[kept]) if same else None)
    return found


def show(report: dict) -> None:
    several = len(report["comparisons"]) > 1
    for comparison in report["comparisons"]:
        print(f"\n{comparison['a']} (a) and {comparison['b']} (b), {report['num_images']} images")
        print(f"{'':>18}  {'a':>8} {'b':>8} {'a - b':>8}  {'95 % interval':^20} {'p':>8}" + "   p (Holm)" * several)
        for name, found in comparison["metrics"].items():
            low, high = found["interval_95"]
            line = f"{name:>18}  {found['a']:8.4f} {found['b']:8.4f} {found['difference']:+8.4f}"
            line += f"  [{low:+8.4f}, {high:+8.4f}] {found['p']:8.4f}" + f"   {found['p_holm']:8.4f}" * several
            print(f"{line}   better on {found['wins']}, worse on {found['losses']}")
        agreed = comparison["agreement"]
        print(
            f"same caption: {100 * agreed['same']:.1f} %, words in common: {100 * agreed['word_overlap']:.1f} %, "
            f"CIDEr-D of one against the other: {agreed['mutual_cider_d']:.2f}"
        )
    for name, reason in report["not_available"].items():
        print(f"{name:>18}  {reason}")


if __name__ == "__main__":
    run(main)
