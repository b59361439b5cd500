"""Folders from strangers: whatever their files say, they are refused with one error that names it, and run no code."""

import json
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from testing import PATIENCE, ROOT
from testing.tiny_models import random_images, tiny_config, tiny_model, tiny_vit
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    ConvNextConfig,
    EfficientNetConfig,
    ResNetConfig,
    SwinConfig,
    ViTConfig,
    pipeline,
)

from hf_captioner import CaptionerImageProcessor, CaptionerProcessor, train_tokenizer
from hf_captioner.commands.program import program
from hf_captioner.data import shapes_dataset
from hf_captioner.errors import InputError
from hf_captioner.models.bounds_captioner import check_vision_settings

KINDS = ("rnn_captioner", "transformer_captioner")
HUGE = 10**400


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    """A captioner's folder, of which each test spoils a copy."""
    folder = tmp_path_factory.mktemp("good")
    model = tiny_model(model_type="transformer_captioner", vision_config=tiny_vit())
    model.save_pretrained(folder)
    tokenizer = train_tokenizer(["a small red circle above a large blue square"])
    CaptionerProcessor(CaptionerImageProcessor(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(good, tmp_path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "captioner"))


def change(path: Path, **fields) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def image_in(folder: Path) -> Path:
    shapes_dataset(1)[0]["image"].save(folder / "photo.png")
    return folder / "photo.png"


def load(folder: Path):
    return AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)


SIZES = {
    "rnn_captioner": ("vocab_size", "hidden_size", "num_layers", "attention_size", "region_size"),
    "transformer_captioner": (
        *("vocab_size", "hidden_size", "encoder_layers", "decoder_layers", "num_attention_heads"),
        *("intermediate_size", "max_position_embeddings"),
    ),
}


@pytest.mark.parametrize("kind, name", [(kind, name) for kind in KINDS for name in SIZES[kind]])
@pytest.mark.parametrize("value", [10**6 * 64, 10**12, HUGE, -1, "many", [], {}, 1.5, float("nan"), True])
def test_sizes(kind, name, value, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "set_int_max_str_digits", sys.set_int_max_str_digits(0), raising=False)
    settings = tiny_config(kind).to_dict()
    (tmp_path / "config.json").write_text(json.dumps({**settings, name: value}))
    with pytest.raises(ValueError, match=name) as error:
        AutoConfig.from_pretrained(tmp_path)
    assert len(str(error.value)) < 1000


def test_sizes_given_while_loading(folder):
    for name, value in (("decoder_layers", 10**6), ("hidden_size", 10**12), ("vocab_size", -5)):
        with pytest.raises(ValueError, match=f"`{name}` must be at"):
            AutoModelForImageTextToText.from_pretrained(folder, **{name: value})


VISION = {
    "vit": (tiny_vit(), dict(num_hidden_layers=10**5, hidden_size=10**9, image_size=10**6, intermediate_size=-3)),
    "resnet": (ResNetConfig(hidden_sizes=[8, 8], depths=[1, 1]), dict(depths=[1, 10**5], hidden_sizes=[8, 10**9])),
    "convnext": (ConvNextConfig(), dict(depths=[3, 3, 500, 500], num_labels=10**9)),
    "efficientnet": (EfficientNetConfig(), dict(num_block_repeats=[10**5] * 7, depth_coefficient=10**5)),
    "swin": (SwinConfig(), dict(depths=[[10**5]], embed_dim=10**10, num_heads=[HUGE])),
}


@pytest.mark.parametrize("name, field", [(name, field) for name in VISION for field in VISION[name][1]])
def test_sizes_of_the_vision_model(name, field, tmp_path):
    vision, hostile = VISION[name]
    settings = tiny_config().to_dict()
    vision = {**vision.to_dict(), field: hostile[field]}
    (tmp_path / "config.json").write_text(json.dumps({**settings, "vision_config": vision}))
    with pytest.raises(ValueError, match="vision_config") as error:
        AutoConfig.from_pretrained(tmp_path)
    assert field in str(error.value) or "layers" in str(error.value)


