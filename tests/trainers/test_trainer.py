"""The Trainer keeps captions with their image, its loss exact and its metrics honest."""

import copy
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from datasets import IterableDataset
from safetensors.torch import load_model
from testing import ROOT
from testing.tiny_models import tiny_config
from transformers import EvalPrediction, Seq2SeqTrainingArguments

from hf_captioner import (
    CaptionerImageProcessor,
    CaptionerProcessor,
    RnnCaptionerForConditionalGeneration,
    train_tokenizer,
)
from hf_captioner.data import CaptionCollator, shapes_dataset
from hf_captioner.data.views import RandomView, RandomViews
from hf_captioner.models.tokenization_captioner import decode_captions
from hf_captioner.trainers import CaptioningTrainer, caption_metrics


def setup(tmp_path, rows=10, captions=None, **settings):
    """A tiny model on shapes; image i keeps i % 3 + 1 captions, so that counts are uneven."""
    dataset = shapes_dataset(rows, seed=3).select_columns(["image", "captions"])
    dataset = dataset.map(lambda row, i: {"captions": row["captions"][: i % 3 + 1]}, with_indices=True)
    tokenizer = train_tokenizer([text for texts in dataset["captions"] for text in texts])
    processor = CaptionerProcessor(CaptionerImageProcessor(size={"height": 32, "width": 32}), tokenizer)
    torch.manual_seed(0)
    model = RnnCaptionerForConditionalGeneration(tiny_config(vocab_size=len(tokenizer), doubly_stochastic_lambda=0.3))
    # batch statistics would differ between batch sizes for reasons of their own
    model.freeze_vision()
    model.generation_config.max_new_tokens = 6
    ours = {name: settings.pop(name, None) for name in ("vision_learning_rate", "ema_decay")}
    arguments = dict(
        output_dir=str(tmp_path),
        use_cpu=True,
        report_to=[],
        remove_unused_columns=False,
        predict_with_generate=True,
        optim="sgd",
        learning_rate=0.5,
        lr_scheduler_type="constant",
        max_grad_norm=0,
        max_steps=1,
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = CaptioningTrainer(
        model=model,
        args=Seq2SeqTrainingArguments(**{**arguments, **settings}),
        train_dataset=dataset,
        eval_dataset=dataset.add_column("index", list(range(rows))),
        data_collator=CaptionCollator(processor),
        processing_class=processor,
        compute_metrics=caption_metrics(tokenizer, dataset["captions"][:]),
        **ours,
    )
    return trainer, processor, dataset


def test_accumulated_steps_equal_one_large_batch(tmp_path):
    """8 images at once, 4 times 2 and 2 times 4: the same step, penalty included."""
    results = {}
    for size, steps in ((8, 1), (2, 4), (4, 2)):
        trainer, _, _ = setup(
            tmp_path, rows=8, per_device_train_batch_size=size, gradient_accumulation_steps=steps, seed=1
        )
        trainer.train()
        results[size] = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
    start = torch.cat([p.detach().flatten() for p in setup(tmp_path)[0].model.parameters()])
    moved = (results[8] - start).abs().max()
    assert moved > 1e-2
    for size in (2, 4):
        assert (results[size] - results[8]).abs().max() < 1e-5 * moved


def test_views_are_drawn_anew_in_every_epoch_and_again_after_a_resume(tmp_path):
    """Three epochs of four steps, stopped in the middle of the second."""

    def training(**changes):
        trainer, _, dataset = setup(
            tmp_path,
            rows=8,
            per_device_train_batch_size=2,
            max_steps=12,
            save_strategy="steps",
            save_steps=6,
            seed=7,
            **changes,
        )
        trainer.train_dataset = RandomViews(dataset.add_column("index", list(range(8))), RandomView(True, 0.3))
        batches = []
        trainer.model.register_forward_pre_hook(
            lambda module, args, kwargs: batches.append(kwargs["pixel_values"].clone()), with_kwargs=True
        )
        return trainer, batches

    whole, seen = training()
    indices, collate = [], whole.data_collator
    whole.data_collator = lambda rows: indices.append([row["index"] for row in rows]) or collate(rows)
    whole.train()
    assert len(seen) == 12
    for step, (batch, rows) in enumerate(zip(seen, indices, strict=True)):
        images = []
        for index in rows:
            rng = np.random.default_rng([7, step // 4, index])
            images.append(RandomView(True, 0.3).draw(shapes_dataset(8, seed=3)[index]["image"], rng))
        expected = whole.processing_class(images=images, return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(batch, expected)
    resumed, again = training(dataloader_num_workers=1)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert len(again) == 6 and all(torch.equal(*pair) for pair in zip(seen[6:], again, strict=True))


def test_evaluation_generates_once_per_image_and_returns_indices(tmp_path):
    trainer, processor, dataset = setup(tmp_path, per_device_eval_batch_size=4)
    seen = []
    trainer.model.vision_encoder.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[0]))
    output = trainer.predict(trainer.eval_dataset, max_new_tokens=6)
    assert seen == [4, 4, 2]
    assert output.label_ids.tolist() == list(range(10))
    pixels = processor(dataset["image"][:], return_tensors="pt")["pixel_values"]
    expected = decode_captions(processor.tokenizer, trainer.model.generate(pixels, max_new_tokens=6))
    assert decode_captions(processor.tokenizer, output.predictions) == expected
    assert np.isfinite(output.metrics["test_loss"]) and 0 <= output.metrics["test_bleu_4"] <= 1


def test_metrics_drop_repeated_images_and_follow_the_index():
    tokenizer = train_tokenizer(["red cat sits here", "blue dog runs far", "green bird flies high"])
    references = [["red cat sits here"], ["blue dog runs far"], ["green bird flies high"]]
    ids = {text: [2, *tokenizer(text)["input_ids"]] for (text,) in references}
    compute = caption_metrics(tokenizer, references)
    order = [2, 0, 1, 2, 0]  # a sampler repeated two images to fill a batch
    right = EvalPrediction(np.array([ids[references[i][0]] for i in order]), np.array(order))
    assert compute(right)["exact_match"] == 1 and compute(right)["bleu_4"] == pytest.approx(1)
    wrong = EvalPrediction(right.predictions, np.array([0, 1, 2, 0, 1]))
    assert compute(wrong)["exact_match"] == 0


def test_an_iterable_data_set_trains_like_a_list(tmp_path):
    trainer, processor, dataset = setup(tmp_path, rows=6, per_device_train_batch_size=6)
    streamed, _, _ = setup(tmp_path, rows=6, per_device_train_batch_size=6)
    streamed.train_dataset = IterableDataset.from_generator(lambda: iter(dataset))
    seen = []
    for one in (trainer, streamed):
        one.model.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(
                (len(kwargs["pixel_values"]), (kwargs["labels"] != -100).any(-1).sum(1))
            ),
            with_kwargs=True,
        )
        one.train()
    assert [count for count, _ in seen] == [6, 6]
    assert sorted(seen[0][1].tolist()) == sorted(seen[1][1].tolist()) == [1, 1, 2, 2, 3, 3]
    for mine, theirs in zip(trainer.model.parameters(), streamed.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)


def test_the_vision_model_has_its_own_learning_rate(tmp_path):
    trainer, _, _ = setup(tmp_path, vision_learning_rate=0.001, weight_decay=0.1)
    trainer.model.unfreeze_vision()
    optimizer = trainer.create_optimizer()
    vision = {id(p) for p in trainer.model.vision_encoder.parameters()}
    counted = 0
    for group in optimizer.param_groups:
        inside = {id(p) in vision for p in group["params"]}
        assert len(inside) == 1 and group["lr"] == (0.001 if inside == {True} else 0.5)
        counted += len(group["params"])
    assert counted == sum(p.requires_grad for p in trainer.model.parameters())
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 0.1}


