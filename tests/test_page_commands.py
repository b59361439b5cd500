"""
Every command of the pages is read by the program that it calls, or by what that program reads its options with, and
nothing is done. What is typed into a shell but not read here is in `NOT_READ`.
"""

import argparse
import re
import shlex
import shutil
import subprocess
import tomllib
from importlib import import_module
from importlib.util import find_spec

import pytest
import typer
from packaging.requirements import Requirement
from testing import ROOT
from testing.pages import PAGES, fenced, in_line, shell_lines

from hf_captioner.commands.parsing import CommandParser
from hf_captioner.commands.program import PASSED_ON, app
from hf_captioner.errors import InputError

NOT_READ = {  # by what it begins with, and the reason
    "cd": "the shell's own",
    "git": "changes a repository and its remote",
    "twine": "publishes a release",
}
LANGUAGES = {
    "": "commands, all of which are read here",
    "bash": "run as it stands by tests/commands/test_serve_page.py",
    "json": "what an answer is, compared there",
    "python": "run by tests/test_readme.py",
    "text": "nothing to type",
}
# Words that stand for a value of the reader's own.
PLACES = {"N": "1", "FILE": "f", "FOLDER": "f", "REGEX": "r", "A": "a", "T": "t", "X": "0"}
# What an option of these commands is not read without.
NEEDED = {"caption": ["photo.jpg"], "convert": ["a", "--output", "b"], "explain": ["photo.jpg", "--output", "p.html"]}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
KNOWN_PACKAGES = {
    *(line.partition("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line),
    "atheris",  # for Linux alone, so none of ours: docs/reliability.md
}


def commands(line: str) -> list[list[str]]:
    """The commands of a line, each as a shell hands it on, without what stands behind `#`."""
    parts = shlex.split(line, comments=True)
    marks = [-1, *(place for place, part in enumerate(parts) if part == "&&"), len(parts)]
    return [parts[start + 1 : end] for start, end in zip(marks, marks[1:], strict=False)]


LINES = sorted({(line, name) for name, text in PAGES.items() for line in shell_lines(text)})
PROGRAMS = r"hf-captioner|accelerate|python|pytest|pip|make|ray|hf|git|tensorboard"
NAMED = sorted(
    {
        (code, name)
        for name, text in PAGES.items()
        for code in in_line(text)
        if re.match(rf"(?:{PROGRAMS}) \S|--\w", code)
    }
)


class Read(Exception):
    """A command's options are about to be read; `args[0]` is what reads them."""


@pytest.fixture
def parser_of(monkeypatch):
    """`parser_of(file, argv)`: the parser of a file of `hf_captioner/commands`, as the command makes it."""

    def stopped(parser, argv):
        raise Read(parser)

    def find(file: str, argv: list[str]) -> CommandParser:
        with monkeypatch.context() as patched, pytest.raises(Read) as found:
            patched.setattr(CommandParser, "parse", stopped)
            import_module(f"hf_captioner.commands.{file}").main(argv)
        return found.value.args[0]

    return find


def read_ours(file: str, argv: list[str], parser_of, whole: bool = True) -> None:
    """Options of a file of `hf_captioner/commands`; those that are required may be left out unless it is `whole`."""
    parser = parser_of(file, argv)
    if whole and file == "train":
        import_module("hf_captioner.commands.train_arguments").parse_arguments(argv)
    elif whole:
        parser.parse(argv)
    else:
        for action in parser._actions:
            action.required = False
        _, unknown = parser.parse_known_args(argv)
        if unknown:
            parser.refuse_unknown(unknown[0])


def file_of(path: str) -> str:
    """The file of `hf_captioner/commands` that a script of `training/` runs."""
    return re.search(r"hf_captioner\.commands\.(\w+) import main", (ROOT / path).read_text())[1]


def read_program(argv: list[str], parser_of, whole: bool = True) -> None:
    command, *options = argv
    if "--help" in options or "-h" in options or command == "--help":
        assert command == "--help" or command in {*PASSED_ON, *NEEDED, "demo", "serve"}
    elif command in PASSED_ON:
        read_ours(PASSED_ON[command][0], options, parser_of, whole)
    else:
        if not whole and (not options or options[0].startswith("-")):
            options = [*NEEDED.get(command, []), *options]
        assert callable(app([command, *options], standalone_mode=False))


def read_python(argv: list[str], parser_of) -> None:
    if argv[0] == "-c":
        compile(argv[1], "command", "exec")
    elif argv[:2] == ["-m", "pytest"]:
        read_pytest(argv[2:])
    elif argv[0] == "-m":
        assert find_spec(argv[1]), argv[1]
    else:
        read_ours(file_of(argv[0]), argv[1:], parser_of)


def read_pytest(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("-s", action="store_true")
    parser.add_argument("-m")
    parser.add_argument("-k", default="")
    parser.add_argument("paths", nargs="*")
    args = parser.parse_args(argv)
    names = re.findall(r"^def (test_\w+)", "\n".join((ROOT / path).read_text() for path in args.paths), re.MULTILINE)
    assert not args.paths or any(args.k in name for name in names), argv


def read_accelerate(argv: list[str], parser_of, whole: bool) -> None:
    from accelerate.commands.launch import launch_command_parser

    assert argv[0] == "launch"
    if not whole and not {"-m", "training/train.py"} & set(argv):
        argv = [*argv, "training/train.py"]
    args = launch_command_parser().parse_args(argv[1:])
    if args.config_file is not None:
        assert (ROOT / args.config_file).is_file(), args.config_file
    script = args.training_script
    file = script.removeprefix("hf_captioner.commands.") if args.module else file_of(script)
    read_ours(file, args.training_script_args, parser_of, whole)


def read_make(argv: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for part in argv:
        if "=" in part:
            assert re.search(rf"\$\({part.partition('=')[0]}\)|^{part.partition('=')[0]} \?=", makefile, re.M), part
    if shutil.which("make"):
        done = subprocess.run(["make", "-n", *argv], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def read_pip(argv: list[str]) -> None:
    assert argv[0] == "install"
    for part in argv[1:]:
        if part in ("--no-deps", ".", "dist/*.whl"):
            continue
        wanted = Requirement(part)
        if wanted.name == PROJECT["name"]:
            assert wanted.extras <= set(PROJECT["optional-dependencies"]), part
        else:
            assert wanted.name.lower() in KNOWN_PACKAGES, part


def read_click(command, argv: list[str]) -> None:
    """Options of a program that click, or typer, reads; down to the last of its subcommands."""
    context = command.make_context(command.name or "program", list(argv))
    if hasattr(command, "get_command"):
        name, inner, rest = command.resolve_command(context, list(argv))
        read_click(inner, rest)


def read_ray(argv: list[str]) -> None:
    scripts = pytest.importorskip("ray.scripts.scripts", reason="no ray, of the extra ray")
    read_click(scripts.cli, argv)


def read_hub(argv: list[str]) -> None:
    from huggingface_hub.cli.hf import app as hub

    read_click(hub if hasattr(hub, "make_context") else typer.main.get_command(hub), argv)


def read_tensorboard(argv: list[str]) -> None:
    program = pytest.importorskip("tensorboard.program", reason="no tensorboard, of the extra train")
    plugins = import_module("tensorboard.default").get_static_plugins()
    program.TensorBoard(plugins=plugins).configure(["tensorboard", *argv])


def read(argv: list[str], parser_of, whole: bool = True) -> None:
    """
    Has a command's own program read its options, which raises what it says to those that it does not know.

    Args:
        argv: a command and its arguments.
        whole: whether it could be run as it stands; what a sentence quotes may be a part of one.
    """
    program, *rest = argv
    program = program.removeprefix("/tmp/release/bin/").removeprefix(".venv/bin/")
    if program in NOT_READ:
        return
    if program == "hf-captioner":
        read_program(rest, parser_of, whole)
    elif program == "python":
        read_python(rest, parser_of)
    elif program == "accelerate":
        read_accelerate(rest, parser_of, whole)
    else:
        readers = {"make": read_make, "pip": read_pip, "pytest": read_pytest}
        readers |= {"ray": read_ray, "hf": read_hub, "tensorboard": read_tensorboard}
        readers[program](rest)


@pytest.mark.parametrize("name", PAGES)
def test_every_block_is_of_a_language_that_is_tried(name):
    for language, code in fenced(PAGES[name]):
        assert language in LANGUAGES, code
        assert language not in ("bash", "json") or name == "docs/serve.md", code


@pytest.mark.parametrize("line", [pytest.param(line, id=f"{name}: {line}") for line, name in LINES])
def test_what_is_typed_into_a_shell(line, parser_of):
    for argv in commands(line):
        read(argv, parser_of)


@pytest.mark.parametrize("code", [pytest.param(code, id=f"{name}: {code}") for code, name in NAMED])
def test_what_a_sentence_quotes(code, parser_of):
    (argv,) = commands(code)
    argv = [PLACES.get(part, part) for part in argv]
    if not argv[0].startswith("--"):
        read(argv, parser_of, whole=False)
        return
    said = {}
    for command in (*PASSED_ON, *NEEDED, "demo", "serve"):
        try:
            read_program([command, *argv], parser_of, whole=False)
            return
        except (InputError, typer.TyperException) as error:
            said[command] = str(error)
            # its name stands alone, and it is one that goes with a value
            if re.search(r"requires an argument|expected (at least )?one argument", said[command]):
                return
    raise AssertionError(said)
