"""What pages show as code: those of the site, the text of notebooks, and the documents beside them."""

import json
import re
from pathlib import Path

from . import ROOT

FENCED = re.compile(r"^( *)```([^\n`]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
IN_LINE = re.compile(r"(?<!`)`([^`]+)`(?!`)")


def written(path: Path) -> str:
    """A page's text without the fields in front; of a notebook the cells with text, for the others are executed."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = [cell["source"] for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown"]
        return "\n\n".join(map("".join, cells))
    return re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)


# The change log is not among them: it tells what once was, whose commands need not be there any more.
PAGES = {
    path.relative_to(ROOT).as_posix(): written(path)
    for path in (
        *(path for path in sorted(ROOT.glob("*.md")) if path.name != "CHANGELOG.md"),
        *sorted((ROOT / "docs").rglob("*.md")),
        *sorted((ROOT / "docs").rglob("*.ipynb")),
        *sorted((ROOT / "model_cards").glob("*.md")),
        ROOT / "hf_captioner" / "checkpoints" / "flickr8k" / "README.md",
    )
}


def fenced(text: str) -> list[tuple[str, str]]:
    """A page's fenced blocks of code: the language, "" where none is named, and the code."""
    found = FENCED.findall(text)
    return [(name, re.sub(rf"^{indent}", "", code, flags=re.MULTILINE)) for indent, name, code in found]


def shell_lines(text: str) -> list[str]:
    """
    What a page has one type into a shell: the lines of blocks that name no language, and indented lines. What goes on
    behind a backslash is one line.
    """
    indented = [line.strip() for line in FENCED.sub("", text).splitlines() if re.match(r" {4,}\S", line)]
    code = "\n".join([*(code for name, code in fenced(text) if not name), *indented])
    return [line for line in re.sub(r"\s*\\\n\s*", " ", code).splitlines() if line.strip()]


def in_line(text: str) -> list[str]:
    """What a page shows as code within its sentences."""
    return [re.sub(r"\s+", " ", code) for code in IN_LINE.findall(FENCED.sub("", text))]
