"""
Views of an image that show the same: mirrored, or cropped. Small collections of photographs are learnt by heart later
when every epoch shows them in another way. What is said of an image must not name its sides, left and right.
"""

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.utils.data import Dataset

from ..errors import InputError
from .feature_cache import FeatureDataset

_MOST_STRETCHED = 1.1  # width to height of a crop, against those of the image


@dataclass(frozen=True)
class RandomView:
    """
    Draws views of an image.

    Args:
        flip: whether every other one, by chance, is mirrored.
        smallest_crop: the least share of the image's area that is shown, at a random place and nearly in the image's
            shape; all of it if `None`.

    Raises:
        InputError: if the share is not in (0, 1].
    """

    flip: bool
    smallest_crop: float | None = None

    def __post_init__(self):
        if self.smallest_crop is not None and not 0 < self.smallest_crop <= 1:
            raise InputError(f"`smallest_crop` must be in (0, 1], got {self.smallest_crop}")

    def draw(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        mirrored, area, stretch, left, top = rng.random(5)
        if self.smallest_crop is not None:
            side = math.sqrt(self.smallest_crop + (1 - self.smallest_crop) * area)
            stretched = math.sqrt(_MOST_STRETCHED ** (2 * stretch - 1))
            width = max(1, round(image.width * min(1, side * stretched)))
            height = max(1, round(image.height * min(1, side / stretched)))
            x, y = round(left * (image.width - width)), round(top * (image.height - height))
            image = image.crop((x, y, x + width, y + height))
        return ImageOps.mirror(image) if self.flip and mirrored < 0.5 else image


@dataclass(frozen=True)
class Mirrored:
    """The mirrored image."""

    def __call__(self, image: Image.Image) -> Image.Image:
        return ImageOps.mirror(image)


@dataclass(frozen=True)
class DrawnView:
    """One of the views that [`RandomView`] draws of an image, always the same: the `number` tells it from others."""

    random_view: RandomView
    number: int

    def __call__(self, image: Image.Image) -> Image.Image:
        return self.random_view.draw(image, np.random.default_rng([self.number, zlib.crc32(image.tobytes())]))


def views_to_cache(
    flip: bool, crops: int, smallest_crop: float | None
) -> list[Callable[[Image.Image], Image.Image] | None]:
    """
    Views for [`cache_features`], each of which costs one pass of the vision model over all images.

    Args:
        flip: whether the mirrored image is one of them; then every other crop is mirrored, too.
        crops: number of crops.
        smallest_crop: see [`RandomView`].

    Returns:
        the views; the first is `None`, the image as it is.
    """
    mirrored = [Mirrored()] if flip else []
    return [None, *mirrored, *(DrawnView(RandomView(flip, smallest_crop), number) for number in range(crops))]


class DrawnRows(Dataset):
    """
    Rows that are other ones in every epoch, drawn by seed, epoch and row: the same ones whichever process reads them,
    in whatever order, and when a stopped training goes on in the middle of an epoch.
    """

    def __init__(self) -> None:
        # (seed, epoch) in memory that data workers share, for some of them live longer than an epoch.
        self._key = torch.zeros(2, dtype=torch.int64).share_memory_()

    def begin_epoch(self, seed: int, epoch: int) -> None:
        """From now on rows are those of this seed and epoch; [`CaptioningTrainer`] calls it for every epoch."""
        self._key.copy_(torch.tensor([seed, epoch]))

    def rng(self, index: int) -> np.random.Generator:
        return np.random.default_rng([*self._key.tolist(), index])


class RandomViews(DrawnRows):
    """
    A data set whose `image` is seen in another view in every epoch.

    Args:
        rows: with a column `image`.
        view: draws the views.
    """

    def __init__(self, rows: Sequence[dict], view: RandomView):
        super().__init__()
        self.rows, self.view = rows, view

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        row = self.rows[index]
        return {**row, "image": self.view.draw(row["image"], self.rng(index))}


class OneOfViews(DrawnRows):
    """
    Of several data sets with equally many rows, views of the same images, one for each row and epoch.

    Args:
        views: the data sets.
    """

    def __init__(self, views: Sequence[FeatureDataset]):
        super().__init__()
        self.views = views

    def __len__(self) -> int:
        return len(self.views[0])

    def __getitem__(self, index: int) -> dict:
        return self.views[int(self.rng(index).integers(len(self.views)))][index]
