"""What a picture looks like to a captioner, whatever its file or array is: numpy and Pillow alone."""

import os
from typing import IO, TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

if TYPE_CHECKING:
    import torch

# What cameras, phones, web pages and drawing programs make, HEIF where its plugin is there. Others that Pillow knows
# are not opened, whatever a file's name says: EPS is a program, which Pillow has Ghostscript run.
FORMATS = (
    *("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF", "MPO", "PPM", "JPEG2000"),
    *("DIB", "ICO", "PSD", "QOI", "SGI", "PCX", "TGA"),
)


def open_picture(file: str | os.PathLike | IO[bytes]) -> Image.Image:
    """`PIL.Image.open` for files of those formats; it raises what that raises."""
    Image.init()  # which makes Pillow's list of formats complete
    return Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])


def to_rgb(image: "Image.Image | np.ndarray | torch.Tensor", input_data_format: str | None = None) -> Image.Image:
    """
    The image as every program here sees it: upright, on white where it is transparent, with 8 bits a channel. What
    comes out goes in again unchanged.

    - The EXIF orientation is applied (and removed, so that nothing turns the image twice).
    - 16-bit grey images are divided by 257: 65535 is white. In Pillow's mode `I` too, in which it gives 16-bit PNG and
      PGM files, as long as no value is negative or beyond 65535.
    - 32-bit and floating point images (modes `I` and `F`): in mode `F`, values from 0 to 1 have white at 1. Others
      have no white of their own and are stretched: their darkest value is black, their brightest white.
    - Arrays: `uint8`; `uint16`, as above; booleans (black and white); other numbers up to 255 if all are whole, or
      floating point fractions up to 1.

    Args:
        image: a PIL image, or an array or tensor (H, W), (H, W, C) or (C, H, W) of 1 (grey), 3 (RGB) or 4 (RGBA)
            channels.
        input_data_format: where the channels of an array are, `"channels_first"` or `"channels_last"`, if its shape
            does not say it.

    Returns:
        an image of mode `RGB`.

    Raises:
        ValueError: if the image has no pixels, an array another shape, or values that are no brightness (NaN,
            infinity, less than 0, or beyond those above).
        TypeError: if it is not an image.
    """
    if hasattr(image, "detach"):  # a tensor
        image = image.detach().cpu()
        image = (image.float() if "bfloat16" in str(image.dtype) else image).numpy()
    if isinstance(image, np.ndarray):
        image = _from_array(image, input_data_format)
    elif not isinstance(image, Image.Image):
        raise TypeError(f"an image must be a PIL image, an array or a tensor, got {type(image).__name__}")
    if 0 in image.size:
        raise ValueError(f"an image must have at least one pixel, got {image.width} x {image.height}")
    image = ImageOps.exif_transpose(image)
    if image.mode[0] in "IF":
        image = _from_deep_image(image)
    if any(band in "Aa" for band in image.getbands()[1:]) or "transparency" in image.info:
        image = image.convert("LA" if image.mode == "La" else "RGBA").convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _from_array(values: np.ndarray, input_data_format) -> Image.Image:
    channels = (1, 3, 4)
    if values.ndim == 3:
        if input_data_format is None:  # of two possible places the first, as in transformers
            input_data_format = "channels_first" if values.shape[0] in channels else "channels_last"
        if input_data_format == "channels_first":
            values = np.moveaxis(values, 0, -1)
        if values.shape[-1] == 1:
            values = values[..., 0]
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[-1] not in channels):
        raise ValueError(
            f"an image array must be (H, W), (H, W, C) or (C, H, W) with 1, 3 or 4 channels, got {values.shape}"
        )
    if values.dtype.kind not in "buif":
        raise ValueError(f"an image array must hold numbers, got {values.dtype}")
    if not values.size:
        raise ValueError(f"an image must have at least one pixel, got an array of shape {values.shape}")
    if values.dtype == bool:
        values = values * np.uint8(255)
    elif values.dtype == np.uint16:
        values = np.rint(values / 257)
    elif values.dtype != np.uint8:
        low, high = _extent(values)
        if values.dtype.kind == "f" and 0 <= low and high <= 1:
            values = np.rint(values * 255.0)
        elif low < 0 or high > 255 or (values != np.rint(values)).any():
            raise ValueError(
                "an image array must hold whole numbers from 0 to 255, 16-bit numbers (uint16) or fractions from 0 to "
                f"1, got {values.dtype} from {low} to {high}"
            )
    return Image.fromarray(np.ascontiguousarray(values.astype(np.uint8)))


def _from_deep_image(image: Image.Image) -> Image.Image:
    """Pillow's own conversion of these modes cuts off all that is brighter than 255."""
    values = np.asarray(image)
    transparent = values == image.info["transparency"] if "transparency" in image.info else None
    low, high = _extent(values)
    if image.mode == "F":
        low, high = (0, 1) if 0 <= low and high <= 1 else (low, high)
    elif 0 <= low and high <= 65535:
        low, high = 0, 65535
    # Two values as far apart as the type allows would not have a difference in it.
    scaled = (values.astype(np.float64) - low) * (255 / (float(high) - low or 1))
    grey = Image.fromarray(np.rint(scaled).astype(np.uint8))
    if transparent is not None:
        grey.paste(255, mask=Image.fromarray(transparent))
    return grey


def _extent(values: np.ndarray) -> tuple[float, float]:
    low, high = values.min(), values.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError(f"an image must hold finite numbers, got values from {low} to {high}")
    return low.item(), high.item()


def why_unreadable(error: Exception) -> str:
    """In one line."""
    if isinstance(error, UnidentifiedImageError):  # whose own text has an address in memory
        return "cannot identify an image"
    return " ".join(str(error).split()) or type(error).__name__


__all__ = ["FORMATS", "open_picture", "to_rgb", "why_unreadable"]
