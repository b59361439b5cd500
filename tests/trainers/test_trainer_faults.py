"""What once went wrong without a word: drawn evaluation captions, the first log line after a resume, missing rows."""

import pytest
import torch
from test_self_critical import setup as self_critical
from test_trainer import setup
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments

from hf_captioner.data import CaptionCollator
from hf_captioner.errors import InputError
from hf_captioner.trainers import CaptioningTrainer


def test_the_loss_of_evaluation_is_over_all_references(tmp_path):
    """Two of three captions were drawn for each evaluation: the same model had other losses every time."""
    trainer, processor, dataset = setup(tmp_path, rows=6)
    trainer.data_collator.captions_per_image = 1
    drawing = CaptioningTrainer(
        model=trainer.model,
        args=trainer.args,
        eval_dataset=trainer.eval_dataset,
        data_collator=CaptionCollator(processor, captions_per_image=1),
        processing_class=processor,
    )
    losses = [drawing.evaluate()["eval_loss"] for _ in range(3)]
    assert losses[0] == losses[1] == losses[2]
    assert drawing.data_collator.captions_per_image == 1  # training still draws
    batch = CaptionCollator(processor)(list(dataset))
    with torch.no_grad():
        expected = trainer.model.eval()(**batch)
    assert losses[0] == pytest.approx(expected.loss.item(), rel=1e-5)


def test_the_first_log_line_after_a_resume_is_that_of_a_run_without_a_stop(tmp_path):
    settings = dict(per_device_train_batch_size=2, max_steps=8, logging_steps=2, save_strategy="steps", save_steps=4)
    trainer, _, _ = setup(tmp_path / "whole", **settings)
    trainer.train()
    whole = {entry["step"]: entry for entry in trainer.state.log_history if "loss_words" in entry}
    resumed, _, _ = setup(tmp_path / "whole", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    found = {entry["step"]: entry for entry in resumed.state.log_history if "loss_words" in entry}
    assert set(found) == {2, 4, 6, 8}
    for step in (6, 8):
        for name in ("loss", "loss_words", "loss_doubly_stochastic"):
            assert found[step][name] == pytest.approx(whole[step][name], rel=1e-5), (step, name)
        terms = found[step]["loss_words"] + found[step]["loss_doubly_stochastic"]
        assert found[step]["loss"] == pytest.approx(terms, rel=1e-3)


def test_rows_without_index_are_refused_before_training(tmp_path):
    trainer, _, _ = setup(tmp_path, eval_strategy="steps", eval_steps=1)
    trainer.eval_dataset = trainer.eval_dataset.remove_columns("index")
    with pytest.raises(InputError, match="`eval_dataset` must have `index`"):
        trainer.train()
    assert trainer.state.global_step == 0
    with pytest.raises(InputError, match="`eval_dataset` must have `index`"):
        trainer.evaluate()
    trainer.compute_metrics = None
    assert "eval_loss" in trainer.evaluate()


def test_label_smoothing_of_a_plain_trainer_says_what_to_set(tmp_path):
    trainer, processor, dataset = setup(tmp_path)
    arguments = Seq2SeqTrainingArguments(
        tmp_path, label_smoothing_factor=0.1, max_steps=1, use_cpu=True, report_to=[], remove_unused_columns=False
    )
    plain = Seq2SeqTrainer(
        model=trainer.model, args=arguments, train_dataset=dataset, data_collator=CaptionCollator(processor)
    )
    with pytest.raises(ValueError, match="set `label_smoothing` in the model's configuration"):
        plain.train()


@pytest.mark.parametrize("ends", [[3, 5], None])
def test_training_by_reward_knows_every_end(tmp_path, ends):
    """Several EOS tokens broke it, and so did none."""
    said = {}

    def reward(captions, ended, **kwargs):
        said.setdefault("ended", ended)
        return [float(len(text)) for text in captions]

    trainer = self_critical(tmp_path, reward=reward)
    model = trainer.model
    model.config.eos_token_id = model.generation_config.eos_token_id = ends
    model.generation_config.max_new_tokens = 12
    batch = next(iter(trainer.get_train_dataloader()))
    labels, greedy = trainer._sample({"image_features": batch["image_features"]})
    trainer._judge(labels, greedy, batch["index"].repeat_interleave(trainer.samples_per_image).tolist())
    for row, ended in zip(labels.flatten(0, 1).tolist(), said["ended"], strict=True):
        real = [token for token in row if token != -100]
        assert all(token not in (ends or []) for token in real[:-1])  # nothing after the end
        assert ended == (real[-1] in (ends or []))
    assert any(said["ended"]) == bool(ends)
    assert trainer.compute_loss(model, batch).isfinite()
