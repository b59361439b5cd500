"""`hf-captioner calibrate`: what it saves, what it leaves alone, and what the saved captioner then does."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from testing.tiny_models import randomise, tiny_config
from transformers import AutoModelForImageTextToText, pipeline

from hf_captioner import (
    CaptionerImageProcessor,
    CaptionerProcessor,
    RnnCaptionerForConditionalGeneration,
    train_tokenizer,
)
from hf_captioner.commands import calibrate, train
from hf_captioner.commands.confidence import Caption, read_confidence, right_words
from hf_captioner.commands.program import program
from hf_captioner.commands.train_arguments import ModelArguments
from hf_captioner.data import load_captions
from hf_captioner.errors import InputError
from hf_captioner.explain import expected_calibration_error, fit_temperature
from hf_captioner.explain.calibration import TEMPERATURES

DATA = "shapes:rows=40,seed=5"


@pytest.fixture(scope="module")
def dataset():
    return load_captions(DATA)


@pytest.fixture(scope="module")
def raw(tmp_path_factory, dataset) -> Path:
    """A captioner of random weights in half precision, large enough that it says different things."""
    folder = tmp_path_factory.mktemp("raw")
    tokenizer = train_tokenizer([caption for captions in dataset["captions"] for caption in captions])
    torch.manual_seed(0)
    model = RnnCaptionerForConditionalGeneration(tiny_config(vocab_size=len(tokenizer), attention="additive"))
    randomise(model, scale=1.0)
    model.generation_config.update(max_new_tokens=8, num_beams=2)
    model.save_pretrained(folder)
    CaptionerProcessor(CaptionerImageProcessor(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)
    weights = {name: one.half() if one.is_floating_point() else one for name, one in weights_of(folder).items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def calibrated(raw, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("calibrated") / "captioner"
    shutil.copytree(raw, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibrate, "ROWS", 6)
        patch.setattr(calibrate, "DISTORTED", 3)
        program(["calibrate", "--model", str(folder), "--data", DATA, "--coverage", "0.8"])
    return folder


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_weights_and_settings_are_left_as_they_are(raw, calibrated):
    before, after = weights_of(raw), weights_of(calibrated)
    assert all(torch.equal(one, after[name]) for name, one in before.items())
    new = {name: after[name] for name in after.keys() - before.keys()}
    assert all(name.startswith("familiarity.") and one.dtype == torch.float16 for name, one in new.items()) and new
    assert (raw / "model.safetensors").stat().st_mode == (calibrated / "model.safetensors").stat().st_mode
    old, now = (json.loads((folder / "config.json").read_text()) for folder in (raw, calibrated))
    changed = {name for name in now if now[name] != old.get(name)}
    assert changed == {"score_temperature", "min_score", "familiarity_rank"}
    assert {path.name for path in calibrated.iterdir()} - {path.name for path in raw.iterdir()} == {"calibration.json"}


def test_captions_stay_and_probabilities_are_those_of_the_temperature(raw, calibrated, dataset):
    first, second = (pipeline("image-captioning", model=str(folder), device="cpu") for folder in (raw, calibrated))
    temperature = second.model.config.score_temperature
    assert temperature != 1 and first.model.config.score_temperature == 1
    for image in dataset[:5]["image"]:
        (before,), (after,) = first(image), second(image)
        assert before["generated_text"] == after["generated_text"] and "familiarity" not in before
        pixels = second.processor(images=image, return_tensors="pt")["pixel_values"]
        sequence = second.model.generate(pixels)
        with torch.no_grad():
            logits = second.model(pixel_values=pixels, decoder_input_ids=sequence[:, :-1]).logits[0]
        pairs = zip(logits, sequence[0, 1:].tolist(), strict=True)
        expected = [(row / temperature).softmax(-1)[token].item() for row, token in pairs if token != 1]  # no padding
        found = [token["probability"] for token in after["tokens"]]
        assert found == pytest.approx(expected, rel=1e-3)
        assert after["score"] == pytest.approx(np.prod(found) ** (1 / len(found)) * after["familiarity"], rel=1e-3)


def test_the_temperature_and_the_least_score_are_those_of_the_data(calibrated, dataset):
    pipe = pipeline("image-captioning", model=str(calibrated), device="cpu")
    report = json.loads((calibrated / "calibration.json").read_text())
    captions = list(read_confidence(pipe.model, pipe.processor, dataset["image"], TEMPERATURES))
    right = [right_words(caption, texts) for caption, texts in zip(captions, dataset["captions"], strict=True)]
    even = np.concatenate([caption.probabilities for caption in captions[::2]]), sum(right[::2], [])
    assert fit_temperature(*even) == report["temperature"] == pipe.model.config.score_temperature
    odd = np.concatenate([caption.probabilities for caption in captions[1::2]]), sum(right[1::2], [])
    (at,) = np.flatnonzero(TEMPERATURES == report["temperature"])
    assert report["words"]["ece"] == pytest.approx(expected_calibration_error(odd[0][:, at], odd[1]))
    assert report["words"]["ece_before"] == pytest.approx(expected_calibration_error(odd[0][:, 32], odd[1]))
    scores = sorted(pipe(image)[0]["score"] for image in dataset[1:40:2]["image"])
    assert scores[3] < report["min_score"] < scores[4]  # a fifth of twenty
    assert report["abstained"]["photographs"] == pytest.approx(0.2)
    assert set(report["auroc"]) == {"shapes", "noise", "text", "blank"}


def test_right_words_are_in_a_reference():
    words = ["a", "Red", "dog,", "runs", "."]
    caption = Caption(" ".join(words), words, np.ones((5, 1)), np.ones(1), torch.ones(1))
    assert right_words(caption, ["A red cat.", "the dog is here"]) == [True, True, True, False, True]


def test_given_captions_have_the_probabilities_that_the_model_gives_them_one_by_one(calibrated, dataset):
    """The evaluation reads the probabilities of texts, which a batch pads."""
    model = RnnCaptionerForConditionalGeneration.from_pretrained(calibrated, dtype=torch.float32)
    processor = CaptionerProcessor.from_pretrained(calibrated)
    images, texts = dataset[:5]["image"], [captions[row % 5] for row, captions in enumerate(dataset[:5]["captions"])]
    assert len({len(text.split()) for text in texts}) > 1
    texts[3] = ""
    read = list(read_confidence(model, processor, iter(images), [1.0, 0.7], texts, batch_size=4))
    for caption, image, text in zip(read, images, texts, strict=True):
        pixels = processor(images=image, return_tensors="pt")["pixel_values"]
        ids = [2, *processor.tokenizer(text)["input_ids"]]
        with torch.no_grad():
            encoded = model.get_encoder()(pixel_values=pixels)
            logits = model(encoder_outputs=encoded, decoder_input_ids=torch.tensor([ids[:-1]])).logits[0]
        for column, temperature in enumerate([1.0, 0.7]):
            each = (logits / temperature).log_softmax(-1)[range(len(ids) - 1), ids[1:]].double()
            assert np.log(caption.scores[column]) == pytest.approx(each.mean().item(), rel=1e-4)
            words = np.log(caption.probabilities[:, column]).sum()
            assert words == pytest.approx(each[:-1].sum().item(), rel=1e-4)  # without the end
        assert caption.text == text and " ".join(caption.words) == text
        assert torch.allclose(caption.mean_region, encoded.last_hidden_state[0].mean(0), atol=1e-5)


def test_the_command_abstains_unless_it_is_told_not_to(calibrated, raw, dataset, tmp_path, capsys):
    scores = {}
    pipe = pipeline("image-captioning", model=str(calibrated), device="cpu")
    for row in range(12):
        path = tmp_path / f"{row:02}.png"
        dataset[row]["image"].save(path)
        scores[str(path)] = pipe(str(path))[0]["score"]
    least = pipe.model.config.min_score
    below = {name for name, score in scores.items() if score < least}

    def nulls(model, *options) -> set[str]:
        output = tmp_path / f"{len(list(tmp_path.iterdir()))}.jsonl"
        program(["caption", *scores, "--model", str(model), "--output", str(output), *options])
        return {row["image"] for row in map(json.loads, output.read_text().splitlines()) if row["caption"] is None}

    assert nulls(calibrated) == below
    assert nulls(calibrated, "--min-score", "0") == set()
    assert nulls(raw) == set()  # a folder that was never calibrated
    higher = sorted(scores.values())[6]
    assert len(nulls(calibrated, "--min-score", str(higher))) == 6
    assert "6 captioned, 6 abstained, because the score is too low, 0 could not be read" in capsys.readouterr().err


def test_it_travels_with_the_captioner(calibrated, tmp_path):
    model = AutoModelForImageTextToText.from_pretrained(calibrated, dtype=torch.float32)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "confidence_captioner.py").exists()
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert again.config.score_temperature == model.config.score_temperature
    assert again.config.min_score == model.config.min_score
    regions = torch.randn(3, 4, model.model.encoder.region_size)
    assert torch.equal(again.familiarity(regions), model.familiarity(regions))
    assert (model.familiarity(100 * regions) < 0.01).all()


def test_to_train_further_forgets_it(calibrated, dataset, tmp_path):
    model, _ = train.build(ModelArguments(model=str(calibrated)), dataset["captions"][0])
    model.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert again.familiarity is None and again.config.score_temperature == 1 and again.config.min_score is None
    assert not any(name.startswith("familiarity") for name in weights_of(tmp_path))


def test_once_more_gives_the_same(calibrated, tmp_path, monkeypatch):
    folder = tmp_path / "again"
    shutil.copytree(calibrated, folder)
    monkeypatch.setattr(calibrate, "ROWS", 2)
    monkeypatch.setattr(calibrate, "DISTORTED", 1)
    calibrate.main(["--model", str(folder), "--data", DATA, "--coverage", "0.8"])
    assert (folder / "model.safetensors").read_bytes() == (calibrated / "model.safetensors").read_bytes()
    assert (folder / "config.json").read_text() == (calibrated / "config.json").read_text()


def test_what_cannot_be_calibrated_is_refused(raw, tmp_path):
    with pytest.raises(InputError, match="`model` must be a folder with model.safetensors, got "):
        calibrate.main(["--model", str(tmp_path), "--data", DATA])
    with pytest.raises(InputError, match=r"`coverage` must be in \(0, 1\], got 0"):
        calibrate.main(["--model", str(raw), "--data", DATA, "--coverage", "0"])
    with pytest.raises(InputError, match="`regions` must be at least 3 images"):
        calibrate.main(["--model", str(raw), "--data", "shapes:rows=4,seed=5"])
    assert "familiarity_rank" in (raw / "config.json").read_text()
    assert json.loads((raw / "config.json").read_text())["familiarity_rank"] == 0
