"""Trainings small enough to wait for."""

import json

from . import ROOT

TINY = {
    "hidden_size": 16,
    "attention_size": 8,
    "vision_config": {
        "model_type": "resnet",
        "layer_type": "basic",
        "embedding_size": 8,
        "hidden_sizes": [8, 12],
        "depths": [1, 1],
    },
}


def arguments(folder, **changes):
    settings = dict(
        config=ROOT / "training/configs/quickstart.yaml",
        train_data="shapes:rows=24,seed=0",
        eval_data="shapes:rows=10,seed=1",
        model_config=json.dumps(TINY),
        output_dir=folder,
        max_steps=4,
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=2,
        save_steps=2,
        save_total_limit=3,
        report_to="none",
        max_new_tokens=8,
        disable_tqdm=True,
    )
    if "model" in changes:  # which has its own
        settings.pop("model_config")
    return [part for name, value in {**settings, **changes}.items() for part in (f"--{name}", str(value))]
