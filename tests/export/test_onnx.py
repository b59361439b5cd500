"""Exported captioners: the same words, probabilities and attention as torch gives, without torch."""

import json
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from testing import ROOT
from testing.tiny_models import IMAGE, SYSTEMS, noise_pictures, tiny_model, tiny_processor
from transformers import pipeline

from hf_captioner.commands import export as export_command
from hf_captioner.errors import InputError
from hf_captioner.export import OnnxCaptioner
from hf_captioner.export.int8 import quantize_filters
from hf_captioner.export.onnx_graphs import export_onnx

SEARCHES = (
    {"num_beams": 1},
    {"num_beams": 1, "min_new_tokens": 4, "prompt": "one b"},
    {"num_beams": 5, "num_return_sequences": 3},
    {"num_beams": 3, "length_penalty": 0.0, "early_stopping": True, "no_repeat_ngram_size": 2},
    {"num_beams": 4, "length_penalty": 2.0, "early_stopping": "never", "prompt": "c"},
)


def captioner(**settings):
    model = tiny_model(**settings)
    if model.familiarity is not None:
        for buffer in model.familiarity.buffers():
            buffer.uniform_(0.1, 0.5)
    model.generation_config.update(max_new_tokens=8, suppress_tokens=[0])
    return model


def pictures(count: int = 5) -> list[Image.Image]:
    """Of other colours, sizes and modes."""
    images = noise_pictures(count)
    images[1].putalpha(Image.linear_gradient("L").resize(images[1].size))
    return images


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """An attention captioner's own folder with its export, and the model."""
    folder = tmp_path_factory.mktemp("exported")
    model = captioner(attention="additive", num_layers=2)
    model.save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    export_command.main(["--model", str(folder), "--output", str(folder)])
    return folder, model


# An export takes seconds: of kinds that differ little, one is tried every time and the others in the long run.
OFTEN = ("none", "hard_multi_head", "cnn_transformer_pre_learned")

MORE = {
    "none": {"cell": "gru", "num_layers": 2, "context_norm": True},
    "multi_head": {"cell": "gru"},
    "additive": {"familiarity_rank": 3, "score_temperature": 1.7},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in OFTEN else pytest.mark.long) for name in SYSTEMS]
)
def test_answers_as_the_pipeline(name, tmp_path):
    model = captioner(**SYSTEMS[name], **MORE.get(name, {}))
    theirs = pipeline("image-captioning", model=model, processor=tiny_processor(), device="cpu")
    ours = OnnxCaptioner(export_onnx(model, tiny_processor(), tmp_path))
    images, attention = pictures(), model.config.attends
    seen = set()
    for options in SEARCHES:
        expected = theirs(images, attention=attention, **options)
        found = ours(images, attention=attention, batch_size=2, **options)
        assert [len(captions) for captions in found] == [options.get("num_return_sequences", 1)] * len(images)
        for one, two in zip(sum(found, []), sum(expected, []), strict=True):
            assert one["generated_text"] == two["generated_text"], options
            assert one["score"] == pytest.approx(two["score"], rel=1e-4)
            assert [token["token"] for token in one["tokens"]] == [token["token"] for token in two["tokens"]]
            probabilities = [[token["probability"] for token in each["tokens"]] for each in (one, two)]
            np.testing.assert_allclose(*probabilities, rtol=2e-4)
            assert one.get("familiarity", 1.0) == pytest.approx(two.get("familiarity", 1.0), rel=1e-4)
            assert ("attention" in one) == attention
            if attention:
                np.testing.assert_allclose(one["attention"], two["attention"], atol=1e-4)
            seen.add(one["generated_text"])
    assert len(seen) > len(images), "images and searches must matter"


