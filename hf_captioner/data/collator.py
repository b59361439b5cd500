"""Turns rows of a data set into a batch."""

import random

import torch
from transformers import ProcessorMixin

from ..errors import InputError


class CaptionCollator:
    """
    Makes batches whose first dimension is always the image. accelerate and the Trainer slice and gather batches along
    the first dimension, so an image's captions stay with the image.

    Args:
        processor: a [`CaptionerProcessor`].
        captions_per_image: how many captions of each image a batch holds, drawn anew for every batch; all of them
            if `None`. They come from torch's global generator, until [`~CaptionCollator.set_epoch`] makes them a
            function of the epoch.

    Raises:
        InputError: if `captions_per_image` is not positive.

    Examples:
        >>> from hf_captioner import CaptionerImageProcessor, CaptionerProcessor, train_tokenizer
        >>> from hf_captioner.data import CaptionCollator, shapes_dataset
        >>> data = shapes_dataset(4)
        >>> tokenizer = train_tokenizer(text for texts in data["captions"] for text in texts)
        >>> processor = CaptionerProcessor(CaptionerImageProcessor(size={"height": 80, "width": 80}), tokenizer)
        >>> batch = CaptionCollator(processor, captions_per_image=2)(list(data))
        >>> batch["pixel_values"].shape, batch["labels"].shape[:2]
        (torch.Size([4, 3, 80, 80]), torch.Size([4, 2]))
    """

    def __init__(self, processor: ProcessorMixin, captions_per_image: int | None = None):
        if captions_per_image is not None and captions_per_image < 1:
            raise InputError(f"`captions_per_image` must be at least 1 or absent, got {captions_per_image}")
        self.processor = processor
        self.captions_per_image = captions_per_image
        # (seed, epoch) in memory that data workers share, for some of them live longer than an epoch.
        self._key: torch.Tensor | None = None

    def set_epoch(self, seed: int, epoch: int) -> None:
        """
        From now on what is drawn for a row depends on these numbers and on the row alone, its `index` or, without one,
        its captions: not on the batch, the order, or the number of data workers, and a training that was stopped
        within an epoch draws the same when it goes on. [`CaptioningTrainer`] calls it for every epoch.
        """
        if self._key is None:
            self._key = torch.zeros(2, dtype=torch.int64).share_memory_()
        self._key.copy_(torch.tensor([seed, epoch]))

    def _choose(self, row: dict) -> list[str]:
        captions = list(row["captions"])
        if self.captions_per_image is None or len(captions) <= self.captions_per_image:
            return captions
        if self._key is None:
            return [captions[place] for place in torch.randperm(len(captions))[: self.captions_per_image].tolist()]
        # A text as seed is hashed: neighbouring numbers give unrelated draws.
        generator = random.Random(f"{self._key.tolist()} {int(row['index']) if 'index' in row else captions}")
        return generator.sample(captions, self.captions_per_image)

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
            text_target=[self._choose(row) for row in rows],
            return_tensors="pt",
        )
        if cached:
            batch["image_features"] = torch.stack([row["image_features"] for row in rows])
        for name in ("grid", "index"):
            if name in rows[0]:
                batch[name] = torch.tensor([row[name] for row in rows])
        return dict(batch)
