r"""
Captions a source of images with a trained captioner and measures the captions.

    hf-captioner evaluate --model outputs/quickstart --data shapes:rows=200,seed=1 \
        --output_dir outputs/quickstart_evaluation

On several GPUs it is started by accelerate, in a clone with `training/evaluate_captions.py` in place of `-m ...`:

    accelerate launch --multi_gpu --num_processes 2 -m hf_captioner.commands.evaluate --model outputs/flickr8k \
        --data flickr8k/validation.parquet --num_beams 5 --clip_folder clip --output_dir outputs/flickr8k/evaluation

Several processes on CPUs are started with `torchrun --nproc_per_node 2` in place of `accelerate launch`.

`--decoding diverse --num_beam_groups 5 --num_return_sequences 5` and the like name another search than beam search; of
several captions an image, the first is measured as usual, all of them are in `caption_sets.json`, and `metrics.json`
says under `sets` how different they are.

Writes `captions.json` in the COCO results format and `metrics.json`: all metrics, their 95 % bootstrap intervals over
images, checks for a collapsed model, how far the probabilities of words and the scores of captions can be believed (a
reliability diagram and a risk-coverage curve, drawn in `calibration.png`; `hf-captioner calibrate` makes them better),
and the settings that comparisons need. If it was interrupted, the same command continues with the images that have no
caption yet; after it has finished, it only computes the metrics again.

`confidence.json` keeps the words' probabilities, read together with the captions, for the next time that metrics are
computed.

Images that cannot be read are listed in `errors.json` and left out of captions and metrics, and the exit status is 1;
the same command tries them again.

Captions that are there already, from anybody's model, are measured in place of a captioner's:

    hf-captioner evaluate --captions results.json --data shapes:rows=200,seed=1 --output_dir outputs/theirs

If images have several captions in that file, they are sets, too. With COCO's `instances_*.json` (`--instances`), and
for shapes, CHAIR says how often a caption names an object that is not there. `hf-captioner compare` says whether one
of two captioners is better.
"""

import hashlib
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import PartialState
from datasets import Dataset, List
from tqdm.auto import tqdm

from ..data.coco_files import read_instances, read_results
from ..data.shapes import SHAPES
from ..errors import InputError
from ..explain import save_calibration_picture
from ..metrics import ALL_METRICS, CaptionMetrics, DocumentFrequency, collapse_checks, find_alarms, object_words
from . import run
from .caption_sets import measure_sets
from .captioning import Images, caption_images, describe_data, image_ids, versions, write_json, write_results
from .confidence import confidence_report, costs, read_confidence
from .decoding_options import DecodingArguments
from .inputs import PrecisionArguments, SourceArguments, read_captions, refusing
from .parsing import CommandParser


@dataclass(kw_only=True)
class MeasuringArguments:
    """On what captions are measured, and by what: the same for every command that does."""

    data: str = field(metadata={"help": "a table, a folder, a Hub data set, or shapes:rows=200,seed=1"})
    split: str | None = field(default=None, metadata={"help": "name of the split, if the source has several"})
    id_column: str | None = field(
        default=None,
        metadata={"help": "column of integer ids; by default image_id, or else row numbers"},
    )
    metrics: list[str] = field(
        default_factory=lambda: list(ALL_METRICS), metadata={"help": "names of the metrics to compute, all by default"}
    )
    document_frequency: str | None = field(
        default=None,
        metadata={
            "help": "file with precomputed document frequencies (DocumentFrequency.save); the references' by default"
        },
    )
    clip_folder: str | None = field(
        default=None, metadata={"help": "folder of a CLIP model, for clip_score and ref_clip_score"}
    )
    java_dir: str | None = field(
        default=None, metadata={"help": "folder with the jars of METEOR and SPICE; pycocoevalcap's by default"}
    )
    instances: str | None = field(
        default=None, metadata={"help": "COCO's instances_*.json of these images, for chair_i and chair_s"}
    )

    def __post_init__(self):
        unknown = [name for name in self.metrics if name not in ALL_METRICS]
        if unknown:
            raise InputError(f"`metrics` must be among {', '.join(ALL_METRICS)}; got {unknown[0]!r}")

    def frequency(self) -> DocumentFrequency | None:
        """
        Those of the file that was named.

        Raises:
            InputError: if it cannot be read.
        """
        with refusing(OSError, ValueError, what="`document_frequency`: "):
            return DocumentFrequency.load(self.document_frequency) if self.document_frequency else None


