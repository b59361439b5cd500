"""Images and text -> batches; training and use go through the same preprocessing."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from hf_captioner import CaptionerImageProcessor, CaptionerProcessor, train_tokenizer


@pytest.fixture
def processor():
    tokenizer = train_tokenizer(["a red dog .", "two cats run"])
    return CaptionerProcessor(CaptionerImageProcessor(size={"height": 32, "width": 32}), tokenizer)


def picture(width=50, height=40, mode="RGB", seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def test_pixel_values_are_the_whole_image_normalised(processor):
    image = picture()
    (found,) = processor(image, return_tensors="pt")["pixel_values"]
    resized = np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC), dtype=np.float32) / 255
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(found.permute(1, 2, 0).numpy(), (resized - mean) / std, atol=0.02)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_every_kind_of_image_becomes_rgb(processor, mode):
    assert processor(picture(mode=mode), return_tensors="pt")["pixel_values"].shape == (1, 3, 32, 32)


def test_batches(processor):
    batch = processor(
        [picture(), picture(70, 30)],
        text=["a red", "two cats"],
        text_target=[["a red dog.", "two cats run", "a dog"], ["a cat"]],
        return_tensors="pt",
    )
    tokenizer = processor.tokenizer
    assert batch["pixel_values"].shape == (2, 3, 32, 32)
    assert batch["decoder_input_ids"][:, 0].tolist() == [2, 2] and batch["decoder_input_ids"].shape == (2, 3)
    assert 3 not in batch["decoder_input_ids"]
    labels = batch["labels"]
    assert labels.shape == (2, 3, 5)
    assert labels[0, 0].tolist() == tokenizer("a red dog.")["input_ids"]
    assert labels[0, 2].tolist() == [*tokenizer("a dog")["input_ids"], -100, -100]
    assert (labels[1, 1:] == -100).all()
    assert processor(text_target=["a dog", "a"], return_tensors="pt")["labels"].shape == (2, 3)
    assert processor(picture(), text="", return_tensors="pt")["decoder_input_ids"].tolist() == [[2]]


@pytest.mark.parametrize(
    "arguments,message",
    [
        (dict(), "images"),
        (dict(text=["a", "a red dog"]), r"lengths \[2, 4\]"),
        (dict(text_target=[["a"], []]), r"text_target\[1\]"),
    ],
)
def test_bad_arguments(processor, arguments, message):
    with pytest.raises(ValueError, match=message):
        processor(**arguments)


def test_saved_and_loaded(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    image, text = picture(), ["a red dog ."]
    expected = processor(image, text_target=text, return_tensors="pt")
    for loaded in (CaptionerProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        assert type(loaded) is CaptionerProcessor
        found = loaded(image, text_target=text, return_tensors="pt")
        assert torch.equal(found["pixel_values"], expected["pixel_values"])
        assert torch.equal(found["labels"], expected["labels"])
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is CaptionerImageProcessor
