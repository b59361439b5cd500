"""The card that training leaves: its metadata, its numbers, its code."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries
from PIL import Image
from testing.training import arguments
from transformers.pipelines import PIPELINE_REGISTRY

from hf_captioner.commands import card as card_command
from hf_captioner.commands import evaluate as evaluate_captions
from hf_captioner.commands import train
from hf_captioner.data import shapes_dataset
from hf_captioner.sharing import card as sharing_card
from hf_captioner.sharing import write_card


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("card") / "tiny"
    train.main([*arguments(folder, hub_token="hf_secret"), "--hub_token=hf_secret"])
    return folder


@pytest.fixture(scope="module")
def evaluated(trained) -> Path:
    folder = trained.parent / "evaluation"
    with pytest.MonkeyPatch.context() as patch:
        settings = ["--model", str(trained), "--data", "shapes:rows=8,seed=2", "--output_dir", str(folder)]
        patch.setattr(sys, "argv", ["evaluate_captions.py", *settings, "--metrics", "bleu_4", "cider_d"])
        evaluate_captions.main()
    return folder


def test_training_writes_it(trained):
    card = ModelCard.load(trained / "README.md")
    data = card.data.to_dict()
    assert data["pipeline_tag"] == "image-text-to-text" and data["library_name"] == "transformers"
    assert {"image-captioning", "rnn_captioner"} <= set(data["tags"])
    metrics = json.loads((trained / "eval_results.json").read_text())
    found = {result.metric_name: result for result in card.data.eval_results}
    assert found["bleu_4"].metric_value == round(metrics["eval_bleu_4"], 4) and "exact_match" in found
    assert found["bleu_4"].metric_type == "bleu" and found["bleu_4"].dataset_name == "shapes:rows=10,seed=1"
    assert f"| `bleu_4` | {metrics['eval_bleu_4']:.4f} |" in card.text
    state = json.loads((trained / "trainer_state.json").read_text())
    curve = [entry for entry in state["log_history"] if "eval_loss" in entry]
    assert [entry["step"] for entry in curve][:2] == [2, 4]
    for entry in curve:
        assert f"| {entry['step']} | {entry['eval_loss']:.4f} | {entry['eval_bleu_4']:.4f} |" in card.text


def test_the_command_is_the_one_that_was_given(trained):
    text = ModelCard.load(trained / "README.md").text
    command = re.search(r"```\n(accelerate launch training/train.py .*)\n```", text)[1]
    assert "--max_steps 4" in command and f"--output_dir {trained}" in command
    for path in trained.rglob("*"):
        assert not path.is_file() or "checkpoint" in str(path) or b"hf_secret" not in path.read_bytes(), path


def test_its_code_runs(trained, monkeypatch):
    monkeypatch.chdir(trained.parent)
    shapes_dataset(1, seed=1)[0]["image"].save("photo.jpg")
    (code,) = re.findall(r"```python\n(.*?)```", ModelCard.load("tiny/README.md").text, re.DOTALL)
    names = {}
    exec(code, names)
    assert names["captioner"]("photo.jpg")[0]["generated_text"]


def test_its_examples_are_there_and_are_what_was_said(trained):
    text = ModelCard.load(trained / "README.md").text
    rows = re.findall(r"\| !\[\]\((.*?)\) \| (.*?) \| (.*?) \|", text)
    samples = json.loads((trained / "samples.json").read_text())
    assert len(rows) == 4
    for (image, caption, reference), sample in zip(rows, samples, strict=False):
        assert (caption, reference) == (sample["caption"], sample["references"][0])
        assert Image.open(trained / image).size == (80, 80)
    assert "(attention.png)" in text and (trained / "attention.png").exists()


def test_an_evaluation_goes_before_the_trainers_metrics(trained, evaluated):
    card = write_card(trained, evaluated, name="user/tiny")
    assert (trained / "README.md").read_text() == str(card)
    report = json.loads((evaluated / "metrics.json").read_text())
    found = {result.metric_name: result for result in ModelCard.load(trained / "README.md").data.eval_results}
    assert set(found) == {"bleu_4", "cider_d"}
    for name, result in found.items():
        assert result.metric_value == round(report["metrics"][name], 4)
        assert result.metric_args["weights_sha256"] == report["setting"]["weights_sha256"]
        assert result.metric_args["interval_95"] == [round(end, 4) for end in report["intervals_95"][name]]
        low, high = report["intervals_95"][name]
        assert f"| `{name}` | {report['metrics'][name]:.4f} | {low:.4f} to {high:.4f} |" in card.text
    assert 'model="user/tiny"' in card.text and "8 images with 40 references" in card.text
    with pytest.raises(FileNotFoundError, match="metrics.json.*nowhere"):
        write_card(trained, trained / "nowhere")
    weights = (trained / "model.safetensors").read_bytes()
    other = next(path for path in trained.glob("checkpoint-*") if (path / "model.safetensors").read_bytes() != weights)
    with pytest.raises(ValueError, match="`evaluation` must be of the weights"):
        write_card(other, evaluated)


def test_how_far_it_can_be_believed_stands_in_it(trained, evaluated):
    report = json.loads((evaluated / "metrics.json").read_text())["confidence"]["risk_coverage"]
    card = write_card(trained, evaluated)
    assert (
        "## Confidence" in card.text and f"is {report['area']:.3f}, {report['area_random']:.3f} by chance" in card.text
    )
    calibration = {
        "data": "photographs",
        "num_images": 90,
        "temperature": 0.7512,
        "min_score": 0.3456,
        "words": {"ece_before": 0.2347, "ece": 0.0456},
        "abstained": {"photographs": 0.011, "noise": 0.99},
        "auroc": {"noise": 0.9876},
    }
    text = sharing_card.confidence(calibration, None)
    assert "`photographs`, 90 images" in text and "0.751" in text and "0.346" in text
    assert "is 0.046 in place of 0.235" in text
    assert "| photographs | 1.1 % |  |\n| noise | 99.0 % | 0.988 |" in text
    assert sharing_card.confidence({}, None) == ""
    assert "## Confidence" not in write_card(trained).text


def test_results_on_a_data_set_of_the_hub_go_to_its_page(trained, evaluated, tmp_path):
    """In the Hub's own format, which its library reads back."""
    report = json.loads((evaluated / "metrics.json").read_text())
    report["setting"] |= {"data": "user/photos", "split": "test"}
    report["metrics"]["spice"] = "not available, because Java is not installed"
    (tmp_path / "metrics.json").write_text(json.dumps(report))
    write_card(trained, tmp_path)
    entries = parse_eval_result_entries(yaml.safe_load((trained / ".eval_results" / "user_photos.yaml").read_text()))
    assert {(entry.dataset_id, entry.task_id) for entry in entries} == {
        ("user/photos", "bleu_4"),
        ("user/photos", "cider_d"),
    }
    for entry in entries:
        assert entry.value == round(report["metrics"][entry.task_id], 4)
        low, high = report["intervals_95"][entry.task_id]
        beams = report["setting"]["num_beams"]
        assert entry.notes == f"split test, 8 images, {beams} beams, 95 % interval {low:.4f} to {high:.4f}"
    shutil.rmtree(trained / ".eval_results")
    write_card(trained, evaluated)  # on shapes, which are not on the Hub
    assert not (trained / ".eval_results").exists()