@pytest.mark.parametrize(
    "changes",
    [
        dict(patch_size=0),
        dict(num_attention_heads=5),
        dict(hidden_act="nothing"),
        dict(image_size=[]),
        dict(num_channels=0),
        dict(model_type="bert"),
        dict(model_type=["vit"]),
        dict(dtype="x"),
        dict(id2label=[1]),
    ],
)
def test_a_vision_model_that_cannot_be_built(changes, folder):
    change(folder / "config.json", vision_config={**tiny_vit().to_dict(), **changes})
    with pytest.raises(ValueError):
        AutoModelForImageTextToText.from_pretrained(folder)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "field, value",
    [
        ("dtype", "x"),
        ("dtype", "nn"),
        ("dtype", 3),
        ("torch_dtype", [1]),
        ("id2label", 5),
        ("id2label", [1]),
        ("id2label", {"a": 1}),
        ("label2id", "x"),
        ("num_labels", 10**9),
        ("num_labels", "x"),
        ("vision_config", 7),
        ("vision_config", "vit"),
        ("vision_config", {}),
        ("auto_map", {"AutoConfig": "../../outside.Config"}),
        ("auto_map", {"AutoModel": ["/tmp/outside.Model"]}),
        ("auto_map", {"AutoModel": "os.path.join"}),
        ("auto_map", {"AutoModel": 5}),
        ("validate", 5),
        ("describe", "x"),
        ("attends", True),
        ("text_config", {}),
        ("decoder", 1),
        ("quantization_config", 1),
        ("attn_implementation", 7),
        ("per_layer_config", [1]),
        ("use_cache", "x"),
        ("pad_token_id", 10**9),
        ("eos_token_id", ["x"]),
        ("num_hidden_layers", "x"),
    ],
)
def test_junk_in_a_configuration(kind, field, value, tmp_path):
    settings = {**tiny_config(kind).to_dict(), "transformers_version": "5.23.0"}
    (tmp_path / "config.json").write_text(json.dumps({**settings, field: value}))
    named = {"num_hidden_layers": "num_layers|decoder_layers"}.get(field, field)
    with pytest.raises(ValueError, match=named):
        with torch.device("meta"):
            AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(tmp_path))


def test_nothing_real_is_refused():
    """Published models at the upper end: ViT-22B, ResNet-152, Swin V2-G, ConvNeXt-XXL, EfficientNet-L2."""
    largest = [
        ViTConfig(hidden_size=6144, num_hidden_layers=48, num_attention_heads=48, intermediate_size=24576),
        ResNetConfig(depths=[3, 8, 36, 3]),
        SwinConfig(embed_dim=512, depths=[2, 2, 42, 4], num_heads=[16, 32, 64, 128], image_size=1536),
        ConvNextConfig(depths=[3, 4, 30, 3], hidden_sizes=[384, 768, 1536, 3072]),
        EfficientNetConfig(width_coefficient=4.3, depth_coefficient=5.3, image_size=800),
        ViTConfig(num_labels=21843),
    ]
    for config in largest:
        check_vision_settings(config.to_dict())
    tiny_config("transformer_captioner", hidden_size=12288, decoder_layers=96, num_attention_heads=96)
    tiny_config("transformer_captioner", vocab_size=256_000, intermediate_size=49152)


def lying_header(length: int, header: bytes) -> bytes:
    return struct.pack("<Q", length) + header


def one_weight(shape, end, dtype="F32") -> bytes:
    header = json.dumps({"w": {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}}).encode()
    return lying_header(len(header), header)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not safetensors",
        lying_header(2**62, b"{}"),
        lying_header(2**40, b"{}"),
        lying_header(2, b"[]"),
        one_weight([2**40], 2**42),
        one_weight([2**31, 2**31, 2**31], 8),
        one_weight([2], 800),
        one_weight([-1], 4),
        one_weight([1], 4, "F33"),
    ],
)
def test_safetensors_with_lying_headers(content, folder):
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"model.safetensors must be safetensors that can be read"):
        load(folder)


def test_weights_that_are_not_those_of_the_configuration(folder):
    change(folder / "config.json", vocab_size=2**21)
    with pytest.raises(ValueError, match="must have the shapes that the configuration says"):
        load(folder)
    weights = load_file(folder / "model.safetensors")
    weights = {name: value for name, value in weights.items() if "embed_tokens" not in name and "head" not in name}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="must be those that the configuration describes.*embed_tokens.*is missing"):
        load(folder)


