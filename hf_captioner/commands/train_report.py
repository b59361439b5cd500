"""What `train` leaves beside model and trainer's files: captions, a picture, and how it was called."""

import json
import shlex
from pathlib import Path
from typing import Any

import torch

from ..explain import explain, save_grid
from ..models.image_reading import to_rgb
from ..models.tokenization_captioner import decode_captions
from ..sharing.card import NUM_SAMPLES
from .train_arguments import DataArguments


@torch.no_grad()
def write_samples(model, processor, dataset, count: int, folder: Path) -> list[dict]:
    """
    Captions the first images: `samples.json`, the first four in `examples/`, and their `attention.png` if the model
    attends.

    Returns:
        for each image the `caption` and its `references`.
    """
    rows = dataset.select(range(min(count, len(dataset))))
    model.eval()
    pixels = processor(images=rows["image"][:], return_tensors="pt")["pixel_values"].to(model.device)
    captions = decode_captions(processor.tokenizer, model.generate(pixel_values=pixels).cpu())
    samples = [{"caption": c, "references": r} for c, r in zip(captions, rows["captions"][:], strict=True)]
    (folder / "samples.json").write_text(json.dumps(samples, indent=2, ensure_ascii=False) + "\n")
    (folder / "examples").mkdir(exist_ok=True)
    for index, image in enumerate(rows["image"][:NUM_SAMPLES]):
        image = to_rgb(image)
        image.thumbnail((224, 224))
        image.save(folder / "examples" / f"{index}.jpg")
    if model.config.attends:
        explanations = [explain(model, processor, image) for image in rows["image"][:NUM_SAMPLES]]
        save_grid(folder / "attention.png", explanations)
    return samples


def write_training(
    folder: Path, argv: list[str], num_beams: int, data_args: DataArguments, alarms: list[dict[str, Any]]
) -> None:
    """`training.json`: what the model card reports about training that is not in the Trainer's files."""
    names = [part.split("=")[0].replace("-", "_") for part in argv]  # --hub-token is "__hub_token"
    secret = {place for place, name in enumerate(names) if name == "__hub_token"}  # the token is secret
    secret |= {place + 1 for place in secret if "=" not in argv[place]}
    kept = [part for place, part in enumerate(argv) if place not in secret]
    command = ["accelerate", "launch", "training/train.py", *kept]
    training: dict[str, Any] = {"command": shlex.join(command), "num_beams": num_beams}
    training |= {name: getattr(data_args, name) for name in ("train_data", "train_split", "eval_data", "eval_split")}
    training["alarms"] = alarms
    (folder / "training.json").write_text(json.dumps(training, indent=2, ensure_ascii=False) + "\n")
