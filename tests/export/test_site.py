"""The page without a server, in a real browser: what it shows and says, and that its captions are Python's."""

import io
import json
import shutil
import subprocess
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import onnx
import pytest
from datasets import load_dataset
from onnx import TensorProto, helper
from PIL import Image, ImageDraw, ImageFilter
from testing.browser import fits
from testing.tiny_models import SYSTEMS, WORDS, noise_pictures, tiny_model, tiny_processor

from hf_captioner import train_tokenizer
from hf_captioner.checkpoints import PHOTOGRAPHS
from hf_captioner.commands import site as site_command
from hf_captioner.commands.inputs import read_captioner
from hf_captioner.errors import InputError
from hf_captioner.export import OnnxCaptioner, static_site
from hf_captioner.export.onnx_graphs import export_onnx

LOADING = 300_000  # milliseconds; a busy machine needs many seconds


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The page of the captioner in the box, built once: in a folder of a folder, for which it must not care."""
    for name in ("node", "npm"):
        if shutil.which(name) is None:
            pytest.skip(f"no {name}, which builds the page")
    if subprocess.run(["npm", "ping"], capture_output=True, timeout=120).returncode:
        pytest.skip("npm does not reach its registry")
    folder = tmp_path_factory.mktemp("host") / "some where" / "site"
    site_command.main(["--output", str(folder)])
    return folder


@pytest.fixture
def serve():
    """`serve(folder)` gives the address of a folder's page."""
    servers = []

    def start(folder: Path) -> str:
        server = ThreadingHTTPServer(("localhost", 0), partial(Quiet, directory=folder.parents[1]))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://localhost:{server.server_port}/{folder.parent.name}/{folder.name}/"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def with_model(site: Path, folder: Path) -> Path:
    """The page around the exported captioner that `folder/model` has."""
    shutil.copytree(site, folder, ignore=shutil.ignore_patterns("model"), dirs_exist_ok=True)
    return folder


def scenes(count: int, seed: int = 0) -> list[Image.Image]:
    """Sky, ground and blurred things on it, no two of one size: of noise alone all captions would be the same."""
    random = np.random.default_rng(seed)
    images = []
    for _ in range(count):
        width, height = random.integers(90, 700, 2).tolist()
        image = Image.new("RGB", (width, height), tuple(random.integers(0, 256, 3).tolist()))
        draw = ImageDraw.Draw(image)
        draw.rectangle((0, height * 0.6, width, height), tuple(random.integers(0, 256, 3).tolist()))
        for _ in range(12):
            x, y = random.uniform(0, width), random.uniform(0, height)
            a, b = random.uniform(0.02, 0.3, 2)
            box = (x - a * width, y - b * height, x + a * width, y + b * height)
            shape = draw.ellipse if random.random() < 0.5 else draw.rectangle
            shape(box, tuple(random.integers(0, 256, 3).tolist()))
        images.append(image.filter(ImageFilter.GaussianBlur(random.uniform(0, 3))))
    return images


def file_of(image: Image.Image, name: str = "image.png", **options) -> dict:
    """A file as playwright takes it."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG" if name.endswith("jpg") else "PNG", **options)
    return {
        "name": name,
        "mimeType": "image/jpeg" if name.endswith("jpg") else "image/png",
        "buffer": buffer.getvalue(),
    }


def opened(file: dict) -> Image.Image:
    return Image.open(io.BytesIO(file["buffer"]))


def wait(page, expression: str) -> None:
    """playwright's `wait_for_function` evaluates text in the page, which the page's own rules forbid."""
    for _ in range(LOADING // 100):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(100)
    raise TimeoutError(expression)


def awaited(page, act) -> dict:
    """What the page found after an action."""
    page.evaluate("""() => {
        window.found = null;
        document.addEventListener("captioned", event => { window.found = event.detail }, {once: true});
    }""")
    act()
    wait(page, "window.found !== null")
    return page.evaluate("window.found")


def captioned(page, file: dict) -> dict:
    return awaited(page, lambda: page.set_input_files("#file", file))


@pytest.fixture(scope="session")
def precise(site, tmp_path_factory):
    """The same page with the captioner's graphs in single precision, under the names of the 8-bit ones."""
    folder = with_model(site, tmp_path_factory.mktemp("precise") / "site")
    export_onnx(*read_captioner(PHOTOGRAPHS), folder / "model")
    for path in (folder / "model" / "onnx").iterdir():
        path.rename(path.with_name(path.name.replace("_model.onnx", "_model_quantized.onnx")))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("beams", [1, 5])