@pytest.mark.parametrize("index", [[], {}, {"weight_map": {"w": "../outside.safetensors"}}, {"weight_map": {"w": 3}}])
def test_an_index_that_points_elsewhere(index, folder):
    (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="weight_map"):
        load(folder)


class Bomb:
    """What a pickle may do when it is read."""

    def __init__(self, witness: Path):
        self.witness = witness

    def __reduce__(self):
        return os.mkdir, (str(self.witness),)


def test_a_pickle_alone(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    with pytest.raises(ValueError, match=r"must be safetensors, got a pickle \(pytorch_model.bin\)"):
        load(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "processor_config.json"])
@pytest.mark.parametrize("content", ["[]", "5", "null", '{"model": []}', '{"added_tokens": 3}', "{", "\x00"])
def test_processor_files_of_wrong_types(name, content, folder):
    (folder / name).write_text(content)
    try:
        processor = CaptionerProcessor.from_pretrained(folder)
    except (OSError, ValueError):
        with pytest.raises(InputError, match="must be the folder or Hub name of a captioner"):
            program(["caption", str(image_in(folder)), "--model", str(folder)])
        return
    # What has no effect on the rest may be wrong.
    assert processor(images=shapes_dataset(1)[0]["image"])["pixel_values"][0].shape == (3, 32, 32)


@pytest.mark.parametrize(
    "field, value",
    [
        ("image_std", 0),
        ("image_std", [0.5, 0.0, 0.5]),
        ("image_std", ["x"]),
        ("image_mean", float("nan")),
        ("image_mean", {}),
        ("size", {"height": 10**6, "width": 10**6}),
        ("size", {"height": -1, "width": 4}),
        ("size", {"height": "x", "width": 4}),
        ("size", {"shortest_edge": 10**12}),
        ("size", "x"),
        ("crop_size", {"height": 10**9, "width": 1}),
        ("rescale_factor", 1e300),
    ],
)
def test_settings_of_the_image_processor(field, value, folder):
    path = folder / "processor_config.json"
    settings = json.loads(path.read_text())
    settings["image_processor"][field] = value
    path.write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=field):
        AutoProcessor.from_pretrained(folder)


def test_templates_are_text(folder, tmp_path):
    """A chat template is kept and never run."""
    hostile = "{{ ''.__class__.__mro__[1].__subclasses__() }}{% for i in range(10**9) %}x{% endfor %}"
    (folder / "chat_template.jinja").write_text(hostile)
    captioner = pipeline("image-captioning", model=str(folder))
    assert captioner(shapes_dataset(1)[0]["image"])[0]["generated_text"] is not None


def test_weights_that_are_no_numbers(folder):
    weights = load_file(folder / "model.safetensors")
    for name in ("model.decoder.norm.weight", "model.decoder.embed_tokens.weight"):
        if name in weights:
            break
    for value in (float("nan"), float("inf")):
        weights[name] = torch.full_like(weights[name], value)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        captioner = pipeline("image-captioning", model=str(folder))
        image = shapes_dataset(1)[0]["image"]
        for options in ({}, {"num_beams": 3}, {"do_sample": True}):
            with pytest.raises(ValueError, match=f"weights must be finite numbers.*`{name}`"):
                captioner(image, **options)
    with pytest.raises(InputError, match="weights must be finite"):
        program(["caption", str(image_in(folder)), "--model", str(folder), "--output", str(folder / "out.jsonl")])


