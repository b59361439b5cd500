"""Turns images into `pixel_values`, identically in training and in inference."""

import base64
import math
import os
from io import BytesIO
from typing import Any

import numpy as np
import transformers
from PIL import Image
from transformers.image_processing_base import ImageProcessingMixin
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    ChannelDimension,
    PILImageResampling,
)
from transformers.utils import is_torchvision_available

from .bounds_captioner import MAX_SIDE, check_number
from .image_reading import open_picture, to_rgb, why_unreadable
from .url_captioner import download

if is_torchvision_available():
    from transformers.image_processing_backends import TorchvisionBackend as ImageProcessorBackend
else:
    from transformers.image_processing_backends import PilBackend as ImageProcessorBackend

# What a source processor may do before its pixels are those of ours: copied, or left out on purpose (the crop), or
# without an effect on RGB images.
_KNOWN_STEPS = {
    "do_resize",
    "do_rescale",
    "do_normalize",
    "do_center_crop",
    "do_convert_rgb",
    "do_reduce_labels",
}


def open_image(source: str | os.PathLike, timeout: float | None = None) -> Image.Image:
    """
    The image as its file has it; [`to_rgb`] turns and converts it. Transformers' `load_image` does both in one, but
    cuts off what is brighter than 255 in 16-bit images and shows the colours that lie hidden under transparency.

    Args:
        source: the path of a file, a URL (`http://`, `https://`), which is fetched, or base64 text with or without
            `data:image/...,`.
        timeout: seconds that fetching a URL may take, 30 by default. It may have 64 MiB and lead five times elsewhere.

    Raises:
        ValueError: if the source is none of these, or what it names is no image of a format that is opened.
    """
    source = os.fspath(source)
    kind = "must be one that can be read"
    if source.startswith(("http://", "https://")):
        content: str | BytesIO = BytesIO(download(source, timeout))
    elif os.path.isfile(source):
        content = source
    else:
        kind = "must be the path of a file that is there, a URL or base64 text"
        try:
            content = BytesIO(base64.b64decode(source.partition(",")[2] or source))
        except ValueError as error:
            raise ValueError(f"an image {kind}, got {_shown(source)}") from error
    try:
        return open_picture(content)
    except Exception as error:  # decoders raise whatever they like: SyntaxError, struct.error, IndexError...
        raise ValueError(f"an image {kind}, got {_shown(source)} ({why_unreadable(error)})") from error


def _shown(source: str) -> str:
    return repr(source if len(source) <= 200 else source[:200] + "...")


class CaptionerImageProcessor(ImageProcessorBackend):
    """
    Resizes the whole image to a square without cropping, because a caption may mention what a crop would cut off.
    Before that, [`to_rgb`] makes an upright RGB image of whatever it is given; arrays of fractions given with
    `do_rescale=False` are taken as they are.

    The class attributes are the defaults of its settings; see transformers' image processors for their meaning.
    Calling it with one or B images gives `pixel_values` (B, 3, H, W).

    Examples:
        >>> from hf_captioner import CaptionerImageProcessor
        >>> from PIL import Image
        >>> processor = CaptionerImageProcessor(size={"height": 96, "width": 128})
        >>> images = [Image.new("RGB", (640, 480)), Image.new("L", (50, 70))]
        >>> processor(images, return_tensors="pt")["pixel_values"].shape
        torch.Size([2, 3, 96, 128])
    """

    resample = PILImageResampling.BICUBIC
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = {"height": 224, "width": 224}
    default_to_square = True
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True

    def __init__(self, **kwargs):
        """
        Raises:
            ValueError: if a setting has a wrong type, a deviation is not positive, or a side is beyond 8192 pixels.
        """
        try:
            super().__init__(**kwargs)
            _check_settings(self)
        except (ArithmeticError, AttributeError, LookupError, TypeError) as error:
            raise ValueError(f"the image processor's settings must be what transformers takes: {error}") from error

    def fetch_images(self, images: Any) -> Any:
        """Paths, URLs and base64 text become images, a grey array (H, W) gets its channel."""
        if isinstance(images, (list, tuple)):
            return [self.fetch_images(image) for image in images]
        if isinstance(images, (str, os.PathLike)):
            return open_image(images)
        if getattr(images, "ndim", None) == 2:
            return images[None]
        return super().fetch_images(images)

    def process_image(
        self,
        image: Any,
        do_convert_rgb: bool | None = None,
        input_data_format: str | ChannelDimension | None = None,
        **kwargs,
    ) -> Any:
        """One image -> (C, H, W), of the backend's type. Both backends call this for every image."""
        fractions = not isinstance(image, Image.Image) and "float" in str(image.dtype)
        if do_convert_rgb and not (fractions and kwargs.get("do_rescale") is False):
            image, input_data_format = to_rgb(image, input_data_format), None
            do_convert_rgb = False
        return super().process_image(
            image, do_convert_rgb=do_convert_rgb, input_data_format=input_data_format, **kwargs
        )

    @classmethod
    def from_vision_pretrained(cls, path_or_name: str, keep_crop: bool = False, **kwargs) -> "CaptionerImageProcessor":
        """
        A processor with the input size, mean, standard deviation, rescaling and resampling of a pretrained vision
        model.

        An offset (`rescale_offset`) and a second division by the standard deviation (`include_top`), which
        EfficientNet's processor has, become part of the mean and the standard deviation.

        Args:
            path_or_name: a local folder or a Hub repository with a `preprocessor_config.json`.
            keep_crop: whether to cut out the centre where that processor does, as a decoder that was trained on such
                images needs it. By default the whole image becomes what would be cut out.
            **kwargs: settings that replace the copied ones.

        Raises:
            FileNotFoundError: if there is no such folder or repository with that file.
            ValueError: if the model was trained on something that this processor cannot make.
        """
        try:
            theirs, _ = ImageProcessingMixin.get_image_processor_dict(path_or_name)
        except OSError as error:
            raise FileNotFoundError(
                "the vision model must be a folder with a preprocessor_config.json, or a repository with one that the "
                f"Hub has and this machine can reach or has downloaded before, got {str(path_or_name)!r}: {error}"
            ) from error
        for name, does in theirs.items():
            if name.startswith("do_") and name not in _KNOWN_STEPS and does:
                raise ValueError(f"`{name}` is not supported, but {path_or_name} was trained with it")
        source = _source_class(theirs)

        def setting(name):
            return theirs[name] if name in theirs else getattr(source, name, None)

        names = ("image_mean", "image_std", "do_rescale", "rescale_factor", "do_normalize", "resample")
        copied = {name: setting(name) for name in names if setting(name) is not None}
        copied |= _folded_normalization(cls, copied, setting("rescale_offset"), setting("include_top"))
        crops, size = setting("do_center_crop"), setting("size") or cls.size
        if crops and keep_crop:
            copied |= {"do_center_crop": True, "crop_size": _square(setting("crop_size"), path_or_name)}
        elif crops:
            size = setting("crop_size")
        return cls(**{"size": _square(size, path_or_name), **copied, **kwargs})


