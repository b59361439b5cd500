"""Other people's captioners as ours: the same logits from pixels and the same captions; the rest is refused."""

import json
import re
import shutil

import pytest
import torch
from PIL import Image
from testing.peers import CAPTIONS, SHAPES, peer_folder, random_peer
from testing.tiny_models import random_images, random_labels
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    ResNetConfig,
    VisionEncoderDecoderConfig,
    pipeline,
)
from transformers.models.auto.image_processing_auto import AutoImageProcessor  # 5.17's top demands torchvision

from hf_captioner.commands.program import program
from hf_captioner.data import CaptionCollator, shapes_dataset
from hf_captioner.errors import InputError
from hf_captioner.sharing import convert_captioner, convert_model

SETTINGS = {
    **{shape: (shape, {}) for shape in SHAPES},
    "untied": ("vit_projected", dict(tie_word_embeddings=False)),
    "scores": ("vit", dict(scale_attn_by_inverse_layer_idx=True, scale_attn_weights=False)),
    "sizes": ("swin_projected", dict(n_inner=20, n_head=3, n_layer=3, activation_function="relu", n_positions=20)),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_same_logits_and_captions_from_pixels(name):
    shape, changes = SETTINGS[name]
    peer = random_peer(shape, **changes)
    if name == "untied":
        with torch.no_grad():
            peer.decoder.lm_head.weight = torch.nn.Parameter(torch.randn_like(peer.decoder.lm_head.weight))
    ours, pixels = convert_model(peer), random_images(5)
    vocabulary = ours.config.vocab_size
    tokens = torch.randint(vocabulary, (5, 11), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        found, expected = (
            model(pixel_values=pixels, decoder_input_ids=tokens).logits.log_softmax(-1) for model in (ours, peer)
        )
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    for options in (dict(num_beams=1), dict(num_beams=5, length_penalty=0.7, num_return_sequences=2)):
        sequences = ours.generate(pixels, **options), peer.generate(pixels, **options)
        assert torch.equal(*sequences)
        assert len(sequences[0].unique(dim=0)) > 2  # images show in what is said


@pytest.mark.parametrize("shape", ["vit", "deit", "swin_projected"])
def test_tokens_without_a_place_are_attended_to_but_not_in_the_maps(shape):
    peer = random_peer(shape)
    ours, pixels = convert_model(peer), random_images(2)
    tokens = torch.randint(ours.config.vocab_size, (2, 4), generator=torch.Generator().manual_seed(4))
    ours.generation_config.max_length = None
    options = dict(max_new_tokens=4, output_attentions=True, return_dict_in_generate=True)
    outputs = ours.generate(pixels, **options)
    maps = ours.attention_maps(outputs)
    prefix = {"vit": 1, "deit": 2, "swin_projected": 0}[shape]
    assert outputs.cross_attentions[0][-1].shape[-1] == prefix + maps.shape[2] * maps.shape[3]
    peer.set_attn_implementation("eager")
    theirs = peer(pixel_values=pixels, decoder_input_ids=tokens, output_attentions=True).cross_attentions[-1]
    here = ours(pixel_values=pixels, decoder_input_ids=tokens, output_attentions=True).cross_attentions[-1]
    torch.testing.assert_close(here, theirs, atol=1e-4, rtol=0)
    kept = outputs.cross_attentions[0][-1][:, :, -1, prefix:].mean(1).unflatten(-1, outputs.grid)
    torch.testing.assert_close(maps[:, 0], kept)


@pytest.mark.parametrize("shape", ["vit", "deit"])
def test_a_whole_folder(tmp_path, shape):
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    peer = peer_folder(theirs, shape)
    difference = convert_captioner(str(theirs), ours)
    assert 0 < difference < 1e-4 * 10
    captioner = pipeline("image-captioning", model=str(ours))
    images = [image.resize((50, 37 + 6 * i)) for i, image in enumerate(shapes_dataset(3)["image"])]
    # Pixels, words and settings are theirs.
    pixels = AutoImageProcessor.from_pretrained(theirs)(images, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(
        captioner.processor(images=images, return_tensors="pt")["pixel_values"], pixels, atol=0.02, rtol=0
    )
    tokenizer = AutoTokenizer.from_pretrained(theirs)
    texts = [text.strip() for text in tokenizer.batch_decode(peer.generate(pixels), skip_special_tokens=True)]
    said = [found[0] for found in captioner(images)]
    assert [found["generated_text"] for found in said] == texts and len(set(texts)) > 1
    for image, row in zip(images, said, strict=True):  # the end of a caption counts, although it is the padding, too
        (tokens,) = captioner.model.generate(captioner.processor(image, return_tensors="pt")["pixel_values"])
        assert len(row["tokens"]) == len(tokens) - 1
    card = (ours / "README.md").read_text()
    assert "## Origin" in card and str(theirs) in card and "license: apache-2.0" in card
    assert {path.name for path in ours.iterdir()} >= {
        *("config.json", "model.safetensors", "generation_config.json", "processor_config.json", "tokenizer.json"),
        *("conversion.json", "modeling_transformer_captioner.py", "pipeline_captioner.py"),
    }


def test_what_was_converted_can_be_trained(tmp_path):
    peer_folder(tmp_path / "theirs")
    convert_captioner(str(tmp_path / "theirs"), tmp_path / "ours")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "ours")
    processor = AutoProcessor.from_pretrained(tmp_path / "ours")
    end = model.config.eos_token_id
    labels = processor(text_target=CAPTIONS)["labels"]
    plain = AutoTokenizer.from_pretrained(tmp_path / "theirs")(CAPTIONS)["input_ids"]
    assert [[token for token in row if token != -100] for row in labels] == [[*ids, end] for ids in plain]
    image = Image.new("RGB", (40, 40), "red")
    rows = [{"image": image, "captions": CAPTIONS}, {"image": image, "captions": CAPTIONS[:1]}]
    batch = CaptionCollator(processor)(rows)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(4):
        loss = model.train()(**{name: batch[name] for name in ("pixel_values", "labels")}).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_without_padding_the_start_token_stands_behind_a_caption():
    model = convert_model(random_peer())
    labels = random_labels()
    shifted = model.prepare_decoder_input_ids_from_labels(labels)
    start = model.config.decoder_start_token_id
    assert model.config.pad_token_id is None and (shifted[..., 0] == start).all()
    assert torch.equal(shifted[..., 1:], labels[..., :-1].masked_fill(labels[..., :-1] == -100, start))


def other_decoder(folder):
    settings = json.loads((folder / "config.json").read_text())
    settings["decoder"] = {"model_type": "bert", "vocab_size": 300}
    (folder / "config.json").write_text(json.dumps(settings))


def other_encoder(folder):
    encoder = ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1])
    decoder = GPT2Config(vocab_size=300, n_embd=8, n_layer=1, n_head=1)
    VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder).save_pretrained(folder)


