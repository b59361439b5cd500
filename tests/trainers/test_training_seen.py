"""What TensorBoard is given at each evaluation, and alarms in trainings that are healthy and that are broken."""

import json
import logging
import math
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_trainer import setup
from testing import ROOT
from testing.apart import apart
from testing.training import TINY, arguments

from hf_captioner.commands import train
from hf_captioner.data import shapes_dataset
from hf_captioner.explain import token_maps
from hf_captioner.models.vision_encoder import VisionEncoder
from hf_captioner.trainers import CaptioningTrainer
from hf_captioner.trainers.training_seen import TrainingSeen, alarms_of
from hf_captioner.trainers.watched_images import WatchedImages, _attention_numbers, spread

SMALL = dict(image_size=32, eval_data="shapes:rows=20,seed=1", max_steps=2, eval_steps=1, save_strategy="no")
SMALL |= dict(load_best_model_at_end=False, num_samples=1, warmup_steps=0)
TRANSFORMER = dict(TINY, num_attention_heads=2, intermediate_size=24, encoder_layers=1, decoder_layers=1)
TRANSFORMER.pop("attention_size")
KINDS = {
    "additive": dict(model_config=json.dumps(TINY)),
    "hard": dict(model_config=json.dumps({**TINY, "attention_sampling": "hard"})),
    "none": dict(model_config=json.dumps({**TINY, "attention": "none", "attention_size": None})),
    "transformer": dict(
        config=ROOT / "training/configs/shapes_cnn_transformer.yaml", model_config=json.dumps(TRANSFORMER)
    ),
    "by reward": dict(model_config=json.dumps(TINY), objective="self_critical", samples_per_image=2),
    "cached": dict(model_config=json.dumps(TINY), freeze_vision=True, feature_cache="features"),
    "text only": dict(model_config=json.dumps(TINY), predict_with_generate=False, metric_for_best_model="loss"),
}
# Tried every time; the others, which take seconds each, in the long run.
OFTEN = ("additive", "transformer", "by reward")


