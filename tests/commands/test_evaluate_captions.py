"""The evaluation script: its files, its numbers, and going on after an interruption."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from testing import ROOT
from testing.tiny_models import randomise, tiny_config
from transformers import pipeline

from hf_captioner import (
    CaptionerImageProcessor,
    CaptionerProcessor,
    RnnCaptionerForConditionalGeneration,
    train_tokenizer,
)
from hf_captioner.commands import confidence, evaluate
from hf_captioner.data import load_captions
from hf_captioner.errors import InputError
from hf_captioner.metrics import DEFAULT_METRICS, CaptionMetrics, DocumentFrequency, collapse_checks, tokenize

SCRIPT = ROOT / "training" / "evaluate_captions.py"
DATA = "shapes:rows=11,seed=5"
# neither Java nor CLIP, which have tests of their own
FAST = ["--metrics", *DEFAULT_METRICS]


@pytest.fixture(scope="module")
def script():
    return evaluate


@pytest.fixture(scope="module")
def references():
    return load_captions(DATA)["captions"][:]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory, references):
    """A captioner of random weights, large enough that it says different things of different images."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = train_tokenizer([caption for captions in references for caption in captions])
    torch.manual_seed(0)
    model = RnnCaptionerForConditionalGeneration(tiny_config(vocab_size=len(tokenizer), attention="additive"))
    randomise(model, scale=1.0)
    model.generation_config.update(max_new_tokens=8, num_beams=1)
    model.save_pretrained(folder)
    CaptionerProcessor(CaptionerImageProcessor(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)
    return folder


def run(script, model_folder, output, *extra, data=DATA):
    arguments = ["--model", str(model_folder), "--data", data, "--output_dir", str(output), "--batch_size", "2"]
    script.main([*arguments, *(extra or FAST)])
    return read(output, "captions.json"), read(output, "metrics.json")


def read(folder, name):
    return json.loads((folder / name).read_text("utf-8"))


def test_captions_and_numbers(script, model_folder, references, tmp_path):
    captions, report = run(script, model_folder, tmp_path)
    assert [result["image_id"] for result in captions] == list(range(11))
    texts = [result["caption"] for result in captions]
    assert len(set(texts)) > 2
    expected = CaptionMetrics().compute(predictions=texts, references=references, intervals=True)
    assert report["intervals_95"] == expected.pop("intervals")
    assert report["metrics"] == expected
    assert report["checks"] == collapse_checks(texts, references)
    setting = report["setting"]
    assert (setting["num_images"], setting["num_references"]) == (11, sum(map(len, references)))
    assert (setting["num_beams"], setting["length_penalty"], setting["max_new_tokens"]) == (1, 1.0, 8)
    assert len(setting["weights_sha256"]) == 1 and report["versions"]["torch"] == torch.__version__
    names = ["calibration.png", "captions.json", "metrics.json", "setting.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_how_far_the_confidence_can_be_believed(script, model_folder, references, tmp_path):
    captions, report = run(script, model_folder, tmp_path, *FAST, "--per_image")
    found = report["confidence"]
    words = [word for result in captions for word in result["caption"].split()]
    assert found["words"]["count"] == len(words) and found["temperature"] == 1 and found["min_score"] is None
    assert found["words"]["ece"] == found["words"]["ece_before"] > 0
    known = [{word for text in texts for word in " ".join(tokenize([text])[0]).split()} for texts in references]
    right = [
        set(tokenize([word])[0]) <= known[row]
        for row, result in enumerate(captions)
        for word in result["caption"].split()
    ]
    assert found["words"]["right"] == pytest.approx(np.mean(right))
    risks = [1 - min(row["cider_d"], 1) for row in report["per_image"]]
    assert found["risk_coverage"]["area_random"] == pytest.approx(np.mean(risks))
    assert found["risk_coverage"]["risk"][-1] == pytest.approx(np.mean(risks))
    pipe = pipeline("image-captioning", model=str(model_folder), device="cpu")
    scores = {pipe(image)[0]["score"]: risk for image, risk in zip(load_captions(DATA)["image"], risks, strict=True)}
    best = scores[max(scores)]
    assert found["risk_coverage"]["risk"][0] == pytest.approx(best) and found["abstained"] == 0


def test_a_tokenizer_without_words_has_no_confidence(script, model_folder, tmp_path, monkeypatch):
    def refuse(*args):
        raise InputError("a tokenizer must mark the spaces")

    monkeypatch.setattr(confidence, "places_of_words", refuse)
    _, report = run(script, model_folder, tmp_path)
    assert report["confidence"] == "not available, because a tokenizer must mark the spaces"
    assert not (tmp_path / "calibration.png").exists()


def test_the_captions_are_the_models(script, model_folder, tmp_path):
    captions, _ = run(script, model_folder, tmp_path)
    model = RnnCaptionerForConditionalGeneration.from_pretrained(model_folder)
    processor = CaptionerProcessor.from_pretrained(model_folder)
    for row, image in enumerate(load_captions(DATA)["image"]):
        tokens = model.generate(**processor(images=[image], return_tensors="pt"))
        assert captions[row]["caption"] == processor.tokenizer.decode(tokens[0], skip_special_tokens=True).strip()


def test_coco_tools_take_the_captions(script, model_folder, references, tmp_path):
    coco = pytest.importorskip("pycocotools.coco")
    run(script, model_folder, tmp_path)
    truth = coco.COCO()
    truth.dataset = {
        "images": [{"id": image} for image in range(11)],
        "annotations": [
            {"id": 100 * image + number, "image_id": image, "caption": caption}
            for image, captions in enumerate(references)
            for number, caption in enumerate(captions)
        ],
    }
    truth.createIndex()
    assert len(truth.loadRes(str(tmp_path / "captions.json")).getAnnIds()) == 11


def test_generation_options_reach_the_model(script, model_folder, tmp_path):
    options = ["--num_beams", "3", "--length_penalty", "0.5", "--max_new_tokens", "3", "--no_repeat_ngram_size", "1"]
    captions, report = run(script, model_folder, tmp_path, *FAST, *options)
    setting = report["setting"]
    assert (setting["num_beams"], setting["length_penalty"], setting["max_new_tokens"]) == (3, 0.5, 3)
    assert setting["no_repeat_ngram_size"] == 1
    said = [result["caption"].split() for result in captions]
    assert max(map(len, said)) <= 3 and all(len(set(words)) == len(words) for words in said)


def test_an_interrupted_run_goes_on(script, model_folder, tmp_path, monkeypatch):
    whole, _ = run(script, model_folder, tmp_path / "whole")
    generate = RnnCaptionerForConditionalGeneration.generate
    seen = []

    def stop_at_third_batch(self, pixel_values, **kwargs):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(len(pixel_values))
        return generate(self, pixel_values=pixel_values, **kwargs)

    monkeypatch.setattr(RnnCaptionerForConditionalGeneration, "generate", stop_at_third_batch)
    with pytest.raises(KeyboardInterrupt):
        run(script, model_folder, tmp_path / "parts")
    assert not (tmp_path / "parts" / "captions.json").exists() and not (tmp_path / "parts" / "metrics.json").exists()
    (progress,) = (tmp_path / "parts" / "progress").iterdir()
    with open(progress, "a") as file:  # stopped in the middle of a line
        file.write('[4, "half a capt')

    def count(self, pixel_values, **kwargs):
        seen.append(len(pixel_values))
        return generate(self, pixel_values=pixel_values, **kwargs)

    seen.clear()
    monkeypatch.setattr(RnnCaptionerForConditionalGeneration, "generate", count)
    again, _ = run(script, model_folder, tmp_path / "parts")
    assert sum(seen) == 11 - 4
    assert again == whole

    seen.clear()  # and a finished one captions nothing again
    assert run(script, model_folder, tmp_path / "parts", "--metrics", "bleu_1")[1]["metrics"].keys() == {"bleu_1"}
    assert seen == []


def test_captions_of_another_setting_are_not_mixed_in(script, model_folder, tmp_path):
    run(script, model_folder, tmp_path)
    before = (tmp_path / "captions.json").read_text()
    with pytest.raises(ValueError, match="`output_dir` must be new .* num_beams = 1 instead of 2"):
        run(script, model_folder, tmp_path, *FAST, "--num_beams", "2")
    with pytest.raises(ValueError, match="with data = "):
        run(script, model_folder, tmp_path, data="shapes:rows=12,seed=5")
    assert (tmp_path / "captions.json").read_text() == before


@pytest.mark.parametrize(
    "name,value", [("repetition_penalty", 1.5), ("min_new_tokens", 4), ("forced_eos_token_id", 3)]
)
def test_captions_of_other_generation_settings_are_not_mixed_in(script, model_folder, tmp_path, name, value):
    """Settings that no option has are in the model's folder; old captions were taken for theirs."""
    shutil.copytree(model_folder, tmp_path / "model")
    run(script, tmp_path / "model", tmp_path / "out")
    path = tmp_path / "model" / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    with pytest.raises(ValueError, match="`output_dir` must be new .* generation_config = "):
        run(script, tmp_path / "model", tmp_path / "out")


def test_captions_of_another_preprocessing_are_not_mixed_in(script, model_folder, tmp_path):
    shutil.copytree(model_folder, tmp_path / "model")
    run(script, tmp_path / "model", tmp_path / "out")
    processor = CaptionerProcessor.from_pretrained(tmp_path / "model")
    processor.image_processor.image_mean = [0.1, 0.2, 0.3]
    processor.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="`output_dir` must be new .* processor_sha256 = "):
        run(script, tmp_path / "model", tmp_path / "out")


@pytest.mark.parametrize("library", ["torch", "transformers", "tokenizers", "pillow"])
def test_captions_of_other_versions_are_not_mixed_in(script, model_folder, tmp_path, monkeypatch, library):
    run(script, model_folder, tmp_path)
    installed = evaluate.versions()
    monkeypatch.setattr(evaluate, "versions", lambda: installed | {library: "0.0.1"})
    with pytest.raises(ValueError, match=f"`output_dir` must be new .* versions = .*'{library}': '0.0.1'"):
        run(script, model_folder, tmp_path)


def test_ids_and_scores_of_each_image(script, model_folder, tmp_path):
    rows = []
    for number in range(3):
        Image.new("RGB", (32, 32), (80 * number, 0, 200)).save(tmp_path / f"{number}.png")
        rows.append({"file_name": f"{number}.png", "captions": ["a blue square", "blue"], "image_id": 70 - number})
    (tmp_path / "metadata.json").write_text(json.dumps(rows))
    captions, report = run(script, model_folder, tmp_path / "out", *FAST, "--per_image", data=str(tmp_path))
    assert [result["image_id"] for result in captions] == [70, 69, 68]
    assert [row["image_id"] for row in report["per_image"]] == [70, 69, 68]
    assert [row["caption"] for row in report["per_image"]] == [result["caption"] for result in captions]
    assert np.mean([row["rouge_l"] for row in report["per_image"]]) == pytest.approx(report["metrics"]["rouge_l"])
    with pytest.raises(ValueError, match="`id_column` must be one of .*, got 'cocoid'"):
        run(script, model_folder, tmp_path / "other", *FAST, "--id_column", "cocoid", data=str(tmp_path))
    rows[2]["image_id"] = 70
    (tmp_path / "metadata.json").write_text(json.dumps(rows))
    with pytest.raises(ValueError, match="`image_id` must be another for every image, got 70 twice"):
        run(script, model_folder, tmp_path / "other", data=str(tmp_path))


def test_frequencies_from_a_file_and_reasons_for_what_is_missing(
    script, model_folder, references, tmp_path, monkeypatch
):
    frequency = DocumentFrequency.from_references([tokenize(captions) for captions in references[:4]])
    frequency.save(tmp_path / "frequency.npz")
    monkeypatch.setenv("PATH", str(tmp_path))  # no Java
    options = ["--document_frequency", str(tmp_path / "frequency.npz")]
    options += ["--metrics", "cider_d", "meteor_1.5", "clip_score"]
    captions, report = run(script, model_folder, tmp_path / "out", *options)
    texts = [result["caption"] for result in captions]
    expected = CaptionMetrics().compute(predictions=texts, references=references, document_frequency=frequency)
    assert report["metrics"]["cider_d"] == expected["cider_d"] > 0
    assert report["metrics"]["meteor_1.5"] == "not available, because Java is not installed"
    assert report["metrics"]["clip_score"].startswith("not available, because images and clip_folder")
    assert "frequency.npz" in report["definitions"]["cider"]


def test_errors_name_the_field(script, model_folder, tmp_path):
    with pytest.raises(ValueError, match="`batch_size` must be at least 1, got 0"):
        run(script, model_folder, tmp_path, "--batch_size", "0")
    with pytest.raises(ValueError, match="`metrics` must be among bleu_1, .*; got 'cider-d'"):
        run(script, model_folder, tmp_path, "--metrics", "cider-d")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_two_processes_caption_as_one_does(script, model_folder, tmp_path):
    single, _ = run(script, model_folder, tmp_path / "one")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(SCRIPT)]
    command += ["--model", str(model_folder), "--data", DATA, "--output_dir", str(tmp_path / "two"), *FAST]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert read(tmp_path / "two", "captions.json") == single
    assert read(tmp_path / "two", "metrics.json")["processes"] == 2
    assert not (tmp_path / "two" / "progress").exists()
