"""
Writes the card of a trained captioner, the `README.md` of its folder, from what was measured of it.

    hf-captioner card --model outputs/quickstart
    hf-captioner card --model outputs/quickstart --evaluation outputs/quickstart_evaluation --license cc-by-4.0

Training writes one at its end, with its own metrics; with an evaluation, the card has that one's metrics and their
intervals. In a clone `python training/write_card.py` is the same.
"""

from dataclasses import dataclass, field
from pathlib import Path

from ..sharing import write_card
from . import run
from .parsing import CommandParser


@dataclass
class Arguments:
    """Whose card, and from what."""

    model: str = field(metadata={"help": "folder that train.py wrote"})
    evaluation: str | None = field(default=None, metadata={"help": "folder that evaluate_captions.py wrote"})
    name: str | None = field(
        default=None, metadata={"help": "by which the card tells to load it, the folder's name by default"}
    )
    license: str | None = field(
        default=None,
        metadata={"help": "of the weights, by the Hub's identifier (cc-by-4.0); the earlier card's by default"},
    )


def main(argv: list[str] | None = None) -> None:
    (args,) = CommandParser(Arguments, description=__doc__).parse(argv)
    evaluation = None if args.evaluation is None else Path(args.evaluation)
    write_card(Path(args.model), evaluation, args.name, args.license)
    print(f"card: {Path(args.model, 'README.md')}")


if __name__ == "__main__":
    run(main)
