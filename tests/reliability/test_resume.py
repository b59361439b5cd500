"""Nothing is lost: a training that is killed, or whose disk is full, or whose files are damaged."""

import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file
from testing import PATIENCE, ROOT
from testing.apart import apart
from testing.kills import Moment, train_apart
from testing.parts import weights_in_parts
from testing.training import TINY, arguments
from transformers import TrainerCallback

from hf_captioner.commands import run, train
from hf_captioner.trainers import CaptioningTrainer
from hf_captioner.trainers.checkpoints import newest_whole

TRANSFORMER = {
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "vision_config": TINY["vision_config"],
}
# Images are 20, batches 2, steps take two of them: an epoch has 5 steps, and 6 checkpoints lie within and between.
SETTINGS = dict(
    train_data="shapes:rows=20,seed=0",
    eval_data="shapes:rows=7,seed=1",
    image_size=32,
    captions_per_image=2,
    per_device_train_batch_size=2,
    per_device_eval_batch_size=3,
    gradient_accumulation_steps=2,
    max_steps=12,
    eval_steps=2,
    save_steps=2,
    logging_steps=3,
    save_total_limit=2,
    warmup_steps=3,
    learning_rate=0.02,
    metric_for_best_model="loss",
    greater_is_better=False,
    num_samples=1,
)
RNN = dict(model_config=json.dumps({**TINY, "dropout": 0.3}))
HARD = dict(model_config=json.dumps({**TINY, "dropout": 0.3, "attention_sampling": "hard"}))
CNN_TRANSFORMER = dict(
    config=ROOT / "training/configs/shapes_cnn_transformer.yaml",
    model_config=json.dumps({**TRANSFORMER, "dropout": 0.3}),
    learning_rate=0.005,
)
TWO = dict(per_device_train_batch_size=1)
PROMISE = "same weights bit for bit, log and best checkpoint"
REWARD = dict(objective="self_critical", samples_per_image=3, learning_rate=0.005)


def settings(**changes):
    return {**SETTINGS, **changes}


def without_times(lines: list[dict]) -> list[dict]:
    """A log without what depends on the clock."""
    clock = ("runtime", "per_second", "seconds")
    return [{k: v for k, v in line.items() if not any(part in k for part in clock)} for line in lines]


def outcome(folder: Path) -> dict:
    """All that a training must come to, whatever happened on the way."""
    state = json.loads((folder / "trainer_state.json").read_text())
    weights = {"last": folder / "model.safetensors"}
    for name in (f"checkpoint-{state['global_step']}", Path(state["best_model_checkpoint"]).name):
        weights[name] = folder / name / "model.safetensors"
    return {
        "log": without_times(state["log_history"]),
        "best": (Path(state["best_model_checkpoint"]).name, state["best_metric"]),
        "weights": {k: {n: t.flatten().tolist() for n, t in load_file(path).items()} for k, path in weights.items()},
        "samples": json.loads((folder / "samples.json").read_text()),
        "left over": [path.name for path in folder.glob("_unfinished*")],
    }


