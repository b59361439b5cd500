"""What requests hold: images as bytes and text, chats in OpenAI's format."""

import base64
import copy

import numpy as np
import pytest
from PIL import Image
from testing.pictures import GOOD, bomb, noise, saved

from hf_captioner.commands.uploads import ImageText, Upload, decoded, formats, read_chat, read_images
from hf_captioner.errors import InputError

PIXELS = 1_000_000
URI = "data:image/png;base64," + base64.b64encode(saved(noise())).decode()


def part(url: str = URI) -> dict:
    return {"type": "image_url", "image_url": {"url": url}}


def text(words: str) -> dict:
    return {"type": "text", "text": words}


def user(*parts: dict) -> dict:
    return {"role": "user", "content": list(parts)}


def test_bytes_and_text_are_the_same_image():
    content = saved(noise(seed=3))
    plain = base64.b64encode(content).decode()
    wrapped = "\n".join(plain[start : start + 76] for start in range(0, len(plain), 76))
    uploads = [Upload("a", content, most_pixels=PIXELS)]
    for written in (plain, wrapped, f"data:image/png;base64,{plain}", f"DATA:;BASE64,{plain}"):
        uploads.append(Upload("a", text=written, most_pixels=PIXELS))
    for upload in uploads:
        assert (np.asarray(upload.source()) == noise(seed=3)).all()


def test_the_formats_are_those_of_cameras_and_pages():
    assert {"JPEG", "PNG", "WEBP", "TIFF"} <= set(formats()) and not {"EPS", "ICO", "PDF", "PSD"} & set(formats())
    for name, (content, _) in GOOD.items():
        assert Upload(name, content, most_pixels=PIXELS).source().size, name
    for kind in ("ICO", "PCX"):
        with pytest.raises(OSError, match=r"cannot identify an image \(.*JPEG.*\) in \d+ bytes"):
            Upload("a", saved(noise(), kind), most_pixels=PIXELS).source()
    # would be handed to Ghostscript, a program of its own
    with pytest.raises(OSError, match="cannot identify"):
        Upload("a", saved(noise(), "EPS"), most_pixels=PIXELS).source()


def test_images_of_too_many_pixels_are_refused_before_they_are_decoded():
    for content, got in ((bomb(), "more than Pillow opens"), (saved(Image.new("1", (1001, 1000))), "1001 x 1000")):
        with pytest.raises(InputError, match=f"an image must have at most 1,000,000 pixels, got {got}"):
            Upload("a", content, most_pixels=PIXELS).source()
    assert Upload("a", saved(Image.new("1", (1000, 1000))), most_pixels=PIXELS).source().size == (1000, 1000)


TRICKS = [
    "../../etc/passwd",
    "/etc/passwd",
    "file:///etc/passwd",
    "FILE://localhost/etc/passwd",
    "ftp://127.0.0.1/a.png",
    "~/.ssh/id_rsa",
    "\\\\host\\share\\a.png",
    "data:image/png,abc",
    "data:image/png;base64",
    "data:file:///etc/passwd;base64",
    "a\0b",
    "AAA",
    "\ud800",
]


@pytest.mark.parametrize("trick", TRICKS)
def test_text_is_never_a_path(trick):
    with pytest.raises(InputError, match="must be base64 text|must have base64 text"):
        decoded(trick)


def test_a_file_of_that_name_is_not_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "abcd").write_bytes(saved(noise()))  # a name that is base64 as well
    with pytest.raises(OSError, match="in 3 bytes"):
        Upload("abcd", text="abcd", most_pixels=PIXELS).source()


def test_a_long_text_is_not_echoed_whole():
    for words in ("?" * 100_000, "data:" + "a" * 100_000):
        with pytest.raises(InputError) as raised:
            decoded(words)
        assert len(str(raised.value)) < 300


def test_images_in_json():
    assert read_images({"image": URI}) == ([ImageText("image", URI)], None)
    found, prompt = read_images({"images": [URI, "x"], "prompt": "a dog"})
    assert found == [ImageText("images[0]", URI), ImageText("images[1]", "x")] and prompt == "a dog"


@pytest.mark.parametrize(
    "body,message",
    [
        ([], "an object with `image` or `images`"),
        ({}, "an object with `image` or `images`"),
        ({"image": "a", "images": []}, "an object with `image` or `images`"),
        ({"images": []}, "`images` must be a list of at least one image"),
        ({"images": "a"}, "`images` must be a list of at least one image"),
        ({"images": {"a": "b"}}, "`images` must be a list of at least one image"),
        ({"image": {"a": "b"}}, "`image` must be base64"),
        ({"image": None}, "`image` must be base64"),
        ({"images": ["a", 7]}, r"`images\[1\]` must be base64"),
        ({"image": "a", "prompt": 7}, "`prompt` must be text"),
        ({"image": "a", "prompt": "a" * 501}, "`prompt` must be text of at most 500"),
        ({"image": "a", "prompt": "\ud800"}, "`prompt` must be text that can be written"),
    ],
)
def test_other_json_is_refused(body, message):
    with pytest.raises(InputError, match=message):
        read_images(body)


