"""The README's code runs, and its commands name what exists."""

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

README = (ROOT / "README.md").read_text()
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    line.strip()
    for line in README.replace("\\\n", " ").splitlines()
    if line.strip().startswith(("accelerate launch ", "python training/", "hf-captioner "))
]


@pytest.fixture
def quickstart(tmp_path, monkeypatch):
    """A folder like the one that `make quickstart` writes, where the README looks for it."""
    monkeypatch.chdir(tmp_path)
    tokenizer = train_tokenizer([text for texts in shapes_dataset(30)["captions"] for text in texts])
    model = RnnCaptionerForConditionalGeneration(tiny_config(vocab_size=len(tokenizer)))
    model.generation_config.max_new_tokens = 5
    model.save_pretrained("outputs/quickstart")
    processor = CaptionerProcessor(CaptionerImageProcessor(size={"height": 80, "width": 80}), tokenizer)
    processor.save_pretrained("outputs/quickstart")


@pytest.mark.parametrize("code", PYTHON, ids=range(len(PYTHON)))
def test_python(code, quickstart):
    names = {}
    exec(code, names)
    if "maps" in names:
        assert names["maps"].shape[2:] == (10, 10)


def test_what_is_shown_as_code_is_there():
    assert len(PYTHON) == 5 and len(COMMANDS) == 17


@pytest.mark.parametrize("command", COMMANDS)
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
    if file == "train":
        known += (ROOT / "hf_captioner/commands/train_arguments.py").read_text() + " output_dir learning_rate "
    for name in re.findall(r"--(\w+)", command):
        assert re.search(rf"\b{name}\b", known), name


@pytest.mark.parametrize("name", sorted(set(re.findall(r"make (\w+)", README))))
def test_make_targets(name):
    assert re.search(rf"^{name}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_the_tree_names_every_room_and_script():
    rooms = [path.parent.name + "/" for path in ROOT.glob("hf_captioner/*/__init__.py")]
    for name in [*rooms, *(path.name for path in ROOT.glob("training/*.py"))]:
        assert name in README, name
