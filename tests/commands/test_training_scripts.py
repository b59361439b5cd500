"""train.py end to end, on data small enough to wait for."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file
from testing import ROOT
from testing.training import arguments
from transformers import AutoConfig, AutoModelForImageTextToText

from hf_captioner import CaptionerProcessor
from hf_captioner.commands import pointing as measure_pointing
from hf_captioner.commands import train
from hf_captioner.data import shapes_dataset
from hf_captioner.errors import InputError


def test_trains_saves_measures_and_shows(tmp_path, capsys):
    train.main(arguments(tmp_path))
    printed = capsys.readouterr().out
    assert "eval_bleu_4" in printed and "eval_exact_match" in printed
    assert printed.count("\nmodel:") == 4 and printed.count(" true:") == 20
    model = AutoModelForImageTextToText.from_pretrained(tmp_path)
    processor = CaptionerProcessor.from_pretrained(tmp_path)
    assert model.config.vocab_size == len(processor.tokenizer)
    generation = model.generation_config
    assert (generation.max_new_tokens, generation.num_beams, generation.suppress_tokens) == (8, 3, [0])
    metrics = json.loads((tmp_path / "eval_results.json").read_text())
    assert 0 <= metrics["eval_bleu_4"] <= 1
    samples = json.loads((tmp_path / "samples.json").read_text())
    image = shapes_dataset(1, seed=1)[0]
    assert len(samples) == 10 and samples[0]["references"] == image["captions"]
    # what the folder says is what the folder's own model says: training and use share their preprocessing
    generated = model.generate(**processor(image["image"], return_tensors="pt"))
    assert processor.decode(generated[0], skip_special_tokens=True).strip() == samples[0]["caption"]
    assert (tmp_path / "attention.png").stat().st_size > 10_000
    pickles = [path for path in tmp_path.iterdir() if path.suffix in (".bin", ".pt", ".pth", ".pkl")]
    assert pickles == []


@pytest.mark.slow
def test_a_second_stage_is_rewarded_and_reuses_the_features(tmp_path):
    """Cross-entropy, then reward from its folder; killed and resumed, it comes to the same weights."""
    first, cache = tmp_path / "first", tmp_path / "features"
    common = dict(feature_cache=cache, freeze_vision=True)
    train.main(arguments(first, **common))
    made = {path: path.stat().st_mtime_ns for path in cache.rglob("*.safetensors")}
    assert len(made) == 2
    recipe = ROOT / "training/configs/flickr8k_rnn_additive_scst.yaml"
    second = dict(common, config=recipe, model=first, samples_per_image=3, bf16=False, logging_steps=1)
    second |= dict(reward='{"cider_d": 1.0, "bleu_4": 0.5}', per_device_train_batch_size=8, flip=False)
    train.main(arguments(tmp_path / "whole", **second))
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.safetensors")} == made
    log = json.loads((tmp_path / "whole/trainer_state.json").read_text())["log_history"]
    lines = [line for line in log if "reward" in line]
    assert len(lines) == 4 and all(0 <= line["reward"] <= 10.5 and line["reward_std"] > 0 for line in lines)
    assert any("eval_cider_d" in line for line in log)

    train.main(arguments(tmp_path / "cut", **{**second, "load_best_model_at_end": False}))
    (tmp_path / "cut/checkpoint-4").rename(tmp_path / "elsewhere")
    train.main(
        arguments(tmp_path / "cut", resume_from_checkpoint="last", **{**second, "load_best_model_at_end": False})
    )
    resumed, whole = (load_file(folder / "model.safetensors") for folder in (tmp_path / "cut", tmp_path / "elsewhere"))
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())


def test_an_unknown_objective_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match="`objective` must be one of cross_entropy, distillation, self_critical, got 'reward'"
    ):
        train.main(arguments(tmp_path, objective="reward"))


def test_resumes_where_it_stopped(tmp_path):
    """Four steps at once, and two, a stop, and two more: the same weights."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    constant = dict(lr_scheduler_type="constant", warmup_steps=0, load_best_model_at_end=False, learning_rate=0.01)
    train.main(arguments(whole, **constant))
    train.main(arguments(parts, **constant, max_steps=2))
    with pytest.raises(ValueError, match="output_dir.*checkpoint-2"):
        train.main(arguments(parts, **constant))
    train.main(arguments(parts, **constant, resume_from_checkpoint="last"))
    first, second = (AutoModelForImageTextToText.from_pretrained(folder) for folder in (whole, parts))
    for (name, mine), theirs in zip(first.named_parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, msg=lambda m, n=name: f"{n}: {m}")


def test_trains_a_saved_captioner_further_with_its_vision_model_unfrozen(tmp_path):
    train.main(arguments(tmp_path / "first", freeze_vision=True, feature_cache=tmp_path / "cache", max_steps=2))
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 2
    train.main(arguments(tmp_path / "second", model=tmp_path / "first", vision_learning_rate=0.01, max_steps=2))
    first, second = (AutoModelForImageTextToText.from_pretrained(tmp_path / name) for name in ("first", "second"))
    moved = [
        "vision_encoder" in name
        for (name, mine), theirs in zip(first.named_parameters(), second.parameters(), strict=True)
        if not torch.equal(mine, theirs)
    ]
    assert any(moved) and not all(moved)


