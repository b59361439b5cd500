"""Saved folders load anywhere: same logits bit for bit, in a process with or without the package."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from testing import ROOT
from testing.tiny_models import ATTENTIONS, SYSTEMS, TRANSFORMERS, random_images, tiny_config, tiny_model
from transformers import AutoModel, AutoModelForImageTextToText

from hf_captioner import (
    CaptionerImageProcessor,
    CaptionerProcessor,
    RnnCaptionerForConditionalGeneration,
    RnnCaptionerModel,
    TransformerCaptionerForConditionalGeneration,
    TransformerCaptionerModel,
    train_tokenizer,
)

LOAD = """
import sys
sys.path[:] = [path for path in sys.path if path not in ({root!r}, "")]
if {hide}:
    sys.modules["hf_captioner"] = None  # as on a machine without the package
else:
    sys.path.insert(0, {root!r})
    import hf_captioner
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor

inputs = load_file("inputs.safetensors")
found = {{}}
for auto in (AutoModel, AutoModelForImageTextToText):
    model = auto.from_pretrained("saved", trust_remote_code={hide}).eval()
    assert type(model).__name__ == "{name}", type(model)
    assert type(model).__module__.startswith("transformers_modules" if {hide} else "hf_captioner")
    with torch.no_grad():
        found[auto.__name__] = model(**inputs).logits
        beams = model.generate(inputs["pixel_values"], num_beams=3, max_new_tokens=6)
    found["beam_" + auto.__name__] = beams.contiguous()
