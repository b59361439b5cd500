"""The page that shows where captioners differ: a single HTML file that needs nothing else."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..files import replacing
from ..models.image_reading import to_rgb
from .pictures import data_url, in_script

TEMPLATE = Path(__file__).with_name("comparison.html")
THUMBNAIL = 256  # pixels of the longer side


@dataclass(frozen=True)
class ShownMaps:
    """
    Where a captioner looked for the words of one caption.

    Attributes:
        words: of each of the T tokens.
        maps: (T, h, w), not negative.

    Examples:
        >>> import numpy as np
        >>> from hf_captioner.explain import ShownMaps
        >>> looked = ShownMaps(["a", "circle"], np.random.default_rng(0).random((2, 7, 7)))
        >>> len(looked.words) == len(looked.maps)
        True
    """

    words: Sequence[str]
    maps: np.ndarray


@dataclass(frozen=True)
class ShownImage:
    """
    One image of the page.

    Attributes:
        number: by which it is called.
        image: of any size and mode; the page has a thumbnail of it.
        captions: one of each captioner.
        references: captions by people.
        scores: for each metric, the score of each captioner's caption.
        maps: for each captioner where it looked, `None` where that is not known.

    Examples:
        >>> from hf_captioner.data import shapes_dataset
        >>> from hf_captioner.explain import ShownImage
        >>> row = shapes_dataset(1)[0]
        >>> said = ["a red circle", "a blue square"]  # by two captioners
        >>> shown = ShownImage(0, row["image"], said, row["captions"], {"cider_d": [2.1, 0.4]})
        >>> shown.captions[0], len(shown.references)
        ('a red circle', 5)
    """

    number: int
    image: Image.Image
    captions: Sequence[str]
    references: Sequence[str]
    scores: Mapping[str, Sequence[float]]
    maps: Sequence[ShownMaps | None] = field(default_factory=tuple)


def write_comparison_page(
    path: str | Path, title: str, summary: Mapping[str, Any], images: Sequence[ShownImage]
) -> None:
    """
    Writes one HTML file without network or libraries. Its size is below 20 KB an image, and 1 KB more for the
    maps of each captioner.

    Args:
        path: the file.
        title: its heading.
        summary: what `comparison.json` says: `captioners`, `comparisons`, `lower_is_better`, `method`,
            `num_images`.
        images: those to be shown.

    Examples:
        >>> from pathlib import Path
        >>> from hf_captioner.data import shapes_dataset
        >>> from hf_captioner.explain import ShownImage, write_comparison_page
        >>> row = shapes_dataset(1)[0]
        >>> shown = ShownImage(0, row["image"], ["a red circle", "a circle"], row["captions"], {"cider_d": [2.1, 0.4]})
        >>> summary = dict(captioners={}, comparisons=[], lower_is_better=[], method={}, num_images=1)
        >>> write_comparison_page("comparison.html", "Two captioners", summary, [shown])
        >>> "Two captioners" in Path("comparison.html").read_text()
        True
    """
    data = {
        **{name: summary[name] for name in ("captioners", "comparisons", "lower_is_better", "method", "num_images")},
        "images": [
            {
                "number": shown.number,
                "picture": _picture(shown.image),
                "captions": list(shown.captions),
                "references": list(shown.references),
                "scores": {name: [round(value, 4) for value in values] for name, values in shown.scores.items()},
                "maps": [None if found is None else _encoded(found) for found in shown.maps],
            }
            for shown in images
        ],
    }
    before, after = TEMPLATE.read_text("utf-8").split("$DATA")
    before = before.replace("$TITLE", escape(title))
    with replacing(Path(path)) as part:
        part.write_text(before + in_script(data) + after, encoding="utf-8")


def _picture(image: Image.Image) -> str:
    shown = to_rgb(image)
    shown.thumbnail((THUMBNAIL, THUMBNAIL))
    return data_url(shown, "JPEG", quality=80)


def _encoded(found: ShownMaps) -> dict[str, Any]:
    """Maps as bytes, 255 the largest weight of a word's map."""
    maps = np.asarray(found.maps, np.float64)
    largest = np.maximum(maps.max(axis=(1, 2), keepdims=True), 1e-12)
    values = np.round(255 * maps / largest).astype(np.uint8)
    return {"words": list(found.words), "grid": maps.shape[1:], "maps": base64.b64encode(values.tobytes()).decode()}


__all__ = ["ShownImage", "ShownMaps", "write_comparison_page"]
