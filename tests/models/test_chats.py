"""
Chat messages: what a processor makes of them, and transformers' own pipeline for chats with images.
`tests/sharing/test_hub.py` has a chat with captioners from the Hub, with the package and without.
"""

import base64
import io
from pathlib import Path

import pytest
import torch
from PIL import Image
from testing.tiny_models import SYSTEMS, noise_pictures, tiny_model, tiny_processor
from transformers import AutoProcessor, pipeline

from hf_captioner import CaptionerProcessor
from hf_captioner.checkpoints import PHOTOGRAPHS
from hf_captioner.models.processing_captioner import CHAT_TEMPLATE

MAX = dict(max_new_tokens=6, num_beams=2)


def user(*parts: dict | str) -> dict:
    return {"role": "user", "content": [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]}


def image(picture: Image.Image) -> dict:
    return {"type": "image", "image": picture}


def says(text: str) -> dict:
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def uri(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


def test_what_is_asked_is_no_beginning_of_a_caption(processor):
    picture = noise_pictures(1)[0]
    system = {"role": "system", "content": "You are a poet."}
    chat = [system, user("one two?", image(picture), "three")]
    found = processor.apply_chat_template(
        chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    expected = processor(picture, text="", return_tensors="pt")
    assert set(found) == {"pixel_values", "decoder_input_ids"}
    assert torch.equal(found["pixel_values"], expected["pixel_values"])
    assert found["decoder_input_ids"].tolist() == [[2]]
    assert processor.apply_chat_template(chat, add_generation_prompt=True) == ""
    ids = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_tensors="pt")
    assert ids.tolist() == [[2]]


@pytest.mark.parametrize(
    "message",
    [
        says("one two"),
        {"role": "assistant", "content": "one two"},
        {"role": "assistant", "content": [*says("one")["content"], *says(" two")["content"]]},
    ],
)
def test_the_caption_goes_on_with_what_the_assistant_says(processor, message):
    picture = noise_pictures(1)[0]
    chat = [user(image(picture), "three"), says("four"), user("five"), message]
    expected = processor(picture, text="one two", return_tensors="pt")
    options = dict(tokenize=True, return_dict=True, return_tensors="pt")
    found = processor.apply_chat_template(chat, continue_final_message=True, **options)
    assert torch.equal(found["decoder_input_ids"], expected["decoder_input_ids"])
    assert processor.apply_chat_template(chat, continue_final_message=True) == "one two"
    # an answer of its own, after what was said
    fresh = processor.apply_chat_template(chat, add_generation_prompt=True, **options)
    assert fresh["decoder_input_ids"].tolist() == [[2]]


def test_a_batch_of_chats(processor):
    pictures = noise_pictures(3)
    chats = [[user(image(picture))] for picture in pictures]
    chats[1].append(says("one two"))
    options = dict(tokenize=True, return_dict=True, return_tensors="pt")
    found = processor.apply_chat_template(chats, **options)
    expected = processor(pictures, text=["", "one two", ""], return_tensors="pt")
    assert set(found) == {"pixel_values", "decoder_input_ids", "decoder_attention_mask"}
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("counts", [[0], [2], [1, 0], [2, 1]])
def test_a_chat_has_one_image(processor, counts):
    picture = noise_pictures(1)[0]
    chats = [[user("one", *[image(picture)] * count)] for count in counts]
    chat, where = (chats[0], "") if len(counts) == 1 else (chats, rf" in chat {0 if counts[0] != 1 else 1}")
    wrong = next(count for count in counts if count != 1)
    with pytest.raises(ValueError, match=f"a chat must have one image to be captioned, got {wrong}{where}$"):
        processor.apply_chat_template(chat, tokenize=True, return_dict=True, return_tensors="pt")


def test_the_template_is_saved_and_one_of_another_kept(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    assert (tmp_path / "chat_template.jinja").read_text() == CHAT_TEMPLATE
    for loaded in (CaptionerProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        assert loaded.chat_template == CHAT_TEMPLATE
    (tmp_path / "chat_template.jinja").write_text("one")
    assert CaptionerProcessor.from_pretrained(tmp_path).chat_template == "one"
    (tmp_path / "chat_template.jinja").unlink()  # as in a folder that was saved before there was one
    assert CaptionerProcessor.from_pretrained(tmp_path).chat_template == CHAT_TEMPLATE
    assert Path(PHOTOGRAPHS, "chat_template.jinja").read_text() == CHAT_TEMPLATE


@pytest.mark.parametrize("system", ["additive", "none", "vit_transformer"])
def test_transformers_own_pipeline_takes_chats(processor, system, tmp_path):
    captioner = pipeline("image-captioning", model=tiny_model(**SYSTEMS[system]), processor=processor, device="cpu")
    general = pipeline("image-text-to-text", model=captioner.model, processor=processor, device="cpu")
    pictures = noise_pictures(3)
    captions = [captioner(picture, **MAX)[0]["generated_text"] for picture in pictures]
    assert len(set(captions)) > 1
    pictures[0].save(tmp_path / "a.png")
    for part in (
        image(pictures[0]),
        {"type": "image", "url": uri(pictures[0])},
        {"type": "image", "path": str(tmp_path / "a.png")},
        {"type": "image_url", "image_url": {"url": uri(pictures[0])}},
    ):
        (found,) = general([user(part, "What is this?")], generate_kwargs=dict(MAX))
        assert found["generated_text"][-1]["role"] == "assistant"
        assert found["generated_text"][-1]["content"].strip() == captions[0]
    chats = [[user(image(picture), "What is this?")] for picture in pictures]
    for options in ({}, {"batch_size": 3}):
        found = general(chats, return_full_text=False, generate_kwargs=dict(MAX), **options)
        assert [one[0]["generated_text"].strip() for one in found] == captions
    (begun,) = general([*chats[1], says("one two")], generate_kwargs=dict(MAX))
    expected = captioner(pictures[1], prompt="one two", **MAX)[0]["generated_text"]
    assert begun["generated_text"][-1]["content"][-1]["text"] == expected
