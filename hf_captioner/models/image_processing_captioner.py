"""Images -> `pixel_values`, the same way in training and in use."""

from transformers.image_processing_base import ImageProcessingMixin
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling
from transformers.utils import is_torchvision_available

if is_torchvision_available():
    from transformers.image_processing_backends import TorchvisionBackend as ImageProcessorBackend
else:
    from transformers.image_processing_backends import PilBackend as ImageProcessorBackend


class CaptionerImageProcessor(ImageProcessorBackend):
    """
    Resizes the whole image to a square, without a crop: what is cut off cannot be described.

    The class attributes are the defaults of its settings; see transformers' image processors for their meaning.
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

    @classmethod
    def from_vision_pretrained(cls, path_or_name: str, **kwargs) -> "CaptionerImageProcessor":
        """
        A processor with the input size, mean, deviation, scale and resampling of a pretrained vision model.

        Args:
            path_or_name: a local folder or a Hub repository with a `preprocessor_config.json`.
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
        if theirs.get("do_flip_channel_order"):
            raise ValueError(f"`do_flip_channel_order` is not supported, but {path_or_name} was trained with it")
        size = theirs["crop_size"] if theirs.get("do_center_crop") else theirs.get("size", cls.size)
        if isinstance(size, dict) and "height" in size:
            size = {"height": size["height"], "width": size["width"]}
        else:
            side = size if isinstance(size, int) else size.get("shortest_edge")
            if side is None:
                raise ValueError(
                    f"`size` of {path_or_name} must have a height and width or a shortest_edge, got {size}"
                )
            size = {"height": side, "width": side}
        names = ("image_mean", "image_std", "do_rescale", "rescale_factor", "do_normalize", "resample")
        copied = {name: theirs[name] for name in names if theirs.get(name) is not None}
        return cls(**{"size": size, **copied, **kwargs})


CaptionerImageProcessor.register_for_auto_class()

__all__ = ["CaptionerImageProcessor"]
