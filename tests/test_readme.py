"""The code of the README and of the pages of docs/ runs, and their commands name what exists."""

import re
import shlex

import pytest
from testing import ROOT
from testing.tiny_models import tiny_config

from hf_captioner import (
    CaptionerImageProcessor,
    CaptionerProcessor,
    RnnCaptionerForConditionalGeneration,
    train_tokenizer,
)
from hf_captioner.commands.program import PASSED_ON, app
from hf_captioner.data import shapes_dataset

PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
}
PYTHON = [(name, code) for name, text in PAGES.items() for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL)]
COMMANDS = [
    (name, line.partition(" #")[0].strip())
    for name, text in PAGES.items()
    for line in text.replace("\\\n", " ").splitlines()
    if line.strip().startswith(("accelerate launch ", "python training/", "hf-captioner "))
]
TEXT = "\n".join(PAGES.values())


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


def example(place: int, name: str, code: str):
    marks = [pytest.mark.slow] if "outputs/exported" in code else []  # which is exported first
    return pytest.param(code, id=f"{name}-{place}", marks=marks)


@pytest.mark.parametrize("code", [example(place, *found) for place, found in enumerate(PYTHON)])
def test_python(code, quickstart):
    if "outputs/exported" in code:
        for package in ("onnx", "onnxruntime", "onnxscript"):
            pytest.importorskip(package, reason=f"no {package}, of the extra onnx")
        app(["export", "--model", "outputs/quickstart", "--output", "outputs/exported"], standalone_mode=False)()
    compiled = compile(code, "example", "exec")
    if "127.0.0.1" in code:
        return  # it asks a server that runs; tests/commands tries what servers answer
    names = given_trainer() if "trainer." in code else {}
    exec(compiled, names)
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
    """The patterns above find it: at least what stood in the README when it was the only page."""
    assert len(PYTHON) >= 8 and len(COMMANDS) >= 40
    assert {name for name, _ in COMMANDS} >= {"README.md", "docs/train.md", "docs/decoding.md", "docs/export.md"}


@pytest.mark.parametrize("command", sorted({command for _, command in COMMANDS}))
def test_commands_name_scripts_files_and_settings(command):
    parts = shlex.split(command)
    if parts[0] == "hf-captioner" and parts[1] not in PASSED_ON:
        assert callable(app(parts[1:], standalone_mode=False))  # its options are read, and nothing is done
        return
    for part in parts:
        if part.startswith("training/"):
            assert (ROOT / part).is_file(), part
    if parts[0] == "hf-captioner":
        file = PASSED_ON[parts[1]][0]
    else:
        script = next(ROOT / part for part in parts if part.startswith("training/") and part.endswith(".py"))
        file = re.search(r"hf_captioner\.commands\.(\w+) import", script.read_text())[1]
    known = (ROOT / f"hf_captioner/commands/{file}.py").read_text()
    for shared in re.findall(r"^from \.(\w+) import", known, re.MULTILINE):  # options that several commands have
        known += (ROOT / f"hf_captioner/commands/{shared}.py").read_text()
    if file == "train":
        known += (ROOT / "hf_captioner/commands/train_arguments.py").read_text() + " output_dir learning_rate "
    for name in re.findall(r"--(\w+)", command):
        assert re.search(rf"\b{name}\b", known), name


@pytest.mark.parametrize("name", sorted(set(re.findall(r"(?:^ +|`)make ([a-z-]+)", TEXT, re.MULTILINE))))
def test_make_targets(name):
    assert re.search(rf"^{name}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


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
