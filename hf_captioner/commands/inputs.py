"""What users point at, captioners and data: the libraries that read it say what is wrong, and here it becomes ours."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from datasets import Dataset
from datasets.exceptions import DatasetsError
from transformers import AutoModelForImageTextToText, PreTrainedModel

from .. import CaptionerProcessor
from ..data import load_captions
from ..data.sources import FORMAT_NAMES
from ..errors import InputError


@dataclass(kw_only=True)
class SourceArguments:
    """How a source of images and captions is read, the same for every command that reads one."""

    image_column: str | None = field(default=None, metadata={"help": "found by its usual names by default"})
    caption_columns: list[str] | None = field(default=None, metadata={"help": "found by their usual names by default"})
    format: str | None = field(default=None, metadata={"help": f"told from the content by default: {FORMAT_NAMES}"})
    image_folder: str | None = field(
        default=None, metadata={"help": "folder that paths in an annotation file are relative to; its own by default"}
    )

    def source_options(self) -> dict[str, Any]:
        """Of these options, as [`load_captions`] takes them."""
        return {option.name: getattr(self, option.name) for option in fields(SourceArguments)}


@contextmanager
def refusing(*errors: type[Exception], what: str = "") -> Iterator[None]:
    """
    Around a call that only reads what the user gave: these errors are the user's to mend.

    Args:
        *errors: what the call raises for bad input.
        what: goes before the error's own text.

    Raises:
        InputError: in place of one of the errors, which is its cause.
    """
    try:
        yield
    except InputError:
        raise
    except errors as error:
        raise InputError(f"{what}{error}") from error


def read_captions(source: str, *args, **kwargs) -> Dataset:
    """[`load_captions`], whose errors, those of datasets and of missing files included, are an [`InputError`]."""
    with refusing(ValueError, FileNotFoundError, DatasetsError):
        return load_captions(source, *args, **kwargs)


def read_captioner(path_or_name: str) -> tuple[PreTrainedModel, CaptionerProcessor]:
    """
    A saved captioner in single precision, and its processor.

    Raises:
        InputError: if there is none.
    """
    with refusing(OSError, ValueError, what=f"`model` must be a captioner's folder or Hub name, got {path_or_name}: "):
        model = AutoModelForImageTextToText.from_pretrained(path_or_name, dtype=torch.float32)
        return model, CaptionerProcessor.from_pretrained(path_or_name)
