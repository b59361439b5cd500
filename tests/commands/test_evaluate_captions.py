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
from hf_captioner.commands import captioning, confidence, evaluate
from hf_captioner.commands.inputs import read_captioner
from hf_captioner.data import load_captions
from hf_captioner.errors import InputError
from hf_captioner.metrics import (
    DEFAULT_METRICS,
    CaptionMetrics,
    DocumentFrequency,
    caption_diversity,
    collapse_checks,
    tokenize,
)
from hf_captioner.models.tokenization_captioner import decode_captions
from hf_captioner.models.vision_encoder import VisionEncoder

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
    names = ["calibration.png", "captions.json", "confidence.json", "metrics.json", "setting.json"]
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


@pytest.fixture
def seen(monkeypatch):
    """How many images each pass of the vision model had."""
    forward, counts = VisionEncoder.forward, []

    def count(self, pixel_values):
        counts.append(len(pixel_values))
        return forward(self, pixel_values)

    monkeypatch.setattr(VisionEncoder, "forward", count)
    return counts


def test_every_image_passes_the_vision_model_once(script, model_folder, tmp_path, seen, monkeypatch):
    """For its caption and for the confidence in it, which is that of a second reading."""
    _, report = run(script, model_folder, tmp_path)
    assert sum(seen) == 11
    seen.clear()
    assert run(script, model_folder, tmp_path)[1]["confidence"] == report["confidence"] and not seen

    config = json.loads((model_folder / "config.json").read_text())
    changed = tmp_path / "changed"
    shutil.copytree(model_folder, changed)
    (changed / "config.json").write_text(json.dumps(config | {"score_temperature": 0.5}))
    run(script, changed, tmp_path / "other")
    seen.clear()
    (changed / "config.json").write_text(json.dumps(config))
    _, again = run(script, changed, tmp_path / "other")
    assert sum(seen) == 11, "the confidence that was kept is under another temperature"
    assert again["confidence"]["words"] == report["confidence"]["words"]
    risk = again["confidence"]["risk_coverage"]["risk"]
    assert risk == pytest.approx(report["confidence"]["risk_coverage"]["risk"])


def test_float32_is_the_models_own_answer_and_auto_says_the_same(script, model_folder, tmp_path):
    model, processor = read_captioner(str(model_folder))
    images = load_captions(DATA)["image"]
    expected = []
    for start in range(0, 11, 2):
        tokens = model.generate(**processor(images=images[start : start + 2], return_tensors="pt"))
        expected += decode_captions(processor.tokenizer, tokens)
    for dtype in ("float32", "auto"):
        captions, report = run(script, model_folder, tmp_path / dtype, *FAST, "--dtype", dtype)
        assert [result["caption"] for result in captions] == expected
        assert report["setting"]["dtype"] == dtype
    captions, _ = run(script, model_folder, tmp_path / "bfloat16", *FAST, "--dtype", "bfloat16")
    assert all(result["caption"] for result in captions)
    with pytest.raises(InputError, match="`dtype` must be one of auto, float32, bfloat16, got 'half'"):
        run(script, model_folder, tmp_path / "half", "--dtype", "half")


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

    def stop_at_third_batch(self, encoder_outputs, **kwargs):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(len(encoder_outputs[0]))
        return generate(self, encoder_outputs=encoder_outputs, **kwargs)

    monkeypatch.setattr(RnnCaptionerForConditionalGeneration, "generate", stop_at_third_batch)
    with pytest.raises(KeyboardInterrupt):
        run(script, model_folder, tmp_path / "parts")
    assert not (tmp_path / "parts" / "captions.json").exists() and not (tmp_path / "parts" / "metrics.json").exists()
    (progress,) = (tmp_path / "parts" / "progress").iterdir()
    with open(progress, "a") as file:  # stopped in the middle of a line
        file.write('[4, "half a capt')

    def count(self, encoder_outputs, **kwargs):
        seen.append(len(encoder_outputs[0]))
        return generate(self, encoder_outputs=encoder_outputs, **kwargs)

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
    installed = captioning.versions()
    monkeypatch.setattr(captioning, "versions", lambda: installed | {library: "0.0.1"})
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


def given(script, captions, output, *options, data=DATA):
    script.main(["--captions", str(captions), "--data", data, "--output_dir", str(output), *options])
    return read(output, "metrics.json")


def test_a_file_of_captions_in_place_of_a_model(script, model_folder, references, tmp_path):
    """The same numbers, in whatever order the file has them; images of others are left out."""
    captions, expected = run(script, model_folder, tmp_path / "model")
    theirs = tmp_path / "theirs.json"
    theirs.write_text(json.dumps([{"image_id": 99, "caption": "of another"}, *captions[::-1]]))
    report = given(script, theirs, tmp_path / "out", *FAST)
    assert report["metrics"] == expected["metrics"] and report["intervals_95"] == expected["intervals_95"]
    assert report["checks"] == expected["checks"] and "sets" not in report
    for name in ("num_images", "num_references", "references_sha256", "data"):
        assert report["setting"][name] == expected["setting"][name]
    assert report["setting"]["captions"] == str(theirs) and len(report["setting"]["captions_sha256"]) == 64
    assert read(tmp_path / "out", "captions.json") == captions
    again = given(script, tmp_path / "out" / "captions.json", tmp_path / "out", *FAST)
    assert again["metrics"] == expected["metrics"]
    with pytest.raises(
        ValueError, match="`output_dir` must be without a captioner's captions to measure .*theirs.json"
    ):
        given(script, theirs, tmp_path / "model", *FAST)
    assert read(tmp_path / "model", "captions.json") == captions


