"""The captioner in the box: whole, small, offline, and better than a broken build could be."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors import safe_open
from testing import ROOT
from transformers import pipeline

from hf_captioner.checkpoints import PHOTOGRAPHS
from hf_captioner.commands.calibrate import DISTORTIONS
from hf_captioner.data import load_captions
from hf_captioner.data.non_photographs import NON_PHOTOGRAPHS, non_photographs
from hf_captioner.metrics import CaptionMetrics

FOLDER = Path(PHOTOGRAPHS)
PHOTOGRAPH = Path(__file__).with_name("photograph.jpg")  # Eileen Collins, by NASA, in the public domain


def test_the_folder_is_whole_and_small():
    names = {path.name for path in FOLDER.iterdir()}
    assert names == {
        "README.md",
        "calibration.json",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 32e6
    with safe_open(FOLDER / "model.safetensors", "pt") as file:
        types = {file.get_slice(name).get_dtype() for name in file.keys()}
    assert types <= {"F16", "I64"}
    for path in FOLDER.glob("*.json"):
        assert "/" not in json.loads(path.read_text()).get("_name_or_path", "")
        assert "/work" not in path.read_text() and "/home" not in path.read_text()


def test_the_card_tells_what_was_measured_of_these_weights():
    import hashlib

    card = ModelCard.load(FOLDER / "README.md")
    results = {result.metric_name: result for result in card.data.eval_results}
    digest = hashlib.sha256((FOLDER / "model.safetensors").read_bytes()).hexdigest()
    assert results["cider_d"].metric_args["weights_sha256"] == [digest]
    assert results["bleu_4"].metric_value > 0.24 and results["cider_d"].metric_value > 0.60
    assert "EfficientNet-Lite2" in card.text and "research" in card.text


def test_the_card_tells_how_far_it_can_be_believed():
    text = ModelCard.load(FOLDER / "README.md").text
    report = json.loads((FOLDER / "calibration.json").read_text())
    config = json.loads((FOLDER / "config.json").read_text())
    assert config["score_temperature"] == report["temperature"] and config["min_score"] == report["min_score"]
    assert report["words"]["ece"] < report["words"]["ece_before"] / 2
    for name in ("ece", "ece_before"):
        assert f"{report['words'][name]:.3f}" in text
    for kind, area in report["auroc"].items():
        assert area > 0.99
        assert f"| {kind} | {100 * report['abstained'][kind]:.1f} % | {area:.3f} |" in text
    assert report["abstained"]["photographs"] < 0.02 and "risk-coverage" in text


def test_it_captions_without_a_model_being_named(tmp_path):
    """`pipeline("image-captioning")` and `hf-captioner caption photo.jpg`, without a network."""
    values = np.random.default_rng(0).integers(0, 256, (12, 16, 3)).astype(np.uint8)
    noise = tmp_path / "noise.png"
    Image.fromarray(values).resize((320, 240), Image.Resampling.BICUBIC).save(noise)
    captioner = pipeline("image-captioning")
    assert captioner.model.dtype == torch.float32  # on a processor half precision would be slow
    (expected,) = captioner(str(PHOTOGRAPH))
    assert expected["generated_text"] == "a boy in a orange shirt and a red shirt."  # as before it was calibrated
    assert expected["familiarity"] > 0.9 and expected["score"] > 0.5
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "hf_captioner.commands.program", "caption", str(PHOTOGRAPH), str(noise)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{PHOTOGRAPH}\t{expected['generated_text']}", f"{noise}\t"]
    assert "1 captioned, 1 abstained" in done.stderr


@pytest.mark.parametrize("kind", NON_PHOTOGRAPHS)
def test_it_abstains_on_what_is_no_photograph(kind):
    """Other images than those that it was measured with."""
    captioner = pipeline("image-captioning")
    images = non_photographs(kind, 5, seed=1)
    scores = [found["score"] for (found,) in captioner(images, batch_size=5, num_beams=1)]
    assert max(scores) < captioner.model.config.min_score


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.data
def test_it_says_something_of_nearly_every_photograph(data_folder):
    """Of those that it was trained on, and of others, turned, grey and badly compressed."""
    captioner = pipeline("image-captioning")
    abstained = []
    for name, distortions in (("train", []), ("validation", list(DISTORTIONS.values())[::3])):
        photographs = load_captions(str(data_folder / "flickr8k" / f"{name}.parquet"), check_images=False)
        images = [image.convert("RGB") for image in photographs.select(range(1, 121, 2))["image"]]
        for distort in (Image.Image.copy, *distortions):
            found = captioner([distort(image) for image in images], batch_size=20, num_beams=1)
            abstained.append(sum(one["score"] < captioner.model.config.min_score for (one,) in found) / len(images))
    assert max(abstained) <= 0.1 and sum(abstained) / len(abstained) <= 0.05, abstained


@pytest.mark.slow
@pytest.mark.data
def test_its_captions_of_photographs(data_folder):
    """The first hundred of the photographs that it was not trained on; the card has the scores of all."""
    photographs = load_captions(str(data_folder / "flickr8k" / "validation.parquet"), check_images=False)
    photographs = photographs.select(range(100))
    captioner = pipeline("image-captioning")
    captions = [row[0]["generated_text"] for row in captioner(photographs["image"][:], batch_size=20, num_beams=3)]
    scores = CaptionMetrics().compute(predictions=captions, references=photographs["captions"][:])
    assert scores["cider_d"] > 0.45 and scores["bleu_4"] > 0.18
    assert len(set(captions)) >= 80
    for caption in captions:
        words = caption.split()
        triples = list(zip(words, words[1:], words[2:], strict=False))
        assert len(set(triples)) == len(triples), caption
