"""Pictures of where a captioner looked."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def overlay(image: Image.Image, weights: np.ndarray, color: tuple[int, int, int] = (255, 64, 0)) -> Image.Image:
    """
    Paints attention over an image: the larger a weight, the more of the colour.

    Args:
        image: any size and mode.
        weights: (h, w), not negative; scaled so that the largest is fully painted.
        color: red, green, blue.
    """
    scaled = np.asarray(weights, dtype=np.float32)
    scaled = scaled / max(float(scaled.max()), 1e-12)
    mask = Image.fromarray(np.uint8(200 * scaled)).resize(image.size, Image.Resampling.BICUBIC)
    return Image.composite(Image.new("RGB", image.size, color), image.convert("RGB"), mask)


def save_attention_picture(
    path: str | Path,
    images: Sequence[Image.Image],
    words: Sequence[Sequence[str]],
    maps: Sequence[np.ndarray],
    columns: int = 9,
    side: float = 1.4,
) -> None:
    """
    Writes one picture: for each image the image itself, then where the model looked at each word.

    Args:
        path: file to write, its kind by its ending.
        images: the images.
        words: of each image, the text of every token.
        maps: of each image, (tokens, h, w).
        columns: pictures in a line.
        side: inches of a picture.

    Raises:
        ValueError: if the lengths differ.
    """
    # Figure, not pyplot: no global state and no display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    tiles: list[tuple[Image.Image, str] | None] = []
    for image, texts, weights in zip(images, words, maps, strict=True):
        shown: list[tuple[Image.Image, str] | None] = [(image.convert("RGB"), "")]
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
