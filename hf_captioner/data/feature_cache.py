"""The features of a frozen vision model for every image, computed once and kept on disk."""

import hashlib
import json
import logging
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import datasets
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn
from torch.utils.data import Dataset
from tqdm.auto import tqdm
from transformers import BaseImageProcessor

from ..errors import InputError
from ..files import replacing
from .image_files import read_ahead
from .reading import decode_image, image_bytes, undecoded

logger = logging.getLogger(__name__)

IMAGES_PER_FILE = 256
# What reads and resizes images and runs the vision model: features can change with their versions.
VERSIONS = ("torch", "transformers", "pillow", "torchvision")


class FeatureDataset(Dataset):
    """
    A data set whose column `image` is replaced by `image_features` (L, D) and their `grid` (h, w). Features are read
    from the files row by row, when needed; each row is compared with its checksum.

    Args:
        rows: a data set with `captions` and perhaps other columns.
        files: what [`cache_features`] wrote: one for every `IMAGES_PER_FILE` rows.
        digests: what identifies the image of each row.
        dtype: of the features that are given; by default as they are in the files.

    Raises:
        InputError: if a file is damaged or of other images; when it is opened, or when a row is read.

    Examples:
        >>> from transformers import ResNetConfig
        >>> from hf_captioner import CaptionerImageProcessor, RnnCaptionerConfig, RnnCaptionerForConditionalGeneration
        >>> from hf_captioner.data import cache_features, shapes_dataset
        >>> vision = ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic")
        >>> model = RnnCaptionerForConditionalGeneration(RnnCaptionerConfig(vision_config=vision, vocab_size=40))
        >>> processor = CaptionerImageProcessor(size={"height": 32, "width": 32})
        >>> features = cache_features(shapes_dataset(3), model.vision_encoder, processor, "features")
        >>> sorted(features[0])
        ['captions', 'grid', 'image_features', 'mentions', 'objects']
        >>> regions = features[0]["image_features"][None]
        >>> model.generate(image_features=regions, min_new_tokens=5, max_new_tokens=5).shape
        torch.Size([1, 6])
    """

    def __init__(
        self,
        rows: datasets.Dataset,
        files: Sequence[Path],
        digests: Sequence[bytes],
        dtype: torch.dtype | None = None,
    ):
        self.dtype = dtype
        self.rows = rows.remove_columns("image") if "image" in rows.column_names else rows
        self.files = [FeatureFile(path, digests[start : start + IMAGES_PER_FILE]) for start, path in _starts(files)]
        self.grid = self.files[0].grid

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        index = range(len(self))[index]
        file = self.files[index // IMAGES_PER_FILE]
        features = file.row(index % IMAGES_PER_FILE)
        features = features if self.dtype is None else features.to(self.dtype)
        return {**self.rows[index], "image_features": features, "grid": self.grid}


def _starts(files: Sequence[Path]) -> list[tuple[int, Path]]:
    return [(place * IMAGES_PER_FILE, path) for place, path in enumerate(files)]


class FeatureFile:
    """
    The features of some images, and a checksum of each image's: zeros that a power cut left, rows in another order and
    rows of other images are noticed when they are read.

    Raises:
        InputError: if it cannot be read, or has features of another number of images.
    """

    def __init__(self, path: Path, digests: Sequence[bytes]):
        self.path, self.digests = path, digests
        self._features: Any = None  # a slice of the open file
        try:
            with safe_open(path, framework="pt") as file:
                grid = tuple(json.loads(file.metadata()["grid"]))
                self._checksums = file.get_tensor("checksums").tolist()
                rows = file.get_slice("features").get_shape()[0]
        except (OSError, SafetensorError, TypeError, KeyError, ValueError) as error:
            raise self._damaged(f"{type(error).__name__}: {error}") from error
        self.grid = grid
        if not len(digests) == len(self._checksums) == rows:
            raise self._damaged(f"{rows} rows and {len(self._checksums)} checksums of {len(digests)} images")

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_features": None}

    def _damaged(self, what: str) -> InputError:
        return InputError(
            f"`feature_cache` must hold what was written, delete {self.path} and start again; got {what}"
        )

    def row(self, index: int) -> torch.Tensor:
        """(L, D)."""
        if self._features is None:  # every worker process opens the file itself
            self._features = safe_open(self.path, framework="pt").get_slice("features")
        features = self._features[index]
        if _checksum(features, self.digests[index]) != self._checksums[index]:
            raise self._damaged(f"other features in row {index} than its checksum says")
        return features

    def check(self) -> None:
        """Reads every row."""
        for index in range(len(self.digests)):
            self.row(index)


def _bytes(tensor: torch.Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data


def _checksum(features: torch.Tensor, digest: bytes) -> int:
    return zlib.crc32(_bytes(features), zlib.crc32(digest))


View = Callable[[Image.Image], Image.Image]


class Precision(Protocol):
    """
    How the vision model runs, see [`~hf_captioner.models.machine_captioner.Precision`].

    Attributes:
        key: says what regions depend on beside the weights and their type; empty if that is nothing.
    """

    @property
    def key(self) -> str: ...

    def regions(
        self, vision_encoder: nn.Module, pixel_values: torch.Tensor
    ) -> tuple[torch.Tensor, tuple[int, int]]: ...


def prepares(image_processor: BaseImageProcessor) -> dict[str, Any]:
    """How images are prepared, the same for a processor and its saved copy, which also says where its code is."""
    return {name: value for name, value in image_processor.to_dict().items() if name != "auto_map"}


def fingerprint(
    vision_encoder: nn.Module,
    image_processor: BaseImageProcessor,
    view: View | None = None,
    precision: Precision | None = None,
) -> str:
    """
    A hash of all that features depend on beside the image: weights and their type, settings, preprocessing, view,
    libraries, and how the vision model runs.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(vision_encoder.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(_bytes(tensor))
    processing = prepares(image_processor)
    config = vision_encoder.model.config.to_dict()  # type: ignore[union-attr, operator]  # a transformers model
    for name in ("_name_or_path", "architectures", "dtype", "transformers_version"):
        config.pop(name, None)  # of the folder, not of the model
    # Which layers and tokens become regions: whatever else the encoder was told.
    settings = {name: value for name, value in vars(vision_encoder).items() if name[0] != "_" and name != "training"}
    settings = {name: value for name, value in settings.items() if isinstance(value, (int, str, list, tuple))}
    versions = {}
    for name in VERSIONS:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    described = [processing, config, settings, versions, None if view is None else repr(view)]
    if precision is not None and precision.key:
        described.append(precision.key)
    digest.update(json.dumps(described, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16]


def image_digests(images: datasets.Dataset) -> list[bytes]:
    """SHA-256 of every image's bytes, in its file or in the table, so that a replaced image is another one."""

    def digest(row: int) -> bytes:
        return hashlib.sha256(image_bytes(images[row]["image"], f"`image[{row}]`")).digest()

    with ThreadPoolExecutor() as pool:
        results = pool.map(digest, range(len(images)), chunksize=64)
        return list(tqdm(results, total=len(images), desc="hashing images", unit="image", leave=False))


class _Decoded(Dataset):
    """The images of a data set, or views of them; an error names the one that cannot be read."""

    def __init__(self, images: datasets.Dataset, view: View | None):
        self.images, self.view = images, view

    def __getitem__(self, row: int) -> Image.Image:
        image = decode_image(self.images[row]["image"], f"`image[{row}]`")
        return image if self.view is None else self.view(image)


@torch.no_grad()
def cache_features(
    dataset: datasets.Dataset,
    vision_encoder: nn.Module,
    image_processor: BaseImageProcessor,
    folder: str | Path,
    batch_size: int = 32,
    num_workers: int = 2,
    view: View | None = None,
    precision: Precision | None = None,
    dtype: torch.dtype | None = None,
) -> FeatureDataset:
    """
    Runs the vision model over every image, unless a file in the folder already holds the result for the same weights,
    preprocessing, library versions and images: every image's bytes are hashed, so that a replaced one is noticed
    whatever its name and date.

    Files hold `IMAGES_PER_FILE` images each and appear when they are whole: what a stopped run has written is used by
    the next one, and so is what it has of images that did not change. A damaged file is computed anew.

    Args:
        dataset: a data set with an `image` column.
        vision_encoder: a captioner's [`VisionEncoder`]; it is run in evaluation mode, on its own device.
        image_processor: makes the `pixel_values` of an image.
        folder: folder for the files, whose size is images * regions * channels * bytes per number.
        batch_size: number of images that are processed at once.
        num_workers: number of threads that read images ahead.
        view: what is done to every image first, see [`views_to_cache`]; its `repr` must say all that it does.
        precision: how the vision model runs; by default as it stands. Another one has files of its own.
        dtype: of the features that are given; by default that of the vision model, in which they are stored.

    Returns:
        [`FeatureDataset`] with `image_features` (L, D) and `grid` instead of `image`.

    Raises:
        InputError: if an image cannot be read, the images do not all give the same grid, or the folder cannot be
            written, as a full disk cannot.

    Examples:
        >>> from transformers import ResNetConfig
        >>> from hf_captioner import CaptionerImageProcessor, RnnCaptionerConfig, RnnCaptionerForConditionalGeneration
        >>> from hf_captioner.data import cache_features, shapes_dataset
        >>> vision = ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic")
        >>> model = RnnCaptionerForConditionalGeneration(RnnCaptionerConfig(vision_config=vision, vocab_size=40))
        >>> processor = CaptionerImageProcessor(size={"height": 32, "width": 32})
        >>> features = cache_features(shapes_dataset(3), model.vision_encoder, processor, "features")
        >>> features[0]["image_features"].shape, features[0]["grid"]
        (torch.Size([16, 12]), (4, 4))
    """
    images = undecoded(dataset)
    digests = image_digests(images)
    home = Path(folder) / f"features-{fingerprint(vision_encoder, image_processor, view, precision)}"
    files: list[Path] = []
    missing: dict[Path, range] = {}
    for start in range(0, len(digests), IMAGES_PER_FILE):
        part = digests[start : start + IMAGES_PER_FILE]
        path = home / f"{hashlib.sha256(b''.join(part)).hexdigest()[:32]}.safetensors"
        files.append(path)
        if not _is_whole(path, part):
            missing[path] = range(start, start + len(part))
    if missing:
        try:
            home.mkdir(parents=True, exist_ok=True)
            pictures = _Decoded(images, view)
            _fill(missing, digests, pictures, vision_encoder, image_processor, batch_size, num_workers, precision)
        except OSError as error:
            raise InputError(
                f"`feature_cache` must be a folder that can be written, with room for the features, got {home} "
                f"({error.strerror}); what was written is used next time"
            ) from error
    found = FeatureDataset(dataset, files, digests, dtype)
    for file in found.files:
        _same_grid(found.grid, file.grid)
    return found


def _is_whole(path: Path, digests: Sequence[bytes]) -> bool:
    if not path.exists():
        return False
    try:
        FeatureFile(path, digests).check()
    except InputError as error:
        logger.warning("%s; it is computed anew", error)
        return False
    return True


def _same_grid(first: tuple[int, int], other: tuple[int, int]) -> None:
    if other != first:
        raise InputError(f"all images must give the same grid of regions, got {first} and {other}")


def _fill(
    missing: dict[Path, range],
    digests: Sequence[bytes],
    images: _Decoded,
    vision_encoder: nn.Module,
    image_processor: BaseImageProcessor,
    batch_size: int,
    num_workers: int,
    precision: Precision | None,
) -> None:
    """Writes the files; one that stands there is replaced."""

    def read(rows: list[int]) -> torch.Tensor:
        return image_processor([images[row] for row in rows], return_tensors="pt")["pixel_values"]

    batches = [
        list(part[start : start + batch_size])
        for part in missing.values()
        for start in range(0, len(part), batch_size)
    ]
    threads = max(1, num_workers)
    pixels = read_ahead(read, batches, threads, threads)
    weights = next(vision_encoder.parameters())
    was_training = vision_encoder.training
    vision_encoder.eval()
    grid = None
    total = sum(map(len, missing.values()))
    with tqdm(total=total, desc="caching features", unit="image") as progress:
        for path, rows in missing.items():
            parts = []
            for _ in range(0, len(rows), batch_size):
                _, batch = next(pixels)
                if isinstance(batch, Exception):
                    raise batch
                batch = batch.to(weights.device, weights.dtype)
                regions, this_grid = (
                    vision_encoder(batch) if precision is None else precision.regions(vision_encoder, batch)
                )
                grid = grid or this_grid
                _same_grid(grid, this_grid)
                parts.append(regions.cpu())
                progress.update(len(regions))
            features = torch.cat(parts)
            checksums = [_checksum(row, digests[place]) for row, place in zip(features, rows, strict=True)]
            content = save({"features": features, "checksums": torch.tensor(checksums)}, {"grid": json.dumps(grid)})
            with replacing(path) as part:
                part.write_bytes(content)
    vision_encoder.train(was_training)
