"""Folders that version 0.1 saved, before the files stood in rooms, still load and give the same logits."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from testing.tiny_models import random_images
from transformers import AutoModelForImageTextToText

FOLDERS = json.loads(Path(__file__).with_name("folders_of_0.1.json").read_text())
TOKENS = torch.tensor([[2, 5, 6, 7], [2, 8, 9, 4], [2, 10, 11, 12], [2, 13, 14, 15]])


@pytest.mark.parametrize("name", FOLDERS)
def test_an_earlier_folder(tmp_path, name):
    """
    The file has, of every kind, the configuration as it was written, names and shapes of the weights, and the first
    logits of the last token, when each weight (in the order of names) was drawn as here.
    """
    folder = FOLDERS[name]
    (tmp_path / "config.json").write_text(json.dumps(folder["config"]))
    generator, weights = torch.Generator().manual_seed(0), {}
    for key, shape in folder["shapes"].items():
        if key.endswith("num_batches_tracked"):
            weights[key] = torch.zeros(shape, dtype=torch.long)
        else:
            drawn = 0.6 * torch.rand(shape, generator=generator) - 0.3
            weights[key] = drawn.abs() + 0.5 if key.endswith("running_var") else drawn
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model, info = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    with torch.no_grad():
        logits = model.eval()(pixel_values=random_images(2), decoder_input_ids=TOKENS).logits
    torch.testing.assert_close(logits[:, -1, :5].flatten(), torch.tensor(folder["logits"]), atol=2e-5, rtol=1e-4)