def test_vision_weights_that_are_no_numbers(folder):
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if "vision_encoder" in name and "embeddings" in name)
    weights[name] = torch.full_like(weights[name], float("nan"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    captioner = pipeline("image-captioning", model=str(folder))
    with pytest.raises(ValueError, match=f"weights must be finite numbers.*`{name}`"):
        captioner(shapes_dataset(1)[0]["image"], do_sample=True)


@pytest.mark.parametrize("name", ["num_beams", "num_return_sequences", "max_new_tokens", "max_length"])
@pytest.mark.parametrize("value", [10**6, 10**12, -1, "3", 2.5, True])
def test_what_generate_is_asked_for(name, value):
    model = tiny_model()
    with pytest.raises(ValueError, match=f"`{name}` must be a whole number from"):
        model.generate(random_images(1), **{name: value})


def test_what_a_folder_asks_generate_for(folder):
    change(folder / "generation_config.json", num_beams=10**6)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    with pytest.raises(ValueError, match="`num_beams` must be a whole number from 1 to 1000, got 1000000"):
        model.generate(random_images(1))
    assert model.generate(random_images(1), num_beams=3, max_new_tokens=3).shape[0] == 1


def test_the_command_bounds_beams(folder):
    with pytest.raises(InputError, match="'--num-beams': .* less than or equal to 1000"):
        program(["caption", "photo.png", "--model", str(folder), "--num-beams", "1000000"])


LIMITED = """
import os, resource, sys, time
import hf_captioner  # with transformers and torch, whose import is not the folder's fault
import transformers
import transformers.models.resnet.modeling_resnet, transformers.models.vit.modeling_vit
good, *folders = sys.argv[1:]
transformers.AutoProcessor.from_pretrained(good)  # once, for what is loaded lazily
transformers.AutoModelForImageTextToText.from_pretrained(good)
for folder in folders:
    if os.fork():  # a process for each, which knows its own peak of memory
        os.wait()
        continue
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    try:
        transformers.pipeline("image-captioning", model=folder)
        message = "accepted"
    except ValueError as error:
        message = str(error)
    taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(f"{time.process_time() - start:.2f} {taken / 1024:.0f} {message!r}", flush=True)
    os._exit(0)
"""


def many_layers(folder):
    change(folder / "config.json", decoder_layers=10**6)


def many_allowed_layers(folder):
    change(folder / "config.json", decoder_layers=250, hidden_size=2**13)


def many_words(folder):
    change(folder / "config.json", vocab_size=2**22, hidden_size=2**17)


def deep_vision(folder):
    change(folder / "config.json", vision_config={**tiny_vit().to_dict(), "num_hidden_layers": 10**5})


def wide_vision(folder):
    change(folder / "config.json", vision_config={**tiny_vit().to_dict(), "hidden_size": 2**20})


def many_labels(folder):
    change(folder / "config.json", num_labels=10**10)


def lying_weights(folder):
    (folder / "model.safetensors").write_bytes(one_weight([2**40], 2**42))


def wrong_tokenizer(folder):
    (folder / "tokenizer.json").write_text("[]")


SPOILED = {
    many_layers: "decoder_layers",
    many_allowed_layers: "250 layers of width 8192",  # before any is built
    many_words: "that the configuration",
    deep_vision: "num_hidden_layers",
    wide_vision: "that the configuration",
    many_labels: "num_labels",
    lying_weights: "model.safetensors",
    wrong_tokenizer: "tokenizer",
}


@pytest.mark.slow
def test_refused_in_two_seconds_and_200_megabytes(good, tmp_path, faults):
    folders = []
    for spoil in SPOILED:
        folders.append(shutil.copytree(good, tmp_path / spoil.__name__))
        spoil(folders[-1])
    command = [sys.executable, "-c", LIMITED, str(good), *map(str, folders)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=200 * PATIENCE, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line.split(" ", 2) for line in done.stdout.strip().split("\n")]
    assert len(lines) == len(folders), done.stdout
    refused = [
        float(seconds) < 2 * PATIENCE and int(megabytes) < 200 and bool(re.search(named, message))
        for (seconds, megabytes, message), named in zip(lines, SPOILED.values(), strict=True)
    ]
    faults.count("hostile folders of captioners", len(refused), sum(refused), "refused in 2 seconds and 200 MB")
    assert all(refused), done.stdout


def test_no_line_of_the_folder_runs(folder, tmp_path):
    """Without `trust_remote_code`, and where this package is installed with it, too: its own classes go first."""
    witness = tmp_path / "ran"
    for path in folder.glob("*.py"):
        path.write_text(f"import os\nos.makedirs({str(witness)!r}, exist_ok=True)\n" + path.read_text())
    for trust in (False, True):
        captioner = pipeline("image-captioning", model=str(folder), trust_remote_code=trust)
        assert captioner(shapes_dataset(1)[0]["image"])
    assert not witness.exists()