def test_views_of_the_training_images(tmp_path):
    """In the cache those of training are four, those of evaluation one; from pixels they are drawn."""
    settings = dict(freeze_vision=True, max_steps=2, eval_strategy="no", save_strategy="no", flip=True)
    settings |= dict(smallest_crop=0.7, load_best_model_at_end=False)
    train.main(arguments(tmp_path / "cached", **settings, cached_crops=2, feature_cache=tmp_path / "cache"))
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 4 + 1
    train.main(arguments(tmp_path / "pixels", **settings))
    plain = {name: value for name, value in settings.items() if name not in ("flip", "smallest_crop")}
    train.main(arguments(tmp_path / "plain", **plain))
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("cached", "pixels", "plain")]
    for one, other in ((0, 1), (1, 2), (0, 2)):
        assert any(not torch.equal(weights[one][name], weights[other][name]) for name in weights[0])


def test_stops_when_nothing_gets_better(tmp_path):
    """With a learning rate of nothing it never does: two evaluations after the first, also across a resume."""
    settings = dict(early_stopping_patience=2, learning_rate=1e-30, max_steps=12, metric_for_best_model="loss")
    settings |= dict(freeze_vision=True, greater_is_better=False, ema_decay=0.9, save_total_limit=9)
    train.main(arguments(tmp_path, **settings))
    assert json.loads((tmp_path / "trainer_state.json").read_text())["global_step"] == 6
    for name in ("checkpoint-6", "trainer_state.json"):
        (tmp_path / name).rename(tmp_path.parent / f"{tmp_path.name}-{name}")
    train.main(arguments(tmp_path, **settings, resume_from_checkpoint="last"))
    assert json.loads((tmp_path / "trainer_state.json").read_text())["global_step"] == 6
    assert not [path for path in tmp_path.glob("*.pt")] and not (tmp_path / "optimised").exists()


def test_a_part_of_the_vision_model_is_trained(tmp_path):
    settings = dict(eval_strategy="no", save_strategy="no", load_best_model_at_end=False, max_steps=1)
    train.main(arguments(tmp_path / "first", freeze_vision=True, **settings))
    second = dict(model=tmp_path / "first", trainable_vision=r"stages\.1", vision_learning_rate=0.01, max_steps=2)
    train.main(arguments(tmp_path / "second", **{**settings, **second}))
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "second"))
    moved = {name for name in before if "vision_encoder" in name and not torch.equal(before[name], after[name])}
    assert moved and all("stages.1" in name for name in moved)


def test_adapters_are_trained_and_become_weights(tmp_path):
    """Rank 2 in one stage of the CNN; stopped and resumed, it comes to the same weights."""
    settings = dict(eval_strategy="no", load_best_model_at_end=False, learning_rate=0.01, ema_decay=0.5)
    train.main(arguments(tmp_path / "first", freeze_vision=True, max_steps=1, **settings))
    second = dict(settings, model=tmp_path / "first", lora=2, trainable_vision=r"stages\.1.*convolution")
    train.main(arguments(tmp_path / "second", **second))
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "second"))
    assert before.keys() == after.keys()
    moved = {n for n in before if "vision_encoder" in n and not torch.equal(before[n], after[n])}
    assert len(moved) > 1 and all("stages.1" in name and name.endswith("convolution.weight") for name in moved)
    for name in moved:
        assert torch.linalg.matrix_rank((after[name] - before[name]).flatten(1), rtol=1e-3) == 2
    samples = json.loads((tmp_path / "second/samples.json").read_text())
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "second")
    processor = CaptionerProcessor.from_pretrained(tmp_path / "second")
    tokens = model.generate(**processor(shapes_dataset(1, seed=1)[0]["image"], return_tensors="pt"))
    assert processor.decode(tokens[0], skip_special_tokens=True).strip() == samples[0]["caption"]
    for path in (tmp_path / "second/checkpoint-4", tmp_path / "second/model.safetensors"):
        path.rename(tmp_path / path.name)
    train.main(arguments(tmp_path / "second", **second, resume_from_checkpoint="last"))
    again = load_file(tmp_path / "second/model.safetensors")
    assert all(torch.equal(again[name], tensor) for name, tensor in after.items())


def test_the_best_checkpoint_is_the_one_that_is_saved(tmp_path):
    train.main(
        arguments(tmp_path, metric_for_best_model="loss", greater_is_better=False, learning_rate=0.5, max_grad_norm=0)
    )
    state = json.loads((tmp_path / "trainer_state.json").read_text())
    best = AutoModelForImageTextToText.from_pretrained(state["best_model_checkpoint"])
    saved = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(best.parameters(), saved.parameters(), strict=True))


