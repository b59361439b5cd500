"""Two processes on gloo train and measure as one process with the same global batch does; one that dies ends all."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_resume import CNN_TRANSFORMER, REWARD, RNN, TWO, settings, without_times
from testing import PATIENCE, ROOT
from testing.apart import apart
from testing.parts import in_parts, weights_in_parts
from testing.training import TINY, arguments
from transformers import pipeline

from hf_captioner.commands import run, train
from hf_captioner.data import shapes_dataset
from hf_captioner.errors import InputError
from hf_captioner.models import attention
from hf_captioner.trainers import CaptioningTrainer, SelfCriticalTrainer

# Batch statistics of halves differ from those of the whole, and processes draw random numbers of their own: the vision
# model is frozen, dropout is off, and what is sampled is replaced by a function of what it is sampled from.
SAME = dict(freeze_vision=True, max_steps=4, eval_steps=2, save_steps=4, logging_steps=1)
# Adam would turn a difference of rounding into one of a whole step, where a gradient is almost 0.
SAME |= dict(optim="sgd", learning_rate=0.2, max_grad_norm=0)
SAMPLED = {"attention_sampling": "hard", "expected_context_probability": 0.0}
PLAIN = json.dumps({**TINY, "dropout": 0.0})
SYSTEMS = {
    "cross-entropy": dict(model_config=PLAIN),
    "CNN-Transformer": dict(CNN_TRANSFORMER, model_config=CNN_TRANSFORMER["model_config"].replace("0.3", "0.0")),
    "hard attention": dict(model_config=json.dumps({**json.loads(PLAIN), **SAMPLED})),
    "by reward": dict(REWARD, model_config=PLAIN),
}


# Statistics within a batch, of which the log has the mean over processes.
OF_A_BATCH = {"attention_baseline", "attention_entropy", "reward_std"}


def without_chance() -> None:
    """In place of samples: the most probable region, and captions that depend on the image's index."""

    class Torch:
        def __getattr__(self, name):
            return getattr(torch, name)

        @staticmethod
        def multinomial(weights, count):
            return weights.argmax(-1, keepdim=True)

    attention.torch = Torch()
    usual = SelfCriticalTrainer.compute_loss

    def compute_loss(self, model, inputs, *args, **kwargs):
        self.drawn_for = inputs["index"].tolist()
        return usual(self, model, inputs, *args, **kwargs)

    def samples(self, seen):
        rows = []
        for index in self.drawn_for:
            generator = torch.Generator().manual_seed(index)
            rows.append(torch.randint(4, 14, (self.samples_per_image, 4), generator=generator))
        return torch.stack(rows), None

    SelfCriticalTrainer.compute_loss, SelfCriticalTrainer._sample = compute_loss, samples


def train_without_chance(argv: list[str], noted: str) -> None:
    """Also writes down which images each evaluation was given, and what was generated for them."""
    without_chance()
    usual = CaptioningTrainer.evaluation_loop

    def evaluation_loop(self, *args, **kwargs):
        output = usual(self, *args, **kwargs)
        if self.args.process_index == 0:
            pairs = zip(output.label_ids.tolist(), output.predictions.tolist(), strict=True)
            rows = sorted({(index, tuple(tokens)) for index, tokens in pairs})
            with Path(noted).open("a") as file:
                file.write(json.dumps(rows) + "\n")
        return output

    CaptioningTrainer.evaluation_loop = evaluation_loop
    train.main(argv)
    assert not torch.distributed.is_initialized()  # a process that ends with its connections open may abort


def trimmed(lines: str) -> list:
    """Rows of (index, tokens) of every evaluation, without the padding, which depends on the batch."""
    return [[(i, [t for t in tokens if t not in (1, -100)]) for i, tokens in json.loads(line)] for line in lines]


LONG = [pytest.param(system, marks=pytest.mark.long) for system in ("cross-entropy", "CNN-Transformer")]