def _check_settings(processor: CaptionerImageProcessor) -> None:
    for name in ("image_mean", "image_std"):
        values = getattr(processor, name)
        numbers = values if isinstance(values, (list, tuple)) else [values]
        if values is None:
            continue
        for value in numbers:
            number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
            if not number or (name == "image_std" and value <= 0):
                rule = "positive numbers" if name == "image_std" else "numbers"
                raise ValueError(f"`{name}` must be {rule}, one a channel, got {values!r}")
    for name in ("size", "crop_size"):
        for side, pixels in dict(getattr(processor, name, None) or {}).items():
            if pixels is not None and (not isinstance(pixels, int) or not 1 <= pixels <= MAX_SIDE):
                raise ValueError(f"`{name}` must have sides of 1 to {MAX_SIDE} pixels, got {side}: {pixels!r}")
    check_number("rescale_factor", processor.rescale_factor, MAX_SIDE, -MAX_SIDE)


def _source_class(theirs: dict) -> type | None:
    """The class in transformers whose defaults hold for what the file does not say, if it names one."""
    name = theirs.get("image_processor_type") or theirs.get("feature_extractor_type") or ""
    name = name.replace("FeatureExtractor", "ImageProcessor").removesuffix("Fast")
    # Without torchvision the plain name is a stand-in that only raises.
    for candidate in (f"{name}Pil", name):
        candidate = getattr(transformers, candidate, None)
        if isinstance(candidate, type) and issubclass(candidate, ImageProcessingMixin):
            return candidate
    return None


def _folded_normalization(cls, copied: dict, rescale_offset: bool | None, include_top: bool | None) -> dict:
    """((x * factor - 1) - mean) / deviation / deviation as one mean and one deviation."""
    offset = 1.0 if rescale_offset and copied.get("do_rescale", cls.do_rescale) else 0.0
    if not (offset or include_top):
        return {}
    normalizes = copied.get("do_normalize", cls.do_normalize)
    std = np.broadcast_to(copied.get("image_std", cls.image_std), 3).astype(np.float64)
    mean = np.broadcast_to(copied.get("image_mean", cls.image_mean), 3).astype(np.float64)
    divisions = int(bool(normalizes)) + int(bool(include_top))
    return {
        "do_normalize": True,
        "image_mean": (mean * bool(normalizes) + offset).tolist(),
        "image_std": (std**divisions).tolist(),
    }


def _square(size, path_or_name) -> dict[str, int]:
    if isinstance(size, dict) and "height" in size:
        return {"height": size["height"], "width": size["width"]}
    side = size if isinstance(size, int) else size.get("shortest_edge") if isinstance(size, dict) else None
    if side is None:
        raise ValueError(f"`size` of {path_or_name} must have a height and width or a shortest_edge, got {size}")
    return {"height": side, "width": side}


CaptionerImageProcessor.register_for_auto_class()

__all__ = ["CaptionerImageProcessor", "open_image"]
