"""
Finds everything in a source of images and captions that a training would trip over, all at once.

    hf-captioner validate-data photos/train.parquet
    hf-captioner validate-data photos/captions.txt --evaluation photos/validation.csv --json

Reports images that are missing, unreadable, tiny or there twice (in training and evaluation, too), and captions that
are missing, empty, no text, twice the same, overlong or the file's name; tables of the vocabulary at each minimum
frequency and of the captions' lengths; and estimates of time and disk, for an RNN captioner with attention on a
ResNet-50, of which one step is measured on this machine. The exit status is 1 if there is a defect.
"""

import json
import time
from dataclasses import dataclass, field

import torch

from .. import RnnCaptionerConfig, RnnCaptionerForConditionalGeneration
from ..data import validate
from . import run
from .inputs import SourceArguments
from .parsing import CommandParser


@dataclass
class Arguments:
    """What to look at."""

    evaluation: str | None = field(
        default=None, metadata={"help": "evaluation data, which must have no image of the training data"}
    )
    split: str | None = field(default=None, metadata={"help": "split of a source with several"})
    evaluation_split: str | None = field(default=None, metadata={"help": "the same for the evaluation data"})
    json: bool = field(default=False, metadata={"help": "print the report as JSON"})


def time_training(images: int, captions: int, words: int) -> dict[str, float]:
    """
    Seconds that an epoch of so many images and captions takes with a vocabulary of so many words, from a step on four
    images: `seconds_epoch_training` with the vision model learning, `seconds_feature_cache` of running it once.
    """
    batch, size = 4, 224
    rows = max(1, round(captions / images))
    model = RnnCaptionerForConditionalGeneration(RnnCaptionerConfig(vocab_size=words + 4)).train()
    pixels, labels = torch.randn(batch, 3, size, size), torch.randint(4, words + 4, (batch, rows, 12))
    start = time.perf_counter()
    model(pixel_values=pixels, labels=labels, output_logits=False).loss.backward()
    training = time.perf_counter() - start
    with torch.no_grad():
        start = time.perf_counter()
        model.vision_encoder.eval()(pixels)
        features = time.perf_counter() - start
    return {
        "seconds_epoch_training": training / batch * images,
        "seconds_feature_cache": features / batch * images,
    }


def main(argv: list[str] | None = None) -> None:
    parser = CommandParser(Arguments, SourceArguments, description=__doc__)
    parser.add_argument("source", metavar="SOURCE", help="as --train_data of `train`")
    arguments, source, positional = parser.parse(argv)
    report = validate(
        positional.source,
        arguments.evaluation,
        split=arguments.split,
        evaluation_split=arguments.evaluation_split,
        **source.source_options(),
    )
    if report.vocabulary:
        found, words = report.sources[positional.source], report.vocabulary[0]["words"]
        report.estimates |= time_training(int(found["images"]), int(found["captions"]), int(words))
    print(json.dumps(report.to_dict(), indent=2, ensure_ascii=False) if arguments.json else report.text())
    if report.defects:
        raise SystemExit(1)


if __name__ == "__main__":
    run(main)