@pytest.mark.parametrize("count", [4, pytest.param(50, marks=pytest.mark.long)])
def test_answers_in_single_precision_are_those_of_python(beams, count, precise, serve, open_page):
    page, captioner, said = open_page(serve(precise) + f"?num_beams={beams}"), OnnxCaptioner(precise / "model"), set()
    for image in scenes(count):
        file = file_of(image)
        found = captioned(page, file)
        (expected,) = captioner(opened(file), attention=True, num_beams=beams)
        assert found["text"] == expected["generated_text"]
        assert [word["text"] for word in found["words"]] == [token["token"] for token in expected["tokens"]]
        assert found["score"] == pytest.approx(expected["score"], rel=1e-3)
        assert found["familiarity"] == pytest.approx(expected["familiarity"], rel=1e-3)
        probabilities = [token["probability"] for token in expected["tokens"]]
        np.testing.assert_allclose([word["probability"] for word in found["words"]], probabilities, atol=1e-4)
        maps = np.array(found["maps"]).reshape(-1, *found["grid"])
        np.testing.assert_allclose(maps, expected["attention"], atol=1e-4)
        said.add(found["text"])
    assert len(said) > 1, "images must matter"


def count_of_the_same(page, captioner: OnnxCaptioner, images: list[Image.Image], beams: int) -> int:
    """
    How many captions are Python's. A number between two of 8 bits is rounded up here and down there, which now and
    then decides between two captions that are about as good.
    """
    same = 0
    for image in images:
        file = file_of(image)
        found = captioned(page, file)["text"]
        same += found == captioner(opened(file), num_beams=beams)[0]["generated_text"]
    return same


@pytest.mark.slow
@pytest.mark.parametrize("beams", [1, 5])
@pytest.mark.parametrize("count", [4, pytest.param(50, marks=pytest.mark.long)])
def test_captions_are_those_of_python(beams, count, site, serve, open_page):
    page = open_page(serve(site) + f"?num_beams={beams}")
    same = count_of_the_same(page, OnnxCaptioner(site / "model"), scenes(count), beams)
    print(f"{same} of {count} captions are the same with {beams} beams")
    assert same >= (0.5 if count < 50 else 0.85) * count  # of few, one more or less depends on the processor


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.long
@pytest.mark.parametrize("beams", [1, 5])
def test_captions_of_photographs_are_those_of_python(beams, data_folder, site, serve, open_page):
    rows = load_dataset("parquet", data_files=str(data_folder / "flickr8k" / "validation.parquet"), split="train")
    images = [rows[row]["image"].convert("RGB") for row in range(50)]
    page = open_page(serve(site) + f"?num_beams={beams}")
    same = count_of_the_same(page, OnnxCaptioner(site / "model"), images, beams)
    print(f"{same} of 50 captions are the same with {beams} beams")
    assert same >= 45