def test_an_evaluation_of_a_file_of_captions_is_of_no_weights(trained, evaluated, tmp_path):
    given = ["--captions", str(evaluated / "captions.json"), "--data", "shapes:rows=8,seed=2", "--metrics", "bleu_4"]
    evaluate_captions.main([*given, "--output_dir", str(tmp_path)])
    with pytest.raises(ValueError, match="`evaluation` must be of the weights in .*captions.json"):
        write_card(trained, tmp_path)


def test_the_task_is_one_that_transformers_answers_to(trained):
    card = ModelCard.load(trained / "README.md")
    tasks = PIPELINE_REGISTRY.get_supported_tasks()
    assert card.data.pipeline_tag in tasks and "image-to-text" not in tasks
    assert {result.task_type for result in card.data.eval_results} == {card.data.pipeline_tag}
    assert "image-captioning" in tasks  # the pipeline's own name


def test_the_licence_is_unknown_until_someone_says_it(trained):
    """And is kept when the card is written anew."""
    assert ModelCard.load(trained / "README.md").data.license == "unknown"
    card_command.main(["--model", str(trained), "--license", "cc-by-4.0"])
    assert ModelCard.load(trained / "README.md").data.license == "cc-by-4.0"
    assert write_card(trained).data.license == "cc-by-4.0"


@pytest.mark.parametrize(
    "metric,kind",
    [
        ("bleu_4", "bleu"),
        ("rouge_l", "rouge"),
        ("meteor_1.5", "meteor"),
        ("meteor_exact_stem", "meteor_exact_stem"),
        ("cider_d", "cider"),
        ("exact_match", "exact_match"),
    ],
)
def test_metrics_are_published_as_what_they_are(metric, kind):
    """METEOR without its dictionary and paraphrases is not the METEOR that others publish."""
    assert sharing_card.result(metric, 0.5, "photos", "test", {}).metric_type == kind


@pytest.mark.parametrize(
    "source,expected",
    [
        ("nlphuji/flickr8k", ["nlphuji/flickr8k"]),
        ("shapes:rows=3,seed=0", None),
        ("photos/train.parquet", None),
    ],
)
def test_data_sets_are_those_of_the_hub(source, expected):
    assert sharing_card.hub_datasets({"train_data": source, "eval_data": source}) == expected


def test_a_saved_model_has_a_card_and_keeps_one_that_is_there(tmp_path):
    from testing.tiny_models import tiny_model

    model = tiny_model(model_type="transformer_captioner")
    model.save_pretrained(tmp_path / "first")
    card = ModelCard.load(tmp_path / "first" / "README.md")
    assert card.data.license == "unknown" and "Apache License 2.0" in card.text
    assert "2 encoder layers and 2 decoder layers of width 16 and 2 heads" in card.text and "resnet" in card.text
    (tmp_path / "first" / "README.md").write_text("mine")
    model.save_pretrained(tmp_path / "first")
    assert (tmp_path / "first" / "README.md").read_text() == "mine"
