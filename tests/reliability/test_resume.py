"""Nothing is lost: a training that is killed, or whose disk is full, or whose files are damaged."""

import json
import random
from pathlib import Path

from safetensors.torch import load_file
from testing.kills import Moment, train_apart
from testing.training import TINY, arguments

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
    num_samples=2,
)
RNN = dict(model_config=json.dumps({**TINY, "dropout": 0.3}))
HARD = dict(model_config=json.dumps({**TINY, "dropout": 0.3, "attention_sampling": "hard"}))
CNN_TRANSFORMER = dict(
    model_type="transformer_captioner", model_config=json.dumps({**TRANSFORMER, "dropout": 0.3}), learning_rate=0.005
)
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


def test_a_killed_training_comes_to_the_same_end(tmp_path, faults):
    """Killed in a step, while a checkpoint is written, in an evaluation and at the end; then it is let go on."""
    options = settings(**RNN)
    whole = train_apart(arguments(tmp_path / "whole", **options), tmp_path / "whole.log")
    assert whole.exit == 0, whole.log[-3000:]
    choose = random.Random(0).randrange
    for kind in ("step", "write", "evaluation", "end"):
        moment = Moment(kind, choose(max(1, whole.counts[kind] // 3)))
        killed = train_apart(arguments(tmp_path / "killed", **options), tmp_path / "killed.log", moment)
        assert killed.exit == -9, killed.log[-3000:]
    last = train_apart(arguments(tmp_path / "killed", **options), tmp_path / "killed.log")
    assert last.exit == 0, last.log[-3000:]
    same = outcome(tmp_path / "killed") == outcome(tmp_path / "whole")
    faults.count("training killed", 4, 4 if same else 0, "same weights, log and best checkpoint")
    assert same