@pytest.mark.parametrize(
    "changes,error,message",
    [
        (dict(model_config='{"attention": "luong"}'), InputError, "`model_config`.*`attention`.*luong"),
        (dict(model_config='{"attenion": "dot"}'), ValueError, "attenion.*attention"),
        (dict(train_data="nowhere.parquet"), InputError, "nowhere.parquet"),
        (dict(image_column="photo"), ValueError, "`image_column`.*photo"),
        (dict(label_smoothing_factor=0.1), ValueError, "label_smoothing_factor"),
        (dict(feature_cache="cache"), ValueError, "freeze_vision"),
        (dict(trainable_vision="nowhere"), InputError, "`trainable_vision`: .*pattern.*nowhere"),
        (dict(trainable_vision="(stages"), InputError, "`trainable_vision`: .*unterminated"),
        (dict(lora=2), InputError, "`lora` needs linear layers in the vision model, got none"),
        (dict(lora=2, trainable_vision="nowhere"), InputError, "`lora` needs layers .*'nowhere' is found"),
        (dict(captions_per_image=0), ValueError, "captions_per_image"),
        (dict(tokenizer="letters"), ValueError, "letters"),
    ],
)
def test_bad_settings_stop_before_training(tmp_path, changes, error, message):
    folder = tmp_path / "out"
    with pytest.raises(error) as found:
        train.main(arguments(folder, **changes))
    assert re.search(message, str(found.value), re.DOTALL)
    assert not list(folder.rglob("*.safetensors"))


def test_the_command_prints_one_line(tmp_path):
    command = [sys.executable, str(ROOT / "training/train.py"), *arguments(tmp_path, train_data="nowhere.csv")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1] == "error: `source` does not exist: nowhere.csv"


def test_the_command_line_goes_before_the_file():
    model_args, data_args, _, args = train.parse_arguments(
        ["--config", str(ROOT / "training/configs/quickstart.yaml"), "--learning_rate", "0.125"]
        + ["--model_config", '{"attention": "dot"}', "--output_dir", "x"]
    )
    config = json.loads(model_args.model_config)
    assert args.learning_rate == 0.125 and args.output_dir == "x" and args.num_train_epochs == 4
    assert config["attention"] == "dot" and config["hidden_size"] == 128
    assert data_args.captions_per_image == 3


@pytest.mark.parametrize("path", sorted((ROOT / "training/configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_yaml_is_valid(path):
    model_args, _, _, args = train.parse_arguments(["--config", str(path)])
    assert args.metric_for_best_model
    if model_args.model is not None:  # a second stage, which describes no captioner
        return
    config = AutoConfig.for_model(model_args.model_type, **json.loads(model_args.model_config))
    assert config.model_type == model_args.model_type
    assert set(yaml.safe_load(path.read_text()).get("model_config", {})) <= set(config.to_dict())


def test_agreement_of_model_and_tokenizer(tmp_path):
    train.main(arguments(tmp_path, max_steps=1, eval_strategy="no", save_strategy="no", load_best_model_at_end=False))
    model = AutoModelForImageTextToText.from_pretrained(tmp_path)
    tokenizer = CaptionerProcessor.from_pretrained(tmp_path).tokenizer
    train.check_agreement(model.config, tokenizer)
    model.config.eos_token_id = 5
    with pytest.raises(ValueError, match="`eos_token_id`.*5 and 3"):
        train.check_agreement(model.config, tokenizer)


def test_a_hit_is_the_centre_of_the_largest_cell_in_the_box():
    weights = torch.zeros(10, 10)
    weights[2, 7] = 1  # its centre is (60, 20)
    assert measure_pointing.is_hit(weights, [60, 20, 61, 21])
    assert not measure_pointing.is_hit(weights, [61, 20, 70, 30])
    assert not measure_pointing.is_hit(weights, [50, 21, 70, 30])
    assert measure_pointing.is_hit(weights, [61, 20, 70, 30], margin=1)
    assert not measure_pointing.is_hit(weights, [69, 20, 70, 30], margin=8)
    row = {
        "captions": ["a circle above a square", "above a square is a circle"],
        "mentions": [[0, 1], [1, 0]],
        "objects": [{"box": "circle's"}, {"box": "square's"}],
    }
    tokens = ["\u2581above", "\u2581a", "\u2581square", "\u2581is", "\u2581a", "\u2581circle", "<eos>"]
    assert measure_pointing.named_objects(tokens, row["captions"][1], row) == [(2, "square's"), (5, "circle's")]


@pytest.mark.parametrize("decoder", ["bert", "gpt2"])
def test_the_benchmark_measures_both(decoder):
    command = [sys.executable, str(ROOT / "training/benchmark_peers.py"), "--small", "--decoder", decoder]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "training step" in done.stdout.lower() and done.stdout.count("|") > 20
    assert ("beam 5: 2 of 2 images" in done.stdout) == (decoder == "gpt2")
