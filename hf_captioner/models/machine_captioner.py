"""
What suits the machine at hand, chosen here and nowhere else: the type of numbers, the memory layout of images, and how
many of them pass the vision model at once. `docs/speed.md` has the measurements behind the choices.
"""

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

DTYPES = ("auto", "float32", "bfloat16")

# On a processor. An allocation of 32 MiB or more (glibc's largest threshold for that) is given back to the system at
# once, to be cleared and mapped again for the next layer, which takes longer than many a layer does; and what fits
# into the caches need not be fetched again. Best were two images of 288 pixels in single precision, four in half.
PIXELS_AT_ONCE = 2 * 288 * 288

THREADS = min(4, os.cpu_count() or 1)  # that read images while the model computes


@dataclass(frozen=True)
class Precision:
    """
    How the vision model, by far the longest part, runs in inference.

    Attributes:
        dtype: `"auto"`, or the type of the model's weights, by which it computes.
        exact: whether regions are, bit for bit, what the [`VisionEncoder`] makes of the whole batch: no other layout,
            no parts. They differ by rounding otherwise, a few parts in a million of single precision.
    """

    dtype: str
    exact: bool

    @property
    def key(self) -> str:
        """Says what regions depend on beside the weights and their type; empty if that is nothing."""
        return "" if self.exact else "channels last, in parts"

    def regions(self, vision_encoder: nn.Module, pixel_values: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
        """
        The regions of images (B, C, H, W) and their grid: (B, L, D) and (h, w), as the [`VisionEncoder`] gives them.
        """
        if self.exact or pixel_values.ndim != 4 or not len(pixel_values):
            return vision_encoder(pixel_values)
        parts = pixel_values.split(self.images_at_once(pixel_values))
        found = [vision_encoder(part.contiguous(memory_format=torch.channels_last)) for part in parts]
        return torch.cat([regions for regions, _ in found]), found[0][1]

    def images_at_once(self, pixel_values: torch.Tensor) -> int:
        """How many images of a batch (B, C, H, W) the vision model is given at once."""
        if self.exact or pixel_values.device.type != "cpu":
            return len(pixel_values)
        numbers = PIXELS_AT_ONCE * 4 // pixel_values.element_size()
        return max(1, numbers // (pixel_values.shape[2] * pixel_values.shape[3]))

    def encode(self, model: Any, pixel_values: torch.Tensor) -> Any:
        """What a captioner's `get_encoder()` makes of images (B, C, H, W)."""
        if self.exact:
            return model.get_encoder()(pixel_values=pixel_values)
        regions, grid = self.regions(model.vision_encoder, pixel_values)
        return model.get_encoder()(image_features=regions, grid=grid)


def choose_precision(dtype: "str | torch.dtype | None" = "auto") -> Precision:
    """
    Args:
        dtype: the type of a model's weights, or `"auto"` (or `None`): that in which they were saved, and whatever else
            is faster without changing captions. In `"float32"` results are, bit for bit, those of the modules
            themselves.

    Raises:
        ValueError: if it is no type of numbers.
    """
    name = "auto" if dtype is None else str(dtype).removeprefix("torch.")
    if name != "auto" and not isinstance(getattr(torch, name, None), torch.dtype):
        raise ValueError(f"`dtype` must be {', '.join(DTYPES[:-1])} or {DTYPES[-1]}, got {dtype!r}")
    return Precision(name, exact=name == "float32")


__all__ = ["DTYPES", "THREADS", "Precision", "choose_precision"]
