"""Pictures of a captioner's attention."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ..models.image_reading import to_rgb


def overlay(image: Image.Image, weights: np.ndarray, color: tuple[int, int, int] = (255, 64, 0)) -> Image.Image:
    """
    Paints attention over an image: the larger the weight of a place, the stronger its colour.

    Args:
        image: any size and mode.
        weights: (h, w), not negative; scaled so that the largest one gets the strongest colour.
        color: red, green, blue.
    """
    scaled = np.asarray(weights, dtype=np.float32)
    scaled = scaled / max(float(scaled.max()), 1e-12)
    image = to_rgb(image)  # first: an image that lies on its side has another size upright
    mask = Image.fromarray(np.uint8(200 * scaled)).resize(image.size, Image.Resampling.BICUBIC)
    return Image.composite(Image.new("RGB", image.size, color), image, mask)


def save_attention_picture(
    path: str | Path,
    images: Sequence[Image.Image],
    words: Sequence[Sequence[str]],
    maps: Sequence[np.ndarray],
    columns: int = 9,
    side: float = 1.4,
) -> None:
    """
    Writes one picture: each image, followed by its attention map for every word of its caption.

    Args:
        path: file to write; its extension determines the format.
        images: the images.
        words: for each image, the text of every token.
        maps: for each image, its attention maps (tokens, h, w).
        columns: number of small pictures in a row.
        side: width of a small picture in inches.

    Raises:
        ValueError: if the lengths differ.
    """
    # Figure instead of pyplot, which keeps global state and may look for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    tiles: list[tuple[Image.Image, str] | None] = []
    for image, texts, weights in zip(images, words, maps, strict=True):
        shown: list[tuple[Image.Image, str] | None] = [(to_rgb(image), "")]
        shown += [(overlay(image, map_), text) for text, map_ in zip(texts, weights, strict=True)]
        tiles += shown + [None] * (-len(shown) % columns)
    lines = max(len(tiles) // columns, 1)
    figure = Figure(figsize=(columns * side, lines * side * 1.15))
    FigureCanvasAgg(figure)
    for axes, tile in zip(figure.subplots(lines, columns, squeeze=False).flat, tiles, strict=True):
        axes.axis("off")
        if tile is not None:
            axes.imshow(tile[0])
            axes.set_title(tile[1], fontsize=9)
    figure.tight_layout(pad=0.3)
    figure.savefig(path, dpi=110)


__all__ = ["overlay", "save_attention_picture"]
