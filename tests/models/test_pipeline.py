"""The captioning pipeline: every kind of input, and probabilities that are the model's."""

import io
import math
from base64 import b64encode

import numpy as np
import pytest
import torch
from datasets import Dataset, Image
from testing.tiny_models import SYSTEMS, noise_pictures, tiny_model, tiny_processor
from transformers import pipeline
from transformers.pipelines.pt_utils import KeyDataset

from hf_captioner import ImageCaptioningPipeline
from hf_captioner.models import image_processing_captioner

MAX = dict(max_new_tokens=6)


def captioner(**settings) -> ImageCaptioningPipeline:
    return pipeline("image-captioning", model=tiny_model(**settings), processor=tiny_processor(), device="cpu")


@pytest.fixture(scope="module")
def additive():
    return captioner(attention="additive")


def same(first: list[dict], second: list[dict]) -> bool:
    """Sums are made in another order in a batch of another size."""
    return [
        (one["generated_text"], [pytest.approx(token["probability"], rel=1e-4) for token in one["tokens"]])
        for one in first
    ] == [(two["generated_text"], [token["probability"] for token in two["tokens"]]) for two in second]


def test_every_kind_of_input_gives_the_same_caption(additive, tmp_path):
    images = noise_pictures()
    expected = [additive(image, **MAX) for image in images]
    assert not same(expected[0], expected[1]) and not same(expected[1], expected[2]), "the images must matter"
    paths = [tmp_path / f"{index}.png" for index in range(3)]
    for image, path in zip(images, paths, strict=True):
        image.save(path)
    dataset = Dataset.from_dict({"photo": [str(path) for path in paths]}).cast_column("photo", Image())
    kinds = {
        "list": images,
        "tuple": tuple(images),
        "paths": paths,
        "texts": [str(path) for path in paths],
        "base64": [b64encode(path.read_bytes()).decode() for path in paths],
        "arrays": [np.asarray(image) for image in images],
        "tensors, channels first": [torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images],
        "fractions": [np.asarray(image) / 255 for image in images],
        "column": dataset["photo"],
        "generator": (image for image in images),
        "data set": KeyDataset(dataset, "photo"),
    }
    for name, inputs in kinds.items():
        found = list(additive(inputs, **MAX))
        assert all(map(same, expected, found)) and len(found) == 3, name
    assert same(additive(paths[1], **MAX), expected[1]) and additive([]) == []
    grey = images[0].convert("L")
    assert same(additive(np.asarray(grey), **MAX), additive(grey, **MAX))


def test_a_url_is_read(additive, monkeypatch):
    image, file = noise_pictures(1)[0], io.BytesIO()
    image.save(file, "PNG")
    asked = {}

    def download(url, timeout):
        asked.update(url=url, timeout=timeout)
        return file.getvalue()

    monkeypatch.setattr(image_processing_captioner, "download", download)
    assert same(additive("https://example.org/a.png", timeout=3.0, **MAX), additive(image, **MAX))
    assert asked == {"url": "https://example.org/a.png", "timeout": 3.0}


@pytest.mark.parametrize("system", SYSTEMS)
def test_batches_beams_and_returned_sequences(system):
    """In batches as one by one; probabilities against a plain loop over the caption's tokens."""
    pipe = captioner(**SYSTEMS[system])
    images = noise_pictures(5)
    options = dict(num_beams=3, num_return_sequences=2, **MAX)
    found = pipe(images, batch_size=2, **options)
    assert [len(captions) for captions in found] == [2] * 5
    for image, captions in zip(images, found, strict=True):
        assert same(pipe(image, **options), captions)
    pixels = pipe.processor(images=images[4], return_tensors="pt")["pixel_values"]
    sequences = pipe.model.generate(pixels, **options)
    for caption, ids in zip(found[4], sequences.tolist(), strict=True):
        ids = ids[: ids.index(3) + 1] if 3 in ids else ids
        assert caption["generated_text"] == pipe.tokenizer.decode(ids, skip_special_tokens=True)
        expected = []
        for end in range(1, len(ids)):
            with torch.no_grad():
                logits = pipe.model(pixel_values=pixels, decoder_input_ids=torch.tensor([ids[:end]])).logits[0, -1]
            expected.append(logits.softmax(-1)[ids[end]].item())
        probabilities = [token["probability"] for token in caption["tokens"]]
        assert probabilities == pytest.approx(expected, rel=1e-3)
        assert caption["score"] == pytest.approx(math.prod(expected) ** (1 / len(expected)), rel=1e-3)
        texts = [token["token"] for token in caption["tokens"]]
        assert (texts[-1] == "<eos>") is (ids[-1] == 3)
        assert " ".join(text for text in texts if not text.startswith("<")) == caption["generated_text"]


