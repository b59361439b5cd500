"""
A generated data set: images of a few coloured shapes at known places, with five captions each.

Because the bounding boxes are known, the data set also tests attention: when a captioner generates the word "circle",
the peak of its attention map should lie in the circle's box. Images are drawn with integer arithmetic and Python's own
random generator, so every machine gets the same pixels.
"""

import io
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as PILImage

IMAGE_SIZE = 80
SHAPES = ("circle", "square", "triangle", "diamond")
COLORS = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 220),
    "yellow": (235, 215, 50),
    "purple": (150, 60, 190),
    "white": (240, 240, 240),
}
SIZES = {"small": 6, "medium": 8, "large": 11}  # radius in pixels

FEATURES = Features(
    {
        "image": Image(),
        "captions": List(Value("string")),
        "objects": List(
            {
                "shape": Value("string"),
                "color": Value("string"),
                "size": Value("string"),
                "box": List(Value("int32")),
            }
        ),
        "mentions": List(List(Value("int32"))),
    }
)


@dataclass(frozen=True)
class ShapeObject:
    """
    One shape.

    Attributes:
        shape, color, size: the words that captions use for it.
        x, y: centre in pixels, from the left and the top.
    """

    shape: str
    color: str
    size: str
    x: int
    y: int

    @property
    def phrase(self) -> str:
        """How captions refer to it."""
        return f"a {self.size} {self.color} {self.shape}"

    @property
    def box(self) -> list[int]:
        """Left, top, right, bottom in pixels, the last two exclusive."""
        radius = SIZES[self.size]
        return [self.x - radius, self.y - radius, self.x + radius + 1, self.y + radius + 1]

    def mask(self) -> np.ndarray:
        """Boolean mask of its pixels, (IMAGE_SIZE, IMAGE_SIZE)."""
        radius = SIZES[self.size]
        down, right = np.mgrid[:IMAGE_SIZE, :IMAGE_SIZE]
        down, right = down - self.y, right - self.x
        if self.shape == "circle":
            return down**2 + right**2 <= radius**2
        if self.shape == "square":
            return np.maximum(abs(down), abs(right)) <= radius
        if self.shape == "diamond":
            return abs(down) + abs(right) <= radius
        return (abs(down) <= radius) & (2 * abs(right) <= down + radius)  # triangle, apex on top


def _place(rng: random.Random) -> tuple[list[ShapeObject], bool]:
    """One to three shapes in a row or a column, from left to right or top to bottom, and whether it is a column."""
    count = rng.choice((1, 2, 3))
    vertical = rng.random() < 0.5
    slot = IMAGE_SIZE // count
    objects = []
    across = rng.randint(12, IMAGE_SIZE - 13)
    for index in range(count):
        size = rng.choice(list(SIZES))
        radius = SIZES[size]
        along = rng.randint(index * slot + radius + 1, (index + 1) * slot - radius - 2)
        drift = min(max(across + rng.randint(-3, 3), radius + 1), IMAGE_SIZE - radius - 2)
        x, y = (drift, along) if vertical else (along, drift)
        objects.append(ShapeObject(rng.choice(SHAPES), rng.choice(list(COLORS)), size, x, y))
    return objects, vertical


def _describe(objects: list[ShapeObject], vertical: bool) -> tuple[list[str], list[list[int]]]:
    """
    The five captions and, for each, the indices of the objects in the order in which it names them.

    The first words of every caption determine which object is named first. The attention of Xu et al. 2015 chooses a
    region from the state before the word: after "a large ..." it could not know which object the caption will name.
    """
    phrases = [shape.phrase for shape in objects]
    if len(objects) == 1:
        (one,) = objects
        captions = [
            one.phrase,
            f"there is {one.phrase}",
            f"a {one.color} {one.shape} that is {one.size}",
            f"a {one.size} {one.shape} that is {one.color}",
            f"a {one.shape} that is {one.size} and {one.color}",
        ]
        return captions, [[0]] * 5
    if len(objects) == 2:
        a, b = phrases
        before, after = ("above", "below") if vertical else ("to the left of", "to the right of")
        captions = [
            f"{a} {before} {b}",
            f"{a} is {before} {b}",
            f"there is {a} {before} {b}",
            f"{after} {a} is {b}",
            f"{before} {b} is {a}",
        ]
        return captions, [[0, 1], [0, 1], [0, 1], [0, 1], [1, 0]]
    a, b, c = phrases
    first, last = ("top", "bottom") if vertical else ("left", "right")
    captions = [
        f"{a}, {b} and {c} from {first} to {last}",
        f"from {first} to {last} {a}, {b} and {c}",
        f"from {last} to {first} {c}, {b} and {a}",
        f"there is {b} between {a} and {c}",
        f"between {a} and {c} is {b}",
    ]
    return captions, [[0, 1, 2], [0, 1, 2], [2, 1, 0], [1, 0, 2], [0, 2, 1]]


