"""
How large the numbers of a configuration may be.

A configuration comes with a folder, perhaps a stranger's: one number in it could have a machine build a million layers
or ask for more memory than it has. The bounds are two to ten times what the largest published models of their kind
have, so nothing real is refused, and what is refused is refused before anything is built. They do not bound what a
model takes that is allowed: that its weights are in the folder, and as many as it says, is checked when they are
loaded.
"""

import math
import re
from collections.abc import Iterator
from typing import Any

MAX_LAYERS = 256  # of a tower; PaLM has 118, ResNet-152 50 blocks, EfficientNet-L2 some 90
MAX_WIDTH = 2**17  # channels of a state or region, hidden units; GPT-3 has 12,288 and 49,152
MAX_HEADS = 2**12  # GPT-3 has 96
MAX_VOCABULARY = 2**22  # the largest vocabularies have 256,000 tokens
MAX_LABELS = 30_000  # of a vision model's classifier, which captioners do not use; ImageNet-21k has 21,843
MAX_POSITIONS = 2**20  # words of a caption; the longest contexts of language models have about as many
MAX_SIDE = 2**13  # pixels of an image that a model takes; detection models take about 1,000
MAX_NUMBER = 2**20  # everything else in a vision model's configuration, by magnitude
MAX_DEEP, MAX_LONG = 8, 4096  # nested lists and mappings, and the entries of a list

_DEPTH = re.compile(r"(layers?|depths?|blocks?|repeats)$")
_SIDE = re.compile(r"^(image|input|pretrain_img)_(size|height|width)$")
_SIZE = re.compile(r"(sizes?|channels|heads|dims?)$")
_LABELS = ("id2label", "label2id")


def check_number(name: str, value: Any, largest: float, smallest: float = -math.inf) -> None:
    """
    Raises:
        ValueError: if a number is below the smallest, beyond the largest, or none at all (NaN).
    """
    if not value >= smallest:
        raise ValueError(f"`{name}` must be at least {smallest}, got {_shown(value)}")
    if not value <= largest:
        raise ValueError(f"`{name}` must be at most {largest}, got {_shown(value)}")


def check_size(name: str, value: Any, largest: int, smallest: int = 1) -> None:
    """
    Raises:
        ValueError: if a size is no whole number, below the smallest or beyond the largest.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"`{name}` must be a whole number, got {_shown(value)}")
    check_number(name, value, largest, smallest)


def check_vision_settings(settings: dict[str, Any], name: str = "vision_config") -> None:
    """
    Bounds every number of a vision model's configuration, whatever it is called there: names that end in "layers",
    "depths", "blocks" or "repeats" count layers, of which a list adds up, and EfficientNet's "depth_coefficient"
    multiplies its repeats; image sizes are sides; all else is a width or less.

    Args:
        settings: of the vision model, as its `config.json` has them.
        name: how a message calls them.

    Raises:
        ValueError: if a number is beyond its bound, or the settings are nested or long beyond all use.
    """
    repeats, scale = 0.0, 1.0
    for field, values in settings.items():
        path = f"{name}.{field}"
        if field in _LABELS:
            if values is not None and not isinstance(values, dict):
                raise ValueError(f"`{path}` must be a mapping, got {_shown(values)}")
            check_size(f"len({path})", len(values or ()), MAX_LABELS, 0)
        elif isinstance(values, dict):
            if name.count(".") > MAX_DEEP:
                raise ValueError(f"`{name}` must be nested less than {MAX_DEEP} deep")
            check_vision_settings(values, path)
        else:
            numbers = list(_numbers(values, path))
            largest = MAX_SIDE if _SIDE.search(field) else MAX_LABELS if field == "num_labels" else MAX_NUMBER
            smallest = 0 if _SIZE.search(field) or _DEPTH.search(field) else -largest
            for number in numbers:
                check_number(path, number, largest, smallest)
            if _DEPTH.search(field):
                check_number(path, sum(numbers), MAX_LAYERS)
                repeats = sum(numbers) if field.endswith("repeats") else repeats
            elif field == "depth_coefficient":
                scale = max(1.0, *numbers)
    if repeats * scale > MAX_LAYERS:
        raise ValueError(f"`{name}` must have at most {MAX_LAYERS} layers, got {repeats:g} times {scale:g}")


def _numbers(values: Any, path: str, deep: int = 0) -> Iterator[float]:
    """The numbers in a value and in lists within."""
    if isinstance(values, (int, float)) and not isinstance(values, bool):
        yield values
    elif isinstance(values, (list, tuple)):
        if len(values) > MAX_LONG or deep > MAX_DEEP:
            raise ValueError(f"`{path}` must have at most {MAX_LONG} entries, nested less than {MAX_DEEP} deep")
        for value in values:
            yield from _numbers(value, path, deep + 1)


def _shown(value: Any) -> str:
    """A value for a message; a hostile one may be long, or a number of more digits than Python writes."""
    if isinstance(value, int) and value.bit_length() > 256:
        return f"a number of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 100 else text[:100] + "..."


__all__ = [
    "MAX_HEADS",
    "MAX_LABELS",
    "MAX_LAYERS",
    "MAX_POSITIONS",
    "MAX_SIDE",
    "MAX_VOCABULARY",
    "MAX_WIDTH",
    "check_number",
    "check_size",
    "check_vision_settings",
]