def end_of(
    argv_of, folder: Path, moments=(), processes: int = 1, whole=None, prepare=None
) -> tuple[int, list[dict[str, int]]]:
    """
    Gives the commands of a training one after the other, each of them again and again until it has come to its end.

    Args:
        argv_of: a function from the folder to the commands, each a list of arguments.
        moments: kinds of moments to kill at: those of each command.
        whole: counts of events of the undisturbed training, for each command.
        prepare: as for [`train_apart`].

    Returns:
        how often it was killed; and the counts of events of each command.
    """
    choose = random.Random(str(folder.name)).randrange
    kills, counts = 0, []
    for place, argv in enumerate(argv_of(folder)):
        for kind in moments[place] if moments else ():
            among = max(1, whole[place][kind] // (1 if kind in ("cache", "end") else 4))
            rank = choose(processes) if kind in ("step", "evaluation", "clock") else 0
            moment = Moment(kind, choose(among), rank)
            killed = train_apart(argv, folder.with_suffix(".log"), moment, processes, prepare=prepare)
            assert killed.exit in (-9, 0), (moment, killed.log[-3000:])
            kills += killed.exit == -9
        last = train_apart(argv, folder.with_suffix(".log"), processes=processes, prepare=prepare)
        assert last.exit == 0, last.log[-3000:]
        counts.append(last.counts)
    return kills, counts


def one_stage(**options):
    return lambda folder: [arguments(folder, **settings(**options))]


def two_stages(**options):
    """Cross-entropy, the same command again, and reward."""
    second = {k: v for k, v in settings(**{**options, **REWARD}).items() if k not in ("config", "model_config")}
    second.pop("image_size")

    def argv_of(folder):
        first = arguments(folder / "first", **settings(**{**options, "max_steps": 4}))
        return [first, first, arguments(folder, model=folder / "first", **second)]

    return argv_of


def test_a_killed_training_comes_to_the_same_end(tmp_path, faults):
    """Killed in a step, while a checkpoint is written, in an evaluation and at the end; then it is let go on."""
    argv_of = one_stage(**RNN)
    _, counts = end_of(argv_of, tmp_path / "whole")
    kills, _ = end_of(argv_of, tmp_path / "killed", [("step", "write", "evaluation", "end")], whole=counts)
    same = outcome(tmp_path / "killed") == outcome(tmp_path / "whole")
    faults.count("training killed: RNN", kills, kills if same else 0, PROMISE)
    assert same and kills == 4


def train_and_lose_a_worker(argv: list[str], mark: str) -> None:
    """One of the two processes that read images is killed in the eighth step; `mark` says when."""

    class Kills(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 7:
                workers = multiprocessing.active_children()
                assert len(workers) == 2
                Path(mark).write_text(str(time.monotonic()))
                os.kill(workers[1].pid, signal.SIGKILL)

    usual = CaptioningTrainer.__init__

    def with_kills(trainer, *args, **kwargs):
        usual(trainer, *args, **kwargs)
        trainer.add_callback(Kills())

    CaptioningTrainer.__init__ = with_kills
    run(train.main, argv)


@pytest.mark.slow
def test_a_killed_data_worker_ends_the_training_in_one_line(tmp_path, faults):
    """As the kernel does where memory is short. The training goes on later, to what it comes to without workers."""
    folder, mark = tmp_path / "killed", tmp_path / "mark"
    argv = arguments(folder, **settings(**RNN, dataloader_num_workers=2))
    ended = apart(train_and_lose_a_worker, (argv, str(mark)), tmp_path / "log")
    in_time = time.monotonic() - float(mark.read_text()) < 60 * PATIENCE
    told = ended.log.splitlines()[-1]
    assert ended.exit == 2 and told.startswith("error: `dataloader_num_workers`"), ended.log[-3000:]
    assert "DataLoader worker (pid" in told and "Traceback" not in ended.log
    newest, passed_over = newest_whole(folder)
    # The batch that was read ahead may still have been trained with.
    assert newest.name in ("checkpoint-6", "checkpoint-8") and passed_over == []
    assert not (folder / "_unfinished").exists()
    for command in (argv, arguments(tmp_path / "whole", **settings(**RNN))):
        last = train_apart(command, tmp_path / "log")
        assert last.exit == 0, last.log[-3000:]
    same = outcome(folder) == outcome(tmp_path / "whole")
    faults.count("data worker killed in training", 1, int(same and in_time), "one line within a minute; goes on later")
    assert same and in_time


# Each system is killed with and without data workers, and in one process and in two.
LONG = {
    "RNN, averaged weights, mirrored images, two data workers": (
        one_stage(**RNN, ema_decay=0.9, flip=True, dataloader_num_workers=2),
        1,
    ),
    "RNN, two data workers": (one_stage(**RNN, dataloader_num_workers=2), 1),
    "hard attention": (one_stage(**HARD), 1),
    "hard attention, workers that stay": (
        one_stage(**HARD, dataloader_num_workers=2, dataloader_persistent_workers=True),
        1,
    ),
    "CNN-Transformer": (one_stage(**CNN_TRANSFORMER), 1),
    "RNN by reward": (two_stages(**RNN), 1),
    "CNN-Transformer by reward, two data workers": (two_stages(**CNN_TRANSFORMER, dataloader_num_workers=2), 1),
    "RNN, two processes": (one_stage(**RNN, **TWO), 2),
    "RNN, weights in parts on two processes": (one_stage(**RNN, **TWO), 2),
    "hard attention, two processes": (one_stage(**HARD, **TWO, dataloader_num_workers=2), 2),
    "CNN-Transformer, two processes": (one_stage(**CNN_TRANSFORMER, **TWO, dataloader_num_workers=2), 2),
    "RNN by reward, two processes": (two_stages(**RNN, **TWO, dataloader_num_workers=2), 2),
    "CNN-Transformer by reward, two processes": (two_stages(**CNN_TRANSFORMER, **TWO), 2),
}


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("system", LONG)
def test_killed_again_and_again(tmp_path, faults, system):
    """At moments of every kind, in both families; the feature cache too, and between two stages."""
    argv_of, processes = LONG[system]
    prepare = weights_in_parts if "in parts" in system else None
    usual = ("step", "write", "clock", "evaluation")
    moments = [("end",), (), usual] if "reward" in system else [(*usual, "end")]
    _, counts = end_of(argv_of, tmp_path / "whole", processes=processes, prepare=prepare)
    kills, _ = end_of(argv_of, tmp_path / "killed", moments, processes, counts, prepare)
    same = outcome(tmp_path / "killed") == outcome(tmp_path / "whole")
    faults.count(f"training killed: {system}", kills, kills if same else 0, PROMISE)
    assert same and kills >= 4


@pytest.mark.slow
@pytest.mark.long
def test_killed_while_features_are_cached(tmp_path, faults):
    """The restarted training has another history of random numbers: half of the features, or all, are there."""

    def argv_of(folder):
        cache = dict(freeze_vision=True, feature_cache=folder.with_name(f"{folder.name} features"))
        return [arguments(folder, **settings(**RNN, **cache, train_data="shapes:rows=70,seed=0"))]

    _, counts = end_of(argv_of, tmp_path / "whole")
    kills, _ = end_of(argv_of, tmp_path / "killed", [("cache", "cache", "step", "clock")], whole=counts)
    same = outcome(tmp_path / "killed") == outcome(tmp_path / "whole")
    faults.count("training killed: RNN with a feature cache", kills, kills if same else 0, PROMISE)
    assert same and kills >= 3
