"""
Pictures of an explanation: the photograph darker and with little colour, and on it yellow where the captioner looked
and blue where the image speaks against the word. Yellow is brighter than all of the photograph, so the scale is one of
brightness: people read it whatever colours they see, and paper without colours shows it.
"""

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFont

from ..files import replacing
from ..models.image_reading import to_rgb
from .explanation import Explanation

FOR, AGAINST = (255, 214, 10), (60, 110, 255)  # the page has them, too
BRIGHTNESS, COLOR = 0.6, 0.4  # what is left of the photograph's under a map
SIDE = 480  # largest width or height of an animation's picture in pixels


def data_url(image: Image.Image, kind: str, **options: Any) -> str:
    """The image as a page holds it. `kind` and the options are those of Pillow's `save`."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def in_script(data: Any) -> str:
    """The data as JSON for a script element of a page, which no text in it can end."""
    return json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")


def overlay(image: Image.Image, weights: np.ndarray, borders: bool = False) -> Image.Image:
    """
    A map painted over its image.

    Args:
        image: any size and mode.
        weights: (h, w); scaled so that the value furthest from zero gets the strongest colour.
        borders: whether to show the regions as they are, with lines between them, rather than smoothly.

    Returns:
        an RGB image of the size of the upright image.

    Examples:
        >>> import numpy as np
        >>> from hf_captioner.data import shapes_dataset
        >>> from hf_captioner.explain import overlay
        >>> picture = overlay(shapes_dataset(1)[0]["image"], np.array([[0.0, 0.7], [0.2, 0.1]]))
        >>> picture.size, picture.mode
        ((80, 80), 'RGB')
    """
    scaled = np.asarray(weights, dtype=np.float32)
    scaled = scaled / max(float(np.abs(scaled).max()), 1e-12)
    image = to_rgb(image)  # first: an image that lies on its side has another size upright
    shown = ImageEnhance.Brightness(ImageEnhance.Color(image).enhance(COLOR)).enhance(BRIGHTNESS)
    way = Image.Resampling.NEAREST if borders else Image.Resampling.BILINEAR
    for color, part in ((FOR, scaled), (AGAINST, -scaled)):
        mask = Image.fromarray((255 * part.clip(0, 1)).astype(np.uint8)).resize(image.size, way)
        shown.paste(color, mask=mask)
    if borders:
        draw = ImageDraw.Draw(shown)
        for axis, count in enumerate(scaled.shape[::-1]):
            for line in range(1, count):
                place = line * image.size[axis] // count
                ends = [(place, 0), (place, image.height)] if axis == 0 else [(0, place), (image.width, place)]
                draw.line(ends, fill=(128, 128, 128))
    return shown


def save_grid(
    path: str | Path,
    explanations: Sequence[Explanation],
    columns: int = 9,
    side: float = 1.4,
    borders: bool = False,
) -> None:
    """
    Writes one picture: each image, followed by its map for every word of its caption.

    Args:
        path: file to write; its extension determines the format.
        explanations: of the images.
        columns: number of small pictures in a row.
        side: width of a small picture in inches.
        borders: as for [`overlay`].

    Examples:
        >>> import numpy as np
        >>> from PIL import Image
        >>> from hf_captioner.data import shapes_dataset
        >>> from hf_captioner.explain import ExplainedWord, Explanation, save_grid
        >>> word = ExplainedWord("circle", 0.8, (("square", 0.1),), np.array([[0.0, 0.7], [0.2, 0.1]]))
        >>> explanation = Explanation(shapes_dataset(1)[0]["image"], "circle", (word,), "attention")  # or explain(...)
        >>> save_grid("looked.png", [explanation], columns=2)
        >>> Image.open("looked.png").format
        'PNG'
    """
    path = Path(path)
    with replacing(path) as part:
        _save_figure(part, path.suffix[1:] or "png", _grid(explanations, columns, side, borders))


def grid_picture(
    explanations: Sequence[Explanation], title: str = "", columns: int = 9, side: float = 1.4, borders: bool = False
) -> Image.Image:
    """
    What [`save_grid`] writes, as an RGB image, under lines of text.

    Args:
        explanations, columns, side, borders: as for [`save_grid`].
        title: the lines of text.

    Examples:
        >>> import numpy as np
        >>> from hf_captioner.data import shapes_dataset
        >>> from hf_captioner.explain import ExplainedWord, Explanation, grid_picture
        >>> word = ExplainedWord("circle", 0.8, (("square", 0.1),), np.array([[0.0, 0.7], [0.2, 0.1]]))
        >>> explanation = Explanation(shapes_dataset(1)[0]["image"], "circle", (word,), "attention")  # or explain(...)
        >>> picture = grid_picture([explanation], title="Where it looked", columns=2)
        >>> picture.width > picture.height
        True
    """
    figure = _grid(explanations, columns, side, borders)
    figure.text(0.01, 1.0, title, fontsize=9, va="bottom", parse_math=False)
    buffer = io.BytesIO()
    _save_figure(buffer, "png", figure)
    return Image.open(buffer).convert("RGB")


def _save_figure(place: Any, kind: str, figure: Any) -> None:
    figure.savefig(place, dpi=110, format=kind, bbox_inches="tight", pad_inches=0.05)


def _grid(explanations: Sequence[Explanation], columns: int, side: float, borders: bool) -> Any:
    # Figure instead of pyplot, which keeps global state and may look for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    tiles: list[tuple[Image.Image, str] | None] = []
    for one in explanations:
        shown: list[tuple[Image.Image, str] | None] = [(to_rgb(one.image), "")]
        shown += [(overlay(one.image, word.map, borders), word.text) for word in one.words]
        tiles += shown + [None] * (-len(shown) % columns)
    lines = max(len(tiles) // columns, 1)
    # The tallest image says how high all of them are; the others stand in the middle of their places.
    tallest = max((one.image.height / one.image.width for one in explanations), default=1.0)
    figure = Figure(figsize=(columns * side, lines * (side * min(tallest, 3) + 0.25)))
    FigureCanvasAgg(figure)
    for axes, tile in zip(figure.subplots(lines, columns, squeeze=False).flat, tiles, strict=True):
        axes.axis("off")
        if tile is not None:
            axes.imshow(tile[0])
            axes.set_title(tile[1], fontsize=9, parse_math=False)  # a word with $ is no formula
    figure.tight_layout(pad=0.3)
    return figure


def save_animation(
    path: str | Path, explanation: Explanation, milliseconds: int = 800, borders: bool = False, side: int = SIDE
) -> None:
    """
    Writes an animated WebP: word by word the map over the image, and under it the caption with the word in colour.

    Args:
        path: file to write.
        explanation: what to show.
        milliseconds: for each word.
        borders: as for [`overlay`].
        side: largest width or height of the image in pixels.

    Examples:
        >>> import numpy as np
        >>> from PIL import Image
        >>> from hf_captioner.data import shapes_dataset
        >>> from hf_captioner.explain import ExplainedWord, Explanation, save_animation
        >>> image, maps = shapes_dataset(1)[0]["image"], np.random.default_rng(0).random((3, 4, 4))
        >>> words = tuple(ExplainedWord(text, 0.8, (), map) for text, map in zip(["a", "red", "circle"], maps))
        >>> save_animation("looked.webp", Explanation(image, "a red circle", words, "attention"))  # or explain(...)
        >>> Image.open("looked.webp").n_frames
        3
    """
    import matplotlib

    path = Path(path)
    image = explanation.image
    scale = side / max(image.size)
    image = image.resize((max(round(image.width * scale), 1), max(round(image.height * scale), 1)))
    width = max(image.width, 200)
    # matplotlib's font knows more alphabets than Pillow's own.
    font = ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), 18)
    places, height = _set_text([word.text for word in explanation.words], font, width)
    frames = []
    for current, word in enumerate(explanation.words):
        frame = Image.new("RGB", (width, image.height + height), (24, 24, 24))
        frame.paste(overlay(image, word.map, borders), ((width - image.width) // 2, 0))
        draw = ImageDraw.Draw(frame)
        for index, (other, (x, y)) in enumerate(zip(explanation.words, places, strict=True)):
            color = FOR if index == current else (200, 200, 200)
            draw.text((x, image.height + y), other.text, fill=color, font=font)
        frames.append(frame)
    with replacing(path) as part:
        frames[0].save(
            part, "WEBP", save_all=True, append_images=frames[1:], duration=milliseconds, loop=0, quality=80
        )


def _set_text(words: Sequence[str], font, width: int, pad: int = 8) -> tuple[list[tuple[int, int]], int]:
    """Where each word stands in lines of this width, and the height of all lines."""
    places, x, y, line = [], pad, pad, font.size + 6
    for word in words:
        length = round(font.getlength(word))
        if x > pad and x + length > width - pad:
            x, y = pad, y + line
        places.append((x, y))
        x += length + pad
    return places, y + line + pad


__all__ = ["grid_picture", "overlay", "save_animation", "save_grid"]
