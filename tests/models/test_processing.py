"""Images and text -> batches; training and use go through the same preprocessing."""

import numpy as np
import pytest
import torch
from PIL import Image
from testing.tiny_models import SYSTEMS, tiny_model
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
        (dict(text_target=[]), r"`text_target` must hold at least one caption, got \[\]"),
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


def test_prompts_of_different_lengths_are_padded_on_the_left(processor):
    batch = processor(text=["a", "a red dog", ""], return_tensors="pt")
    red_dog = processor.tokenizer("a red dog", add_special_tokens=False)["input_ids"]
    pad, start = 1, 2
    assert batch["decoder_input_ids"].tolist() == [
        [pad, pad, start, red_dog[0]],
        [start, *red_dog],
        [pad] * 3 + [start],
    ]
    assert batch["decoder_attention_mask"].tolist() == [[0, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 1]]
    assert set(batch) <= set(processor.model_input_names)
    assert set(processor(text=["a", "a"])) == {"decoder_input_ids"}


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_padded_batch_continues_every_prompt_as_if_it_were_alone(processor, system):
    model = tiny_model(**SYSTEMS[system], vocab_size=len(processor.tokenizer))
    images, prompts = [picture(), picture(70, 30)], ["a red dog", "two"]
    settings = dict(max_new_tokens=5, num_beams=3)
    found = model.generate(**processor(images, text=prompts, return_tensors="pt"), **settings)
    for row, (image, prompt) in enumerate(zip(images, prompts, strict=True)):
        inputs = processor(image, text=prompt, return_tensors="pt")
        alone = model.generate(**inputs, **settings)[0].tolist()
        padding = 4 - inputs["decoder_input_ids"].shape[1]  # of four tokens in the longer prompt
        assert found[row, padding:].tolist()[: len(alone)] == alone


@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_special_tokens_in_a_text_are_text(tmp_path, kind):
    """Otherwise "a dog <eos> b" would teach a caption that goes on after its end."""
    tokenizer = train_tokenizer(["a red dog < > eos bos pad unk runs"] * 3, kind=kind, vocab_size=400)
    CaptionerProcessor(CaptionerImageProcessor(), tokenizer).save_pretrained(tmp_path)
    made, loaded = (
        CaptionerProcessor(CaptionerImageProcessor(), tokenizer),
        CaptionerProcessor.from_pretrained(tmp_path),
    )
    for processor in (made, loaded):
        said = "a dog <eos> runs <pad> <bos> <unk>"
        labels = processor(text_target=[said])["labels"][0]
        assert labels[-1] == 3 and not {1, 2, 3} & set(labels[:-1])
        (prompt,) = processor(text=[said])["decoder_input_ids"]
        assert prompt[0] == 2 and not {1, 2, 3} & set(prompt[1:])
        if kind == "bpe":  # which knows every text
            assert processor.tokenizer.decode(labels, skip_special_tokens=True) == said
