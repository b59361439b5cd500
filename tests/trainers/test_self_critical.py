"""Training by reward: exact gradients in the mean, rewards that count the end, and a Trainer like any other."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from datasets import Dataset
from testing import ROOT
from testing.reference import beam_search
from testing.tiny_models import TRANSFORMERS, random_labels, tiny_model
from torch import nn
from transformers import Seq2SeqTrainingArguments, TrainerCallback

from hf_captioner import CaptionerImageProcessor, CaptionerProcessor, train_tokenizer
from hf_captioner.data import CaptionCollator
from hf_captioner.metrics import CaptionReward, CiderD, DocumentFrequency, bleu, rouge_l, tokenize
from hf_captioner.trainers import CaptioningTrainer
from hf_captioner.trainers.self_critical_trainer import SelfCriticalTrainer, without_dropout

REFERENCES = [["a red dog runs", "the dog runs"], ["a blue cat", "blue cat sits"], ["two birds fly", "a bird"]]
SYSTEMS = {
    "none": dict(attention="none", num_layers=2),
    "additive": dict(attention="additive"),
    "hard": dict(attention="additive", attention_sampling="hard"),
    "transformer": TRANSFORMERS["cnn_transformer_pre_learned"],
}


OWN = ("reward", "samples_per_image", "baseline", "candidates", "cross_entropy", "ema_decay")


def setup(tmp_path, system="additive", trainer_class=SelfCriticalTrainer, images=6, config=None, **settings):
    """A tiny captioner on features of its own; image i has REFERENCES[i % 3]."""
    references = [REFERENCES[i % 3] for i in range(images)]
    tokenizer = train_tokenizer([text for texts in REFERENCES for text in texts])
    features = torch.randn(images, 4, 12, generator=torch.Generator().manual_seed(1))
    dataset = Dataset.from_dict(
        {"image_features": features.tolist(), "captions": references, "index": list(range(images))}
    ).with_format("torch", columns=["image_features"], output_all_columns=True)
    dtype = torch.get_default_dtype()
    model = tiny_model(**{**SYSTEMS[system], "vocab_size": len(tokenizer), **(config or {})})
    model.generation_config.max_new_tokens = settings.pop("max_new_tokens", 5)
    own = {name: settings.pop(name) for name in OWN if name in settings}
    if issubclass(trainer_class, SelfCriticalTrainer):
        own["references"] = settings.pop("references", references)
    processor = CaptionerProcessor(CaptionerImageProcessor(), tokenizer)
    collate = CaptionCollator(processor)
    arguments = dict(
        output_dir=str(tmp_path),
        use_cpu=True,
        report_to=[],
        remove_unused_columns=False,
        optim="sgd",
        learning_rate=0.1,
        lr_scheduler_type="constant",
        max_grad_norm=0,
        max_steps=2,
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
    )
    return trainer_class(
        model=model,
        args=Seq2SeqTrainingArguments(**{**arguments, **settings}),
        train_dataset=dataset,
        data_collator=lambda rows: {
            name: value.to(dtype) if name == "image_features" else value for name, value in collate(rows).items()
        },
        processing_class=processor,
        **own,
    )


def weights_of(trainer):
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])


def learned(model):
    return [p for name, p in model.named_parameters() if p.requires_grad and "vision_encoder" not in name]


def every_caption(vocab_size, end, longest):
    """All label sequences: up to the end, or `longest` tokens without one."""
    running, found = [[]], []
    for step in range(longest):
        grown = [[*tokens, token] for tokens in running for token in range(vocab_size)]
        found += [tokens for tokens in grown if tokens[-1] == end or step == longest - 1]
        running = [tokens for tokens in grown if tokens[-1] != end]
    return found


def uneven_reward(captions, ended, **kwargs):
    """Words are worth something by their place, the end as well."""
    return [
        sum((hash_ % 7 - 2) / (1 + place) for place, hash_ in enumerate(map(len, text.split()))) + 2.5 * end
        for text, end in zip(captions, ended, strict=True)
    ]


class WithoutBaseline(SelfCriticalTrainer):
    def _judge(self, labels, greedy, images):
        rewards, baseline = super()._judge(labels, greedy, images)
        return rewards, torch.zeros_like(baseline)


@pytest.mark.slow
@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("system", ["additive", "transformer"])
def test_the_gradient_is_unbiased_and_baselines_lower_its_variance(tmp_path, system):
    rows, batches, longest = 40, 150, 3
    features = torch.randn(1, 4, 12, generator=torch.Generator().manual_seed(2)) * 0.7
    small = dict(config=dict(vocab_size=7), samples_per_image=rows, reward=uneven_reward, max_new_tokens=longest)

    def trainer_of(trainer_class, **settings):
        trainer = setup(tmp_path, system, trainer_class, **{**small, **settings})
        trainer.model.train()
        with torch.no_grad():
            trainer.model.lm_head.weight *= 0.5  # so that every caption is said now and then
        return trainer

    trainer = trainer_of(SelfCriticalTrainer)
    model, tokenizer = trainer.model.eval(), trainer.processing_class.tokenizer
    captions = every_caption(7, model.config.eos_token_id, longest)
    labels = torch.tensor([[*tokens, *[-100] * (longest - len(tokens))] for tokens in captions])
    inputs = model.prepare_decoder_input_ids_from_labels(labels)
    logits = model(image_features=features, decoder_input_ids=inputs, use_cache=False).logits.log_softmax(-1)
    log_probs = (logits.gather(-1, labels.clamp(min=0)[..., None])[..., 0] * (labels != -100)).sum(1)
    assert log_probs.exp().sum().item() == pytest.approx(1)
    end = model.config.eos_token_id
    texts = tokenizer.batch_decode([[token for token in tokens if token != end] for tokens in captions])
    rewards = torch.tensor(uneven_reward(texts, [tokens[-1] == end for tokens in captions]))
    parts = torch.autograd.grad(-(log_probs.exp() * rewards).sum(), learned(model), allow_unused=True)
    exact = torch.cat(
        [torch.zeros(p.numel()) if g is None else g.flatten() for p, g in zip(learned(model), parts, strict=True)]
    )

    variances = {}
    for name, trainer in (
        ("none", trainer_of(WithoutBaseline)),
        ("leave_one_out", trainer_of(SelfCriticalTrainer)),
        ("greedy", trainer_of(SelfCriticalTrainer, baseline="greedy")),
    ):
        torch.manual_seed(0)
        gradients = []
        for _ in range(batches):
            trainer.model.zero_grad()
            batch = {"image_features": features, "index": torch.tensor([0])}
            trainer.compute_loss(trainer.model, batch, num_items_in_batch=rows).backward()
            found = [torch.zeros_like(p) if p.grad is None else p.grad for p in learned(trainer.model)]
            gradients.append(torch.cat([gradient.flatten() for gradient in found]))
        gradients = torch.stack(gradients)
        error = gradients.std(0) / math.sqrt(batches)
        varies = error > 1e-9
        missed = ((gradients.mean(0) - exact)[varies] / error[varies]).abs()
        assert varies.float().mean() > 0.5 and exact[~varies].abs().max() < 1e-7
        assert missed.max() < 6 and missed.square().mean().sqrt() < 1.5, (name, missed.max())
        variances[name] = gradients.var(0).sum()
    assert variances["leave_one_out"] < 0.8 * variances["none"]
    # the comparison is one that a wrong sign, scale or policy would not pass
    assert ((gradients.mean(0) - 1.5 * exact)[varies] / error[varies]).abs().max() > 6


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("training", [False, True])
def test_row_weights_weigh_rows_and_nothing_else_is_added(system, training):
    settings = dict(label_smoothing=0.2)
    if "attention" in SYSTEMS[system] and SYSTEMS[system]["attention"] != "none":
        settings["doubly_stochastic_lambda"] = 0.9
    if system == "hard":
        settings["expected_context_probability"] = 1.0  # nothing is drawn, so that calls can be compared
    model = tiny_model(**{**SYSTEMS[system], **settings}).train(training)
    labels, weights = random_labels(rows=3), torch.randn(3, 3)
    features = torch.randn(3, 16, 12)
    inputs = model.prepare_decoder_input_ids_from_labels(labels).flatten(0, 1)
    logits = model(image_features=features, decoder_input_ids=inputs, use_cache=False).logits
    expected = 0.0
    for row, caption in enumerate(labels.flatten(0, 1)):
        for t in range(len(caption)):
            if caption[t] != -100:
                expected -= weights.flatten()[row] * logits[row, t].log_softmax(-1)[caption[t]] / 7
    found = model(image_features=features, labels=labels, row_weights=weights, num_items_in_batch=7).loss
    torch.testing.assert_close(found, expected)
    flat = model(image_features=features, labels=labels.flatten(0, 1), row_weights=weights.flatten())
    torch.testing.assert_close(flat.loss, expected * 7 / (labels != -100).sum())


def test_the_reward_counts_the_end_as_a_word():
    captions = ["a red dog runs", "a red dog runs", "a blue cat with a"]
    images, ended = [0, 0, 1], [True, False, True]
    found = CaptionReward(REFERENCES, {"cider_d": 1.0, "bleu_2": 0.5, "rouge_l": 2.0})(captions, images, ended)
    words = [[*text, "<eos>"] if end else text for text, end in zip(tokenize(captions), ended, strict=True)]
    truths = [[[*text, "<eos>"] for text in tokenize(texts)] for texts in REFERENCES]
    scorer = CiderD(DocumentFrequency.from_references(truths))
    mine = [truths[image] for image in images]
    expected = scorer.score(words, scorer.cook(mine))
    expected = expected + 0.5 * bleu(words, mine)[1].per_image + 2.0 * rouge_l(words, mine).per_image
    np.testing.assert_allclose(found, expected)
    whole, broken, _ = CaptionReward(REFERENCES)(captions, images, ended)
    assert whole > broken > 0


@pytest.mark.parametrize(
    "arguments,message",
    [
        (([], None), "`references` must hold the captions of at least one image, got none"),
        ((REFERENCES, {"spice": 1.0}), "`weights` must be of .*; got 'spice'"),
        (([["a"], []], None), r"references\[1\] must hold at least one caption"),
    ],
)
def test_bad_rewards_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        CaptionReward(*arguments)


@pytest.mark.parametrize("system", SYSTEMS)
def test_samples_are_of_the_whole_distribution_and_settings_stay(tmp_path, system):
    trainer = setup(tmp_path, system, samples_per_image=200, config=dict(dropout=0.5))
    model = trainer.model
    model.generation_config.suppress_tokens = [0]
    usual = model.generation_config
    features = torch.randn(2, 4, 12)
    torch.manual_seed(0)
    with without_dropout(model.train()):
        labels, greedy = trainer._sample({"image_features": features})
        inputs = torch.full((2, 1), model.config.decoder_start_token_id)
        first = model(image_features=features, decoder_input_ids=inputs).logits[:, 0].softmax(-1)
    assert greedy is None and labels.shape[:2] == (2, 200) and model.generation_config is usual
    for image in range(2):
        shares = torch.bincount(labels[image, :, 0], minlength=len(first[image])) / 200
        torch.testing.assert_close(shares, first[image], atol=0.12, rtol=0)
    end = model.config.eos_token_id
    for row in labels.flatten(0, 1).tolist():
        if end in row:
            assert set(row[row.index(end) + 1 :]) <= {-100}
        else:
            assert -100 not in row


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("system", SYSTEMS)
def test_beams_are_those_of_a_slow_beam_search(tmp_path, system):
    trainer = setup(tmp_path, system, samples_per_image=3, candidates="beams", config=dict(dropout=0.5))
    model = trainer.model
    model.generation_config.update(suppress_tokens=[0, 5], no_repeat_ngram_size=1, num_beams=2)
    features = torch.randn(2, 4, 12, generator=torch.Generator().manual_seed(4))
    with without_dropout(model.train()):
        labels, greedy = trainer._sample({"image_features": features})
    assert greedy is None and labels.shape[:2] == (2, 3)
    model.eval()
    for image in range(2):
        expected = beam_search(model, features[image], 3, 5, num_return_sequences=3, suppressed=(0, 5))
        found = [[token for token in row if token != -100] for row in labels[image].tolist()]
        assert found == [tokens[1:] for _, tokens in expected]


def test_one_reference_of_each_image_is_drawn_for_every_step(tmp_path):
    trainer = setup(tmp_path, samples_per_image=2, cross_entropy=0.3)
    batch = trainer.data_collator([trainer.train_dataset[row] for row in (0, 3, 1)])
    candidates, found = torch.full((3, 2, 1), 7), set()
    torch.manual_seed(0)
    for _ in range(60):
        rows, weights = trainer._with_references(candidates, torch.zeros(3, 2), batch["labels"])
        assert rows.shape[:2] == (3, 3) and (rows[:, :2, 0] == 7).all() and (rows[:, :2, 1:] == -100).all()
        matches = (rows[:, 2:, : batch["labels"].shape[2]] == batch["labels"]).all(-1)
        assert matches.any(-1).all()
        torch.testing.assert_close(weights[:, 2], torch.full((3,), 0.3 * 6 / (rows[:, 2] != -100).sum()))
        found.add(tuple(matches.int().argmax(-1).tolist()))
    assert len(found) == 8  # of two captions of each of three images
    batch["labels"][1, 0] = -100  # an image with fewer captions has empty rows, which are no captions
    for _ in range(20):
        rows, _ = trainer._with_references(candidates, torch.zeros(3, 2), batch["labels"])
        assert (rows[1, 2] != -100).any()


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("system", SYSTEMS)
def test_the_references_cross_entropy_is_added(tmp_path, system):
    """The loss and its gradient are the reward's and 0.3 times the mean over the references' words."""
    settings = dict(samples_per_image=3, candidates="beams", config=dict(dropout=0.5, label_smoothing=0.1))
    both = setup(tmp_path, system, cross_entropy=0.3, **settings)
    alone = setup(tmp_path, system, **settings)
    batch = both.data_collator([both.train_dataset[row] for row in (0, 3, 1)])
    batch["labels"] = batch["labels"][:, :1]
    losses, gradients = [], []
    for trainer in (both, alone):
        trainer.model.train()
        loss = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=torch.tensor(9))
        loss.backward()
        losses.append(loss.detach())
        gradients.append([p.grad.clone() for p in learned(trainer.model) if p.grad is not None])
    model = alone.model.eval()
    model.zero_grad()
    inputs = model.prepare_decoder_input_ids_from_labels(batch["labels"]).flatten(0, 1)
    logits = model(image_features=batch["image_features"], decoder_input_ids=inputs, use_cache=False).logits
    words = nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())
    (0.3 * words).backward()
    torch.testing.assert_close(losses[0], losses[1] + 0.3 * words.detach())
    added = [p.grad for p in learned(model) if p.grad is not None]
    for found, reward, more in zip(*gradients, added, strict=True):
        torch.testing.assert_close(found, reward + more)


def test_settings_stay_when_sampling_fails(tmp_path, monkeypatch):
    trainer = setup(tmp_path)
    usual = trainer.model.generation_config
    monkeypatch.setattr(trainer.model, "forward", lambda **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trainer.train()
    assert trainer.model.generation_config is usual


def test_without_dropout_gives_every_module_its_mode_back():
    model = tiny_model(attention="none", num_layers=2, dropout=0.5).train()
    model.freeze_vision()
    before = {name: module.training for name, module in model.named_modules()}
    rnn = next(module for module in model.modules() if isinstance(module, nn.RNNBase))
    assert rnn.dropout == 0.5
    with without_dropout(model):
        assert rnn.training and rnn.dropout == 0.0
        assert not any(module.training for module in model.modules() if module is not rnn)
    assert {name: module.training for name, module in model.named_modules()} == before and rnn.dropout == 0.5
    assert any(before.values()) and not all(before.values())


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("baseline", ["greedy", "leave_one_out"])
def test_what_is_worth_more_becomes_more_probable(tmp_path, system, baseline):
    # A word that is drawn now and then from the start: nothing is learned from what is never seen.
    def likes_the(captions, **kwargs):
        return [float(text.split()[:1] == ["the"]) for text in captions]

    settings = dict(max_steps=30, learning_rate=0.05, optim="adamw_torch", baseline=baseline, seed=1)
    trainer = setup(tmp_path, system, reward=likes_the, **settings)
    trainer.train()
    rewards = [line["reward"] for line in trainer.state.log_history if "reward" in line]
    assert np.mean(rewards[:3]) < 0.5 and np.mean(rewards[-3:]) > 0.9
    line = trainer.state.log_history[0]
    named = {"reward", "reward_std", "reward_baseline", "bad_ending_rate", "caption_length"}
    assert named | {"seconds_sampling", "seconds_reward", "seconds_gradient"} <= set(line)
    assert line["seconds_sampling"] > 0 and line["seconds_reward"] > 0 and line["seconds_gradient"] > 0


class SamplesOfItsOwn(SelfCriticalTrainer):
    """Draws the same captions for an image whatever the batch, so that runs can be compared."""

    def _sample(self, seen):
        rows = []
        for features in seen["image_features"]:
            generator = torch.Generator().manual_seed(int(features.double().abs().sum() * 1e4) % 2**31)
            rows.append(torch.randint(4, 14, (self.samples_per_image, 4), generator=generator))
        return torch.stack(rows), None


def test_accumulated_steps_equal_one_large_batch(tmp_path):
    results = {}
    for size, steps in ((6, 1), (2, 3), (1, 6)):
        trainer = setup(
            tmp_path,
            trainer_class=SamplesOfItsOwn,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            max_steps=1,
        )
        start = weights_of(trainer)
        trainer.train()
        results[size] = weights_of(trainer)
    moved = (results[6] - start).abs().max()
    assert moved > 1e-3
    for size in (2, 1):
        assert (results[size] - results[6]).abs().max() < 1e-4 * moved


TWO_PROCESSES = """
import sys
sys.path[:0] = [{tests!r}, {tests!r} + "/trainers", {root!r}]
import torch
from pathlib import Path
from test_self_critical import SamplesOfItsOwn, setup, weights_of

