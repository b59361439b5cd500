"""
Finds everything in a source of images and captions that a training would trip over, all at once.

    hf-captioner validate-data photos/train.parquet
    hf-captioner validate-data photos/captions.txt --evaluation photos/validation.csv --json

Reports images that are missing, unreadable, tiny or there twice (in training and evaluation, too), and captions that
are missing, empty, no text, twice the same, overlong or the file's name; tables of the vocabulary at each minimum
frequency and of the captions' lengths; and an estimate of time and disk. The exit status is 1 if there is a defect.
"""

import json
from dataclasses import dataclass, field

from ..data import validate
from ..data.sources import FORMAT_NAMES
from . import run
from .parsing import CommandParser


@dataclass
class Arguments:
    """What to look at."""

    evaluation: str | None = field(
        default=None, metadata={"help": "evaluation data, which must have no image of the training data"}
    )
    split: str | None = field(default=None, metadata={"help": "split of a source with several"})
    evaluation_split: str | None = field(default=None, metadata={"help": "the same for the evaluation data"})
    image_column: str | None = field(default=None, metadata={"help": "found by its usual names by default"})
    caption_columns: list[str] | None = field(default=None, metadata={"help": "found by their usual names by default"})
    format: str | None = field(default=None, metadata={"help": f"told from the content by default: {FORMAT_NAMES}"})
    image_folder: str | None = field(
        default=None, metadata={"help": "folder that paths in an annotation file are relative to; its own by default"}
    )
    json: bool = field(default=False, metadata={"help": "print the report as JSON"})


def main(argv: list[str] | None = None) -> None:
    parser = CommandParser(Arguments, description=__doc__)
    parser.add_argument("source", metavar="SOURCE", help="as --train_data of `train`")
    arguments, positional = parser.parse(argv)
    options = {name: value for name, value in vars(arguments).items() if name not in ("evaluation", "json")}
    report = validate(positional.source, arguments.evaluation, **options)
    print(json.dumps(report.to_dict(), indent=2, ensure_ascii=False) if arguments.json else report.text())
    if report.defects:
        raise SystemExit(1)


if __name__ == "__main__":
    run(main)