def events(folder: Path) -> EventAccumulator:
    (file,) = {path.parent for path in folder.rglob("events.out*")}
    found = EventAccumulator(str(file), size_guidance={"images": 0, "histograms": 0, "scalars": 0, "tensors": 0})
    return found.Reload()


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind in OFTEN else pytest.mark.long) for kind in KINDS]
)
def test_tensorboard_gets_the_same_eight_images_at_each_evaluation(tmp_path, kind, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = []
    usual = WatchedImages.look

    def look(self, model, said, **options):
        found = usual(self, model, said, **options)
        evaluated = None if said is None else said[self.places[self.shown[3]]]
        shown.append((found, evaluated, [np.asarray(one.image) for one in found.shown]))
        return found

    monkeypatch.setattr(WatchedImages, "look", look)
    train.main(arguments(tmp_path / "out", **{**SMALL, **KINDS[kind]}, report_to="tensorboard"))
    read = events(tmp_path / "out")
    assert len(shown) == 3  # two evaluations in training, one at its end
    rows = [place * 20 // 8 for place in range(8)]
    data = shapes_dataset(20, seed=1)
    for found, evaluated, images in shown:
        for row, image, references in zip(rows, images, found.references, strict=True):
            assert np.array_equal(image, np.asarray(data[row]["image"])) and references == data[row]["captions"]
        assert (evaluated is None) == (kind == "text only")
        words = found.shown[3].words
        assert bool(words) == (kind != "none")
        assert all(word.map.sum() == pytest.approx(1, abs=1e-4) for word in words)
    assert read.Tags()["images"] == [f"images/{number}" for number in range(8)]
    for number in range(8):
        drawn = read.Images(f"images/{number}")
        assert [one.step for one in drawn] == [1, 2, 2]
        picture = np.asarray(Image.open(BytesIO(drawn[0].encoded_image_string)))
        assert picture.shape == (drawn[0].height, drawn[0].width, 3) and picture.std() > 10
    histograms = [] if kind == "text only" else read.Histograms("captions/words")
    assert [one.histogram_value.num for one in histograms] == ([] if kind == "text only" else [20, 20, 20])
    scalars = set(read.Tags()["scalars"])
    assert {"eval/loss_use", "eval/features_differ", "eval/unknown_words"} <= scalars
    assert ("eval/attention_entropy" in scalars) == (kind != "none")
    assert ("eval/unique_ratio" in scalars) == (kind != "text only")
    if kind == "hard":
        assert [one.value for one in read.Scalars("eval/attention_entropy")] == pytest.approx([0, 0, 0], abs=1e-6)


def test_without_tensorboard_no_events_are_written_and_the_numbers_are_in_the_log(tmp_path):
    trainer, _, dataset = setup(tmp_path, rows=12, report_to=[])
    trainer.add_callback(TrainingSeen(trainer, dataset))
    trainer.evaluate()
    assert not list(tmp_path.rglob("events.out*"))
    (line,) = [line for line in trainer.state.log_history if "eval_loss_use" in line]
    assert {"eval_unique_ratio", "eval_image_use", "eval_attention_entropy"} <= line.keys()


def watch(tmp_path, **settings) -> tuple[CaptioningTrainer, WatchedImages]:
    trainer, processor, dataset = setup(tmp_path, rows=40, **settings)
    return trainer, WatchedImages(processor, trainer.eval_dataset, dataset)


def test_maps_are_those_of_the_captions_that_were_generated(tmp_path):
    """Compared with one image and one caption at a time, as `explain` makes maps."""
    trainer, watched = watch(tmp_path)
    output = trainer.predict(trainer.eval_dataset, max_new_tokens=6)
    look = watched.look(trainer.model, dict(enumerate(output.predictions)))
    assert spread(40, 8) == [0, 5, 10, 15, 20, 25, 30, 35] and spread(3, 8) == [0, 1, 2]
    for row, shown in zip([watched.places[place] for place in watched.shown], look.shown, strict=True):
        tokens = torch.as_tensor(output.predictions[row])
        ends = (tokens == 3).nonzero()
        tokens = tokens[: int(ends[0]) + 1] if len(ends) else tokens
        pixels = trainer.processing_class(trainer.eval_dataset[row]["image"], return_tensors="pt")["pixel_values"]
        expected = token_maps(trainer.model, pixels, tokens).numpy()
        assert len(shown.words) == len(expected)
        for word, weights in zip(shown.words, expected, strict=True):
            np.testing.assert_allclose(word.map, weights, atol=1e-5)


def test_numbers_of_attention_by_a_slow_loop():
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(3, 2, 4, 5, generator=generator) ** 3
    maps /= maps.sum(-1, keepdim=True)
    lengths = [4, 2, 3]
    found = _attention_numbers(maps, lengths)
    entropies, images, steps = [], [], []
    for image, length in enumerate(lengths):
        own = maps[image].mean(0)
        for step in range(length):
            for head in range(2):
                weights = maps[image, head, step].tolist()
                entropies.append(-sum(weight * math.log(weight) for weight in weights) / math.log(5))
            others = [maps[other].mean(0)[step] for other in range(3) if step < lengths[other]]
            if len(others) > 1:
                images.append(float((own[step] - sum(others) / len(others)).abs().sum() / 2))
            steps.append(float((own[step] - own[:length].mean(0)).abs().sum() / 2))
    assert found["attention_entropy"] == pytest.approx(np.mean(entropies), rel=1e-5)
    assert found["attention_images"] == pytest.approx(np.mean(images), rel=1e-5)
    assert found["attention_steps"] == pytest.approx(np.mean(steps), rel=1e-5)
    same = torch.full((2, 1, 3, 5), 0.2)
    even = _attention_numbers(same, [3, 3])
    assert even["attention_entropy"] == pytest.approx(1) and even["attention_images"] == pytest.approx(0, abs=1e-6)


LEARNS = dict(
    model_config=json.dumps({**TINY, "hidden_size": 32, "attention_size": 16, "dropout": 0.0}),
    train_data="shapes:rows=128,seed=0",
    eval_data="shapes:rows=40,seed=1",
    image_size=32,
    captions_per_image=1,
    per_device_train_batch_size=8,
    warmup_steps=10,
    learning_rate=0.01,
    max_steps=110,
    eval_steps=105,
    logging_steps=35,
    save_strategy="no",
    load_best_model_at_end=False,
    max_new_tokens=16,
    num_samples=1,
)


def causes(folder: Path, caplog) -> dict[str, list[int]]:
    """Each cause with the steps at which the log was warned."""
    found: dict[str, list[int]] = {}
    for record in caplog.records:
        if record.name.endswith("training_seen"):
            assert record.levelno == logging.WARNING
            found.setdefault(record.args[1], []).append(record.args[0])
    told = json.loads((folder / "training.json").read_text())["alarms"]
    assert {one["cause"]: one["step"] for one in told} == {cause: steps[0] for cause, steps in found.items()}
    card = (folder / "README.md").read_text()
    assert all(f"step {one['step']}, {one['cause']}: {one['text']}" in card for one in told)
    assert bool(told) == ("Alarms that were raised" in card)
    return found


@pytest.mark.slow
def test_a_healthy_training_raises_no_alarm(tmp_path, caplog):
    train.main(arguments(tmp_path, **LEARNS))
    assert causes(tmp_path, caplog) == {}


@pytest.mark.slow
def test_captions_of_other_images_are_told_within_the_first_evaluation(tmp_path, caplog, monkeypatch):
    usual = train.read_captions

    def shifted(source, *args, **kwargs):
        data = usual(source, *args, **kwargs)
        captions = data["captions"][:]
        return data.remove_columns("captions").add_column("captions", captions[17:] + captions[:17])

    monkeypatch.setattr(train, "read_captions", shifted)
    train.main(arguments(tmp_path, **LEARNS))
    assert causes(tmp_path, caplog)["blind"][0] == 105


@pytest.mark.slow
def test_features_that_are_constant_are_told_within_the_first_evaluation(tmp_path, caplog, monkeypatch):
    usual = VisionEncoder.forward

    def constant(self, pixels, *args, **kwargs):
        regions, grid = usual(self, pixels, *args, **kwargs)
        steady = torch.linspace(-1, 1, regions[0].numel()).view(1, *regions.shape[1:])
        return regions * 0 + steady, grid

    monkeypatch.setattr(VisionEncoder, "forward", constant)
    train.main(arguments(tmp_path, **{**LEARNS, "max_steps": 2, "eval_steps": 1}))
    found = causes(tmp_path, caplog)
    assert found["same_features"][0] == 1 and "blind" not in found


@pytest.mark.parametrize(
    "cause,changes",
    [
        ("learning_rate_zero", dict(learning_rate=0, logging_steps=1)),
        ("learning_rate_high", dict(learning_rate=300, optim="sgd", max_grad_norm=0, warmup_steps=0)),
        ("loss_not_falling", dict(learning_rate=1e-6, warmup_steps=0)),
        ("unknown_words", dict(min_frequency=60)),
    ],
)
def test_what_is_wrong_with_the_steps_or_the_words_is_named(tmp_path, caplog, cause, changes):
    few = dict(LEARNS, train_data="shapes:rows=16,seed=0", eval_data="shapes:rows=6,seed=1", max_steps=3)
    train.main(arguments(tmp_path, **{**few, "eval_strategy": "no", **changes}))
    assert cause in causes(tmp_path, caplog)


def test_weights_that_are_not_finite_are_named(tmp_path):
    trainer, _, dataset = setup(tmp_path, rows=4)
    trainer.add_callback(TrainingSeen(trainer, dataset))
    with torch.no_grad():
        trainer.model.lm_head.weight[:] = math.nan
    trainer.evaluate()
    assert [one["cause"] for one in alarms_of(trainer.state.log_history)] == ["not_finite"]


def test_attention_that_does_not_look_is_named(tmp_path):
    """An alignment whose weights are nought gives all regions the same."""
    trainer, _, dataset = setup(tmp_path, rows=6)
    trainer.add_callback(TrainingSeen(trainer, dataset))
    with torch.no_grad():
        for name, weight in trainer.model.named_parameters():
            if "alignment" in name or "attention" in name:
                weight.zero_()
    trainer.evaluate()
    (line,) = [line for line in trainer.state.log_history if "eval_attention_entropy" in line]
    assert line["eval_attention_entropy"] == pytest.approx(1, abs=1e-6)


@pytest.mark.slow
def test_two_processes_write_once(tmp_path):
    argv = arguments(tmp_path / "out", **SMALL, report_to="tensorboard", model_config=json.dumps(TINY))
    done = apart(train.main, (argv,), tmp_path / "log", processes=2)
    assert done.exit == 0, done.log[-3000:]
    read = events(tmp_path / "out")
    assert [one.step for one in read.Images("images/0")] == [1, 2, 2]
    assert [one.histogram_value.num for one in read.Histograms("captions/words")] == [20, 20, 20]


@pytest.mark.slow
def test_watching_changes_nothing_that_is_learned(tmp_path, monkeypatch):
    """With dropout and sampled attention, whose random numbers would be others if watching drew some."""
    settings = {
        **SMALL,
        "max_steps": 4,
        "model_config": json.dumps({**TINY, "dropout": 0.5, "attention_sampling": "hard"}),
    }
    train.main(arguments(tmp_path / "watched", **settings, report_to="tensorboard"))
    monkeypatch.setattr(TrainingSeen, "on_evaluate", lambda *args, **kwargs: None)
    train.main(arguments(tmp_path / "alone", **settings))
    watched, alone = (load_file(tmp_path / name / "model.safetensors") for name in ("watched", "alone"))
    assert all(torch.equal(watched[name], tensor) for name, tensor in alone.items())