trainer = setup(Path({out!r}), trainer_class=SamplesOfItsOwn, per_device_train_batch_size=3, max_steps=1)
trainer.train()
torch.save((weights_of(trainer), trainer.state.log_history), Path({out!r}, f"rank{{trainer.args.process_index}}.pt"))
trainer.accelerator.end_training()
"""


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES.format(tests=str(ROOT / "tests"), root=str(ROOT), out=str(tmp_path)))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    (first, log), (second, _) = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    alone = setup(tmp_path, trainer_class=SamplesOfItsOwn, per_device_train_batch_size=6, max_steps=1)
    start = weights_of(alone)
    alone.train()
    assert torch.equal(first, second)
    assert (first - weights_of(alone)).abs().max() < 1e-4 * (first - start).abs().max()
    assert log[0]["reward"] == pytest.approx(alone.state.log_history[0]["reward"], rel=1e-5)


@pytest.mark.parametrize("stage", ["hard", "self_critical", "self_critical_beams"])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path, stage):
    trainer_class, system = (CaptioningTrainer, "hard") if stage == "hard" else (SelfCriticalTrainer, "additive")
    more = dict(candidates="beams", cross_entropy=0.3, ema_decay=0.9) if stage == "self_critical_beams" else {}
    settings = dict(
        **more, trainer_class=trainer_class, per_device_train_batch_size=2, max_steps=6, optim="adamw_torch"
    )
    settings |= dict(learning_rate=0.01, save_strategy="steps", save_steps=2)
    whole = setup(tmp_path / "whole", system, **settings)
    whole.train()

    class Killed(Exception):
        pass

    class Kills(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 3:
                raise Killed

    first = setup(tmp_path / "killed", system, **settings)
    first.add_callback(Kills)
    with pytest.raises(Killed):
        first.train()
    second = setup(tmp_path / "killed", system, **settings)
    second.train(resume_from_checkpoint=str(tmp_path / "killed" / "checkpoint-2"))
    assert torch.equal(weights_of(second), weights_of(whole))
    if stage == "hard":
        assert torch.equal(second.model.attention_baseline, whole.model.attention_baseline)
    last = [line for line in whole.state.log_history if "loss" in line][-1]
    again = [line for line in second.state.log_history if "loss" in line][-1]
    assert {k: v for k, v in again.items() if "seconds" not in k} == {
        k: v for k, v in last.items() if "seconds" not in k
    }


@pytest.mark.parametrize(
    "settings,message",
    [
        (
            dict(reward=lambda captions, **kwargs: [1.0]),
            "`reward` must return a number for each of 30 captions, got 1",
        ),
        (dict(reward=lambda captions, **kwargs: [math.nan] * len(captions)), "`reward` must be finite, got nan for "),
        (dict(references=REFERENCES), "`index` must be below the number of `references`, 3, got 5"),
        (dict(references=[]), "`references` must hold the captions of the training images, got none"),
        (dict(references=None), "`references` must hold the captions of the training images, got none"),
        (dict(baseline="mean"), "`baseline` must be one of greedy, leave_one_out, got 'mean'"),
        (dict(candidates="words"), "`candidates` must be one of samples, beams, got 'words'"),
        (dict(cross_entropy=-0.1), "`cross_entropy` must be at least 0, got -0.1"),
        (dict(samples_per_image=1), "`samples_per_image` must be at least 2 for 'leave_one_out', got 1"),
        (dict(samples_per_image=0, baseline="greedy"), "`samples_per_image` must be at least 1 for 'greedy', got 0"),
    ],
)
def test_errors_name_what_is_wrong(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        setup(tmp_path, per_device_train_batch_size=6, **settings).train()


def test_rows_must_say_whose_references_are_theirs(tmp_path):
    trainer = setup(tmp_path)
    trainer.train_dataset = trainer.train_dataset.remove_columns("index")
    with pytest.raises(ValueError, match="`index`"):
        trainer.train()
