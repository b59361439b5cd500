"""Arguments and settings files: transformers' parser of dataclass fields, with one line for what is wrong."""

import argparse
import json
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import yaml
from transformers import HfArgumentParser

from ..errors import InputError, one_line, shown
from ..models.configuration_captioner import did_you_mean


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults are shown, and the examples of a description keep their lines."""


class CommandParser(HfArgumentParser):
    """
    transformers' parser of dataclasses (`--output_dir` and `--output-dir` are the same) for a command of ours.
    Whatever is wrong with the arguments is an [`InputError`], options are not guessed from their first letters, and
    `set_defaults` makes a required option one that may be left out.

    Args:
        *types: dataclasses whose fields are the options.
        description: the command's documentation with examples, which `--help` shows.
        **kwargs: as for `argparse.ArgumentParser`.
    """

    def __init__(self, *types: type, description: str = "", **kwargs):
        self.options: dict[str, argparse.Action] = {}
        settings = {"usage": "%(prog)s [options]", "formatter_class": HelpFormatter, "allow_abbrev": False, **kwargs}
        super().__init__(types, description=description.strip(), **settings)

    def add_argument(self, *args, **kwargs) -> argparse.Action:
        option = super().add_argument(*args, **kwargs)
        self.options.setdefault(option.dest, option)
        return option

    def set_defaults(self, **defaults) -> None:
        super().set_defaults(**defaults)
        for name in defaults:
            self.options[name].required = False

    def error(self, message: str) -> None:
        """One line as for every other mistake; argparse would print the usage as well."""
        raise InputError(f"{message} (`{self.prog} --help` lists the options)")

    def parse(self, argv: list[str] | None) -> tuple:
        """
        Args:
            argv: the arguments, by default those of the process.

        Returns:
            an instance of each dataclass.

        Raises:
            InputError: if an option is unknown or missing, a value is not of its type or breaks a rule, or a library
                that the settings need is not installed.
        """
        try:
            *found, unknown = self.parse_args_into_dataclasses(
                argv, return_remaining_strings=True, look_for_args_file=False
            )
        except InputError:
            raise
        except ValueError as error:  # of the dataclasses: transformers checks its training arguments there
            raise InputError(str(error)) from error
        except ImportError as error:  # PackageNotFoundError too: DeepSpeed, which the launcher asks for
            raise InputError(f"what these settings need must be installed: {one_line(error)}") from error
        if unknown:
            self.refuse_unknown(unknown[0])
        return tuple(found)

    def refuse_unknown(self, name: str) -> None:
        """Raises an `InputError` that names what is meant, if it can be guessed."""
        plain = name.lstrip("-").split("=")[0].replace("-", "_")
        raise InputError(f"`{name}` is not an option{did_you_mean(plain, self.options)}")


def read_settings(path: str | Path, parser: CommandParser) -> dict[str, Any]:
    """
    A YAML file of options, as defaults for a parser: `parser.set_defaults(**read_settings(path, parser))`. Values
    become what they would be on a command line, so that argparse checks and converts them as it does there.

    Args:
        path: the file; its top level is a mapping of options and values. Options without a value (null) are left out.
        parser: what the options belong to.

    Raises:
        InputError: if the file cannot be read or is not such a mapping, or an option is unknown.
    """
    try:
        settings = yaml.safe_load(Path(path).read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"`config` must be a YAML file that can be read, got {path} ({error})") from error
    except (yaml.YAMLError, ValueError) as error:  # a ValueError: of a date that there is not, and the like
        raise InputError(f"`config` must be YAML, got {path}: {error}") from error
    except RecursionError as error:
        raise InputError(f"`config` must be YAML, got {path}, nested too deeply") from error
    if settings is None:
        settings = {}
    if not isinstance(settings, dict):
        raise InputError(
            f"`config` must be a mapping of options and values, got a {type(settings).__name__} in {path}"
        )
    for name in settings:
        if name not in parser.options or name in ("config", "help"):
            parser.refuse_unknown(f"{name}")
    lists = {name for kind in parser.dataclass_types for name, hint in get_type_hints(kind).items() if is_list(hint)}
    return {
        name: as_argument(name, value, name in lists, several=parser.options[name].nargs == "+")
        for name, value in settings.items()
        if value is not None
    }


def is_list(hint: Any) -> bool:
    """Whether a field of this type takes a list, perhaps among others."""
    return list in (get_origin(hint), *map(get_origin, get_args(hint)))


def as_argument(name: str, value: Any, list_allowed: bool, several: bool) -> str | list[str]:
    """A value from YAML as argparse takes it; `several`: whether the option is a list on the command line, too."""
    if isinstance(value, list):
        if not list_allowed:
            raise InputError(f"`{name}` must be one value, got {shown(value)}")
        return [str(item) for item in value]
    try:
        text = json.dumps(value) if isinstance(value, dict) else str(value)
    except (TypeError, ValueError, RecursionError) as error:  # YAML has dates, and mappings inside of themselves
        raise InputError(f"`{name}` must be a mapping that JSON can hold, got {shown(value)}") from error
    return [text] if several else text


def json_mapping(name: str, text: str) -> dict[str, Any]:
    """
    Args:
        name: the option's, for the message.
        text: what it was given.

    Raises:
        InputError: if it is not a mapping in JSON.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"`{name}` must be a mapping in JSON, got {shown(text)} ({error})") from error
    if not isinstance(value, dict):
        raise InputError(f"`{name}` must be a mapping in JSON, got {shown(text)}")
    return value