def test_a_saved_configuration_has_its_cache(tmp_path):
    """transformers' Trainer writes `use_cache=False` into the model's configuration."""
    trainer, _, _ = setup(tmp_path)
    trainer.save_model(tmp_path / "saved")
    assert json.loads((tmp_path / "saved/config.json").read_text())["use_cache"] is True


def test_label_smoothing_of_the_trainer_is_refused(tmp_path):
    with pytest.raises(ValueError, match="label_smoothing_factor.*0.1"):
        setup(tmp_path, label_smoothing_factor=0.1)


TWO_PROCESSES = """
import json, os, sys
sys.path[:0] = [{tests!r}, {tests!r} + "/trainers", {root!r}]
import torch
from test_trainer import setup
from pathlib import Path

trainer, processor, dataset = setup(Path({out!r}), rows=7, per_device_train_batch_size=2, per_device_eval_batch_size=2)
rank = int(os.environ.get("RANK", 0))
if {iterable}:
    from datasets import IterableDataset
    trainer.train_dataset = IterableDataset.from_generator(lambda: iter(dataset))
seen = []
forward = trainer.model.forward
def spy(*args, **kwargs):
    if "pixel_values" in kwargs:
        for pixels, labels in zip(kwargs["pixel_values"], kwargs["labels"]):
            rows = [row[row != -100] for row in labels if (row != -100).any()]
            texts = [processor.tokenizer.decode(row, skip_special_tokens=True) for row in rows]
            seen.append((float(pixels.double().sum()), texts))
    return forward(*args, **kwargs)
trainer.model.forward = spy
trainer.args.max_steps = 2
trainer.train()
trainer.model.forward = forward
output = trainer.predict(trainer.eval_dataset, max_new_tokens=6)
if rank == 0:
    from safetensors.torch import save_model
    save_model(trainer.model, Path({out!r}, "trained.safetensors"))
Path({out!r}, f"seen{{rank}}.json").write_text(json.dumps(dict(
    seen=seen, loss=output.metrics["test_loss"],
    indices=output.label_ids.tolist(), metrics=output.metrics["test_bleu_1"],
    weights=float(sum(p.double().abs().sum() for p in trainer.model.parameters())),
)))
trainer.accelerator.end_training()
"""