def test_a_prompt_starts_the_caption_and_is_not_scored(additive):
    image = noise_pictures(1)[0]
    (caption,) = additive(image, prompt="one two", **MAX)
    assert caption["generated_text"].startswith("one two") and caption["tokens"][0]["token"] != "one"
    assert len(caption["tokens"]) <= 6
    # the same through transformers' own pipeline for images and text
    theirs = pipeline("image-text-to-text", model=additive.model, processor=additive.processor, device="cpu")
    assert theirs(image, text="one two", **MAX)[0]["generated_text"].strip() == caption["generated_text"]
    assert theirs(image, text="", **MAX)[0]["generated_text"].strip() == additive(image, **MAX)[0]["generated_text"]


@pytest.mark.parametrize("system", [name for name in SYSTEMS if name != "none"])
def test_attention_is_that_of_the_search(system):
    pipe = captioner(**SYSTEMS[system])
    images = noise_pictures(3)
    found = pipe(images, batch_size=3, num_beams=3, attention=True, **MAX)
    pixels = pipe.processor(images=images, return_tensors="pt")["pixel_values"]
    outputs = pipe.model.generate(pixels, num_beams=3, output_attentions=True, return_dict_in_generate=True, **MAX)
    maps = pipe.model.attention_maps(outputs, grid=(4, 4))
    for (caption,), weights in zip(found, maps, strict=True):
        length = len(caption["tokens"])
        assert caption["attention"].shape == (length, 4, 4)
        torch.testing.assert_close(caption["attention"], weights[:length], rtol=1e-3, atol=1e-5)
    assert "attention" not in pipe(images[0], **MAX)[0]


def test_options_given_to_pipeline_hold_until_a_call_says_otherwise(additive):
    pipe = pipeline(
        "image-captioning", model=additive.model, processor=additive.processor, device="cpu", max_new_tokens=2
    )
    image = noise_pictures(1)[0]
    assert len(pipe(image)[0]["tokens"]) <= 2
    assert same(pipe(image, generate_kwargs=MAX), additive(image, **MAX))
    torch.manual_seed(0)
    samples = additive(image, do_sample=True, num_return_sequences=4, **MAX)
    assert len({sample["generated_text"] for sample in samples}) > 1


def test_half_precision():
    pipe = captioner(attention="additive")
    pipe.model.to(torch.bfloat16)
    assert 0 < pipe(noise_pictures(1)[0], **MAX)[0]["score"] <= 1


def test_a_saved_pipeline_is_a_whole_folder(additive, tmp_path):
    additive.save_pretrained(tmp_path)
    loaded = pipeline("image-captioning", model=str(tmp_path), device="cpu")
    assert type(loaded) is ImageCaptioningPipeline
    assert same(loaded(noise_pictures(1)[0], **MAX), additive(noise_pictures(1)[0], **MAX))


@pytest.mark.parametrize(
    "image,error,message",
    [
        ("nowhere.jpg", ValueError, "nowhere.jpg"),
        (np.zeros((2, 8, 8, 3), np.uint8), ValueError, r"\(2, 8, 8, 3\)"),
        (7, TypeError, "image"),
    ],
)
def test_what_is_not_an_image(additive, image, error, message):
    with pytest.raises(error, match=message):
        additive(image)


def test_what_cannot_be_done(additive):
    with pytest.raises(ValueError, match="num_beam"):
        additive(noise_pictures(1)[0], num_beam=3)
    with pytest.raises(ValueError, match="without attention"):
        captioner(attention="none")(noise_pictures(1)[0], attention=True)
