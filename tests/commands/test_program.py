"""`hf-captioner`: its documentation, its errors, and how it stops."""

import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from testing import ROOT
from testing.peers import peer_folder
from testing.tiny_models import tiny_model
from testing.training import arguments

import hf_captioner
from hf_captioner import CaptionerImageProcessor, CaptionerProcessor, train_tokenizer
from hf_captioner.commands import run
from hf_captioner.commands.program import PASSED_ON, app, main, program
from hf_captioner.commands.shipped import CONFIGS, find_config
from hf_captioner.data import shapes_dataset
from hf_captioner.errors import InputError

COMMANDS = [*PASSED_ON, "caption", "convert", "explain", "serve"]


def start(*parts: str, code: str | None = None, **options) -> subprocess.Popen:
    command = [sys.executable, *(["-m", "hf_captioner.commands.program", *parts] if code is None else ["-c", code])]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    # A shell that starts this in the background tells it, and all that it starts, to ignore Ctrl-C.
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    return subprocess.Popen(command, env=environment, preexec_fn=heed, **pipes, **options)


def help_of(command: str, capsys) -> str:
    try:
        program([command, "--help"])
    except SystemExit as stopped:  # argparse's way
        assert stopped.code == 0
    return capsys.readouterr().out


def examples(text: str) -> list[str]:
    """The lines of a documentation that call the program."""
    lines = re.sub(r"\\\n\s+", " ", text).splitlines()
    return [line.strip() for line in lines if re.match(r"\s+(find .*\| )?hf-captioner ", line)]