@pytest.mark.slow
@pytest.mark.parametrize("iterable", [False, pytest.param(True, marks=pytest.mark.long)])
def test_two_processes_keep_captions_with_their_image(tmp_path, iterable):
    script = tmp_path / "two.py"
    script.write_text(
        TWO_PROCESSES.format(tests=str(ROOT / "tests"), root=str(ROOT), out=str(tmp_path), iterable=iterable)
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"seen{rank}.json").read_text()) for rank in range(2))
    alone, processor, dataset = setup(tmp_path, rows=7)
    load_model(alone.model, tmp_path / "trained.safetensors")
    truth = {}
    for row in dataset:
        pixels = processor(row["image"], return_tensors="pt")["pixel_values"]
        truth[round(float(pixels.double().sum()), 3)] = row["captions"]
    assert len(truth) == 7
    for total, texts in first["seen"] + second["seen"]:
        assert texts == truth[round(total, 3)]
    assert first["seen"] and second["seen"] and first["weights"] == pytest.approx(second["weights"], rel=1e-12)
    assert set(first["indices"]) == set(range(7)) and first["metrics"] == second["metrics"]
    # Seven images in batches of two in each process: one is evaluated twice, and counts once.
    assert first["loss"] == second["loss"] == pytest.approx(loss_by_a_slow_loop(alone, dataset, processor), rel=1e-6)


def test_reading_data_draws_nothing_that_dropout_draws_from(tmp_path):
    """A loader draws a seed for its workers in every epoch, but only once if they stay."""
    trainer, _, _ = setup(tmp_path)
    before = torch.get_rng_state()
    loader = trainer.get_train_dataloader()
    trainer.begin_epoch(0, loader)
    assert len(list(loader)) > 0 and len(list(trainer.get_eval_dataloader())) > 0
    assert torch.equal(torch.get_rng_state(), before)


def test_the_trainer_does_not_change_the_model_it_evaluates(tmp_path):
    trainer, _, _ = setup(tmp_path)
    before = copy.deepcopy(trainer.model.state_dict())
    trainer.evaluate()
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.model.state_dict().items())


def test_decoding_generated_ids():
    tokenizer = train_tokenizer(["a red dog 's ball ."])
    ids = np.array([[2, *tokenizer("a red dog 's ball.")["input_ids"], -100], [2, 3, 1, 1, 1, 1, 1, 1, -100]])
    assert decode_captions(tokenizer, ids) == ["a red dog's ball.", ""]


def loss_by_a_slow_loop(trainer, dataset, processor) -> float:
    """One caption at a time: the tokens' negative log-likelihoods and the attention's penalty, over their number."""
    model, total, tokens = trainer.model.eval(), 0.0, 0
    for row in dataset:
        pixels = processor(row["image"], return_tensors="pt")["pixel_values"]
        for caption in row["captions"]:
            labels = processor(text_target=[[caption]], return_tensors="pt")["labels"]
            count = int((labels != -100).sum())
            with torch.no_grad():
                total += float(model(pixel_values=pixels, labels=labels).loss) * count
            tokens += count
    return total / tokens


@pytest.mark.parametrize("size", [1, 3, 4, 7])
def test_the_loss_of_an_evaluation_is_the_mean_over_reference_tokens(tmp_path, size):
    trainer, processor, dataset = setup(tmp_path, rows=7, per_device_eval_batch_size=size)
    expected = loss_by_a_slow_loop(trainer, dataset, processor)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-6)
    assert trainer.predict(trainer.eval_dataset).metrics["test_loss"] == pytest.approx(expected)