def step_by_step(folder: Path, pixels: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Logits (B, k, T, vocabulary) of the two graphs, run by hand."""
    encoder, decoder = (
        onnxruntime.InferenceSession(folder / "onnx" / f"{name}_model.onnx") for name in ("encoder", "decoder")
    )
    names = [output.name for output in encoder.get_outputs()]
    given = dict(zip(names, encoder.run(None, {"pixel_values": pixels}), strict=True))
    del given["grid"]
    given = {
        name: value.repeat(tokens.shape[1], axis=1) if name.startswith("state.") else value
        for name, value in given.items()
    }
    logits = []
    for place in range(tokens.shape[2]):
        outputs = decoder.run(None, {"input_ids": tokens[..., place], **given})
        found = dict(zip((output.name for output in decoder.get_outputs()), outputs, strict=True))
        given |= {name[len("new_") :]: value for name, value in found.items() if name.startswith("new_state.")}
        logits.append(found["logits"])
    return np.stack(logits, axis=2)


def test_logits_are_torchs_for_any_number_of_images_rows_and_words(exported):
    folder, model = exported
    random = np.random.default_rng(3)
    for images, rows, words in ((1, 1, 1), (4, 1, 5), (3, 4, 11)):
        pixels = random.standard_normal((images, 3, IMAGE, IMAGE), np.float32)
        tokens = random.integers(4, 40, (images, rows, words))
        with torch.no_grad():
            expected = model(torch.tensor(pixels), decoder_input_ids=torch.tensor(tokens)).logits
        found = step_by_step(folder, pixels, tokens)
        np.testing.assert_allclose(found.reshape(expected.shape), expected.numpy(), atol=1e-4)


def test_the_captioners_own_folder_gets_nothing_but_the_graphs(exported):
    folder, model = exported
    assert sorted(path.name for path in (folder / "onnx").iterdir()) == ["decoder_model.onnx", "encoder_model.onnx"]
    config = json.loads((folder / "config.json").read_text())
    assert config["auto_map"]["AutoConfig"] == "configuration_rnn_captioner.RnnCaptionerConfig"
    with pytest.raises(InputError, match="another captioner's"):
        export_onnx(captioner(), tiny_processor(), folder)


def test_runs_where_only_four_packages_are(exported, tmp_path):
    folder, _ = exported
    picture = tmp_path / "picture.png"
    pictures()[0].save(picture)
    site = tmp_path / "site"
    site.mkdir()
    needed = ["numpy", "onnxruntime", "pillow", "tokenizers", "flatbuffers", "protobuf", "packaging"]
    for name in needed:
        package = distribution(name)
        tops = {Path(file).parts[0] for file in package.files if not str(file).startswith("..")}
        for top in tops - {"__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(package.locate_file(top))
    (site / "hf_captioner").symlink_to(ROOT / "hf_captioner")
    code = (
        f"import sys; sys.path.append({str(site)!r})\n"
        "from hf_captioner.export import OnnxCaptioner\n"
        f"print(OnnxCaptioner({str(folder)!r})({str(picture)!r}, num_beams=3)[0]['generated_text'])\n"
        "assert not {'torch', 'transformers', 'huggingface_hub', 'datasets'} & set(sys.modules)\n"
        "import hf_captioner\n"
        "try: hf_captioner.RnnCaptionerConfig\n"
        "except ImportError as error: print(error)\n"
    )
    run = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    expected = OnnxCaptioner(folder)(picture, num_beams=3)[0]["generated_text"]
    assert run.stdout.splitlines() == [
        expected,
        "hf_captioner.RnnCaptionerConfig must have the package torch, which is not installed",
    ]


def test_filters_of_8_bits_are_the_nearest(tmp_path):
    torch.manual_seed(0)
    layers = torch.nn.Sequential(
        torch.nn.Conv2d(3, 40, 3, groups=1, bias=True),  # small
        torch.nn.Conv2d(40, 40, 23, groups=40),  # depthwise
        torch.nn.Conv2d(40, 600, 1),
    ).eval()
    images = torch.randn(2, 3, 40, 40)
    torch.onnx.export(layers, (images,), tmp_path / "one.onnx", verbose=False, external_data=False)
    quantize_filters(tmp_path / "one.onnx", tmp_path / "two.onnx")
    weight = layers[2].weight
    scale = weight.abs().amax((1, 2, 3), keepdim=True) / 127
    with torch.no_grad():
        layers[2].weight.copy_((weight / scale).round() * scale)
        expected = layers(images).numpy()
    session = onnxruntime.InferenceSession(tmp_path / "two.onnx")
    found = session.run(None, {session.get_inputs()[0].name: images.numpy()})[0]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    smaller = weight.numel() * 3
    sizes = [(tmp_path / name).stat().st_size for name in ("one.onnx", "two.onnx")]
    assert sizes[0] - sizes[1] == pytest.approx(smaller, rel=0.1)


def test_8_bits_say_nearly_the_same(exported, tmp_path):
    _, model = exported
    ours = OnnxCaptioner(export_onnx(model, tiny_processor(), tmp_path, int8=True))
    assert {path.name for path in (tmp_path / "onnx").iterdir()} == {
        "decoder_model_quantized.onnx",
        "encoder_model_quantized.onnx",
    }
    pixels = np.stack([ours.pixels(image) for image in pictures()])
    with torch.no_grad():
        expected = model(torch.tensor(pixels), decoder_input_ids=torch.full((5, 1), 2)).logits[:, 0].softmax(-1)
    states = dict(
        zip(
            (each.name for each in ours.encoder.get_outputs()),
            ours.encoder.run(None, {"pixel_values": pixels}),
            strict=True,
        )
    )
    del states["grid"]
    logits = ours.decoder.run(["logits"], {"input_ids": np.full((5, 1), 2), **states})[0][:, 0]
    found = torch.tensor(logits).softmax(-1)
    assert 1e-6 < (found - expected).abs().max() < 0.05


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model, images: model.generation_config.update(do_sample=True), "`do_sample` must be left out"),
        (lambda model, images: model.generation_config.update(max_new_tokens=None), "`max_new_tokens` must be in"),
        (lambda model, images: setattr(images, "do_center_crop", True), "`do_center_crop` must be off"),
        (lambda model, images: setattr(images, "size", {"shortest_edge": 32}), "`size` of the image processor must"),
    ],
)
def test_what_it_cannot_do_is_refused_before_anything_is_written(change, message, tmp_path):
    model, both = captioner(), tiny_processor()
    change(model, both.image_processor)
    with pytest.raises(InputError, match=message):
        export_onnx(model, both, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 0}, "`num_beams` must be a whole number from 1 on, got 0"),
        ({"num_beams": 2, "num_return_sequences": 3}, "must be at most `num_beams`, got 3 of 2"),
        ({"early_stopping": "soon"}, "`early_stopping` must be"),
        ({"beams": 3}, "`beams` is not an option"),
    ],
)
def test_wrong_options_are_refused(exported, options, message):
    with pytest.raises(InputError, match=message):
        OnnxCaptioner(exported[0])(pictures()[0], **options)


def test_one_bad_image_is_named(exported, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_text("no image")
    with pytest.raises(InputError, match="bad.png"):
        OnnxCaptioner(exported[0])([pictures()[0], bad])
    with pytest.raises(InputError, match=r"images\[1\]"):
        OnnxCaptioner(exported[0])([pictures()[0], np.zeros((0, 0, 3), np.uint8)])


def test_a_folder_that_is_not_complete_is_named(exported, tmp_path):
    with pytest.raises(InputError, match="with encoder_model_quantized.onnx; got"):
        OnnxCaptioner(tmp_path)
