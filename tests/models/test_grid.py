"""The grid travels with the regions, whatever its shape: pixels, features, cache, generation, maps."""

import pytest
import torch
from datasets import Dataset
from PIL import Image
from testing.tiny_models import SYSTEMS, random_images, random_labels, tiny_model
from transformers import pipeline

from hf_captioner import CaptionerImageProcessor, CaptionerProcessor, train_tokenizer
from hf_captioner.data import CaptionCollator, cache_features

ATTENDING = [system for system in SYSTEMS if system != "none"]


def wide_images(batch=3):
    """16 x 64 pixels: 2 x 8 regions."""
    return random_images(batch, 64)[:, :, :16].contiguous()


def wide_model(system):
    if "vision_config" in SYSTEMS[system]:
        pytest.skip("a ViT takes images of its own size only")
    return tiny_model(**SYSTEMS[system])


@pytest.mark.parametrize("system", SYSTEMS)
def test_features_of_a_wide_grid_are_those_of_pixels(system):
    model, images, labels = wide_model(system), wide_images(), random_labels()
    with torch.no_grad():
        regions, grid = model.vision_encoder(images)
        assert grid == (2, 8)
        expected = model(pixel_values=images, labels=labels)
        for given in (grid, torch.tensor([grid] * 3)):
            found = model(image_features=regions, grid=given, labels=labels)
            torch.testing.assert_close(found.logits, expected.logits)
            torch.testing.assert_close(found.loss, expected.loss)
            assert model.get_encoder()(image_features=regions, grid=given).grid == (2, 8)
        if system.startswith("cnn_transformer"):  # a square has the same number of regions, but others beside them
            square = model(image_features=regions, grid=(4, 4), labels=labels).logits
            assert (square - expected.logits).abs().max() > 0.01


def test_a_grid_that_does_not_fit_is_refused():
    model, features = tiny_model(**SYSTEMS["cnn_transformer"]), torch.zeros(2, 16, 12)
    with pytest.raises(ValueError, match="`grid` must have 16 cells.*\\(3, 5\\)"):
        model.get_encoder()(image_features=features, grid=(3, 5))
    with pytest.raises(ValueError, match="`grid` must be the same for all images"):
        model.get_encoder()(image_features=features, grid=torch.tensor([[2, 8], [4, 4]]))


@pytest.mark.parametrize("system", ATTENDING)
def test_maps_have_the_grid_and_the_vision_model_runs_once(system):
    model, images = wide_model(system), wide_images(2)
    calls = []
    model.vision_encoder.register_forward_hook(lambda *args: calls.append(1))
    outputs = model.generate(
        images, num_beams=3, max_new_tokens=4, output_attentions=True, return_dict_in_generate=True
    )
    assert outputs.grid == (2, 8) and model.attention_maps(outputs).shape[2:] == (2, 8) and len(calls) == 1
    with torch.no_grad():
        regions, grid = model.vision_encoder(images)
    asked = dict(max_new_tokens=4, output_attentions=True, return_dict_in_generate=True)
    for settings in (dict(pixel_values=images), dict(image_features=regions, grid=grid)):
        torch.testing.assert_close(model.generate(**settings, num_beams=3, **asked).sequences, outputs.sequences)
    if not system.startswith("cnn_transformer"):
        unknown = model.generate(image_features=regions, **asked)
        with pytest.raises(ValueError, match="`grid` must be given for the 16 regions"):
            model.attention_maps(unknown)
        assert model.attention_maps(unknown, grid=(8, 2)).shape[2:] == (8, 2)


@pytest.mark.parametrize("system", ["additive", "cnn_transformer"])
def test_the_pipeline_runs_the_vision_model_once(system):
    tokenizer = train_tokenizer(["a b c d e f g"])
    model = tiny_model(**SYSTEMS[system], vocab_size=len(tokenizer))
    processor = CaptionerProcessor(CaptionerImageProcessor(size={"height": 16, "width": 64}), tokenizer)
    captioner = pipeline("image-captioning", model=model, processor=processor, device="cpu")
    calls = []
    model.vision_encoder.register_forward_hook(lambda *args: calls.append(1))
    (caption,) = captioner(Image.effect_noise((50, 50), 80).convert("RGB"), attention=True, max_new_tokens=4)
    assert caption["attention"].shape[1:] == (2, 8) and len(calls) == 1


@pytest.mark.parametrize("system", ["additive", "cnn_transformer"])
def test_the_cache_keeps_the_grid(tmp_path, system):
    tokenizer = train_tokenizer(["a b c d e f g"])
    model = tiny_model(**SYSTEMS[system], vocab_size=len(tokenizer))
    processor = CaptionerProcessor(CaptionerImageProcessor(size={"height": 16, "width": 64}), tokenizer)
    images = [Image.effect_noise((64, 16), 60 + 20 * number).convert("RGB") for number in range(3)]
    data = Dataset.from_dict({"image": images, "captions": [["a b"], ["c"], ["d e f"]]})
    collate = CaptionCollator(processor)
    expected = model(**collate(list(data))).loss
    for _ in range(2):  # made, and read again
        cached = cache_features(data, model.vision_encoder, processor.image_processor, tmp_path)
        assert cached[0]["grid"] == (2, 8)
        batch = collate([cached[row] for row in range(3)])
        assert batch["grid"].tolist() == [[2, 8]] * 3
        torch.testing.assert_close(model(**batch).loss, expected)