@dataclass
class Arguments(MeasuringArguments, PrecisionArguments):
    """What to caption, how, and what to measure."""

    output_dir: str = field(metadata={"help": "folder for captions.json and metrics.json"})
    model: str | None = field(
        default=None, metadata={"help": "folder or Hub name of a trained captioner with its processor"}
    )
    captions: str | None = field(
        default=None, metadata={"help": "file of captions in the COCO results format, in place of a model"}
    )
    num_beams: int | None = field(default=None, metadata={"help": "number of beams, by default the model's own"})
    length_penalty: float | None = field(
        default=None, metadata={"help": "exponent of the length in beam search, by default the model's own"}
    )
    no_repeat_ngram_size: int | None = field(
        default=None,
        metadata={
            "help": "sequences of so many tokens come once in a caption, by default the model's own; 0: no rule"
        },
    )
    max_new_tokens: int | None = field(
        default=None, metadata={"help": "maximum number of tokens, by default the model's own"}
    )
    batch_size: int = field(default=32, metadata={"help": "images at a time in each process"})
    num_workers: int = field(
        default=0,
        metadata={
            "help": "number of threads that read images, for each process that captions; by default by the machine"
        },
    )
    per_image: bool = field(default=False, metadata={"help": "write the scores of each image as well"})

    def __post_init__(self):
        if (self.model is None) == (self.captions is None):
            got = "neither" if self.model is None else "both"
            raise InputError(f"`model` or `captions` must be given, and not both, got {got}")
        if self.batch_size < 1:
            raise InputError(f"`batch_size` must be at least 1, got {self.batch_size}")
        MeasuringArguments.__post_init__(self)
        PrecisionArguments.__post_init__(self)


def main(argv: list[str] | None = None) -> None:
    args, source, decoding = CommandParser(Arguments, SourceArguments, DecodingArguments, description=__doc__).parse(
        argv
    )
    # without `cpu=True` accelerate does not see that several CPU processes were started
    state = PartialState(cpu=not torch.accelerator.is_available())
    folder = Path(args.output_dir)
    if folder.is_file():
        raise InputError(f"`output_dir` must be a folder, got the file {folder}")
    frequency = args.frequency()

    with state.main_process_first():
        dataset = read_captions(args.data, args.split, check_images=False, **source.source_options())
    ids = image_ids(dataset, args.id_column)
    known = objects_in(dataset, ids, args.instances)
    errors: dict[int, str] = {}
    if args.captions is None:
        model, processor, sets, setting, errors, read = caption_images(args, decoding, dataset, ids, state)
        several = decoding.num_return_sequences is not None
    else:
        sets, setting = read_given(args, dataset, ids)
        several = any(len(texts) > 1 for texts in sets)

    if errors:
        rows = [row for row in range(len(dataset)) if row not in errors]
        if not rows:
            raise InputError(f"`data` must have an image that can be read, got none in {args.data}: {errors[0]}")
        dataset, ids, sets = dataset.select(rows), [ids[row] for row in rows], [sets[row] for row in rows]
        read = [read[row] for row in rows]
        if "objects" in known:
            known["objects"] = [known["objects"][row] for row in rows]
    if state.is_main_process:
        texts = [first for first, *_ in sets]
        if args.captions is not None:
            write_given(args.captions, folder, ids, sets)
        report = measure(args, texts, dataset, ids, frequency, known)
        report |= {"num_unreadable": len(errors), "setting": setting, "processes": state.num_processes}
        if args.captions is None:
            report["confidence"] = measure_confidence(model, processor, dataset, texts, read, frequency, args)
            if not isinstance(report["confidence"], str):
                save_calibration_picture(folder / "calibration.png", report["confidence"])
        else:
            report["confidence"] = "not available, because a file of captions has no probabilities"
        if several:
            report["sets"] = measure_sets(sets, dataset["captions"][:], frequency)
        write_json(folder / "metrics.json", report)
        show(report)
        print(f"\ncaptions and metrics: {folder}")
        if errors:
            of = f"{len(errors)} of {len(errors) + len(ids)} images could not be read"
            print(f"{of} ({folder / 'errors.json'} says why); metrics are over the other {len(ids)}", file=sys.stderr)
    state.wait_for_everyone()
    state.destroy_process_group()
    if errors:
        raise SystemExit(1)


def read_given(args: Arguments, dataset: Dataset, ids: list[int]) -> tuple[list[list[str]], dict]:
    """
    The captions of each image from the file that was named, and the setting that comparisons of metrics need.

    Raises:
        InputError: if an image has none.
    """
    found = read_results(args.captions)
    if missing := [number for number in ids if number not in found]:
        raise InputError(
            f"`captions` must be of every image of {args.data}, got none of {len(missing)} in {args.captions}, "
            f"image_id {missing[0]} the first"
        )
    if others := len(found) - len(ids):
        print(f"{others} images of {args.captions} are not in {args.data}; their captions are left out")
    return [found[number] for number in ids], {
        "captions": args.captions,
        "captions_sha256": hashlib.sha256(Path(args.captions).read_bytes()).hexdigest(),
        **describe_data(args, dataset, ids),
    }