def test_help_names_every_command(capsys):
    program(["--help"])
    shown = capsys.readouterr().out
    assert all(re.search(rf"^  {command} ", shown, re.MULTILINE) for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples(command, capsys):
    text = help_of(command, capsys)
    assert text.lower().startswith(f"usage: hf-captioner {command} [options]")
    assert len(examples(text)) >= 1 and all(f"hf-captioner {command} " in line + " " for line in examples(text))


@pytest.mark.slow
def test_the_examples_of_the_help_run(tmp_path, monkeypatch, capsys):
    """One after the other, in one folder, as a reader would try them; trainings and benchmark cut short."""
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    for index, image in enumerate(shapes_dataset(3)["image"]):
        image.save(f"photos/{index}.jpg")
    shapes_dataset(1)[0]["image"].save("photo.jpg")
    Path("table.csv").write_text("image\nphoto.jpg\n")
    short = arguments("unused", max_steps=1, eval_strategy="no", save_strategy="no", load_best_model_at_end=False)
    pairs = dict(zip(short[::2], short[1::2], strict=True))
    for name in ("--config", "--output_dir", "--model_config"):
        pairs.pop(name)
    said = [{"image_id": row, "caption": "a small red circle"} for row in range(4)]
    Path("results.json").write_text(json.dumps(said))
    cut = {
        "train": [part for pair in pairs.items() for part in pair],
        "benchmark": ["--small", "--device", "cpu", "--parts", "decoding", "growth"],
        "evaluate": ["--data", "shapes:rows=4,seed=1", "--metrics", "bleu_4"],
        "compare": ["--data", "shapes:rows=4,seed=1", "--metrics", "bleu_4"],
    }
    peer_folder(Path("their_vit_gpt2"))
    for command in ("train", "evaluate", "compare", "card", "benchmark", "caption", "convert", "explain"):
        for example in examples(help_of(command, capsys)):
            feeder, _, call = example.rpartition(" | ")
            if feeder:
                fed = subprocess.run(shlex.split(feeder), capture_output=True, check=True).stdout
                monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(fed)))
            program([*shlex.split(call)[1:], *cut.get(command, [])])
    assert Path("outputs/quickstart/model.safetensors").exists() and Path("outputs/dot/model.safetensors").exists()
    assert all(Path(name).stat().st_size > 5000 for name in ("page.html", "words.png", "words.webp"))
    assert "95 % interval" in Path("outputs/quickstart/README.md").read_text()
    assert Path("outputs/theirs/metrics.json").exists() and Path("outputs/comparison/comparison.html").exists()
    assert len(json.loads(Path("outputs/comparison_of_three/comparison.json").read_text())["comparisons"]) == 3
    assert len(Path("captions.jsonl").read_text().splitlines()) == 3 and Path("captions.parquet").exists()
    assert sorted(path.name for path in Path("photos").iterdir()) == [
        f"{i}.{end}" for i in range(3) for end in ("jpg", "txt")
    ]


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["draw"], "error: No such command 'draw'."),
        (["caption"], "error: "),
        (["caption", "x", "--model", "m", "--beams", "3"], "error: No such option: --beams"),
        (
            ["card"],
            "error: the following arguments are required: --model (`hf-captioner card --help` lists the options)",
        ),
        (["card", "--model", "m", "--nam", "x", "y"], "error: "),
        (
            ["train", "--config", "quickstrat"],
            "error: `config` must be a YAML file or one of .*quickstart.*'quickstrat'",
        ),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_status_2(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["hf-captioner", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    printed = capsys.readouterr()
    assert stopped.value.code == 2 and printed.out == "" and printed.err.count("\n") == 1
    assert re.match(message.replace("(", r"\(").replace(")", r"\)"), printed.err)


def test_a_package_of_an_extra_that_is_missing(monkeypatch):
    monkeypatch.delitem(sys.modules, "hf_captioner.commands.evaluate", raising=False)
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(InputError, match=r"accelerate: pip install 'hf_captioner\[train\]'"):
        program(["evaluate", "--help"])


def test_both_spellings_of_an_option():
    for spelling in ("--num_beams", "--num-beams"):
        work = app(["caption", "x.jpg", "--model", "m", spelling, "3"], standalone_mode=False)
        assert work.args[2].num_beams == 3
    for spelling in ("--output_dir", "--output-dir"):
        with pytest.raises(InputError, match="required: --data$|required: --data "):
            program(["evaluate", "--model", "m", spelling, "d"])


def test_configs_are_found_by_name_and_by_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config("quickstart") == CONFIGS / "quickstart.yaml"
    Path("mine.yaml").write_text("seed: 1")
    assert find_config("mine.yaml") == Path("mine.yaml")
    # a clone's folder is the same one
    assert (ROOT / "training" / "configs" / "quickstart.yaml").samefile(CONFIGS / "quickstart.yaml")


def test_the_version(capsys):
    program(["--version"])
    assert capsys.readouterr().out == f"{hf_captioner.__version__}\n"


def test_nobody_reads_on():
    """As in `hf-captioner ... | head`: the status of a broken pipe, and no words, with a part still to be written."""
    code = "from hf_captioner.commands import run; run(lambda argv: [print('a line') for _ in range(1000)])"
    process = start(code=code)
    process.stdout.close()
    errors = process.stderr.read()
    assert process.wait(timeout=120) == 141 and errors == b""


def test_stopped_by_the_keyboard(capsys):
    def stopped(argv):
        print("so far")
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as status:
        run(stopped, [])
    assert status.value.code == 130 and capsys.readouterr() == ("so far\n", "")


@pytest.mark.slow
def test_ctrl_c_leaves_nothing_half_written(tmp_path):
    """Stopped while it captions, the program says nothing, and goes on with what is there."""
    model = tiny_model(attention="additive")
    model.generation_config.max_new_tokens = 6
    model.save_pretrained(tmp_path / "model")
    tokenizer = train_tokenizer([f"w{number}" for number in range(36)])
    CaptionerProcessor(CaptionerImageProcessor(size={"height": 32, "width": 32}), tokenizer).save_pretrained(
        tmp_path / "model"
    )
    count = 200  # enough that a busy machine, too, is not through before it is stopped
    for index, image in enumerate(shapes_dataset(count)["image"]):
        image.save(tmp_path / f"{index}.png")
    parts = ["caption", ".", "--model", "model", "--output", "out.csv", "--batch-size", "1"]
    process = start(*parts, cwd=tmp_path)
    progress = tmp_path / "out.csv.progress"
    while not progress.exists() or progress.read_bytes().count(b"\n") < 20:
        assert process.poll() is None, process.stderr.read()
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=120)
    assert (process.returncode, out, errors) == (130, b"", b"")
    lines = progress.read_bytes()
    assert lines.endswith(b"\n") and not (tmp_path / "out.csv").exists()
    process = start(*parts, cwd=tmp_path)
    assert process.wait(timeout=120) == 0
    assert len((tmp_path / "out.csv").read_text().splitlines()) == count + 1
