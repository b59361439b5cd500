"""What the commands' options have in common: one parser, and the settings that are shipped, by name."""

from argparse import ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

from transformers import HfArgumentParser

from ..errors import InputError

CONFIGS = Path(__file__).parent / "configs"


class _HelpFormatter(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """Defaults are shown, and the examples of a description keep their lines."""


class OptionsParser(HfArgumentParser):
    """
    transformers' parser of dataclasses (`--output_dir` and `--output-dir` are the same) for a command of ours.

    Args:
        dataclass_types: whose fields are the options.
        description: the command's documentation with examples, which `--help` shows.
    """

    def __init__(self, dataclass_types: type | Iterable[type], description: str):
        super().__init__(
            dataclass_types,
            usage="%(prog)s [options]",
            description=description.strip(),
            formatter_class=_HelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        """One line as for every other mistake; argparse would print the usage as well."""
        raise InputError(f"{message} (`{self.prog} --help` lists the options)")


def find_config(name_or_file: str) -> Path:
    """
    The YAML file of that path, or of that name among those that are shipped.

    Raises:
        InputError: if there is neither.
    """
    shipped = CONFIGS / f"{name_or_file}.yaml"
    if Path(name_or_file).is_file():
        return Path(name_or_file)
    if shipped.is_file():
        return shipped
    names = ", ".join(sorted(path.stem for path in CONFIGS.glob("*.yaml")))
    raise InputError(f"`config` must be a YAML file or one of {names}, got {name_or_file!r}")