processor = AutoProcessor.from_pretrained("saved", trust_remote_code={hide})
assert type(processor).__name__ == "CaptionerProcessor"
found["labels"] = processor(text_target=["a red dog 's ball ."], return_tensors="pt")["labels"]
save_file(found, "found.safetensors")
"""


@pytest.mark.slow
@pytest.mark.parametrize("hide", [True, pytest.param(False, marks=pytest.mark.long)])
@pytest.mark.parametrize(
    "settings",
    [
        dict(attention="multi_head", tie_word_embeddings=True, context_mlp=True),
        dict(attention="additive"),
        dict(attention="none", tie_word_embeddings=True, context_norm=True),
        *TRANSFORMERS.values(),
    ],
)
def test_a_fresh_process_gives_the_same_logits(tmp_path, settings, hide):
    tokenizer = train_tokenizer(["a red dog 's ball ."])
    model = tiny_model(**settings, vocab_size=len(tokenizer))
    processor = CaptionerProcessor(CaptionerImageProcessor(), tokenizer)
    model.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    inputs = {"pixel_values": random_images(), "decoder_input_ids": torch.randint(0, len(tokenizer), (6, 4))}
    save_file(inputs, tmp_path / "inputs.safetensors")
    (tmp_path / "load.py").write_text(LOAD.format(root=str(ROOT), hide=hide, name=type(model).__name__))
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [sys.executable, "load.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = load_file(tmp_path / "found.safetensors")
    with torch.no_grad():
        logits = model(**inputs).logits
    for auto in ("AutoModel", "AutoModelForImageTextToText"):
        assert torch.equal(found[auto], logits)
        assert torch.equal(
            found[f"beam_{auto}"], model.generate(inputs["pixel_values"], num_beams=3, max_new_tokens=6)
        )
    expected = processor(text_target=["a red dog 's ball ."], return_tensors="pt")["labels"]
    assert torch.equal(found["labels"], expected)


@pytest.mark.parametrize("family,system", [("rnn", "additive"), ("transformer", "cnn_transformer")])
def test_the_folder_holds_safetensors_and_its_own_code(tmp_path, family, system):
    model = tiny_model(**SYSTEMS[system])
    model.save_pretrained(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert "model.safetensors" in names and not any(name.endswith((".bin", ".pt", ".pkl")) for name in names)
    assert {f"modeling_{family}_captioner.py", f"configuration_{family}_captioner.py", "attention.py"} <= names
    assert ("recurrent_cache.py" in names) is (family == "rnn")
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    here = f"modeling_{family}_captioner.{type(model).__name__}"
    assert auto_map["AutoModel"] == auto_map["AutoModelForImageTextToText"] == here
    assert auto_map["AutoConfig"] == f"configuration_{family}_captioner.{type(model.config).__name__}"


def test_travelling_files_import_only_their_siblings():
    """What goes to the Hub is flat: no package imports, one relative import a line, no module imports."""
    for path in (ROOT / "hf_captioner" / "models").glob("*.py"):
        for line in path.read_text().splitlines():
            if line.startswith(("from .", "import .")):
                assert line.startswith("from .") and " import " in line and not line.startswith("from . import"), line
                assert "." not in line.split(" import ")[0][len("from .") :], line
            assert "hf_captioner" not in line or not line.lstrip().startswith(("import", "from")), line


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("system", ["additive", "cnn_transformer"])
def test_tied_weights_stay_tied(tmp_path, system, tied):
    model = tiny_model(**{**SYSTEMS[system], "tie_word_embeddings": tied})
    model.save_pretrained(tmp_path)
    assert ("lm_head.weight" in load_file(tmp_path / "model.safetensors")) is not tied
    loaded = type(model).from_pretrained(tmp_path)
    shared = loaded.lm_head.weight is loaded.model.decoder.embed_tokens.weight
    assert shared is tied
    loaded.train()(pixel_values=random_images(), decoder_input_ids=torch.full((3, 2), 2)).logits.sum().backward()
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)


@pytest.mark.parametrize(
    "settings",
    [
        dict(attention=attention, cell=cell, num_layers=layers, context_mlp=attention == "dot")
        for attention in ATTENTIONS
        for cell, layers in (("lstm", 1), ("gru", 3))
    ]
    + list(TRANSFORMERS.values()),
)
def test_every_module_loads_right_from_meta(tmp_path, settings):
    """`from_pretrained` builds on the meta device; nothing may come back as it was left there."""
    model = tiny_model(**settings)
    model.save_pretrained(tmp_path)
    loaded, info = type(model).from_pretrained(tmp_path, low_cpu_mem_usage=True, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    state = loaded.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(state[name], tensor), name
    for (name, mine), theirs in zip(model.named_parameters(), loaded.parameters(), strict=True):
        assert mine.requires_grad == theirs.requires_grad, name


@pytest.mark.parametrize("settings", [dict(num_layers=2), *TRANSFORMERS.values()])
def test_missing_weights_are_initialised_like_new_ones(tmp_path, settings):
    """A checkpoint without its decoder, as when only the encoder is shared."""
    model = tiny_model(**settings)
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "decoder" not in name and "lm_head" not in name}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = type(model).from_pretrained(tmp_path)
    fresh = type(model)(tiny_config(**settings))
    for (name, mine), theirs in zip(loaded.named_parameters(), fresh.parameters(), strict=True):
        if "decoder" in name or "lm_head" in name:
            assert torch.isfinite(mine).all() and mine.abs().max() < 2, name
            if mine.numel() > 1:
                assert mine.std().item() == pytest.approx(theirs.std().item(), rel=0.5, abs=1e-6), name


@pytest.mark.parametrize(
    "base_class,system", [(RnnCaptionerModel, "additive"), (TransformerCaptionerModel, "vit_transformer")]
)
def test_the_base_model_loads_alone(tmp_path, base_class, system):
    model = tiny_model(**SYSTEMS[system])
    model.save_pretrained(tmp_path)
    base = base_class.from_pretrained(tmp_path).eval()
    inputs = dict(pixel_values=random_images(), decoder_input_ids=torch.full((3, 2), 2))
    with torch.no_grad():
        hidden = base(**inputs).last_hidden_state
        torch.testing.assert_close(model.lm_head(hidden), model(**inputs).logits)


@pytest.mark.parametrize(
    "model_class,system",
    [
        (RnnCaptionerForConditionalGeneration, "additive"),
        (TransformerCaptionerForConditionalGeneration, "cnn_transformer"),
    ],
)
def test_auto_classes_of_the_installed_package(tmp_path, model_class, system):
    tiny_model(**SYSTEMS[system]).save_pretrained(tmp_path)
    assert type(AutoModel.from_pretrained(tmp_path)) is model_class
    assert type(AutoModelForImageTextToText.from_pretrained(tmp_path)) is model_class


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("system", ["additive", *TRANSFORMERS])
def test_half_precision(tmp_path, dtype, system):
    model = tiny_model(**SYSTEMS[system])
    model.save_pretrained(tmp_path)
    model = type(model).from_pretrained(tmp_path, dtype=dtype).eval()
    assert {p.dtype for p in model.parameters()} == {dtype}
    found = model.generate(random_images().to(dtype), num_beams=3, max_new_tokens=4)
    assert found.shape[0] == 3
    loss = model(pixel_values=random_images().to(dtype), labels=torch.full((3, 1, 4), 5)).loss
    assert torch.isfinite(loss)
