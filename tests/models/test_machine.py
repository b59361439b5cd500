"""How a captioner runs on the machine at hand: the same answers, images read ahead, each through the model once."""

import dataclasses
import gc
import threading
from itertools import pairwise

import pytest
import torch
from PIL import Image
from testing.tiny_models import SYSTEMS, noise_pictures, random_images, tiny_model, tiny_processor
from transformers import pipeline

from hf_captioner.models import machine_captioner
from hf_captioner.models.machine_captioner import choose_precision

MAX = dict(max_new_tokens=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("captioner")
    tiny_model(attention="additive").save_pretrained(path)
    tiny_processor().save_pretrained(path)
    return str(path)


@pytest.fixture
def seen():
    """A hook for a vision model, and how many images each of its passes had."""
    counts: list[int] = []
    return counts, lambda _, inputs: counts.append(len(inputs[0]))


@pytest.mark.parametrize("system", SYSTEMS)
def test_parts_in_another_layout_make_the_same_of_images(system, monkeypatch, seen):
    model, images = tiny_model(**SYSTEMS[system]), random_images(5)
    counts, hook = seen
    monkeypatch.setattr(machine_captioner, "PIXELS_AT_ONCE", 2 * 32 * 32 + 7)
    model.vision_encoder.register_forward_pre_hook(hook)
    with torch.no_grad():
        expected = model.get_encoder()(pixel_values=images)
        exact = choose_precision("float32").encode(model, images)
        assert counts == [5, 5]
        found = choose_precision("auto").encode(model, images)
    assert counts == [5, 5, 2, 2, 1]
    assert found.keys() == exact.keys() == expected.keys() and found.grid == expected.grid
    for name, value in expected.items():
        if name != "grid":
            torch.testing.assert_close(exact[name], value, rtol=0, atol=0)
            torch.testing.assert_close(found[name], value)


def test_half_the_bytes_are_twice_the_images_at_once():
    precision = choose_precision("auto")
    pixels = torch.zeros(9, 3, 288, 288)
    assert precision.images_at_once(pixels) == 2 and precision.images_at_once(pixels.bfloat16()) == 4
    assert precision.images_at_once(torch.zeros(3, 3, 2000, 2000)) == 1
    assert precision.images_at_once(pixels.to("meta")) == 9, "what is not a processor takes all of them"
    assert choose_precision("float32").images_at_once(pixels) == 9


def test_what_is_asked_for_is_what_pipeline_was_given(folder):
    kinds = {
        "auto": ({}, torch.float32, False),
        "float32": (dict(dtype="float32"), torch.float32, True),
        "type": (dict(dtype=torch.float32), torch.float32, True),
        "bfloat16": (dict(dtype="bfloat16"), torch.bfloat16, False),
    }
    for name, (options, dtype, exact) in kinds.items():
        pipe = pipeline("image-captioning", model=folder, device="cpu", **options)
        assert (pipe.model.dtype, pipe.precision.exact) == (dtype, exact), name
        assert pipe(noise_pictures(1), **MAX)[0][0]["generated_text"]
    made = pipeline("image-captioning", model=tiny_model(), processor=tiny_processor(), device="cpu")
    assert made.precision.exact, "a model that was made and not loaded runs as it stands"
    assert choose_precision(None) == choose_precision("auto") != choose_precision("bfloat16")
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.precision.exact = False
    with pytest.raises(ValueError, match="`dtype` must be auto, float32 or bfloat16, got 'half a number'"):
        choose_precision("half a number")


def test_float32_is_bit_for_bit_and_auto_says_the_same(folder):
    images = noise_pictures(5)
    exact = pipeline("image-captioning", model=folder, device="cpu", dtype="float32")
    pixels = exact.processor(images=images[:2], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        tokens = exact.model.generate(pixel_values=pixels, **MAX)
        logits = exact.model(pixel_values=pixels, decoder_input_ids=tokens[:, :-1]).logits
    probabilities = logits.log_softmax(-1).gather(-1, tokens[:, 1:, None]).exp()[..., 0]
    found = exact(images[:2], batch_size=2, **MAX)
    for captions, expected in zip(found, probabilities, strict=True):
        given = torch.tensor([token["probability"] for token in captions[0]["tokens"]])
        torch.testing.assert_close(given, expected[: len(given)])
    again = exact(images, batch_size=2, **MAX)
    assert again[:2] == found, "the same bits, however many images come after"
    auto = pipeline("image-captioning", model=folder, device="cpu")(images, batch_size=2, **MAX)
    for one, other in zip(again, auto, strict=True):
        assert one[0]["generated_text"] == other[0]["generated_text"]
        assert one[0]["score"] == pytest.approx(other[0]["score"], rel=1e-5)


@pytest.mark.parametrize("options", [{}, dict(num_beams=3), dict(attention=True)])
def test_every_image_passes_the_vision_model_once(folder, seen, options):
    counts, hook = seen
    pipe = pipeline("image-captioning", model=folder, device="cpu")
    pipe.model.vision_encoder.register_forward_pre_hook(hook)
    pipe(noise_pictures(5), batch_size=2, **MAX, **options)
    assert counts == [2, 2, 1]


def test_images_are_read_while_the_model_computes_and_stay_in_order(folder, tmp_path, monkeypatch):
    """The model waits, at its first batch, until an image of the second one is being read."""
    paths = []
    for number, picture in enumerate(noise_pictures(5) * 2):
        paths.append(tmp_path / f"{number}.png")
        picture.resize((40 + 3 * number, 50)).save(paths[-1])
    for number in (0, 3, 4, 9):
        paths[number].write_bytes(b"no image")
    pipe = pipeline("image-captioning", model=folder, device="cpu")
    expected = [pipe(path, on_bad_image="skip", **MAX) for path in paths]
    assert [number for number, captions in enumerate(expected) if "error" in captions[0]] == [0, 3, 4, 9]

    later, preprocess, forward = threading.Event(), type(pipe).preprocess, type(pipe)._forward

    def read(self, image, *args, **kwargs):
        if getattr(image, "place", None) == 2:
            later.set()
        return preprocess(self, image, *args, **kwargs)

    def compute(self, *args, **kwargs):
        assert later.wait(60)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(pipe), "preprocess", read)
    monkeypatch.setattr(type(pipe), "_forward", compute)
    found = pipe(paths, batch_size=2, on_bad_image="skip", **MAX)
    for number, (one, other) in enumerate(zip(expected, found, strict=True)):
        if "error" in one[0]:
            assert other == [{"error": one[0]["error"].replace("the image", f"`images[{number}]`")}]
        else:
            assert other[0]["generated_text"] == one[0]["generated_text"]
    scores = [captions[0]["score"] for captions in found if "score" in captions[0]]
    assert scores == pytest.approx([captions[0]["score"] for captions in expected if "score" in captions[0]], rel=1e-5)
    assert min(abs(one - other) for one, other in pairwise(sorted(scores))) > 5e-5, "the order must show"

    before = threading.active_count()
    with pytest.raises(ValueError, match=r"`images\[3\]` cannot be read: .*3.png'"):
        pipe([paths[1], *paths[1:4]], **MAX)
    gc.collect()  # the error's traceback holds what was being read
    assert threading.active_count() <= before, "no thread is left behind"


def test_a_data_set_is_read_by_one_thread(folder):
    """It need not stand several; what is taken out of it is decoded by others."""

    class Pictures(torch.utils.data.Dataset):
        threads: set = set()

        def __len__(self):
            return 6

        def __getitem__(self, place):
            self.threads.add(threading.get_ident())
            return Image.new("RGB", (40, 40), (40 * place, 90, 10))

    pipe = pipeline("image-captioning", model=folder, device="cpu")
    assert len(list(pipe(Pictures(), batch_size=2, **MAX))) == 6
    assert Pictures.threads == {threading.get_ident()}