def no_captioner(folder):
    GPT2LMHeadModel(GPT2Config(vocab_size=30, n_embd=8, n_layer=1, n_head=1)).save_pretrained(folder)


def other_epsilon(folder):
    settings = json.loads((folder / "config.json").read_text())
    settings["decoder"]["layer_norm_epsilon"] = 1e-3
    (folder / "config.json").write_text(json.dumps(settings))


def pickle_alone(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def lacking_weights(folder):
    settings = json.loads((folder / "config.json").read_text())
    settings["decoder"]["n_layer"] = 3
    (folder / "config.json").write_text(json.dumps(settings))


def no_tokenizer(folder):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()


def no_images(folder):
    (folder / "preprocessor_config.json").unlink()


def sgrvinod(folder):
    (folder / "BEST_checkpoint_coco_5_cap_per_img_5_min_word_freq.pth.tar").write_bytes(b"never opened")


def ruotianluo(folder):
    (folder / "model.pth").write_bytes(b"never opened")
    (folder / "infos_att2in.pkl").write_bytes(b"never opened")


@pytest.mark.parametrize(
    "spoil, message",
    [
        (other_decoder, "the decoder must be gpt2, got 'bert'"),
        (other_encoder, "the encoder must be one of vit, deit, swin, got 'resnet'"),
        (no_captioner, "`model_type` must be vision-encoder-decoder, got 'gpt2'"),
        (other_epsilon, "`layer_norm_epsilon` of the decoder must be 1e-05, got 0.001"),
        (pickle_alone, "must have its weights in safetensors.*--revision"),
        (lacking_weights, r"must have all weights, got none for decoder.transformer.h.2"),
        (no_tokenizer, "must have an image processor and a tokenizer"),
        (no_images, "must have an image processor and a tokenizer"),
        (sgrvinod, "sgrvinod.*gate for each channel.*not opened"),
        (ruotianluo, "ruotianluo.*maxout.*not opened"),
    ],
)
def test_what_cannot_be_converted_is_refused_with_the_reason(tmp_path, spoil, message):
    peer_folder(tmp_path / "theirs")
    spoil(tmp_path / "theirs")
    with pytest.raises(InputError) as error:
        convert_captioner(str(tmp_path / "theirs"), tmp_path / "ours")
    assert re.search(message, str(error.value)), error.value
    assert not (tmp_path / "ours").exists()


def test_a_checkpoint_of_another_project_is_known_by_its_name(tmp_path):
    path = tmp_path / "BEST_checkpoint.pth.tar"
    path.write_bytes(b"never opened")
    with pytest.raises(InputError, match="sgrvinod"):
        convert_captioner(str(path), tmp_path / "ours")
    with pytest.raises(InputError, match="a folder, or a repository"):
        convert_captioner(str(tmp_path / "nothing/is/here"), tmp_path / "ours")


def test_a_conversion_that_says_something_else_is_not_written(tmp_path, monkeypatch):
    peer_folder(tmp_path / "theirs")
    monkeypatch.setattr("hf_captioner.sharing.conversion.TOLERANCE", 1e-12)
    with pytest.raises(InputError, match="must give the same logits"):
        convert_captioner(str(tmp_path / "theirs"), tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_the_command(tmp_path, capsys):
    peer_folder(tmp_path / "theirs")
    program(["convert", str(tmp_path / "theirs"), "--output", str(tmp_path / "ours")])
    assert "logits differ by at most" in capsys.readouterr().out
    with pytest.raises(InputError, match="`--output` must be a new or an empty folder"):
        program(["convert", str(tmp_path / "theirs"), "--output", str(tmp_path / "ours")])
    shutil.rmtree(tmp_path / "theirs")
    AutoModelForImageTextToText.from_pretrained(tmp_path / "ours")
