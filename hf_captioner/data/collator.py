"""Turns rows of a data set into a batch."""

from collections.abc import Sequence

import torch
from transformers import ProcessorMixin

from ..errors import InputError


class CaptionCollator:
    """
    Makes batches whose first dimension is always the image. accelerate and the Trainer slice and gather batches along
    the first dimension, so an image's captions stay with the image.

    Args:
        processor: a [`CaptionerProcessor`].
        captions_per_image: how many captions of each image a batch holds, sampled anew for every batch; all of them
            if `None`.

    Raises:
        InputError: if `captions_per_image` is not positive.
    """

    def __init__(self, processor: ProcessorMixin, captions_per_image: int | None = None):
        if captions_per_image is not None and captions_per_image < 1:
            raise InputError(f"`captions_per_image` must be at least 1 or absent, got {captions_per_image}")
        self.processor = processor
        self.captions_per_image = captions_per_image

    def _choose(self, captions: Sequence[str]) -> list[str]:
        if self.captions_per_image is None or len(captions) <= self.captions_per_image:
            return list(captions)
        chosen = torch.randperm(len(captions))[: self.captions_per_image]
        return [captions[index] for index in chosen.tolist()]

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        """
        Args:
            rows: dictionaries with `image`, or `image_features` (L, D) and perhaps their `grid` (h, w); `captions` (a
                list of texts); and perhaps `index`.

        Returns:
            `pixel_values` (B, 3, H, W), or `image_features` (B, L, D) and `grid` (B, 2); `labels` (B, k, T), -100
            for padding, in captions and for images with fewer captions; `index` (B,) if the rows have it.
        """
        cached = "image_features" in rows[0]
        batch = self.processor(
            images=None if cached else [row["image"] for row in rows],
            text_target=[self._choose(row["captions"]) for row in rows],
            return_tensors="pt",
        )
        if cached:
            batch["image_features"] = torch.stack([row["image_features"] for row in rows])
        for name in ("grid", "index"):
            if name in rows[0]:
                batch[name] = torch.tensor([row[name] for row in rows])
        return dict(batch)
