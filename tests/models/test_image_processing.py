"""From a file to the pixels that the vision model sees: the same in every program, and those it was trained on."""

import io
import json
from base64 import b64encode

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image
from testing.tiny_models import tiny_model
from transformers import pipeline
from transformers.utils import is_torchvision_available

from hf_captioner import CaptionerImageProcessor, CaptionerProcessor, train_tokenizer
from hf_captioner.data.collator import CaptionCollator
from hf_captioner.models.image_reading import to_rgb

SIDE = 32


@pytest.fixture(scope="module")
def captioner():
    image_processor = CaptionerImageProcessor(size={"height": SIDE, "width": SIDE})
    processor = CaptionerProcessor(image_processor, train_tokenizer(["a dog"], vocab_size=40))
    return pipeline("image-captioning", model=tiny_model(), processor=processor, device="cpu")


def picture(height: int = SIDE, width: int = SIDE, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Noise, in which every turn and every wrong scale shows, with black and white in it."""
    values = np.random.default_rng(seed).integers(0, 256, (height, width, channels)).astype(np.uint8)
    values[0, 0], values[-1, -1] = 0, 255
    return values if channels > 1 else values[..., 0]


def pixels_of_three_programs(captioner, path) -> dict[str, torch.Tensor]:
    """What `processor(Image.open(f))`, the pipeline (two ways) and training make of a file."""
    processor = captioner.processor
    rows = Dataset.from_dict({"image": [str(path)], "captions": [["a dog"]]}).cast_column("image", ImageFeature())
    with Image.open(path) as image:
        return {
            "processor": processor(images=image, return_tensors="pt")["pixel_values"],
            "processor of a path": processor.image_processor(str(path), return_tensors="pt")["pixel_values"],
            "pipeline": captioner.preprocess(path)["pixel_values"],
            "pipeline of base64": captioner.preprocess(b64encode(path.read_bytes()).decode())["pixel_values"],
            "training": CaptionCollator(processor)([rows[0]])["pixel_values"],
        }


def assert_all_see(captioner, path, expected: Image.Image | np.ndarray, atol: float = 0.0) -> None:
    """`expected`: the upright RGB picture; `atol`: in levels of 255."""
    expected = captioner.processor(images=Image.fromarray(np.asarray(expected)), return_tensors="pt")["pixel_values"]
    for name, pixels in pixels_of_three_programs(captioner, path).items():
        tolerance = atol / 255 / min(captioner.processor.image_processor.image_std) + 1e-6
        torch.testing.assert_close(pixels, expected, atol=tolerance, rtol=0, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_program_turns_the_image_once(captioner, tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"turned.{suffix}"
    Image.fromarray(picture(24, 40)).save(path, exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    with Image.open(path) as image:
        stored = Image.fromarray(np.asarray(Image.fromarray(picture(24, 40)) if suffix != "jpg" else image))
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    upright = stored.transpose(turns[orientation]) if orientation in turns else stored
    assert_all_see(captioner, path, upright)


def _grey_as_rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=-1)


def _over_white(values: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return np.rint(values * share + 255 * (1 - share)).astype(np.uint8)


def _files() -> dict:
    """name -> (image, options of saving, suffix, what is seen)"""
    rgb, grey = picture(), picture(channels=1)
    alpha = picture(channels=1, seed=1)
    deep = grey.astype(np.uint16) * 257
    with_alpha = Image.fromarray(np.dstack([rgb, alpha]))
    palette = Image.fromarray(rgb).quantize(16)
    see_through = palette.copy()
    holes = np.asarray(palette) == 3
    few = Image.fromarray((grey > 127).astype(np.uint8) * 255)
    cmyk = Image.fromarray(rgb).convert("CMYK")
    negative = Image.fromarray(grey.astype(np.int32) * 1000 - 70000)
    return {
        "16-bit grey": (Image.fromarray(deep), {}, "png", _grey_as_rgb(grey)),
        "16-bit grey, dark": (Image.fromarray(deep // 8), {}, "png", _grey_as_rgb(np.rint(deep // 8 / 257))),
        "16-bit grey TIFF": (Image.fromarray(deep), {}, "tif", _grey_as_rgb(grey)),
        "16-bit PGM": (Image.fromarray(deep.astype(np.int32)), {}, "pgm", _grey_as_rgb(grey)),
        "16-bit in mode I": (Image.fromarray(deep.astype(np.int32)), {}, "tif", _grey_as_rgb(grey)),
        "16-bit grey, transparent": (
            Image.fromarray(deep),
            {"transparency": int(deep[3, 3])},
            "png",
            _grey_as_rgb(np.where(deep == deep[3, 3], 255, grey)),
        ),
        "32-bit": (negative, {}, "tif", _grey_as_rgb(grey)),
        "fractions": (Image.fromarray((grey / 255).astype(np.float32)), {}, "tif", _grey_as_rgb(grey)),
        "floating point": (Image.fromarray(grey.astype(np.float32) * 3 - 8), {}, "tif", _grey_as_rgb(grey)),
        "constant": (Image.fromarray(np.full((SIDE, SIDE), -5.0, np.float32)), {}, "tif", np.zeros_like(rgb)),
        "black and white": (few.convert("1"), {}, "png", _grey_as_rgb(np.asarray(few))),
        "CMYK": (cmyk, {}, "tif", cmyk.convert("RGB")),
        "palette": (palette, {}, "png", palette.convert("RGB")),
        "palette, transparent": (
            see_through,
            {"transparency": 3},
            "png",
            np.where(holes[..., None], 255, np.asarray(palette.convert("RGB"))),
        ),
        "grey with alpha": (with_alpha.convert("LA"), {}, "png", None),
        "RGB with alpha": (with_alpha, {}, "png", _over_white(rgb, alpha)),
        "RGB, one colour transparent": (
            Image.fromarray(rgb),
            {"transparency": tuple(rgb[5, 5].tolist())},
            "png",
            np.where((rgb == rgb[5, 5]).all(-1, keepdims=True), 255, rgb),
        ),
    }


@pytest.mark.parametrize("name", _files())
def test_every_program_sees_the_same_colours(captioner, tmp_path, name):
    image, options, suffix, expected = _files()[name]
    path = tmp_path / f"image.{suffix}"
    image.save(path, **options)
    if expected is None:
        grey, alpha = (np.asarray(band) for band in image.split())
        expected = _over_white(_grey_as_rgb(grey), alpha)
    expected = np.asarray(expected).astype(np.uint8)
    assert_all_see(captioner, path, expected, atol=1 if "alpha" in name else 0)  # blending rounds


def test_a_cmyk_photograph(captioner, tmp_path):
    path = tmp_path / "print.jpg"
    Image.fromarray(picture()).convert("CMYK").save(path, quality=95)
    with Image.open(path) as image:
        assert image.mode == "CMYK"
        assert_all_see(captioner, path, image.convert("RGB"))


def test_what_is_converted_stays_as_it_is():
    """Otherwise pipeline and processor, which both convert, would turn or blend twice."""
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.fromarray(picture(24, 40)).save(file, "PNG", exif=exif)
    once = to_rgb(Image.open(file))
    assert once.size == (24, 40) and once.mode == "RGB"
    assert np.array_equal(np.asarray(to_rgb(once)), np.asarray(once))


def test_arrays_are_taken_by_their_type():
    rgb, grey = picture(), picture(channels=1)
    twins = {
        "channels first": rgb.transpose(2, 0, 1),
        "whole numbers": rgb.astype(np.int64),
        "whole numbers as floating point": rgb.astype(np.float32),
        "fractions": rgb / 255,
        "16-bit": rgb.astype(np.uint16) * 257,
        "tensor": torch.from_numpy(rgb.copy()),
        "half precision": torch.from_numpy(rgb / 255).to(torch.float16),
        "with a gradient": torch.from_numpy(rgb / 255).requires_grad_(),
    }
    for name, values in twins.items():
        assert np.array_equal(np.asarray(to_rgb(values)), rgb), name
    assert np.array_equal(np.asarray(to_rgb(grey)), _grey_as_rgb(grey))
    assert np.array_equal(np.asarray(to_rgb(grey[None])), _grey_as_rgb(grey))
    assert np.array_equal(np.asarray(to_rgb(grey > 9)), _grey_as_rgb((grey > 9) * 255))
    assert np.array_equal(np.asarray(to_rgb((grey > 9).astype(np.float32))), _grey_as_rgb((grey > 9) * 255))
    square = np.zeros((3, 4, 3), np.uint8)
    assert to_rgb(square, "channels_last").size == (4, 3) and to_rgb(square, "channels_first").size == (3, 4)


def test_the_processor_alone_takes_grey_arrays_and_scaled_ones():
    processor = CaptionerImageProcessor(size={"height": SIDE, "width": SIDE})
    grey, rgb = picture(channels=1), picture()
    expected = processor(Image.fromarray(grey))["pixel_values"][0]
    assert np.array_equal(processor(grey)["pixel_values"][0], expected)
    assert np.array_equal(processor([grey, grey])["pixel_values"][1], expected)
    # As in every processor of transformers: who has scaled an array says so.
    scaled = processor(rgb.astype(np.float32) / 255, do_rescale=False)["pixel_values"][0]
    np.testing.assert_allclose(scaled, processor(rgb)["pixel_values"][0], atol=1e-5)


_NAN = np.full((8, 8, 3), 0.5)
_NAN[2, 2, 1] = np.nan


@pytest.mark.parametrize(
    "image,error,message",
    [
        (np.zeros((0, 0, 3), np.uint8), ValueError, r"at least one pixel, got .*\(0, 0, 3\)"),
        (Image.new("RGB", (0, 4)), ValueError, "at least one pixel, got 0 x 4"),
        (_NAN, ValueError, "finite numbers, got values from nan"),
        (Image.fromarray(_NAN[..., 1].astype(np.float32)), ValueError, "finite numbers"),
        (np.full((8, 8, 3), np.inf), ValueError, "finite numbers"),
        (np.full((8, 8, 3), 300), ValueError, "from 0 to 255.*int64 from 300 to 300"),
        (np.full((8, 8, 3), -0.5), ValueError, "fractions from 0 to 1, got float64 from -0.5"),
        (np.full((8, 8, 3), 1.5), ValueError, "fractions from 0 to 1, got float64 from 1.5"),
        (np.zeros((8, 8, 3), complex), ValueError, "numbers, got complex"),
        (np.zeros((8, 8, 2), np.uint8), ValueError, r"1, 3 or 4 channels, got \(8, 8, 2\)"),
        (np.zeros((2, 8, 8, 3), np.uint8), ValueError, r"channels, got \(2, 8, 8, 3\)"),
        (7, TypeError, "PIL image, an array or a tensor, got int"),
    ],
)
def test_what_is_no_image_is_named(captioner, image, error, message):
    with pytest.raises(error, match=message):
        to_rgb(image)
    with pytest.raises(error, match=message):
        captioner(image)


def source(name: str, **settings):
    """An image processor of transformers, of the backend that is here."""
    suffix = "" if is_torchvision_available() else "Pil"
    return getattr(transformers, f"{name}ImageProcessor{suffix}")(**settings)


_ROOTS = [0.47853944, 0.4732864, 0.47434163]  # of 0.229, 0.224, 0.225: those of google/efficientnet-b0 to -b7
# vision type -> the processor that transformers' folders of it have
SOURCES = {
    "resnet": ("ConvNext", dict(size={"shortest_edge": 224}, crop_pct=0.875)),
    "convnext": ("ConvNext", dict(size={"shortest_edge": 384})),
    "regnet": ("ConvNext", dict(size={"shortest_edge": 224}, image_mean=[0.485, 0.456, 0.406])),
    "vit": ("ViT", {}),
    "swin": ("ViT", dict(resample=3)),
    "deit": ("DeiT", {}),
    "mobilenet_v1": ("MobileNetV1", {}),
    "mobilenet_v2": ("MobileNetV2", {}),
    "efficientnet": ("EfficientNet", {}),
    "efficientnet as published": ("EfficientNet", dict(size={"height": 224, "width": 224}, image_std=_ROOTS)),
    "efficientnet, once": ("EfficientNet", dict(include_top=False, image_std=_ROOTS)),
    "efficientnet, offset": ("EfficientNet", dict(rescale_offset=True, rescale_factor=1 / 127.5)),
    "efficientnet, offset, once": (
        "EfficientNet",
        dict(rescale_offset=True, rescale_factor=1 / 127.5, include_top=False),
    ),
    "efficientnet, offset alone": (
        "EfficientNet",
        dict(rescale_offset=True, rescale_factor=1 / 127.5, include_top=False, do_normalize=False),
    ),
    "efficientnet, top alone": ("EfficientNet", dict(do_normalize=False, image_std=_ROOTS)),
    "efficientnet, not scaled": ("EfficientNet", dict(do_rescale=False, rescale_offset=True)),
    "clip": ("CLIP", {}),
    "siglip": ("Siglip", {}),
    "dinov2": ("Bit", dict(size={"shortest_edge": 256})),
    "levit": ("Levit", {}),
    "poolformer": ("PoolFormer", {}),
    "pvt": ("Pvt", {}),
    "beit": ("Beit", {}),
    "segformer": ("Segformer", {}),
}


def assert_same_pixels(ours, theirs, image: Image.Image, **settings) -> None:
    expected = np.asarray(theirs(image, **settings)["pixel_values"])
    found = np.asarray(ours(image)["pixel_values"])
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=2e-6 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize("name", SOURCES)
def test_the_pixels_are_those_of_the_source_processor(tmp_path, name):
    kind, settings = SOURCES[name]
    try:
        theirs = source(kind, **settings)
    except ImportError as error:  # SegFormer's in transformers 5.17
        pytest.skip(f"without torchvision this version of transformers has none for {name}: {error}")
    theirs.save_pretrained(tmp_path)
    ours = CaptionerImageProcessor.from_vision_pretrained(tmp_path)
    side = ours.size["height"]
    # Of that size already: nothing to resize, and of a crop nothing is left.
    assert_same_pixels(ours, theirs, Image.fromarray(picture(side, side)), do_resize=False)
    # Resized. What theirs would cut off ours keeps, so theirs is told to resize to the size that it crops to.
    whole = {"height": side, "width": side}
    if kind == "ConvNext":
        whole, uncut = {"shortest_edge": side}, dict(crop_pct=1.0)
    elif kind == "Levit":  # enlarges by 256 / 224, whatever it is told, unless height and width are given
        uncut = dict(do_center_crop=False)
    elif kind == "PoolFormer":
        uncut = dict(crop_pct=1.0)
    else:
        uncut = {}
    assert_same_pixels(ours, theirs, Image.fromarray(picture(90, 90)), size=whole, **uncut)


@pytest.mark.parametrize(
    "settings,expected",
    [
        # microsoft/resnet-50's file, of the time of feature extractors: its class says the rest
        (
            dict(feature_extractor_type="ConvNextFeatureExtractor", size=224, image_mean=[0.4] * 3),
            dict(image_mean=(0.4,) * 3, image_std=(0.5,) * 3, resample=3, size=224),
        ),
        (dict(feature_extractor_type="ViTFeatureExtractor"), dict(image_mean=(0.5,) * 3, resample=2, size=224)),
        (dict(image_processor_type="DeiTImageProcessorFast"), dict(image_std=(0.5,) * 3, size=224)),
        (dict(image_processor_type="MobileNetV1ImageProcessor"), dict(image_mean=(0.5,) * 3, resample=2, size=224)),
        (dict(image_processor_type="EfficientNetImageProcessor"), dict(image_std=(0.25,) * 3, size=346)),
        (dict(image_processor_type="OfSomeoneElse", size=64), dict(image_mean=(0.485, 0.456, 0.406), size=64)),
    ],
)
def test_what_the_file_does_not_say_its_class_says(tmp_path, settings, expected):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    ours = CaptionerImageProcessor.from_vision_pretrained(tmp_path)
    size = expected.pop("size")
    assert (ours.size["height"], ours.size["width"]) == (size, size)
    assert {name: getattr(ours, name) for name in expected} == expected


def test_the_processor_of_a_saved_dual_model_is_found(tmp_path):
    """A whole processor saves its image processor inside `processor_config.json`."""
    theirs = source("CLIP", image_mean=[0.1, 0.2, 0.3])
    CaptionerProcessor(theirs, train_tokenizer(["a dog"])).save_pretrained(tmp_path)
    assert tuple(CaptionerImageProcessor.from_vision_pretrained(tmp_path).image_mean) == (0.1, 0.2, 0.3)


@pytest.mark.parametrize("step", ["do_flip_channel_order", "do_pad", "do_thumbnail"])
def test_a_step_that_cannot_be_copied_is_named(tmp_path, step):
    (tmp_path / "preprocessor_config.json").write_text(f'{{"{step}": true, "size": 64}}')
    with pytest.raises(ValueError, match=f"`{step}` is not supported"):
        CaptionerImageProcessor.from_vision_pretrained(tmp_path)
