"""The site of docs/: built without executing notebooks, read as files and in a real browser."""

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
import threading
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from testing import ROOT
from testing.browser import fits

PACKAGES = ("mkdocs", "material", "mkdocs_static_i18n", "mkdocstrings_handlers", "nbclient", "latex2mathml")
MISSING = [name for name in PACKAGES if find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"no {', '.join(MISSING)}, of the extra docs")

# mkdocs as a program that tells at its end whether the package was imported.
MKDOCS = """
import sys
from mkdocs.__main__ import cli
try:
    cli(sys.argv[1:])
finally:
    assert not {"torch", "hf_captioner"} & set(sys.modules), "the reference is made of the source text alone"
"""
ROOMS = (
    "hf_captioner",
    *(f"hf_captioner.{path.parent.name}" for path in sorted(ROOT.glob("hf_captioner/*/__init__.py"))),
)
TERMS = {  # the section that explains it, and what is looked for, in English and in Korean
    "image-captioning": (["image captioning"], ["이미지 캡셔닝"]),
    "cnn-rnn": (["CNN-RNN"], ["CNN-RNN"]),
    "bottleneck": (["bottleneck"], ["병목"]),
    "attention": (["attention"], ["어텐션"]),
    "soft-attention": (["soft attention", "soft"], ["소프트 어텐션"]),
    "hard-attention": (["hard attention", "hard"], ["하드 어텐션"]),
    "general-attention": (["general attention"], ["일반 어텐션"]),
    "queries-keys-values": (["queries", "keys", "values", "query key value"], ["쿼리", "키", "값", "쿼리 키 값"]),
    "self-attention": (["self-attention"], ["셀프 어텐션"]),
    "masks": (["masks", "mask"], ["마스크"]),
    "several-heads-multi-head": (["several heads", "multi-head"], ["여러 헤드", "멀티 헤드"]),
    "positions-positional-encoding": (["positions", "positional encoding"], ["위치", "위치 인코딩"]),
    "transformer": (["Transformer"], ["트랜스포머"]),
    "vit": (["ViT"], ["비전 트랜스포머", "ViT"]),
}
FETCHED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "embed": "src"}