def write_given(captions: str, folder: Path, ids: list[int], sets: list[list[str]]) -> None:
    """
    Raises:
        InputError: if a captioner's captions are in the folder, which a later run would go on with.
    """
    if (folder / "setting.json").exists():
        raise InputError(f"`output_dir` must be without a captioner's captions to measure {captions}, got {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "captions.json").absolute() != Path(captions).absolute():
        write_results(folder / "captions.json", ids, sets)


def objects_in(dataset: Dataset, ids: list[int], instances: str | None) -> dict:
    """
    What CHAIR needs to know, as options of the metrics: the objects in each image, which COCO's file says, or the data
    set itself if its images are generated shapes. Nothing where neither does.

    Raises:
        InputError: if the file lacks an image.
    """
    if instances is not None:
        found = read_instances(instances)
        if missing := [number for number in ids if number not in found]:
            raise InputError(f"`instances` must be of every image of `data`, got {instances} without {missing[0]}")
        return {"objects": [found[number] for number in ids]}
    if "objects" in dataset.column_names and isinstance(dataset.features["objects"], List):
        if "shape" in getattr(dataset.features["objects"], "feature", {}):
            rows = dataset["objects"][:]
            words = object_words({shape: () for shape in SHAPES})
            return {"objects": [[one["shape"] for one in row] for row in rows], "object_words": words}
    return {}


def measure(args: Arguments, captions: list[str], dataset: Dataset, ids: list[int], frequency, known: dict) -> dict:
    """All numbers of the report; `known` are further options of the metrics."""
    references = dataset["captions"][:]
    scores = CaptionMetrics().compute(
        predictions=captions,
        references=references,
        metrics=args.metrics,
        intervals=True,
        per_image=args.per_image,
        document_frequency=frequency,
        images=Images(dataset) if args.clip_folder is not None else None,
        clip_folder=args.clip_folder,
        java_dir=args.java_dir,
        **known,
    )
    checks = collapse_checks(captions, references)
    report = {
        "metrics": {name: scores[name] for name in args.metrics},
        "intervals_95": scores["intervals"],
        "checks": checks,
        "alarms": {alarm.cause: alarm.text for alarm in find_alarms(checks)},
        "definitions": {
            "tokens": "Stanford PTB (CoreNLP 3.4.1) without punctuation, as in the COCO caption evaluation",
            "meteor_exact_stem": "METEOR 1.5 without synonyms and paraphrases",
            "meteor_1.5": "METEOR 1.5, English, -norm, as in the COCO caption evaluation",
            "cider": "document frequencies of " + (args.document_frequency or "these references"),
            "clip_score": f"2.5 max(cos, 0), {args.clip_folder or 'not measured'}",
            "image_use": "CIDEr-D minus that of five captions made for other images, seed 0",
            "chair": "objects of " + (args.instances or "the data, if it has any") + ", and what references name",
            "intervals_95": "percentile bootstrap over images, 1,000 resamples, seed 0",
        },
        "versions": versions(),
    }
    if args.per_image:
        columns = scores["per_image"]
        report["per_image"] = [
            {"image_id": number, "caption": caption} | {name: columns[name][row] for name in columns}
            for row, (number, caption) in enumerate(zip(ids, captions, strict=True))
        ]
    return report


def measure_confidence(
    model, processor, dataset: Dataset, captions: list[str], read: list, frequency, args: Arguments
):
    """
    How far the captioner's confidence in these captions can be believed, or a text that says why nobody knows. `read`
    is the confidence in each, as it was read when the image was captioned; without it, all images are read again.
    """
    references = dataset["captions"][:]
    if any(one is None for one in read):
        images = (row["image"] for row in tqdm(dataset, desc="reading probabilities", unit="image"))
        temperatures = (1.0, model.config.score_temperature)
        again = read_confidence(model, processor, images, temperatures, captions, args.batch_size, args.precision)
        try:
            read = list(again)
        except InputError as error:
            return f"not available, because {error}"
    return confidence_report(model, read, references, costs(captions, references, frequency))


def show(report: dict) -> None:
    for name, value in report["metrics"].items():
        if isinstance(value, str):
            print(f"{name:>18}  {value}")
        else:
            low, high = report["intervals_95"][name]
            print(f"{name:>18}  {value:.4f}  [{low:.4f}, {high:.4f}]")
    for name, value in report.get("sets", {}).items():
        print(f"{name:>18}  {value:.4f}  (of sets)")
    for name, value in report["checks"].items():
        print(f"{name:>18}  {value:.4f}" if isinstance(value, float) else f"{name:>18}  {value}")
    for cause, text in report["alarms"].items():
        print(f"{'alarm':>18}  {cause}: {text}")
    confidence = report["confidence"]
    if isinstance(confidence, str):
        print(f"{'confidence':>18}  {confidence}")
    else:
        print(f"{'ece':>18}  {confidence['words']['ece']:.4f}")
        print(f"{'risk_coverage':>18}  {confidence['risk_coverage']['area']:.4f}")


if __name__ == "__main__":
    run(main)
