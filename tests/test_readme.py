"""The Python code of the README and of the other pages runs, and what they link to and name is there."""

import ast
import inspect
import re
from collections import Counter
from importlib import import_module
from urllib.parse import unquote

import pytest
from testing import ROOT
from testing.pages import PAGES, fenced, in_line
from testing.tiny_models import tiny_config

import hf_captioner
from hf_captioner import (
    CaptionerImageProcessor,
    CaptionerProcessor,
    RnnCaptionerForConditionalGeneration,
    train_tokenizer,
)
from hf_captioner.commands.program import app
from hf_captioner.data import shapes_dataset

ALL = [(name, code) for name, text in PAGES.items() for language, code in fenced(text) if language == "python"]
PYTHON = [(name, code) for name, code in ALL if "127.0.0.1" not in code]
LINK = re.compile(r"\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^()\s]+)\)")


@pytest.fixture
def quickstart(tmp_path, monkeypatch):
    """A folder like the one that `make quickstart` writes, where the pages look for it, and an image."""
    monkeypatch.chdir(tmp_path)
    tokenizer = train_tokenizer([text for texts in shapes_dataset(30)["captions"] for text in texts])
    model = RnnCaptionerForConditionalGeneration(tiny_config(vocab_size=len(tokenizer)))
    model.generation_config.max_new_tokens = 5
    model.save_pretrained("outputs/quickstart")
    processor = CaptionerProcessor(CaptionerImageProcessor(size={"height": 80, "width": 80}), tokenizer)
    processor.save_pretrained("outputs/quickstart")
    shapes_dataset(1, seed=1)[0]["image"].save("photo.jpg")


# What asks a server: tests/commands/test_demo.py and test_serve_page.py run it beside one.
ASKING = {"docs/demo.md": 1, "docs/serve.md": 1}


def example(place: int, name: str, code: str):
    marks = [pytest.mark.slow] if "outputs/exported" in code else []  # which is exported first
    return pytest.param(code, id=f"{name}-{place}", marks=marks)


@pytest.mark.parametrize("code", [example(place, *found) for place, found in enumerate(PYTHON)])
def test_python(code, quickstart):
    if "outputs/exported" in code:
        for package in ("onnx", "onnxruntime", "onnxscript"):
            pytest.importorskip(package, reason=f"no {package}, of the extra onnx")
        app(["export", "--model", "outputs/quickstart", "--output", "outputs/exported"], standalone_mode=False)()
    names = given_trainer() if "trainer." in code and "trainer = " not in code else {}
    exec(compile(code, "example", "exec"), names)
    if "maps" in names:
        assert names["maps"].shape[2:] == (10, 10)


def given_trainer() -> dict:
    """What an example about a trainer presupposes."""
    from transformers import Seq2SeqTrainingArguments

    from hf_captioner import CaptioningTrainer

    rows = shapes_dataset(10, seed=2)
    trainer = CaptioningTrainer(
        model=RnnCaptionerForConditionalGeneration.from_pretrained("outputs/quickstart"),
        args=Seq2SeqTrainingArguments("outputs/trained", report_to=[]),
        eval_dataset=rows,
        processing_class=CaptionerProcessor.from_pretrained("outputs/quickstart"),
    )
    return {"trainer": trainer, "evaluation": rows}


def test_what_is_shown_as_code_is_there():
    """What is read above is what stands on the pages; what asks a server is run beside one, by other tests."""
    asking = Counter(name for name, code in ALL if (name, code) not in PYTHON)
    assert asking == ASKING
    assert len(PYTHON) >= 8 and {"README.md", "docs/quickstart.md", "docs/models.md"} <= {name for name, _ in PYTHON}


def without_code(text: str) -> str:
    return re.sub(r"```.*?```|`[^`]+`", "", text, flags=re.DOTALL)


def anchors(text: str) -> set[str]:
    """Those that GitHub and the site give to a page's headings."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_to_files_and_headings(name):
    """In the repository; tests/test_docs.py follows them in the site."""
    for link in LINK.findall(without_code(PAGES[name])):
        address, _, anchor = unquote(link).partition("#")
        if ":" in address:
            continue
        file = (ROOT / name).parent / address if address else ROOT / name
        assert file.exists() and file.resolve().is_relative_to(ROOT), link
        if anchor:
            assert anchor in anchors(PAGES[file.resolve().relative_to(ROOT).as_posix()]), link


@pytest.mark.parametrize("name", PAGES)
def test_files_and_names_that_a_sentence_quotes_are_there(name):
    for code in in_line(PAGES[name]):
        if re.fullmatch(r"(?:tests|training|hf_captioner|docs|model_cards)/[\w./-]+", code):
            assert (ROOT / code).exists(), code
        elif re.fullmatch(r"hf_captioner(?:\.\w+)+", code):
            module, _, last = code.rpartition(".")
            try:
                assert hasattr(import_module(module), last) or import_module(code), code
            except ModuleNotFoundError as error:
                assert not str(error.name).startswith("hf_captioner"), code
        for call in calls(code):
            accepts(call)


def calls(code: str) -> list[ast.Call]:
    """The calls of public names in a piece of Python; none if it is no Python."""
    try:
        nodes = ast.walk(ast.parse(code))
    except SyntaxError:
        return []
    return [node for node in nodes if isinstance(node, ast.Call) and hasattr(hf_captioner, ast.unparse(node.func))]


def accepts(call: ast.Call) -> None:
    """Whether what is called has the parameters that are named."""
    function = getattr(hf_captioner, ast.unparse(call.func))
    known = inspect.signature(function).parameters
    for keyword in call.keywords:
        assert keyword.arg in known, ast.unparse(call)


def test_the_tree_names_every_room_and_script():
    rooms = [path.parent.name + "/" for path in ROOT.glob("hf_captioner/*/__init__.py")]
    for name in [*rooms, *(path.name for path in ROOT.glob("training/*.py"))]:
        assert name in PAGES["docs/architecture.md"], name


def test_the_readme_is_one_screen_and_repeats_no_page():
    lines = PAGES["README.md"].splitlines()
    assert len(lines) <= 70
    long = [line for line in lines if len(line) > 60 and not line.startswith(("|", "!"))]
    for line in long:
        others = [name for name, text in PAGES.items() if name != "README.md" and line in text]
        assert not others, (line, others)