def export_of_pixels(folder: Path, size: dict, resample: int) -> Path:
    """A "captioner" that says nothing and whose attention is what it was given of the image."""
    (folder / "model" / "onnx").mkdir(parents=True)
    length = 3 * size["height"] * size["width"]

    def constant(name, values, kind):
        values = np.array(values)
        return helper.make_tensor(name, kind, values.shape, values.flatten().tolist())

    def save(name, nodes, inputs, outputs, constants):
        values = [
            [helper.make_tensor_value_info(key, kind, shape) for key, kind, shape in side]
            for side in (inputs, outputs)
        ]
        graph = helper.make_graph(nodes, name, *values, initializer=constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        onnx.save(model, folder / "model" / "onnx" / f"{name}_model_quantized.onnx")

    pixels, state = ("pixels", TensorProto.FLOAT, [1, length]), ("state.0", TensorProto.FLOAT, [1, 1, 1])
    save(
        "encoder",
        [
            helper.make_node("Reshape", ["pixel_values", "flat"], ["pixels"]),
            helper.make_node("Identity", ["rows"], ["grid"]),
            helper.make_node("Identity", ["empty"], ["state.0"]),
        ],
        [("pixel_values", TensorProto.FLOAT, [1, 3, size["height"], size["width"]])],
        [pixels, state, ("grid", TensorProto.INT64, [2])],
        [
            constant("flat", [1, length], TensorProto.INT64),
            constant("rows", [3 * size["height"], size["width"]], TensorProto.INT64),
            constant("empty", [[[0.0]]], TensorProto.FLOAT),
        ],
    )
    save(
        "decoder",
        [
            helper.make_node("Identity", ["wish"], ["logits"]),
            helper.make_node("Reshape", ["pixels", "row"], ["attention"]),
            helper.make_node("Identity", ["state.0"], ["new_state.0"]),
        ],
        [("input_ids", TensorProto.INT64, [1, 1]), pixels, state],
        [
            ("logits", TensorProto.FLOAT, [1, 1, 4]),
            ("attention", TensorProto.FLOAT, [1, 1, length]),
            ("new_state.0", TensorProto.FLOAT, [1, 1, 1]),
        ],
        [
            constant("wish", [[[0.0, 0.0, 0.0, 9.0]]], TensorProto.FLOAT),  # the end
            constant("row", [1, 1, length], TensorProto.INT64),
        ],
    )
    box = Path(PHOTOGRAPHS)
    images = json.loads((box / "processor_config.json").read_text())["image_processor"]
    images |= {"size": size, "resample": resample, "image_mean": [0.1, 0.5, 0.7], "image_std": [0.3, 0.2, 0.6]}
    generation = {"decoder_start_token_id": 2, "eos_token_id": 3, "pad_token_id": 1, "max_new_tokens": 5}
    for name, content in (
        ("processor_config", {"image_processor": images}),
        ("generation_config", generation),
        ("config", {}),
    ):
        (folder / "model" / f"{name}.json").write_text(json.dumps(content))
    shutil.copy(box / "tokenizer.json", folder / "model")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("resample", list(Image.Resampling)[1:], ids=lambda kind: Image.Resampling(kind).name)
def test_images_are_prepared_as_by_pillow(resample, site, serve, open_page, tmp_path):
    size = {"height": 37, "width": 53}
    folder = with_model(site, export_of_pixels(tmp_path / "of" / "pixels", size, int(resample)))
    python = OnnxCaptioner(folder / "model", quantized=True)
    page = open_page(serve(folder))
    random = np.random.default_rng(1)

    def noise(width, height):
        return Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8))

    turned = Image.Exif()
    turned[0x0112] = 6
    cut = noise(90, 61)
    cut.putalpha(Image.fromarray(random.integers(0, 2, (61, 90), np.uint8) * np.uint8(255)))
    files = [
        file_of(noise(301, 700)),  # more than two strips
        file_of(noise(53, 90)),  # as wide as it shall be
        file_of(noise(20, 37)),
        file_of(noise(1, 1)),
        file_of(noise(64, 99), exif=turned),
        file_of(noise(80, 33).convert("L")),
        file_of(noise(80, 33).quantize(7)),
        file_of(cut),
    ]
    for file in files:
        found = np.array(captioned(page, file)["maps"], np.float32).reshape(3, size["height"], size["width"])
        np.testing.assert_array_equal(found, python.pixels(opened(file)))
    faint = noise(90, 61)
    faint.putalpha(Image.linear_gradient("L").resize(faint.size))
    found = np.array(captioned(page, file_of(faint))["maps"], np.float32).reshape(3, size["height"], size["width"])
    levels = np.abs(found - python.pixels(faint)) * np.array([0.3, 0.2, 0.6])[:, None, None] * 255
    assert levels.max() < 2.5, "a canvas mixes half-transparent pixels with white in 8 bits, give or take one"


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, kind", [("none", "word"), pytest.param("vit_transformer", "bpe", marks=pytest.mark.long)]
)
def test_it_serves_any_captioner(name, kind, site, serve, open_page, tmp_path):
    """One that does not attend; and one with another kind of state and of words."""
    processor = tiny_processor()
    processor.tokenizer = train_tokenizer([WORDS], kind=kind, vocab_size=300)
    model = tiny_model(**SYSTEMS[name], vocab_size=len(processor.tokenizer))
    model.generation_config.update(max_new_tokens=8, num_beams=3, early_stopping=True, no_repeat_ngram_size=2)
    folder = tmp_path / "of" / "another"
    export_onnx(model, processor, folder / "model", int8=True)
    python = OnnxCaptioner(with_model(site, folder) / "model", quantized=True)
    page = open_page(serve(folder))
    said = set()
    for image in noise_pictures(5):
        found = captioned(page, file_of(image))
        (expected,) = python(image)
        assert found["text"] == expected["generated_text"]
        assert found["score"] == pytest.approx(expected["score"], rel=0.03)
        assert (found["grid"] is not None) == model.config.attends == page.locator("#legend").is_visible()
        said.add(found["text"])
    assert len(said) > 1