class Page(HTMLParser):
    """
    What a page refers to.

    Attributes:
        links: where its links lead.
        fetched: what a browser fetches to show it.
        ids: its anchors.
    """

    def __init__(self, path: Path):
        super().__init__()
        self.path = path
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.ids: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.ids |= {given[name] for name in ("id", "name") if given.get(name)}
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        if given.get(FETCHED.get(tag, "-")):
            self.fetched.append(given[FETCHED[tag]])
        if tag == "link" and given.get("rel") not in ("prev", "next", "canonical", "alternate"):
            self.fetched.append(given["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("built") / "site"
    environment = {**os.environ, "HF_CAPTIONER_EXECUTE": "0", "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-c", MKDOCS, "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site) -> dict[Path, Page]:
    return {path: Page(path) for path in site.rglob("*.html") if path.name != "404.html"}


@pytest.fixture(scope="module")
def address(site):
    """Of the site on a server of this machine, which search needs."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=site))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def hooks():
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_links_and_anchors_lead_somewhere(site, pages):
    count = 0
    for path, page in pages.items():
        for link in [*page.links, *page.fetched]:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            there = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert there.is_file() and there.is_relative_to(site), (path, link)
            if parts.fragment and there in pages and not parts.fragment.startswith("__"):
                assert unquote(parts.fragment) in pages[there].ids, (path, link)
            count += 1
    assert count > 1000


@pytest.mark.slow
def test_every_page_is_in_the_navigation(site, pages):
    for start in (site, site / "ko"):
        text = (start / "index.html").read_text(encoding="utf-8")
        named = re.findall(r'<a href="([^"#]*)" class="md-nav__link', text)
        named = {(start / name).resolve() for name in named if not urlsplit(name).scheme}
        here = {path for path in pages if ("ko" in path.relative_to(site).parts) == (start != site)}
        assert named | {start / "index.html"} == here
    shown = [path for path in (ROOT / "docs").rglob("*") if path.suffix in (".md", ".ipynb")]
    for path in shown:
        stem, korean = path.stem.removesuffix(".ko"), path.stem.endswith(".ko")
        place = path.relative_to(ROOT / "docs").with_name(f"{stem}.html")
        assert (site / "ko" / place if korean else site / place) in pages


@pytest.mark.slow
def test_nothing_is_fetched_from_elsewhere(site, pages):
    for path, page in pages.items():
        outside = [link for link in page.fetched if urlsplit(link).scheme not in ("", "data") or urlsplit(link).netloc]
        assert not outside, (path, outside)
    for path in site.rglob("*.css"):
        assert not re.findall(r"url\(\s*['\"]?(?:https?:)?//|@import", path.read_text(encoding="utf-8")), path


@pytest.mark.slow
def test_all_public_names_are_in_the_reference(pages):
    anchors = set().union(*(page.ids for path, page in pages.items() if path.parent.name == "api"))
    count = 0
    for room in ROOMS:
        text = (ROOT / room.replace(".", "/") / "__init__.py").read_text(encoding="utf-8")
        for names in re.findall(r"^__all__ = (\[.*?\])$", text, re.MULTILINE | re.DOTALL):
            for name in ast.literal_eval(names):
                assert f"{room}.{name}" in anchors, name
                count += 1
    assert count > 80


@pytest.mark.slow
def test_equations_are_shown_without_a_script(site):
    text = (site / "metrics.html").read_text(encoding="utf-8")
    assert text.count("<math") > 20
    assert "arithmatex" not in text and text.count("<mfrac>") > 8


def test_names_of_functions_have_their_space(hooks):
    assert "<mi>log</mi><mspace" in hooks.equation(r"\log 1", block=False)
    assert "<mspace" not in hooks.equation(r"\exp(x) + \log_2 x", block=False)
    with pytest.raises(hooks.PluginError, match=r"got \\arg in"):
        hooks.equation(r"\arg x", block=True)


@pytest.mark.slow
def test_pages_from_elsewhere_are_whole(site):
    for name, page in (("CHANGELOG.md", "changelog.html"), ("model_cards/README.md", "results/index.html")):
        words = re.findall(r"[A-Za-z]{4,}", re.sub(r"\]\([^)]*\)", "]", (ROOT / name).read_text(encoding="utf-8")))
        text = re.sub(r"<[^>]*>", " ", (site / page).read_text(encoding="utf-8"))
        assert len(words) > 100 and not set(words) - set(re.findall(r"[A-Za-z]{4,}", text))


def found(page, words: str) -> list[str]:
    """The paths and anchors that the search box gives for these words, the best first."""
    page.locator("input[name=query]").click()
    page.locator("input[name=query]").fill(words)  # at once: what is found for a part of them is not meant
    page.keyboard.press("End")  # the box waits for a key
    page.wait_for_selector(".md-search-result__link", timeout=60_000)
    page.wait_for_timeout(300)
    links = page.locator(".md-search-result__link").evaluate_all("links => links.map(link => link.href)")
    return [urlsplit(link).path.lstrip("/") + "#" + urlsplit(link).fragment for link in links]


@pytest.mark.slow
@pytest.mark.parametrize("language", [0, 1], ids=["english", "korean"])
def test_terms_are_found_in_both_languages(open_page, address, language):
    start = "ko/" * language
    page = open_page(f"{address}/{start}index.html", width=1300)
    for section, words in TERMS.items():
        for looked_for in words[language]:
            first = found(page, looked_for)
            assert first[0].endswith("terms.html#"), (looked_for, first)  # not a page that mentions it only
            assert f"{start}terms.html#{section}" in first[:7], (looked_for, first)
            page.reload()  # without what was found


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, dark",
    [
        ("index", False),
        ("index", True),
        ("evaluate", True),
        ("metrics", False),
        ("api/data", False),
        ("api/data", True),
        ("results/index", True),
        ("course/03_soft_attention", True),
        ("ko/index", False),
        ("ko/terms", False),
    ],
)
def test_a_phone_shows_it_and_axe_finds_nothing_serious(open_page, address, name, dark):
    sync_playwright = pytest.importorskip("axe_core_python.sync_playwright", reason="no axe-core-python")
    page = open_page(f"{address}/{name}.html", width=360, dark=dark)
    page.wait_for_timeout(300)
    assert fits(page)
    violations = sync_playwright.Axe().run(page)["violations"]
    serious = [finding for finding in violations if finding["impact"] in ("serious", "critical")]
    assert not serious, [(finding["id"], [node["html"] for node in finding["nodes"]]) for finding in serious]


def test_links_are_led_from_the_repository_to_the_site(hooks):
    places = {
        "docs/a.md": "a.md",
        "model_cards/README.md": "results/index.md",
        "docs/course/01.ipynb": "course/01.ipynb",
    }
    text = "[a](../docs/a.md#b) `[a](b.md)` [e](https://e.org) ![c](#d) [n](../docs/course/01.ipynb) [m](../Makefile)"
    moved = hooks.with_links(text, "model_cards/README.md", "results/index.md", places)
    assert moved == "[a](../a.md#b) `[a](b.md)` [e](https://e.org) ![c](#d) [n](../course/01.md) m"
    with pytest.raises(hooks.PluginError, match="model_cards/README.md: the link to 'nothing.md' leads nowhere"):
        hooks.with_links("[a](nothing.md)", "model_cards/README.md", "results/index.md", places)


def test_pages_without_a_place_get_one(hooks):
    pages = ["index.md", "new.md", "course/01.md", "course/01.ko.md", "course/02.md"]
    nav = ["index.md", {"How to": ["data.md"]}, {"Course": ["course/"]}]
    assert hooks.complete(nav, pages) == [
        "index.md",
        {"How to": ["data.md", "new.md"]},
        {"Course": ["course/01.md", "course/02.md"]},
    ]


def notebook(path: Path, code: str, words: str = "# Title") -> Path:
    cells = [
        {"cell_type": "markdown", "metadata": {}, "source": words},
        {"cell_type": "code", "metadata": {}, "source": code, "outputs": [], "execution_count": None},
    ]
    path.write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 4}))
    return path


@pytest.mark.slow
def test_a_notebook_is_executed_when_its_code_is_new(hooks, tmp_path, monkeypatch):
    """The cell counts the executions in a file outside of the notebook's folder, and leaves another in it."""
    (tmp_path / "course").mkdir()
    monkeypatch.setattr(hooks, "ROOT", tmp_path)
    monkeypatch.setattr(hooks, "OUTPUTS", tmp_path / "cache")
    (tmp_path / "hf_captioner").mkdir()
    (tmp_path / "hf_captioner" / "__init__.py").write_text('__version__ = "1"')
    count = (
        f"open('left', 'w')\nf = open({str(tmp_path / 'count')!r}, 'a+')\nprint(f.tell() + f.write('x'))\nf.close()"
    )
    place = tmp_path / "page.ipynb"

    def page(code, words="# Title"):
        file = notebook(tmp_path / "course" / "01.ipynb", code, words)
        return hooks.notebook_page(file, place, {"course/01.ipynb": "course/01.ipynb"})

    monkeypatch.setattr(hooks, "EXECUTES", False)
    assert ".output" not in page(count) and not (tmp_path / "count").exists()
    monkeypatch.setattr(hooks, "EXECUTES", True)
    assert "```{ .text .output .no-copy }\n1\n```" in page(count)
    assert "```{ .text .output .no-copy }\n1\n```" in page(count, words="# Other words")
    assert "```{ .text .output .no-copy }\n2\n```" in page(count + "  # changed")
    (tmp_path / "course" / "exercises").mkdir()
    (tmp_path / "course" / "exercises" / "lesson_02.py").write_text("")
    assert "```{ .text .output .no-copy }\n1\n```" in page(count)
    (tmp_path / "course" / "exercises" / "lesson_01.py").write_text("")
    assert "```{ .text .output .no-copy }\n3\n```" in page(count)
    (tmp_path / "course" / "helper.py").write_text("")
    assert "```{ .text .output .no-copy }\n4\n```" in page(count)
    assert {path.name for path in (tmp_path / "course").iterdir()} == {"01.ipynb", "exercises", "helper.py"}
    with pytest.raises(hooks.PluginError, match="(?s)01.ipynb: .*ZeroDivisionError: division by zero"):
        page("1 / 0")


def test_what_is_printed_is_in_one_piece(hooks):
    """It comes as it is printed, and in between what goes to standard error, which is not shown."""
    pieces = [("stdout", "a\n"), ("stderr", "warning"), ("stdout", ["b", "\n"])]
    outputs = [{"output_type": "stream", "name": name, "text": text} for name, text in pieces]
    picture = {"output_type": "display_data", "data": {"image/png": "aGVsbG8="}}
    made = hooks.joined([*outputs, picture, *outputs[2:]])
    assert ["".join(output.get("text", "")) for output in made] == ["a\nb\n", "", "b\n"]
    assert made[1] == picture


def test_outputs_become_markdown(hooks, tmp_path):
    texts = hooks.TEXTS["en"]
    assert hooks.shown(
        {"output_type": "stream", "name": "stdout", "text": ["a\n", "b\n"]}, tmp_path / "p", texts
    ).splitlines()[1:3] == [
        "a",
        "b",
    ]
    ticks = hooks.shown({"output_type": "execute_result", "data": {"text/plain": "```"}}, tmp_path / "p", texts)
    assert ticks.splitlines()[0].startswith("````{") and ticks.splitlines()[1] == "```"
    picture = {"output_type": "display_data", "data": {"text/plain": "<Figure>", "image/png": "aGVsbG8="}}
    assert f"\n![{texts['output']}](01_2_0.png)\n" in hooks.shown(picture, tmp_path / "01_2_0", texts)
    assert (tmp_path / "01_2_0.png").read_bytes() == b"hello"
