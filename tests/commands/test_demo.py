"""The page of `hf-captioner demo`, by gradio's client and in a real browser."""

import io
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from testing.browser import fits
from testing.pages import PAGES, fenced
from testing.tiny_models import SYSTEMS, noise_pictures, tiny_model, tiny_processor

from hf_captioner import ImageCaptioningPipeline
from hf_captioner.commands.demo import example_files
from hf_captioner.commands.program import program
from hf_captioner.errors import InputError

gradio_client = pytest.importorskip("gradio_client", reason="the extra demo is not installed")
demo_page = pytest.importorskip("hf_captioner.commands.demo_page", reason="the extra demo is not installed")

SETTINGS = dict(param_1=3, param_2="beam search", param_3=1.0, param_4=2, param_5=0, param_6="")


def captioner(name: str, system: str, **changes):
    return demo_page.DemoCaptioner(name, tiny_model(**SYSTEMS[system], **changes), tiny_processor())


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A page with two captioners and one example, and its first captioner."""
    folder = tmp_path_factory.mktemp("examples")
    noise_pictures(1)[0].save(folder / "noise.png")
    examples = example_files(folder)
    captioners = [captioner("first", "additive"), captioner("second", "none")]
    page = demo_page.build(captioners, examples)
    demo_page.launch(page, ("127.0.0.1", 0), 64, 1.0, examples)
    yield page.local_url, captioners
    page.close()


@pytest.fixture(scope="module")
def client(served):
    return gradio_client.Client(served[0], verbose=False)


@pytest.fixture
def photo(tmp_path):
    noise_pictures(2)[1].save(tmp_path / "photo.png")
    return str(tmp_path / "photo.png")


def test_captions_are_the_pipelines(served, client, photo):
    first = served[1][0]
    said, score, others, rows = client.predict(
        gradio_client.handle_file(photo), *SETTINGS.values(), api_name="/caption"
    )
    pipeline = ImageCaptioningPipeline(model=first.model, processor=first.processor)
    expected = pipeline(photo, num_beams=3, num_return_sequences=2)
    assert said == expected[0]["generated_text"]
    assert [(row["caption"], row["score"]) for row in rows] == [
        (one["generated_text"], round(one["score"], 4)) for one in expected
    ]
    assert [word for word, _ in rows[1]["words"]] == [token["token"] for token in expected[1]["tokens"]]
    assert f"<li>{expected[1]['generated_text']} <small>" in others
    assert score == f"score {expected[0]['score']:.3f}"


def test_the_example_of_the_page(served, tmp_path, monkeypatch):
    """As it stands in `docs/demo.md`, but for the address."""
    (code,) = [code for language, code in fenced(PAGES["docs/demo.md"]) if language == "python"]
    monkeypatch.chdir(tmp_path)
    noise_pictures(2)[1].save("photo.jpg")
    names: dict = {}
    exec(code.replace("http://127.0.0.1:7860", served[0]), names)
    pipe = ImageCaptioningPipeline(model=served[1][0].model, processor=served[1][0].processor)
    assert [row["caption"] for row in names["captions"]] == [
        one["generated_text"] for one in pipe("photo.jpg", num_beams=3, num_return_sequences=2)
    ]
    assert names["caption"] == names["captions"][0]["caption"]


def test_prompt_and_sampling_with_a_seed(client, photo):
    image = gradio_client.handle_file(photo)
    prompted, *_ = client.predict(image, 2, "beam search", 1.0, 1, 0, "a dog", api_name="/caption")
    assert prompted.startswith("a")
    drawn = [client.predict(image, 1, "sampling", 1.5, 4, seed, "", api_name="/caption")[3] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(drawn[0]) == 4


def test_the_explanation_is_of_the_caption_that_is_shown(served, client, photo):
    image = gradio_client.handle_file(photo)
    for settings in (SETTINGS.values(), (1, "sampling", 1.5, 3, 7, "a")):
        said, *_ = client.predict(image, *settings, api_name="/caption")
        frame = client.predict(image, "gradient", *settings, api_name="/explain")
        assert f"{said}" in frame and frame.startswith("<iframe")


def test_compare_shows_both(served, client, photo):
    results = client.predict(gradio_client.handle_file(photo), *SETTINGS.values(), api_name="/compare")
    for captioner_, said in zip(served[1], (results[0], results[4]), strict=True):
        expected = captioner_.pipeline(photo, num_beams=3, num_return_sequences=2)
        assert said == expected[0]["generated_text"]


def test_methods_are_those_that_the_captioner_has():
    assert captioner("x", "additive").methods == ["attention", "gradient", "occlusion"]
    assert captioner("x", "none").methods == ["gradient", "occlusion"]
    assert captioner("x", "cnn_transformer").methods == ["attention", "rollout", "gradient", "occlusion"]
    assert captioner("x", "vit_transformer").methods == ["attention", "rollout", "gradient", "occlusion"]


def test_it_abstains_as_the_program_does(photo):
    sure = captioner("x", "additive", min_score=0.99)
    said, score, _, rows = demo_page.shown(sure.captions(photo, 2, "beam search", 1.0, 1, 0, ""))
    assert said == "" and "too low" in score and rows[0]["caption"] is None


def bomb() -> bytes:
    """A PNG of 100,000 x 100,000 pixels in a few bytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", 100_000, 100_000, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("name,content,reason", [("bomb.png", bomb(), "pixels"), ("text.png", b"no image", "read")])