def test_the_last_image_is_captioned_and_what_is_asked_left_out():
    chat = read_chat({"messages": [user(text("What is this?"), part())], "temperature": 0.3, "tools": [1]})
    assert (chat.image.text, chat.image.name) == (URI, "messages[0].content[1].image_url.url")
    assert (chat.prompt, chat.model, chat.choices, chat.most_tokens) == (None, None, 1, None)
    assert not chat.stream and not chat.usage
    talk = [
        {"role": "system", "content": "Be brief."},
        user(part("data:;base64,AAAA")),
        {"role": "assistant", "content": "a cat"},
        user(part(), text("And this?")),
        {"role": "assistant", "content": None, "tool_calls": []},
        user(text("Really?")),
    ]
    chat = read_chat({"messages": talk, "model": "m", "stream": True, "stream_options": {"include_usage": True}})
    assert (chat.image.text, chat.prompt, chat.model, chat.stream, chat.usage) == (URI, None, "m", True, True)
    plain = {"type": "image_url", "image_url": URI}
    assert read_chat({"messages": [user(plain)], "n": 3, "max_tokens": 4}, most_choices=3).most_tokens == 4


def test_the_caption_goes_on_with_what_the_assistant_has_begun():
    for content in ("a small dog", [text("a small"), text(" dog")]):
        chat = read_chat({"messages": [user(part()), {"role": "assistant", "content": content}]})
        assert chat.prompt == "a small dog"


GOOD_CHAT = {"model": "m", "messages": [user(part())]}


@pytest.mark.parametrize(
    "changes,message",
    [
        (dict(messages=[]), "`messages` must be a list of at least one"),
        (dict(messages="hello"), "`messages` must be a list"),
        (dict(messages=[7]), r"`messages\[0\]` must be an object with a `role`"),
        (dict(messages=[{"content": "a"}]), "with a `role`"),
        (dict(messages=[{"role": "cat", "content": "a"}]), "with a `role`"),
        (dict(messages=[{"role": ["user"], "content": "a"}]), "with a `role`"),
        (dict(messages=[{"role": "user", "content": 7}]), r"`messages\[0\].content` must be text or a list"),
        (dict(messages=[user(text("Hello"))]), "`messages` must have one image .*got 0$"),
        (dict(messages=[user(part(), part())]), "`messages` must have one image .*got 2 in the last message"),
        (dict(messages=[user({"type": "input_audio"})]), r"`messages\[0\].content\[0\]` must be a part of type text"),
        (dict(messages=[user({"type": "text", "text": 7})]), "must be a part of type text"),
        (dict(messages=[user("a")]), "must be a part of type text"),
        (dict(messages=[user({"type": "image_url", "image_url": {"url": 7}})]), "must be a `data:` URI, got 7"),
        (dict(messages=[user({"type": "image_url"})]), "must be a `data:` URI, got None"),
        (
            dict(messages=[user(part()), {"role": "assistant", "content": "a" * 501}]),
            "`prompt` must be text of at most",
        ),
        (dict(model=7), "`model` must be a name"),
        (dict(stream="yes"), "`stream` must be true or false"),
        (dict(stream_options=7), "`stream_options` must be an object"),
        (dict(n=2), "`n` must be a whole number, from 1 to 1, .*got 2"),
        (dict(n=0), "`n` must be a whole number"),
        (dict(n=True), "`n` must be a whole number"),
        (dict(max_tokens=0), "`max_tokens` must be a whole number, at least 1, got 0"),
        (dict(max_completion_tokens=1.5), "`max_completion_tokens` must be a whole number"),
        (dict(response_format={"type": "json_object"}), "`response_format` must be text"),
        (dict(logprobs=True), "`logprobs` must be left out"),
        (dict(modalities=["text", "audio"]), "`modalities` must be text"),
    ],
)
def test_chats_that_a_captioner_cannot_answer(changes, message):
    read_chat(copy.deepcopy(GOOD_CHAT))
    with pytest.raises(InputError, match=message):
        read_chat({**GOOD_CHAT, **changes})
    with pytest.raises(InputError, match="must be an object in JSON"):
        read_chat([GOOD_CHAT])
