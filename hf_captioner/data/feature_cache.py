"""The features of a frozen vision model for every image, computed once and kept on disk."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm
from transformers import BaseImageProcessor

from ..compat import dataset_fingerprint
from ..errors import InputError


class FeatureDataset(Dataset):
    """
    A data set whose column `image` is replaced by `image_features` (L, D) and their `grid` (h, w). Features are read
    from the file row by row, when needed.

    Args:
        rows: a data set with `captions` and perhaps other columns; it has as many rows as the file.
        path: a file that [`cache_features`] wrote.
    """

    def __init__(self, rows: datasets.Dataset, path: str | Path):
        self.rows = rows.remove_columns("image") if "image" in rows.column_names else rows
        self.path = str(path)
        with safe_open(self.path, framework="pt") as file:
            self.grid = tuple(json.loads(file.metadata()["grid"]))
        self._features: Any = None  # a slice of the open file

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        if self._features is None:  # every worker process opens the file itself
            self._features = safe_open(self.path, framework="pt").get_slice("features")
        return {**self.rows[index], "image_features": self._features[index], "grid": self.grid}

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_features": None}


def _fingerprint(dataset, vision_encoder, image_processor, view) -> str:
    """A hash of the weights, the preprocessing, the view and the images: if one of them changes, so does it."""
    digest = hashlib.sha256(f"features and grid of {vision_encoder.layer}".encode())
    if vision_encoder.num_prefix_regions:
        digest.update(f"behind {vision_encoder.num_prefix_regions} prefix tokens".encode())
    for name, tensor in sorted(vision_encoder.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    settings = image_processor.to_dict()
    settings.pop("auto_map", None)  # only where the code is: a saved processor finds the same features
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    if view is not None:
        digest.update(repr(view).encode())
    digest.update(dataset_fingerprint(dataset.select_columns(["image"])).encode())
    return digest.hexdigest()[:16]


@torch.no_grad()
def cache_features(
    dataset: datasets.Dataset,
    vision_encoder: nn.Module,
    image_processor: BaseImageProcessor,
    folder: str | Path,
    batch_size: int = 32,
    num_workers: int = 0,
    view: Callable[[Image.Image], Image.Image] | None = None,
) -> FeatureDataset:
    """
    Runs the vision model over every image, unless a file in the folder already holds the result for the same weights,
    preprocessing and images.

    Args:
        dataset: a data set with an `image` column.
        vision_encoder: a captioner's [`VisionEncoder`]; it is run in evaluation mode, on its own device.
        image_processor: makes the `pixel_values` of an image.
        folder: folder for the file, whose size is images * regions * channels * bytes per number.
        batch_size: number of images that are processed at once.
        num_workers: number of processes that read images.
        view: what is done to every image first, see [`views_to_cache`]; its `repr` must say all that it does.

    Returns:
        [`FeatureDataset`] with `image_features` (L, D) and `grid` instead of `image`.

    Raises:
        InputError: if the images do not all give the same grid.
    """
    folder = Path(folder)
    path = folder / f"features-{_fingerprint(dataset, vision_encoder, image_processor, view)}.safetensors"
    if path.exists():
        return FeatureDataset(dataset, path)
    folder.mkdir(parents=True, exist_ok=True)
    device = next(vision_encoder.parameters()).device
    was_training = vision_encoder.training
    vision_encoder.eval()

    def collate(rows):
        images = [row["image"] if view is None else view(row["image"]) for row in rows]
        return image_processor(images, return_tensors="pt")["pixel_values"]

    loader = DataLoader(
        dataset.select_columns(["image"]), batch_size=batch_size, num_workers=num_workers, collate_fn=collate
    )
    features, grid, start = None, None, 0
    with tqdm(total=len(dataset), desc="caching features", unit="image") as progress:
        for pixels in loader:
            regions, this_grid = vision_encoder(pixels.to(device))
            if features is None:
                features, grid = torch.empty(len(dataset), *regions.shape[1:], dtype=regions.dtype), this_grid
            if this_grid != grid:
                raise InputError(f"all images must give the same grid of regions, got {grid} and {this_grid}")
            features[start : start + len(regions)] = regions
            start += len(regions)
            progress.update(len(regions))
    vision_encoder.train(was_training)
    unfinished = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        save_file({"features": features}, unfinished, metadata={"grid": json.dumps(grid)})
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return FeatureDataset(dataset, path)
