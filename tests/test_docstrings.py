"""Every public name has an example in its docstring, and every example runs as a reader pastes it."""

import ast
import doctest
from collections.abc import Iterator
from pathlib import Path

import pytest
from testing import ROOT
from testing.peers import peer_folder
from testing.tiny_clip import tiny_clip

PACKAGE = ROOT / "hf_captioner"
# Its example exports a captioner first, which takes a third of the time of all.
SLOW = {"OnnxCaptioner": [pytest.mark.slow, pytest.mark.long]}


def documented(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, ast.Constant]]:
    """The classes, functions, methods and constants of a module that have a docstring, by name, and that docstring."""
    for statement, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(statement, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            name, text = prefix + statement.name, statement.body[0]
            if isinstance(statement, ast.ClassDef):
                yield from documented(statement.body, f"{name}.")
        elif isinstance(statement, (ast.Assign, ast.AnnAssign)):
            target = statement.targets[0] if isinstance(statement, ast.Assign) else statement.target
            name, text = prefix + ast.unparse(target), after
        else:
            continue
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str):
            yield name, text.value


def public_names(room: Path) -> list[str]:
    """`__all__` of a room, from the source text."""
    for statement in ast.parse((room / "__init__.py").read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__all__":
            return ast.literal_eval(statement.value)
    return []


# The source text alone is read: the packages that an example needs are imported when it runs.
EXAMPLES = {
    (path.relative_to(PACKAGE).as_posix(), name): text
    for path in sorted(PACKAGE.rglob("*.py"))
    for name, text in documented(ast.parse(path.read_text(encoding="utf-8")).body)
    if ">>>" in text.value
}
PUBLIC = [
    (room.name, name)
    for room in (PACKAGE, *sorted(path.parent for path in PACKAGE.glob("*/__init__.py")))
    for name in public_names(room)
]


@pytest.mark.parametrize("room, name", PUBLIC, ids=lambda part: part)
def test_every_public_name_has_an_example(room, name):
    files = [file for file, found in EXAMPLES if found == name and room in (PACKAGE.name, file.split("/")[0])]
    assert len(files) == 1, f"the docstring of {name} has no `Examples:`"


def test_examples_are_shown_as_code():
    """mkdocstrings knows them by the heading; without it, `>>>` is a quotation of a quotation."""
    for place, text in EXAMPLES.items():
        before = text.value[: text.value.index(">>>")]
        assert "\n" in before and "Examples:\n" in before, place


def example(file: str, name: str):
    """An example as a test's parameter."""
    return pytest.param((file, name), id=name, marks=SLOW.get(name, ()))


@pytest.mark.parametrize("place", [example(*place) for place in EXAMPLES])
def test_example(place, tmp_path, monkeypatch):
    """With no other names than it imports, in an empty folder."""
    text = EXAMPLES[place]
    monkeypatch.chdir(tmp_path)
    if '"clip"' in text.value:  # two models that are the reader's own
        tiny_clip(tmp_path / "clip")
    if '"peer"' in text.value:
        peer_folder(tmp_path / "peer")
    file, name = place
    names = {"__name__": "__main__"}
    lines = doctest.DocTestParser().get_doctest(text.value, names, name, str(PACKAGE / file), text.lineno - 1)
    report: list[str] = []
    failed, tried = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(lines, out=report.append)
    assert tried and not failed, "".join(report)