@pytest.mark.slow
@pytest.mark.parametrize("system", ["hard attention", "by reward", *LONG])
def test_two_processes_train_and_measure_as_one(tmp_path, system):
    """Seven images are evaluated: the shards are uneven."""
    options = settings(**{**SYSTEMS[system], **SAME})
    results = {}
    for processes in (1, 2):
        folder, noted = tmp_path / str(processes), tmp_path / f"{processes}.jsonl"
        argv = arguments(folder, **{**options, "per_device_train_batch_size": 2 // processes})
        done = apart(train_without_chance, (argv, str(noted)), tmp_path / "log", processes=processes)
        assert done.exit == 0, done.log[-3000:]
        state = json.loads((folder / "trainer_state.json").read_text())
        results[processes] = (without_times(state["log_history"]), load_file(folder / "model.safetensors"))
        results[processes] += (trimmed(noted.read_text().splitlines()),)
    (log, weights, captions), (log_of_two, weights_of_two, captions_of_two) = results[1], results[2]
    assert captions == captions_of_two and [[i for i, _ in rows] for rows in captions] == [list(range(7))] * 3
    assert len(log) == len(log_of_two)
    for line, other in zip(log, log_of_two, strict=True):
        assert line.keys() == other.keys()
        for name, value in line.items():
            if name in OF_A_BATCH:
                continue
            assert other[name] == pytest.approx(value, rel=1e-4, abs=1e-6), (name, line, other)
    for name, value in weights.items():
        torch.testing.assert_close(weights_of_two[name], value, rtol=1e-3, atol=1e-5)


def train_in_parts(argv: list[str]) -> None:
    weights_in_parts()
    run(train.main, argv)
    assert in_parts


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("system", ["cross-entropy", "CNN-Transformer"])
def test_weights_in_parts_train_as_one_process(tmp_path, system):
    """The losses are the same, and the folder is a captioner's, whole, with the code that loads it anywhere."""
    options = settings(**{**SYSTEMS[system], **SAME})
    results = {}
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        argv = arguments(folder, **{**options, "per_device_train_batch_size": 2 // processes})
        function = train.main if processes == 1 else train_in_parts
        done = apart(function, (argv,), tmp_path / "log", processes=processes)
        assert done.exit == 0, done.log[-3000:]
        log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
        losses = [line[name] for line in log for name in ("loss", "eval_loss") if name in line]
        results[processes] = losses, load_file(folder / "model.safetensors")
    (losses, weights), (losses_in_parts, weights_in_parts) = results[1], results[2]
    print("losses of one process and of weights in parts:", losses, losses_in_parts)
    assert len(losses) == 6 and losses_in_parts == pytest.approx(losses, rel=0, abs=1e-5)
    assert weights.keys() == weights_in_parts.keys()
    for name, value in weights.items():
        torch.testing.assert_close(weights_in_parts[name], value, rtol=1e-3, atol=1e-5)
    for part in ("config.json", "processor_config.json", "tokenizer.json", "generation_config.json"):
        assert (tmp_path / "1" / part).read_text() == (tmp_path / "2" / part).read_text()
    for folder in (tmp_path / "2", tmp_path / "2" / "checkpoint-4"):
        assert {path.name for path in (tmp_path / "1").glob("*.py")} == {path.name for path in folder.glob("*.py")}
        assert load_file(folder / "model.safetensors").keys() == weights.keys()
    pipe = pipeline("image-captioning", model=str(tmp_path / "2"), device="cpu")
    assert pipe(shapes_dataset(1)[0]["image"])[0]["generated_text"]


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["whole", pytest.param("in parts", marks=pytest.mark.long)])
def test_what_processes_measure_is_what_they_save(tmp_path, weights):
    """Each collects statistics of batch normalisation over its own images, and those of the first one are saved."""
    folder = tmp_path / "trained"
    options = settings(**RNN, **TWO, max_steps=3, eval_steps=3, save_steps=3)
    function = train.main if weights == "whole" else train_in_parts
    done = apart(function, (arguments(folder, **options),), tmp_path / "log", processes=2)
    assert done.exit == 0, done.log[-3000:]
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    (measured,) = (line for line in log if "eval_loss" in line)
    alone = {name: value for name, value in options.items() if name not in ("model_config", "image_size")}
    train.main(arguments(tmp_path / "alone", **alone, model=folder / "checkpoint-3", do_train=False))
    saved = json.loads((tmp_path / "alone" / "all_results.json").read_text())
    assert measured["eval_loss"] == pytest.approx(saved["eval_loss"], rel=1e-6)


def test_what_needs_all_weights_is_refused_where_they_are_in_parts(tmp_path):
    model_args, _, objective, _ = train.parse_arguments(arguments(tmp_path))
    train.check_whole_weights_not_needed(model_args, objective)
    objective.ema_decay = 0.9
    with pytest.raises(InputError, match="`ema_decay` must be left out where FSDP .* got 0.9"):
        train.check_whole_weights_not_needed(model_args, objective)


def train_with_a_slow_end(argv: list[str]) -> None:
    """The first process has more to do than the others when all have trained."""
    usual = train.write_card

    def write_card(*args, **kwargs):
        time.sleep(2)
        usual(*args, **kwargs)

    train.write_card = write_card
    run(train.main, argv)


@pytest.mark.slow
def test_the_exit_status_of_images_left_out_ends_no_other_process(tmp_path):
    """Where one process fails, the others are killed: none may before all that there is to write is written."""
    (tmp_path / "data").mkdir()
    rows = shapes_dataset(9)
    for place, image in enumerate(rows["image"][:8]):
        image.save(tmp_path / "data" / f"{place}.png")
    (tmp_path / "data" / "8.png").write_bytes(b"no picture")
    lines = [json.dumps({"image": f"{place}.png", "caption": rows[place]["captions"][0]}) for place in range(9)]
    (tmp_path / "data" / "t.jsonl").write_text("\n".join(lines))
    table = tmp_path / "data" / "t.jsonl"
    short = dict(max_steps=1, eval_strategy="no", save_strategy="no", load_best_model_at_end=False, num_samples=1)
    short |= dict(train_data=table, eval_data=table, on_bad_image="skip", per_device_train_batch_size=2)
    argv = arguments(tmp_path / "out", model_config=PLAIN, **short)
    done = apart(train_with_a_slow_end, (argv,), tmp_path / "log", processes=2)
    assert done.exit == 1, done.log[-3000:]
    assert done.log.count("2 images were left out:") == 1 and "8.png" in done.log
    assert json.loads((tmp_path / "out" / "_run.json").read_text())["finished"]
    assert (tmp_path / "out" / "README.md").exists() and (tmp_path / "out" / "training.json").exists()


DIES = """
import os, sys, time
sys.path[:0] = [{tests!r}, {root!r}]
from hf_captioner.commands import train
from hf_captioner.trainers import CaptioningTrainer
usual = CaptioningTrainer.training_step
def training_step(self, *args, **kwargs):
    if self.args.process_index == 1 and self.state.global_step == 1:
        open({died!r}, "w").write(str(time.time()))
        {what}
    return usual(self, *args, **kwargs)
CaptioningTrainer.training_step = training_step
train.main(sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.long
def test_a_process_that_dies_ends_the_training_with_its_traceback(tmp_path, faults):
    script = tmp_path / "dies.py"
    what = "raise ArithmeticError('of the second process')"
    died = tmp_path / "died"
    script.write_text(DIES.format(tests=str(ROOT / "tests"), root=str(ROOT), what=what, died=str(died)))
    argv = arguments(tmp_path / "folder", **settings(**RNN, per_device_train_batch_size=1))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", str(script), *argv]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    options = dict(capture_output=True, text=True, env=environment, cwd=tmp_path)
    done = subprocess.run(command, **options, timeout=300 * PATIENCE)
    seconds = time.time() - float(died.read_text())
    told = "ArithmeticError: of the second process" in done.stderr and "Traceback" in done.stderr
    faults.count("one of two processes dies", 1, int(done.returncode != 0 and told), "ends with its traceback")
    assert done.returncode != 0 and told, done.stderr[-3000:]
    assert seconds < 60 * PATIENCE  # after it has died
