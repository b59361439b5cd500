"""Training on what teachers expect: against loops over images, words and teachers."""

import copy
import json
import math

import pytest
import torch
from safetensors.torch import load_file
from test_self_critical import SYSTEMS, setup, weights_of
from testing.tiny_models import tiny_model
from testing.training import TINY, arguments

from hf_captioner.commands import train
from hf_captioner.errors import InputError
from hf_captioner.trainers import CaptioningTrainer, DistillingTrainer


def distilling(tmp_path, system="additive", teachers=("none", "transformer"), weight=0.3, **settings):
    """A trainer of a tiny student, with teachers of other families."""

    class Trainer(DistillingTrainer):
        def __init__(self, *args, **kwargs):
            size = kwargs["model"].config.vocab_size
            made = [tiny_model(seed=7 + i, vocab_size=size, **SYSTEMS[name]) for i, name in enumerate(teachers)]
            super().__init__(*args, teachers=made, teacher_weight=weight, **kwargs)

    return setup(tmp_path, system, Trainer, **settings)


@pytest.mark.parametrize("system", ["additive", "hard", "transformer"])
def test_the_loss_is_that_of_a_loop(tmp_path, system):
    trainer = distilling(tmp_path, system, config=dict(label_smoothing=0.1))
    same = copy.deepcopy(trainer.model).train()  # hard attention keeps a mean of what it has seen
    batch = next(iter(trainer.get_train_dataloader()))
    torch.manual_seed(3)  # hard attention draws regions
    loss, outputs = trainer.compute_loss(trainer.model.train(), dict(batch), True)
    torch.manual_seed(3)
    seen = {name: value for name, value in batch.items() if name != "index"}
    with torch.no_grad():
        own = same(**seen)
    losses = []
    for row, labels in enumerate(batch["labels"].flatten(0, 1).tolist()):
        features = batch["image_features"][row // batch["labels"].shape[1]][None]
        for place, token in enumerate(labels):
            if token == -100:
                continue
            words = torch.tensor([[trainer.model.config.decoder_start_token_id, *labels[:place]]])
            expected = 0
            for teacher in trainer.teachers:
                logits = teacher(image_features=features, decoder_input_ids=words, use_cache=False).logits[0, -1]
                expected = expected + logits.softmax(0) / len(trainer.teachers)
            student = own.logits[row, place].log_softmax(0)
            losses.append(-sum(float(q) * float(p) for q, p in zip(expected, student, strict=True)))
    taught = sum(losses) / len(losses)
    assert float(loss) == pytest.approx(0.7 * float(own.loss) + 0.3 * taught, rel=1e-5)
    assert abs(taught - float(own.loss)) > 0.01 and outputs.loss is not None


def test_teachers_do_not_learn_and_are_not_saved(tmp_path):
    trainer = distilling(tmp_path)
    before = [torch.cat([p.detach().flatten() for p in teacher.parameters()]) for teacher in trainer.teachers]
    start = weights_of(trainer)
    trainer.train()
    assert (weights_of(trainer) - start).abs().max() > 1e-3
    for teacher, weights in zip(trainer.teachers, before, strict=True):
        assert torch.equal(torch.cat([p.detach().flatten() for p in teacher.parameters()]), weights)
        assert not teacher.training
    trainer.save_model(tmp_path / "saved")
    assert load_file(tmp_path / "saved/model.safetensors").keys() <= dict(trainer.model.state_dict()).keys()
    assert trainer.state.log_history[0]["loss_teachers"] > 0


def test_without_weight_teachers_change_nothing(tmp_path):
    alone = setup(tmp_path, trainer_class=CaptioningTrainer)
    alone.train()
    taught = distilling(tmp_path, weight=0.0)
    taught.train()
    assert torch.equal(weights_of(alone), weights_of(taught))


def test_accumulated_steps_equal_one_large_batch(tmp_path):
    """Images have captions of unlike lengths, so that a mean of means would be another number."""
    results = {}
    for size, steps in ((6, 1), (2, 3)):
        trainer = distilling(
            tmp_path, per_device_train_batch_size=size, gradient_accumulation_steps=steps, max_steps=1
        )
        start = weights_of(trainer)
        trainer.train()
        results[size] = weights_of(trainer), trainer.state.log_history[0]["loss_teachers"]
    (large, noted), (small, noted_in_parts) = results[6], results[2]
    assert (large - start).abs().max() > 1e-3
    assert (large - small).abs().max() < 1e-4 * (large - start).abs().max()
    assert noted_in_parts == pytest.approx(noted, rel=1e-5)


@pytest.mark.slow
def test_a_student_comes_to_expect_what_its_teacher_expects(tmp_path):
    trainer = distilling(
        tmp_path, teachers=["none"], weight=1.0, max_steps=150, optim="adamw_torch", learning_rate=0.02
    )
    trainer.train()
    noted = [line["loss_teachers"] for line in trainer.state.log_history if "loss_teachers" in line]
    batch = next(iter(trainer.get_train_dataloader()))
    wanted = trainer._expected(batch, batch["labels"].flatten(0, 1))
    least = float(-(wanted * wanted.clamp(min=1e-12).log()).sum(-1).mean())  # the teacher's own entropy
    assert noted[0] > least + 0.5 and noted[-1] < least + 0.05 and least < math.log(wanted.shape[-1])


@pytest.mark.parametrize(
    "teachers,weight,message",
    [
        ([], 0.5, "`teachers` must hold at least one captioner, got none"),
        (["none"], 1.5, "`teacher_weight` must be from 0 to 1, got 1.5"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, teachers, weight, message):
    with pytest.raises(InputError, match=message):
        distilling(tmp_path, teachers=teachers, weight=weight)


def test_another_number_of_tokens_is_named(tmp_path):
    class Trainer(DistillingTrainer):
        def __init__(self, **kwargs):
            super().__init__(teachers=[tiny_model(vocab_size=41)], **kwargs)

    with pytest.raises(InputError, match=r"`teachers` must have the student's vocabulary \(\d+ tokens\), got 41"):
        setup(tmp_path, trainer_class=Trainer)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    train.main(arguments(folder, max_steps=2, model_config=json.dumps(TINY | {"attention": "dot"})))
    return folder


def student(folder, teacher, **changes):
    return arguments(folder, objective="distillation", teachers=teacher, **changes)


@pytest.mark.slow
def test_by_command_from_images_and_from_features(tmp_path, teacher):
    """Both see the teacher's vision model's regions: a student made from its folder has the same."""
    train.main(student(tmp_path / "images", teacher, max_steps=2))
    cached = dict(model=teacher, feature_cache=tmp_path / "features", freeze_vision=True)
    train.main(student(tmp_path / "features_of", teacher, max_steps=2, **cached))
    for name in ("images", "features_of"):
        log = json.loads((tmp_path / name / "trainer_state.json").read_text())["log_history"]
        assert any("eval_cider_d" in line for line in log)
        assert (tmp_path / name / "model.safetensors").exists()


@pytest.mark.parametrize(
    "changes,message",
    [
        (dict(min_frequency=20), "`teachers` must have the student's vocabulary, got .*teacher.* with another"),
        (dict(image_size=64), "`teachers` must take images as the student does, got .*teacher.*, which resizes"),
        (dict(feature_cache="features", freeze_vision=True), "`teachers` must have the student's vision model"),
    ],
)
def test_teachers_that_see_or_say_something_else_are_refused(tmp_path, teacher, changes, message):
    if "feature_cache" in changes:
        changes = changes | {"feature_cache": tmp_path / "features"}
    with pytest.raises(InputError, match=message):
        train.main(student(tmp_path / "out", teacher, **changes))
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_captioner_is_named(tmp_path):
    with pytest.raises(InputError, match="`teachers` must be a captioner's folder or Hub name, got .*nowhere"):
        train.main(student(tmp_path / "out", tmp_path / "nowhere"))
