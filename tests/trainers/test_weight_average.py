"""The average of the weights, against its definition written out, and through a training that stops and goes on."""

import copy

import pytest
import torch
from safetensors.torch import load_file
from test_trainer import setup
from transformers import TrainerCallback

from hf_captioner.errors import InputError


class Recorder(TrainerCallback):
    """Every step's weights as the optimiser left them."""

    def __init__(self):
        self.weights = []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.weights.append(trainable(model))


def trainable(model):
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def written_out(start, weights, decay):
    average = dict(start)
    for step, current in enumerate(weights, start=1):
        d = min(decay, (1 + step) / (10 + step))
        average = {name: d * average[name] + (1 - d) * current[name] for name in average}
    return average


def settings(**changes):
    return dict(rows=8, per_device_train_batch_size=2, max_steps=6, save_strategy="steps", save_steps=3, **changes)


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.999])
def test_is_the_average_that_it_says(tmp_path, decay):
    trainer, _, _ = setup(tmp_path, ema_decay=decay, **settings())
    recorder = Recorder()
    trainer.add_callback(recorder)
    start, frozen = trainable(trainer.model), copy.deepcopy(trainer.model.vision_encoder.state_dict())
    trainer.train()
    assert len(recorder.weights) == 6
    found = trainable(trainer.model)  # what training ends with
    assert any(not torch.equal(start[name], tensor) for name, tensor in found.items())
    for name, expected in written_out(start, recorder.weights, decay).items():
        torch.testing.assert_close(found[name], expected)
    halfway = load_file(tmp_path / "checkpoint-3/model.safetensors")
    for name, expected in written_out(start, recorder.weights[:3], decay).items():
        torch.testing.assert_close(halfway[name], expected)
    assert all(torch.equal(frozen[name], t) for name, t in trainer.model.vision_encoder.state_dict().items())


def test_does_not_disturb_what_is_averaged(tmp_path):
    """With evaluations and checkpoints in between, the optimiser's weights are those of a training without it."""
    recorders = []
    for decay, folder in ((None, "plain"), (0.9, "averaged")):
        trainer, _, _ = setup(tmp_path / folder, ema_decay=decay, eval_strategy="steps", eval_steps=2, **settings())
        recorders.append(Recorder())
        trainer.add_callback(recorders[-1])
        trainer.train()
    for plain, averaged in zip(*(recorder.weights for recorder in recorders), strict=True):
        assert all(torch.equal(plain[name], averaged[name]) for name in plain)


def test_the_average_is_what_is_evaluated(tmp_path):
    trainer, _, _ = setup(tmp_path, ema_decay=0.9, eval_strategy="steps", eval_steps=3, **settings())
    trainer.train()
    logged = [line["eval_loss"] for line in trainer.state.log_history if "eval_loss" in line]
    for step, loss in zip((3, 6), logged, strict=True):
        trainer.model.load_state_dict(load_file(tmp_path / f"checkpoint-{step}/model.safetensors"), strict=False)
        assert trainer.evaluate()["eval_loss"] == pytest.approx(loss, rel=1e-5)


def test_goes_on_from_a_checkpoint(tmp_path):
    whole, _, _ = setup(tmp_path / "whole", ema_decay=0.9, **settings())
    whole.train()
    checkpoint = str(tmp_path / "whole/checkpoint-3")
    cut, _, _ = setup(tmp_path / "cut", ema_decay=0.9, **settings())
    cut.train(resume_from_checkpoint=checkpoint)
    expected = trainable(whole.model)
    assert all(torch.equal(found, expected[name]) for name, found in trainable(cut.model).items())
    last = [load_file(tmp_path / name / "checkpoint-6/optimised/weights.safetensors") for name in ("whole", "cut")]
    assert last[0].keys() == expected.keys() and all(torch.equal(last[1][name], last[0][name]) for name in last[0])
    with pytest.raises(InputError, match="`ema_decay` must be given to go on from .*checkpoint-3"):
        setup(tmp_path / "without", **settings())[0].train(resume_from_checkpoint=checkpoint)
    setup(tmp_path / "plain", **settings())[0].train()
    checkpoint = str(tmp_path / "plain/checkpoint-3")
    with pytest.raises(InputError, match="go on from with `ema_decay` must be .*checkpoint-3"):
        setup(tmp_path / "other", ema_decay=0.9, **settings())[0].train(resume_from_checkpoint=checkpoint)


def test_an_earlier_training_that_was_stopped_leaves_no_average(tmp_path):
    trainer, _, _ = setup(tmp_path, ema_decay=0.9, **settings())

    def stop(args, state, control, **kwargs):
        raise KeyboardInterrupt

    recorder = Recorder()
    trainer.add_callback(recorder)
    usual, recorder.on_step_end = recorder.on_step_end, stop
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    recorder.on_step_end, start = usual, trainable(trainer.model)
    trainer.train()
    found = trainable(trainer.model)
    for name, expected in written_out(start, recorder.weights, 0.9).items():
        torch.testing.assert_close(found[name], expected)


def test_the_best_checkpoint_is_not_averaged_again(tmp_path):
    trainer, _, _ = setup(
        tmp_path,
        ema_decay=0.5,
        eval_strategy="steps",
        eval_steps=3,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        **settings(),
    )
    trainer.train()
    best = load_file(f"{trainer.state.best_model_checkpoint}/model.safetensors")
    assert all(torch.equal(best[name], found) for name, found in trainable(trainer.model).items())


def test_a_decay_that_is_none_is_refused(tmp_path):
    with pytest.raises(InputError, match="`ema_decay` must be in .* got 1.0"):
        setup(tmp_path, ema_decay=1.0)