def test_what_is_no_image_is_named(client, tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(Exception, match=reason) as error:
        client.predict(gradio_client.handle_file(str(tmp_path / name)), *SETTINGS.values(), api_name="/caption")
    assert "gradio/" not in str(error.value)  # nothing of where this machine keeps it


def test_a_large_upload_is_refused(served, tmp_path):
    content = io.BytesIO(b"0" * 2 * 2**20)
    answer = httpx.post(f"{served[0]}gradio_api/upload", files={"files": ("large.png", content)})
    assert answer.status_code == 413
    assert "maximum" in answer.text.lower() or "limit" in answer.text.lower()


@pytest.mark.parametrize("path", ["/etc/passwd", "{here}", "../../../../etc/passwd"])
def test_files_of_the_machine_are_not_served(served, path):
    answer = httpx.get(f"{served[0]}gradio_api/file={path.format(here=__file__)}")
    assert answer.status_code in (403, 404)
    assert "root:" not in answer.text and "test_files" not in answer.text


def test_fifty_at_once_are_all_answered(served, photo):
    clients = [gradio_client.Client(served[0], verbose=False) for _ in range(5)]
    image = gradio_client.handle_file(photo)

    def ask(number: int) -> str:
        return clients[number % 5].predict(image, *SETTINGS.values(), api_name="/caption")[0]

    with ThreadPoolExecutor(50) as pool:
        said = list(pool.map(ask, range(50)))
    assert len(set(said)) == 1 and said[0]


def test_examples_must_be_there(tmp_path):
    with pytest.raises(InputError, match="`--examples` must be a folder, got .*nowhere"):
        example_files(tmp_path / "nowhere")
    with pytest.raises(InputError, match="`--examples` must hold images"):
        example_files(tmp_path)
    with pytest.raises(InputError, match="`--examples` must be a folder"):
        program(["demo", "--examples", str(tmp_path / "nowhere")])


@pytest.mark.slow
@pytest.mark.parametrize("width,dark", [(1200, False), (360, True)])
def test_the_page_in_a_browser(served, open_page, photo, tmp_path, width, dark):
    first = served[1][0]
    expected = first.pipeline(photo)[0]["generated_text"]
    page = open_page(served[0] + ("?__theme=dark" if dark else ""), width=width, dark=dark)
    page.set_input_files("input[type=file] >> nth=0", photo)
    page.get_by_role("button", name="Caption", exact=True).click()
    page.wait_for_function(
        "text => [...document.querySelectorAll('textarea')].some(one => one.value == text)", arg=expected
    )
    inside = page.frame_locator("iframe >> nth=0")
    words = inside.get_by_role("button")
    words.first.wait_for()
    words.first.press("ArrowRight")
    assert fits(page)
    page.screenshot(path=tmp_path / f"demo-{width}.png", full_page=True)
    (tmp_path / "broken.png").write_text("no image")
    page.get_by_role("button", name="Remove Image").first.click()
    page.set_input_files("input[type=file] >> nth=0", str(tmp_path / "broken.png"))
    page.get_by_role("button", name="Caption", exact=True).click()
    page.get_by_text("The image cannot be read").first.wait_for()