@pytest.mark.slow
def test_words_come_one_by_one_and_the_gaze_follows(site, serve, open_page):
    page = open_page(serve(site))
    assert page.locator("#progress").is_visible() and "captioner" in page.locator("#status").inner_text()
    found = captioned(page, file_of(scenes(1)[0]))
    shown = page.locator("#words button:visible")
    assert shown.count() < len(found["words"]), "not all at once"
    wait(page, "document.getElementById('caption').textContent !== ''")
    assert shown.count() == len(found["words"])
    assert page.locator("#caption").inner_text() == found["text"]
    np.testing.assert_allclose(np.array(found["maps"]).sum(1), 1, atol=1e-4)

    def painted():
        return page.evaluate("""() => {
            const canvas = document.getElementById("gaze");
            return [...canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data];
        }""")

    for i, values in enumerate(found["maps"][:3]):
        assert page.locator("#words [aria-pressed=true]").inner_text() == found["words"][i]["text"]
        strength = np.array(painted()).reshape(-1, 4)[:, 3]
        np.testing.assert_allclose(strength, 255 * np.array(values) / max(values), atol=1)
        page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert page.locator("#words :focus").inner_text() == found["words"][1]["text"]
    page.uncheck("#map")
    assert not page.locator("#gaze").is_visible()


@pytest.mark.slow
def test_a_broken_file_is_named_and_the_next_one_works(site, serve, open_page):
    page = open_page(serve(site))
    cut = file_of(scenes(1)[0], "cut.png")
    for name, content in (("notes.jpg", b"these are notes"), ("empty.png", b""), ("cut.png", cut["buffer"][:60])):
        page.set_input_files("#file", {"name": name, "mimeType": "image/png", "buffer": content})
        page.get_by_text(f"{name} cannot be read as an image").wait_for(timeout=LOADING)
        assert not page.locator("#result").is_visible()
    assert captioned(page, file_of(scenes(1)[0]))["text"]
    assert not page.locator("#trouble").is_visible()


@pytest.mark.slow
def test_it_says_why_it_does_not_load_and_tries_again(site, serve, open_page, tmp_path):
    folder = tmp_path / "not" / "whole"
    shutil.copytree(site, folder)
    missing = folder / "model" / "onnx" / "decoder_model_quantized.onnx"
    content = missing.read_bytes()
    missing.unlink()
    page = open_page(serve(folder))
    page.get_by_text("decoder_model_quantized.onnx is not there").wait_for(timeout=LOADING)
    assert not page.locator("#progress").is_visible()
    missing.write_bytes(b"not a graph")
    page.click("#again")
    page.get_by_text("The captioner could not be loaded").wait_for(timeout=LOADING)
    open_page.errors.clear()
    missing.write_bytes(content)
    page.click("#again")
    assert captioned(page, file_of(scenes(1)[0]))["text"]
    page.goto(page.url + "?num_beams=many")
    assert "from 1 to 99, got many" in page.locator("#trouble").inner_text()


