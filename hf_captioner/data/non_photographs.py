"""Generated images that are no photographs, on which a captioner of photographs should abstain."""

import random
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..errors import InputError
from .shapes import shapes_dataset

SIDE = 224  # pixels


def _blank(rng: random.Random) -> Image.Image:
    """One colour, often black, white or grey; in a third of them it runs into another from side to side."""
    grey = rng.choice((0, 255, rng.randrange(256)))
    first = rng.choice(((grey, grey, grey), tuple(rng.randrange(256) for _ in range(3))))
    second = tuple(rng.randrange(256) for _ in range(3)) if rng.random() < 1 / 3 else first
    ramp = np.linspace(first, second, SIDE).astype(np.uint8)  # (SIDE, 3)
    image = Image.fromarray(np.broadcast_to(ramp, (SIDE, SIDE, 3)).copy())
    return image.transpose(Image.Transpose.ROTATE_90) if rng.random() < 0.5 else image


def _noise(rng: random.Random) -> Image.Image:
    """Random pixels, fine or coarse, with hard or soft edges, coloured or grey, of any contrast."""
    side = rng.choice((7, 14, 28, 56, 112, 224))
    values = np.random.default_rng(rng.randrange(2**32))
    pixels = values.integers(0, 256, (side, side, rng.choice((1, 3)))) * rng.uniform(0.2, 1)
    image = Image.fromarray(np.broadcast_to(pixels, (side, side, 3)).astype(np.uint8))
    return image.resize((SIDE, SIDE), rng.choice((Image.Resampling.NEAREST, Image.Resampling.BICUBIC)))


def _text(rng: random.Random) -> Image.Image:
    """A page of random words in paragraphs, dark on light, or in a quarter of them light on dark."""
    paper, ink = rng.randint(225, 255), rng.randint(0, 70)
    if rng.random() < 0.25:
        paper, ink = ink, paper
    image = Image.new("RGB", (SIDE, SIDE), (paper, paper, max(paper - rng.randint(0, 15), 0)))
    draw, size, margin = ImageDraw.Draw(image), rng.randint(7, 18), rng.randint(4, 30)
    font, y = ImageFont.load_default(size), margin
    while y < SIDE - margin:
        end = rng.uniform(0.2, 0.9) if rng.random() < 0.2 else 1  # the last line of a paragraph
        words: list[str] = []
        while draw.textlength(" ".join(words), font) < (SIDE - 2 * margin) * end:
            words.append("".join(rng.choices("eeeettaaooiinnsshrrdlucmfwypvbgkjqxz", k=rng.randint(1, 9))))
        draw.text((margin, y), " ".join(words[:-1]), (ink, ink, ink), font)
        y += round(size * (1.3 if end == 1 else 2.2))
    return image


_DRAW: dict[str, Callable[[random.Random], Image.Image]] = {"noise": _noise, "text": _text, "blank": _blank}
NON_PHOTOGRAPHS = ("shapes", *_DRAW)


def non_photographs(kind: str, rows: int, seed: int = 0) -> list[Image.Image]:
    """
    Images that show nothing that a camera could have seen.

    Args:
        kind: `"shapes"`, those of [`shapes_dataset`]; `"noise"`, random pixels; `"text"`, pages of it; `"blank"`, one
            colour.
        rows: number of images.
        seed: other seeds give other images.

    Raises:
        InputError: if the kind is unknown, or `rows` is not positive.
    """
    if kind not in NON_PHOTOGRAPHS:
        raise InputError(f"`kind` must be one of {', '.join(NON_PHOTOGRAPHS)}, got {kind!r}")
    if rows < 1:
        raise InputError(f"`rows` must be at least 1, got {rows}")
    if kind == "shapes":
        return shapes_dataset(rows, seed)["image"][:]
    return [_DRAW[kind](random.Random(f"{kind} {seed} {index}")) for index in range(rows)]