def test_several_captions_an_image_are_a_set(script, references, tmp_path):
    sets = [[captions[0], captions[1], captions[0]] for captions in references]
    results = [{"image_id": image, "caption": text} for image, texts in enumerate(sets) for text in texts]
    (tmp_path / "sets.json").write_text(json.dumps(results))
    report = given(script, tmp_path / "sets.json", tmp_path / "out", *FAST)
    first = CaptionMetrics().compute(predictions=[texts[0] for texts in sets], references=references)
    assert report["metrics"]["cider_d"] == first["cider_d"]
    frequency = DocumentFrequency.from_references([tokenize(captions) for captions in references])
    expected = caption_diversity([tokenize(texts) for texts in sets], frequency)
    assert report["sets"]["self_cider"] == expected["self_cider"].corpus and 0 < expected["self_cider"].corpus < 1
    assert read(tmp_path / "out", "captions.json") == results  # none is lost


def test_shapes_say_what_objects_they_have(script, references, tmp_path):
    captions = [texts[0] for texts in references]
    captions[2] = "a circle, a square, a triangle and a diamond"  # there are at most three shapes
    results = [{"image_id": image, "caption": text} for image, text in enumerate(captions)]
    (tmp_path / "captions.json").write_text(json.dumps(results))
    report = given(
        script, tmp_path / "captions.json", tmp_path / "out", "--metrics", "chair_i", "chair_s", "image_use"
    )
    assert report["metrics"]["chair_s"] == pytest.approx(1 / 11) and 0 < report["metrics"]["chair_i"] < 0.2
    assert report["metrics"]["image_use"] > 1 and "intervals_95" in report


def test_captions_that_say_nothing_of_their_image_raise_an_alarm(script, references, tmp_path, capsys):
    told = {}
    for name, texts in (("good", [texts[0] for texts in references]), ("parrot", [references[0][0]] * 11)):
        results = [{"image_id": image, "caption": text} for image, text in enumerate(texts)]
        (tmp_path / f"{name}.json").write_text(json.dumps(results))
        told[name] = given(script, tmp_path / f"{name}.json", tmp_path / name, *FAST)["alarms"]
    (text,) = told["parrot"].values()
    assert told["good"] == {} and "captions handed to other images score as well" in told["parrot"]["blind"]
    assert f"alarm  blind: {text}" in capsys.readouterr().out


def test_objects_from_coco_s_instances(script, tmp_path):
    rows = []
    for number in (7, 9):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
        rows.append({"file_name": f"{number}.png", "captions": ["a pet"], "image_id": number})
    (tmp_path / "metadata.json").write_text(json.dumps(rows))
    instances = {
        "images": [{"id": 7}, {"id": 9}],
        "categories": [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}],
        "annotations": [{"image_id": 7, "category_id": 18}, {"image_id": 7, "category_id": 17}],
    }
    path = tmp_path / "instances_val2014.json"
    path.write_text(json.dumps(instances))
    captions = tmp_path / "results.json"
    captions.write_text(json.dumps([{"image_id": n, "caption": "a puppy and kittens"} for n in (7, 9)]))
    options = ["--metrics", "chair_i", "chair_s", "--instances", str(path)]
    report = given(script, captions, tmp_path / "out", *options, data=str(tmp_path / "metadata.json"))
    assert report["metrics"] == {"chair_i": 0.5, "chair_s": 0.5}
    assert "instances_val2014.json" in report["definitions"]["chair"]
    for wrong, message in (
        ({**instances, "images": [{"id": 7}], "annotations": []}, "of every image of `data`, got .*without 9"),
        ({"images": []}, "must be COCO's annotations of objects, got .*'categories'"),
        ({**instances, "annotations": [{"image_id": 7, "category_id": 5}]}, "must be COCO's annotations of objects"),
    ):
        path.write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match=f"`instances` .*{message}"):
            given(script, captions, tmp_path / "out", *options, data=str(tmp_path / "metadata.json"))


@pytest.mark.parametrize(
    "content,message",
    [
        ('{"caption": "a"}', "must be a list of results, got dict in"),
        ("[]", "must be a list of results, got list in"),
        ("[5", "must be JSON, got"),
        ('[{"image_id": 0, "caption": null}]', r"\[0\]. of .* must have an integer `image_id` and a text"),
        ('[{"image_id": "0", "caption": "a"}]', "must have an integer `image_id`"),
        (
            '[{"image_id": 0, "caption": "a"}]',
            "must be of every image of shapes.*got none of 10 in .*, image_id 1 the",
        ),
    ],
)
def test_files_that_hold_no_captions_are_refused(script, tmp_path, content, message):
    (tmp_path / "captions.json").write_text(content)
    with pytest.raises(ValueError, match=f"`captions.*{message}"):
        given(script, tmp_path / "captions.json", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_or_captions(script, model_folder, tmp_path):
    with pytest.raises(ValueError, match="`model` or `captions` must be given, and not both, got both"):
        run(script, model_folder, tmp_path, "--captions", "x.json")
    with pytest.raises(ValueError, match="`model` or `captions` must be given, and not both, got neither"):
        script.main(["--data", DATA, "--output_dir", str(tmp_path)])


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