@pytest.mark.slow
def test_photographs_come_by_drop_and_from_the_camera(site, serve, open_page):
    page = open_page(serve(site))
    file = file_of(scenes(1)[0])
    (expected,) = OnnxCaptioner(site / "model")(opened(file))
    drop = """bytes => {
        const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(bytes)], "dropped.png", {type: "image/png"}));
        document.body.dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true}));
    }"""
    found = awaited(page, lambda: page.evaluate(drop, list(file["buffer"])))
    assert found["text"] == expected["generated_text"]

    # A camera that films a canvas.
    page.evaluate("""() => {
        const canvas = document.createElement("canvas"), brush = canvas.getContext("2d");
        canvas.width = 120; canvas.height = 80;
        setInterval(() => { brush.fillStyle = "green"; brush.fillRect(0, 0, 120, 80) }, 30);
        window.stream = canvas.captureStream();
        navigator.mediaDevices.getUserMedia = async () => window.stream;
    }""")
    page.click("#camera")
    wait(page, "document.getElementById('viewfinder').videoWidth > 0")
    assert awaited(page, lambda: page.click("#shutter"))["text"]
    assert page.evaluate("document.getElementById('photo').naturalWidth") == 120
    assert page.evaluate("window.stream.getTracks().every(track => track.readyState === 'ended')")
    page.evaluate("() => { navigator.mediaDevices.getUserMedia = async () => { throw new Error('no such thing') } }")
    page.click("#camera")
    assert "no such thing" in page.locator("#trouble").inner_text()


@pytest.mark.slow
@pytest.mark.parametrize("width, dark", [(360, True), (360, False), (1000, True), (1000, False)])
def test_it_fits_and_is_accessible(width, dark, site, serve, open_page):
    axe = pytest.importorskip("axe_core_python.sync_playwright").Axe()
    page = open_page(serve(site), width=width, dark=dark)
    page.emulate_media(reduced_motion="reduce")

    def check():
        assert fits(page)
        serious = [rule["id"] for rule in axe.run(page)["violations"] if rule["impact"] in ("serious", "critical")]
        assert not serious

    check()
    found = captioned(page, file_of(scenes(1)[0]))
    assert page.locator("#words button:visible").count() == len(found["words"]), "those who want no motion do not wait"
    check()
    page.set_input_files("#file", {"name": "x.png", "mimeType": "image/png", "buffer": b"x"})
    page.locator("#trouble").wait_for(timeout=LOADING)
    check()
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) < 200) is dark


@pytest.mark.slow
def test_the_folder_is_a_static_space(site):
    assert "\nsdk: static\n" in (site / "README.md").read_text().split("---")[1]
    sizes = json.loads((site / "files.json").read_text())
    assert {name: (site / name).stat().st_size for name in sizes} == sizes
    assert [name for name in sizes if name.endswith(".wasm")]


def test_what_stands_in_the_way_is_said_before_long_work(tmp_path, monkeypatch):
    model, processor = tiny_model(), tiny_processor()
    model.generation_config.update(max_new_tokens=8)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(InputError, match="`output` must be a new or an empty folder"):
        static_site.build_site(model, processor, tmp_path / "full")
    tools = tmp_path / "tools"
    tools.mkdir()
    monkeypatch.setenv("PATH", str(tools))
    out = tmp_path / "out"
    with pytest.raises(InputError, match="node is not installed"):
        static_site.build_site(model, processor, out)
    program(tools / "node", "echo v18.1.0")
    with pytest.raises(InputError, match="npm is not installed"):
        static_site.build_site(model, processor, out)
    program(tools / "npm", "echo npm warn old >&2; echo npm error network down >&2; exit 1")
    with pytest.raises(InputError, match="Node.js must be 20.19 or newer.*got v18.1.0"):
        static_site.build_site(model, processor, out)
    program(tools / "node", "echo v22.12.0")
    with pytest.raises(InputError, match="`npm ci` failed: npm error network down"):
        static_site.build_site(model, processor, out)
    program(tools / "npm", "exec /bin/sleep 60")
    monkeypatch.setattr(static_site, "NPM_SECONDS", 0.1)
    with pytest.raises(InputError, match="`npm ci` must end within 0.1 seconds"):
        static_site.build_site(model, processor, out)
    processor.image_processor.resample = 0
    with pytest.raises(InputError, match="filters 1 to 5, got resample 0"):
        static_site.build_site(model, processor, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "tools"]


def program(path: Path, line: str) -> None:
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)
