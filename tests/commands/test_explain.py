"""`hf-captioner explain`, as a user calls it, and the table of what explanations are worth."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from testing.tiny_models import SYSTEMS, tiny_model

from hf_captioner import CaptionerImageProcessor, CaptionerProcessor, train_tokenizer
from hf_captioner.commands import explanations
from hf_captioner.commands.pointing import is_hit, named_objects
from hf_captioner.commands.program import program
from hf_captioner.data import shapes_dataset
from hf_captioner.errors import InputError
from hf_captioner.explain import METHODS, deletion_and_insertion, token_maps
from hf_captioner.explain.methods import SIGNED


def save_captioner(folder, system: str):
    captions = [caption for row in shapes_dataset(20)["captions"] for caption in row]
    tokenizer = train_tokenizer(captions)
    processor = CaptionerProcessor(CaptionerImageProcessor(size={"height": 32, "width": 32}), tokenizer)
    model = tiny_model(vocab_size=len(tokenizer), **SYSTEMS[system])
    model.generation_config.max_new_tokens = 5
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, processor


@pytest.fixture(scope="module")
def captioner(tmp_path_factory):
    folder = tmp_path_factory.mktemp("explain") / "model"
    save_captioner(folder, "vit_transformer")
    return folder


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "<script> & photo.png"
    Image.effect_mandelbrot((50, 20), (-2, -1.5, 1, 1.5), 60).save(path)
    return path


def data_of(path) -> dict:
    return json.loads(re.search(r'id="data">(.*?)</script>', path.read_text(), re.DOTALL)[1])


@pytest.mark.parametrize("method", METHODS)
def test_a_page_by_every_method(captioner, photo, tmp_path, method, capsys):
    out = tmp_path / "page.html"
    program(["explain", str(photo), "-o", str(out), "--model", str(captioner), "--method", method])
    caption = capsys.readouterr().out.strip()
    data = data_of(out)
    assert caption == " ".join(word for word in data["words"] if word != "(end)")
    assert np.shape(data["maps"]) == (len(data["words"]), 4, 4) and data["signed"] is (method in SIGNED)
    assert "<title>Where the captioner looked: &lt;script&gt; &amp; photo.png</title>" in out.read_text()


@pytest.mark.parametrize("name, kind", [("words.png", "PNG"), ("words.WEBP", "WEBP")])
def test_pictures(captioner, photo, tmp_path, name, kind):
    sizes = []
    for borders in ([], ["--borders"]):
        program(["explain", str(photo), "--output", str(tmp_path / name), "--model", str(captioner), *borders])
        with Image.open(tmp_path / name) as picture:
            assert picture.format == kind and getattr(picture, "n_frames", 1) == (1 if kind == "PNG" else 5)
            sizes.append(picture.convert("RGB").tobytes())
    assert sizes[0] != sizes[1]


def test_captions_are_searched_for_or_drawn(captioner, photo, tmp_path):
    found = []
    for options in (
        [],
        ["--num_beams", "1"],
        ["--num-beams", "4"],
        ["--sample"],
        ["--sample"],
        ["--sample", "--seed", "3"],
    ):
        program(["explain", str(photo), "-o", str(tmp_path / "p.html"), "--model", str(captioner), *options])
        found.append(data_of(tmp_path / "p.html")["words"])
    greedy, one, _, drawn, again, other = found
    assert greedy == one and drawn == again and drawn != greedy and other != drawn


@pytest.mark.parametrize(
    "change, message",
    [
        ({"-o": "page.txt"}, "`--output` must end in one of .html, .png, .webp, got page.txt"),
        ({"-o": "no/page.html"}, "must be a file that can be written"),
        ({"IMAGE": "missing.jpg"}, "`IMAGE` must be an image, got missing.jpg"),
        ({"IMAGE": "text.jpg"}, "`IMAGE` must be an image, got .*text.jpg"),
        ({"--model": "."}, "`model` must be a captioner's folder or Hub name, got .: "),
        ({"--method": "saliency"}, "saliency.*is not one of"),
        ({"--sample": None, "--num-beams": "3"}, "`--num-beams` must be left out with --sample, got 3"),
    ],
)
def test_what_is_wrong_is_said(captioner, photo, tmp_path, change, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.jpg").write_text("no image")
    values = {"IMAGE": str(photo), "-o": "page.html", "--model": str(captioner), **change}
    image = values.pop("IMAGE")
    options = [part for name, value in values.items() for part in (name, value) if part is not None]
    with pytest.raises(InputError, match=message):
        program(["explain", image, *options])
    assert not list(tmp_path.glob("page.*"))


def test_a_captioner_without_attention_is_told_what_it_has(tmp_path, photo):
    save_captioner(tmp_path / "none", "none")
    call = ["explain", str(photo), "-o", str(tmp_path / "page.html"), "--model", str(tmp_path / "none")]
    with pytest.raises(InputError, match="gradient or occlusion for a captioner without attention"):
        program(call)
    program([*call, "--method", "occlusion"])
    assert data_of(tmp_path / "page.html")["signed"]


@torch.no_grad()
@pytest.mark.parametrize("references", [False, True])
def test_the_table_of_what_explanations_are_worth(references, tmp_path, monkeypatch, capsys):
    """With captions put into the captioner's mouth: each cell is the mean over the words that name a shape."""
    model, processor = save_captioner(tmp_path / "tiny", "additive")
    rows = list(shapes_dataset(3, 1))
    said = [row["captions"][0] for row in rows[:2]] + ["a circle that nobody wrote"]
    turns = iter(said)

    def generate(self, pixels, **options):
        return torch.tensor([[2, *processor.tokenizer(next(turns)).input_ids]])

    monkeypatch.setattr(type(model), "generate", generate)
    explanations.main(["--models", str(tmp_path / "tiny"), "--rows", "3", *(["--references"] if references else [])])
    head, _, *lines = capsys.readouterr().out.splitlines()
    assert head == "| captioner | exact match | words | method | pointing | deletion | insertion |"
    expected = []
    for row in rows if references else rows[:2]:
        caption = row["captions"][0]
        pixels = processor([row["image"]], return_tensors="pt")["pixel_values"]
        tokens = torch.tensor([2, *processor.tokenizer(caption).input_ids])
        maps = token_maps(model, pixels, tokens, "occlusion")
        for place, box in named_objects(processor.tokenizer.convert_ids_to_tokens(tokens[1:].tolist()), caption, row):
            areas = deletion_and_insertion(model, pixels, tokens, place, maps[place])
            expected.append([float(is_hit(maps[place], box)), *areas])
    methods = [line.split(" | ")[3] for line in lines]
    assert methods == ["attention", "gradient", "occlusion", "random"]
    cells = lines[2].strip("| ").split(" | ")
    assert cells[:3] == ["tiny", "0.667", str(len(expected))] and len(expected) >= 2
    means, errors = np.mean(expected, 0), np.std(expected, 0, ddof=1) / len(expected) ** 0.5
    for cell, mean, error in zip(cells[4:], means, errors, strict=True):
        assert [float(part) for part in cell.split(" ± ")] == pytest.approx([mean, error], abs=6e-4)
