"""What a stranger adds without touching the package: an alignment as one class, a family as two files."""

import json
import os
import subprocess
import sys

import pytest
import torch
from datasets import Dataset
from PIL import Image
from testing import ROOT
from testing.outside.configuration_gru_transformer import GruTransformerConfig
from testing.outside.modeling_gru_transformer import GruTransformerForConditionalGeneration
from testing.tiny_models import VOCAB, random_images, random_labels, randomise, tiny_config, tiny_vision
from transformers import Seq2SeqTrainingArguments, pipeline

from hf_captioner import (
    CaptionerImageProcessor,
    CaptionerProcessor,
    RnnCaptionerForConditionalGeneration,
    train_tokenizer,
)
from hf_captioner.data import CaptionCollator
from hf_captioner.models.attention import Alignment
from hf_captioner.models.configuration_rnn_captioner import ATTENTIONS
from hf_captioner.trainers import CaptioningTrainer, SelfCriticalTrainer


class CosineAlignment(Alignment):
    """e = 10 cos(W_q h, W_k a)."""

    title = "cosine"

    def __init__(self, config):
        super().__init__()
        self.query = torch.nn.Linear(config.hidden_size, config.attention_size)

    def forward(self, state, keys):
        query = self.query(state).unflatten(0, (keys.shape[0], -1))[:, None]
        return 10 * torch.nn.functional.cosine_similarity(query[:, :, :, None], keys[:, :, None], dim=-1)


@pytest.fixture
def cosine(monkeypatch):
    monkeypatch.setitem(ATTENTIONS, "cosine", CosineAlignment)


def test_an_alignment_is_one_class_and_one_name(cosine, tmp_path):
    config = tiny_config(attention_size=6)
    config = type(config)(**{**config.to_dict(), "attention": "cosine"})
    model = randomise(RnnCaptionerForConditionalGeneration(config))
    assert config.describe().endswith("with soft cosine attention")
    images, tokens = random_images(), torch.randint(0, VOCAB, (6, 5))
    outputs = model(pixel_values=images, decoder_input_ids=tokens, output_attentions=True)
    # the first step by hand: the state is the image's own, the same for both rows of an image
    encoded = model.get_encoder()(pixel_values=images)
    state, projection = encoded.initial_state[:, 0, 0], model.get_encoder().region_projection.key
    query = model.model.decoder.attention_layer.alignment.query(state)
    for row in range(6):
        keys = projection(encoded.last_hidden_state[row // 2])
        cosines = keys @ query[row // 2] / (keys.norm(dim=-1) * query[row // 2].norm())
        torch.testing.assert_close(outputs.cross_attentions[0][row, 0, 0], (10 * cosines).softmax(0))
    model.train()(pixel_values=images, labels=random_labels()).loss.backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if "vision" not in n)
    model.save_pretrained(tmp_path)
    loaded = RnnCaptionerForConditionalGeneration.from_pretrained(tmp_path)
    beams = [one.eval().generate(images, num_beams=3, max_new_tokens=5) for one in (model, loaded)]
    assert torch.equal(*beams)


@pytest.fixture(scope="module")
def family():
    tokenizer = train_tokenizer(["a red dog runs", "the cat sleeps on a mat", "two birds"])
    config = GruTransformerConfig(vision_config=tiny_vision(), vocab_size=len(tokenizer), hidden_size=16, dropout=0.0)
    torch.manual_seed(0)
    model = randomise(GruTransformerForConditionalGeneration(config))
    model.generation_config.max_new_tokens = 6
    return model, CaptionerProcessor(CaptionerImageProcessor(size={"height": 16, "width": 32}), tokenizer)


def pictures(count=4):
    return [Image.effect_noise((48, 24), 60 + 30 * index).convert("RGB") for index in range(count)]


LOAD = """
import json, sys
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
import hf_captioner

model = AutoModelForImageTextToText.from_pretrained("saved", trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained("saved", trust_remote_code=True)
inputs = processor(Image.open("picture.png"), return_tensors="pt")
print(json.dumps([type(model).__module__, model.generate(**inputs, num_beams=3).tolist()]))
"""


def test_a_family_saves_and_loads_in_a_process_that_never_heard_of_it(family, tmp_path):
    model, processor = family
    model.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    card = (tmp_path / "saved" / "README.md").read_text()
    assert model.config.describe() in card
    picture = pictures(1)[0]
    picture.save(tmp_path / "picture.png")
    (tmp_path / "load.py").write_text(LOAD)
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "load.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    module, tokens = json.loads(done.stdout.splitlines()[-1])
    assert module.startswith("transformers_modules")
    inputs = processor(picture, return_tensors="pt")
    assert tokens == model.generate(**inputs, num_beams=3).tolist()


def test_a_family_generates_and_shows_where_it_looked(family):
    model, processor = family
    inputs = processor(pictures(3), return_tensors="pt")
    asked = dict(num_beams=4, output_attentions=True, return_dict_in_generate=True)
    outputs = model.generate(**inputs, **asked)
    maps = model.attention_maps(outputs)
    assert maps.shape[2:] == (2, 4)  # 16 x 32 pixels
    ended = ~model.ends_before(outputs.sequences[:, 1 : 1 + maps.shape[1]])
    torch.testing.assert_close(maps.flatten(2).sum(-1), ended.float())
    # rows per image: beams of repeated images are the same beams
    for index in range(3):
        alone = model.generate(inputs["pixel_values"][[index]], **asked).sequences
        assert torch.equal(outputs.sequences[index, : alone.shape[1]], alone[0])
    captioner = pipeline("image-captioning", model=model, processor=processor, device="cpu")
    (caption,) = captioner(pictures(1)[0], attention=True)
    assert 0 < caption["score"] <= 1 and caption["attention"].shape[1:] == (2, 4)


@pytest.mark.parametrize("trainer_class", [CaptioningTrainer, SelfCriticalTrainer])
def test_a_family_is_trained_by_words_and_by_reward(family, tmp_path, trainer_class):
    model, processor = family
    captions = [["a red dog runs"], ["two birds", "a dog"], ["the cat sleeps on a mat"], ["a mat"]]
    data = Dataset.from_dict({"image": pictures(), "captions": captions, "index": list(range(4))})
    arguments = Seq2SeqTrainingArguments(
        tmp_path,
        max_steps=2,
        per_device_train_batch_size=2,
        report_to="none",
        use_cpu=True,
        remove_unused_columns=False,
    )
    more = {} if trainer_class is CaptioningTrainer else {"references": captions, "samples_per_image": 3}
    before = model.lm_head.weight.detach().clone()
    trainer = trainer_class(
        model=model,
        args=arguments,
        train_dataset=data,
        data_collator=CaptionCollator(processor),
        processing_class=processor,
        **more,
    )
    trainer.train()
    assert not torch.equal(before, model.lm_head.weight)