def _background(rng: random.Random) -> np.ndarray:
    """
    Grey noise with more red towards the right and more blue towards the bottom. As in a photograph, a small part of
    the image thus shows where it lies, so that a network with a small receptive field can tell left from right.
    """
    noise = np.frombuffer(rng.randbytes(IMAGE_SIZE * IMAGE_SIZE), np.uint8).reshape(IMAGE_SIZE, IMAGE_SIZE)
    grey = rng.randint(20, 50) + noise.astype(int) % 16
    ramp = np.arange(IMAGE_SIZE) * 60 // IMAGE_SIZE
    return np.stack([grey + ramp, grey, grey + ramp[:, None]], axis=2).astype(np.uint8)


def draw_row(seed: int, index: int) -> dict:
    """
    Row `index` of the data set with this seed; it depends on these two numbers alone.

    Returns:
        `pixels` (IMAGE_SIZE, IMAGE_SIZE, 3) uint8, and the columns of [`shapes_dataset`] except `image`.
    """
    rng = random.Random(f"shapes {seed} {index}")
    objects, vertical = _place(rng)
    pixels = _background(rng)
    for shape in objects:
        pixels[shape.mask()] = COLORS[shape.color]
    captions, mentions = _describe(objects, vertical)
    described = [
        {"shape": shape.shape, "color": shape.color, "size": shape.size, "box": shape.box} for shape in objects
    ]
    return {"pixels": pixels, "captions": captions, "objects": described, "mentions": mentions}


def _encode(pixels: np.ndarray) -> dict:
    buffer = io.BytesIO()
    PILImage.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return {"bytes": buffer.getvalue(), "path": None}


def shapes_dataset(rows: int, seed: int = 0) -> Dataset:
    """
    The shapes data set.

    Args:
        rows: number of images; a longer data set begins with the rows of a shorter one.
        seed: data sets with different seeds have different images.

    Returns:
        columns `image` (80 x 80 RGB), `captions` (five), `objects` (`shape`, `color`, `size`, `box`: left, top, right,
        bottom in pixels, the last two exclusive) and `mentions` (for each caption the objects' indices in the order
        in which it names them).

    Raises:
        ValueError: if `rows` is not positive.

    Examples:
        >>> from hf_captioner.data import shapes_dataset
        >>> row = shapes_dataset(rows=1, seed=0)[0]
        >>> row["image"].size
        (80, 80)
        >>> row["captions"][0]
        'a medium purple circle'
        >>> row["objects"][0]
        {'shape': 'circle', 'color': 'purple', 'size': 'medium', 'box': [30, 10, 47, 27]}
    """
    if rows < 1:
        raise ValueError(f"`rows` must be at least 1, got {rows}")
    columns: dict[str, list] = {name: [] for name in FEATURES}
    for index in range(rows):
        row = draw_row(seed, index)
        row["image"] = _encode(row.pop("pixels"))
        for name, values in columns.items():
            values.append(row[name])
    return Dataset.from_dict(columns, features=FEATURES)


def is_hit(weights: Any, box: list[int], margin: float = 0) -> bool:
    """
    Whether the centre of the largest cell of a map (h, w), an array or a tensor, lies in a box (left, top, right,
    bottom) in pixels, or at most `margin` pixels beside it.
    """
    height, width = weights.shape
    row, column = divmod(int(weights.argmax()), width)
    x, y = (column + 0.5) * IMAGE_SIZE / width, (row + 0.5) * IMAGE_SIZE / height
    left, top, right, bottom = box
    return left - margin <= x < right + margin and top - margin <= y < bottom + margin


def named_objects(tokens: list[str], caption: str, row: dict) -> list[tuple[int, list[int]]]:
    """For each token that names a shape: its place and the box of the object that the reference means."""
    mentions = iter(row["mentions"][row["captions"].index(caption)])
    places = [place for place, token in enumerate(tokens) if token.lstrip("\u2581 ") in SHAPES]
    return [(place, row["objects"][next(mentions)]["box"]) for place in places]
