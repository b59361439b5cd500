"""Arguments: transformers' parser of dataclass fields, with one line for what is wrong."""

from argparse import ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter

from transformers import HfArgumentParser

from ..errors import InputError


class HelpFormatter(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """Defaults are shown, and the examples of a description keep their lines."""


class CommandParser(HfArgumentParser):
    """
    transformers' parser of dataclasses (`--output_dir` and `--output-dir` are the same) for a command of ours.

    Args:
        *types: dataclasses whose fields are the options.
        description: the command's documentation with examples, which `--help` shows.
        **kwargs: as for `argparse.ArgumentParser`.
    """

    def __init__(self, *types: type, description: str, **kwargs):
        settings = {"usage": "%(prog)s [options]", "formatter_class": HelpFormatter, **kwargs}
        super().__init__(types, description=description.strip(), **settings)

    def error(self, message: str) -> None:
        """One line as for every other mistake; argparse would print the usage as well."""
        raise InputError(f"{message} (`{self.prog} --help` lists the options)")

    def parse(self, argv: list[str] | None) -> tuple:
        """An instance of each dataclass, from the arguments, by default those of the process."""
        return self.parse_args_into_dataclasses(argv)
