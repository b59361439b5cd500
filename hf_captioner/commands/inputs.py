"""What users point at, captioners and data: the libraries that read it say what is wrong, and here it becomes ours."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from datasets import Dataset
from datasets.exceptions import DatasetsError
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

from .. import CaptionerProcessor
from ..data import load_captions
from ..data.sources import FORMAT_NAMES
from ..errors import InputError, brief
from ..models.configuration_captioner import did_you_mean
from ..models.machine_captioner import DTYPES, Precision, choose_precision
from . import FOLDER_ERRORS


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


@dataclass(kw_only=True)
class PrecisionArguments:
    """How the vision model runs, the same for every command that captions a data set."""

    dtype: str = field(
        default="auto",
        metadata={
            "help": "auto: the fastest way that says the same; float32: bit for bit what the model's own modules do; "
            "bfloat16: faster where a processor has it, but says something else of some images"
        },
    )

    def __post_init__(self):
        if self.dtype not in DTYPES:
            raise InputError(f"`dtype` must be one of {', '.join(DTYPES)}, got {self.dtype!r}")

    @property
    def precision(self) -> Precision:
        return choose_precision(self.dtype)

    @property
    def weights(self) -> torch.dtype:
        """The type of a captioner's weights; measurements are in single precision by default, however it was saved."""
        return torch.bfloat16 if self.dtype == "bfloat16" else torch.float32


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
        raise InputError(f"{what}{brief(error)}") from error


def read_captions(source: str, *args, **kwargs) -> Dataset:
    """[`load_captions`], whose errors, those of datasets and of missing files included, are an [`InputError`]."""
    with refusing(ValueError, FileNotFoundError, DatasetsError):
        return load_captions(source, *args, **kwargs)


def read_captioner(
    path_or_name: str,
    fields: dict[str, Any] | None = None,
    dtype: torch.dtype | str = torch.float32,
    option: str = "model",
) -> tuple[PreTrainedModel, CaptionerProcessor]:
    """
    A saved captioner, and its processor.

    Args:
        path_or_name: its folder, or its name on the Hub.
        fields: of its configuration, in place of the saved ones.
        dtype: of its weights, or "auto" for the one that they were saved in.
        option: what names it, for errors.

    Raises:
        InputError: if there is none, or it cannot have such fields.
    """
    with refusing(*FOLDER_ERRORS, what=f"`{option}` must be a captioner's folder or Hub name, got {path_or_name}: "):
        if not fields:
            model = AutoModelForImageTextToText.from_pretrained(path_or_name, dtype=dtype)
            return model, CaptionerProcessor.from_pretrained(path_or_name)
        config = AutoConfig.from_pretrained(path_or_name)
        processor = CaptionerProcessor.from_pretrained(path_or_name)
    for name in fields:
        if name not in config.to_dict():
            hint = did_you_mean(name, config.to_dict())
            raise InputError(f"`model_config` must hold fields of a {config.model_type}, got {name!r}{hint}")
    options = dict(dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True)  # which it says
    with refusing(ValueError, StrictDataclassError, what="`model_config`: "):
        model, info = AutoModelForImageTextToText.from_pretrained(path_or_name, **options, **fields)
    # A baseline of REINFORCE is no weight: hard attention begins with that of a uniform distribution.
    unlike = {*info["missing_keys"], *info["unexpected_keys"], *(name for name, *_ in info["mismatched_keys"])}
    if unlike := sorted(unlike - {"attention_baseline"}):
        raise InputError(
            f"`model_config` must leave {path_or_name} the weights that it has, got {fields}, which changes "
            f"{unlike[0]}"
        )
    return model, processor
