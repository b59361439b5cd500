"""
What the site needs beside mkdocs' plugins (`hooks` in mkdocs.yml). Before it is built, its pages are gathered in one
folder: those of docs/, notebooks as pages, and files from elsewhere in the repository, with links that lead to pages.
When a page is made, its equations become MathML, which browsers show without a script.

Notebooks of docs/course are shown as they were executed. Outputs are kept in .cache/notebooks, by a hash of the code
that made them, and notebooks are executed where they are missing. With `HF_CAPTIONER_EXECUTE=0` nothing is executed,
and cells whose outputs are not there are shown without.
"""

import hashlib
import html
import json
import logging
import os
import posixpath
import re
import shutil
import tempfile
from base64 import b64decode
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
OUTPUTS = ROOT / ".cache" / "notebooks"
EXECUTES = os.environ.get("HF_CAPTIONER_EXECUTE", "1") != "0"

# Pages that lie elsewhere in the repository: from their path to that in the site.
ELSEWHERE = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "hf_captioner/checkpoints/flickr8k/README.md": "results/in_the_box.md",
    "model_cards/README.md": "results/index.md",
    **{
        f"model_cards/{file.name}": f"results/{file.name}"
        for file in sorted((ROOT / "model_cards").glob("[!R]*"))
        if file.suffix in (".md", ".png")
    },
}
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")
CODE = re.compile(r"(^```.*?^```|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
EQUATION = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
TEXTS = {
    "en": {"output": "What the code above shows", "open": "This page as a notebook", "search": "Search"},
    "ko": {"output": "위 코드가 그린 그림", "open": "이 쪽의 노트북 파일", "search": "검색"},
}
log = logging.getLogger("mkdocs.hooks.docs")


def on_config(config):
    """Gathers the pages, once for all languages, and has mkdocs read them there."""
    pages = Path(config.site_dir).with_name("pages")
    if Path(config.docs_dir) != pages:
        gather(pages)
        config.docs_dir = str(pages)
        config.nav = complete(config.nav, sorted(path.relative_to(pages).as_posix() for path in pages.rglob("*.md")))
    return config


def on_page_content(content, page, **_):
    """Equations become MathML, and names in docstrings (`[`name`]`) links."""
    content = EQUATION.sub(lambda found: equation(html.unescape(found[3]), found[2] == "["), content)
    known = dict(re.findall(r'id="(hf_captioner\.(?:\w+\.)*(\w+))"', content))
    known = {name: address for address, name in known.items()}

    def linked(found: re.Match) -> str:
        words = f"<code>{found[1]}</code>"
        address = known.get(found[1].rpartition(".")[2])
        return f'<a href="#{address}">{words}</a>' if address else words

    return re.sub(r"\[<code>~?([\w.]+)</code>\](?!\()", linked, content)


def on_post_page(output, page, **_):
    """
    The theme's search dialog gets a name, which screen readers need. The theme's script asks for the site map of every
    language that a page's head names; they are not named there, as the language menu's links already lead to the page.
    """
    name = TEXTS[page.file.locale_alternate_of]["search"]
    output = re.sub(r'<link rel="alternate"[^>]* hreflang=[^>]*>', "", output)
    dialog = 'data-md-component="search" role="dialog"'
    return output.replace(dialog, f'{dialog} aria-label="{name}"')


# Pages


def gather(pages: Path) -> None:
    """Writes all pages and what they show into an empty folder, `pages`."""
    shutil.rmtree(pages, ignore_errors=True)
    sources = {path.relative_to(ROOT).as_posix(): path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*")}
    sources = {name: place for name, place in sources.items() if is_shown(ROOT / name)}
    places = {**sources, **ELSEWHERE}
    for name, place in places.items():
        (pages / place).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".md"):
            text = (ROOT / name).read_text(encoding="utf-8")
            text = without_fields(text) if name in ELSEWHERE else text
            (pages / place).write_text(with_links(text, name, place, places), encoding="utf-8")
        else:
            shutil.copy(ROOT / name, pages / place)
    for name, place in sources.items():
        if name.endswith(".ipynb"):
            text = notebook_page(ROOT / name, pages / place, places)
            (pages / place).with_suffix(".md").write_text(text, encoding="utf-8")


def is_shown(path: Path) -> bool:
    """Whether a file of docs/ is for the site: not this one, nor what tools leave behind."""
    hidden = any(part.startswith(".") or part == "__pycache__" for part in path.relative_to(DOCS).parts)
    return path.is_file() and not hidden and path.name != "hooks.py"


def without_fields(text: str) -> str:
    """Without what a model card says to the Hub in front."""
    return re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)


def with_links(text: str, name: str, place: str, places: dict[str, str]) -> str:
    """
    A page whose links, right in the repository, are right in the site. Of links to files that the site does not have,
    the words stay.

    Args:
        text: Markdown.
        name, place: of the page in the repository and in the site.
        places: those of all pages.

    Raises:
        PluginError: a link leads nowhere.
    """

    def moved(found: re.Match) -> str:
        image, words, target = found.groups()
        address, hash_, anchor = target.partition("#")
        if not address or ":" in address:
            return found[0]
        file = posixpath.normpath(posixpath.join(posixpath.dirname(name), address))
        if name.endswith(".ko.ipynb") or name.endswith(".ko.md"):
            file = file.replace(".ko.", ".") if file.replace(".ko.", ".") in places else file
        if file in places:
            there = posixpath.relpath(places[file], posixpath.dirname(place) or ".")
            return f"{image}[{words}]({re.sub(r'[.]ipynb$', '.md', there)}{hash_}{anchor})"
        if not (ROOT / file).exists():
            raise PluginError(f"{name}: the link to {target!r} leads nowhere")
        return words

    parts = CODE.split(text)
    return "".join(part if place % 2 else LINK.sub(moved, part) for place, part in enumerate(parts))


def complete(nav: list, pages: Sequence[str]) -> list:
    """The navigation with all pages that it does not name; see mkdocs.yml."""
    pages = [page for page in pages if not page.endswith(".ko.md")]
    rest = [page for page in pages if page not in json.dumps(nav)]

    def filled(entries: list) -> list:
        found: list = []
        for entry in entries:
            if isinstance(entry, dict):
                ((title, inner),) = entry.items()
                inner = filled(inner) if isinstance(inner, list) else inner
                if title == "How to":
                    inner += [page for page in rest if "/" not in page]
                found.append({title: inner})
            elif entry.endswith("/"):
                found += [page for page in pages if page.startswith(entry)]
            else:
                found.append(entry)
        return found

    return filled(nav)


# Equations


def equation(tex: str, block: bool) -> str:
    """
    TeX as MathML. Behind the name of a function the converter leaves no space, unless a bracket follows.

    Raises:
        PluginError: a command of TeX is unknown to the converter, which would show its name.
    """
    from latex2mathml.converter import convert

    made = convert(tex.strip(), display="block" if block else "inline")
    if unknown := re.search(r">(\\\w+)<", made):
        raise PluginError(f"equations must be of TeX that latex2mathml knows, got {unknown[1]} in {tex.strip()}")
    function = r"(?<!<msub>)(?<!<msup>)(?<!<munder>)(?<!<msubsup>)(<mi>\w{2,}</mi>)(?!<mo[^>]*>&#x00028;)"
    made = re.sub(function, r'\1<mspace width="0.17em"></mspace>', made)
    return f'<div class="equation" tabindex="0">{made}</div>' if block else made


# Notebooks


def notebook_page(path: Path, place: Path, places: dict[str, str]) -> str:
    """
    A notebook as Markdown, with its outputs.

    Args:
        path: of the notebook.
        place: where it lies among the pages; its pictures are written beside it.
        places: those of all pages, for its links.
    """
    name = path.relative_to(ROOT).as_posix()
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    outputs = iter(outputs_of(path, code))
    texts = TEXTS["ko" if path.name.endswith(".ko.ipynb") else "en"]
    parts: list[str] = []
    for number, cell in enumerate(cells):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(with_links(source, name, places[name], places))
        elif cell["cell_type"] == "code":
            parts.append(f"```python\n{source}\n```")
            stem = f"{place.name.replace('.', '_')}_{number}"
            cell_outputs = joined(next(outputs))
            parts += [shown(output, place.with_name(f"{stem}_{i}"), texts) for i, output in enumerate(cell_outputs)]
        if number == 0:  # below the title
            parts.append(f"[{texts['open']}]({path.name}){{ download .notebook }}")
    return "\n\n".join(filter(None, parts)) + "\n"


def joined(outputs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """
    A cell's outputs with what was printed in one go as one of them, in how many pieces it may have come. Warnings and
    progress bars, which go to standard error, are left out.
    """
    found: list[dict[str, Any]] = []
    for output in outputs:
        if output["output_type"] != "stream":
            found.append(output)
        elif output["name"] == "stdout":
            text = "".join(output["text"])
            if found and found[-1]["output_type"] == "stream":
                text = found.pop()["text"] + text
            found.append({**output, "text": text})
    return found


def shown(output: dict[str, Any], picture: Path, texts: dict[str, str]) -> str:
    """An output of a cell as Markdown."""
    if output["output_type"] == "stream":
        return fenced("".join(output["text"]))
    data = output.get("data", {})
    for kind, content in data.items():
        if kind.startswith("image/"):
            content = "".join(content)
            file = picture.with_suffix("." + kind.removeprefix("image/").partition("+")[0])
            file.write_bytes(content.encode() if kind.endswith("xml") else b64decode(content))
            # in a box that can be scrolled, for words in a picture that is as narrow as a phone cannot be read
            return f'<div class="figure" tabindex="0" markdown>\n\n![{texts["output"]}]({file.name})\n\n</div>'
    if "text/html" in data:
        return f'<div class="output">\n{"".join(data["text/html"])}\n</div>'
    return fenced("".join(data.get("text/plain", "")))


def fenced(text: str) -> str:
    """Text as it stands, in a fence longer than any in it."""
    text = plain(text).rstrip()
    fence = "`" * max(3, *(len(ticks) + 1 for ticks in re.findall("`+", text)), 3)
    return f"{fence}{{ .text .output .no-copy }}\n{text}\n{fence}" if text else ""


def plain(text: str) -> str:
    """Without the colours of a terminal."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def outputs_of(path: Path, code: Sequence[str]) -> list[list[dict[str, Any]]]:
    """
    The outputs of each code cell of a notebook, from the cache, or executed and put there.

    Raises:
        PluginError: a cell has an error.
    """
    file = OUTPUTS / f"{key_of(path, code)}.json"
    if file.is_file():
        return json.loads(file.read_text(encoding="utf-8"))
    if not EXECUTES:
        return [[] for _ in code]
    outputs = execute(path)
    OUTPUTS.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=OUTPUTS, encoding="utf-8", delete=False) as whole:
        json.dump(outputs, whole)
    os.replace(whole.name, file)
    return outputs


def key_of(path: Path, code: Sequence[str]) -> str:
    """
    Names the outputs of a notebook: its code cells, what lies beside it and below that they may read, and the version.
    Files called after a lesson, as `lesson_07.py`, count for that lesson alone.
    """
    version = re.search(r'__version__ = "(.*)"', (ROOT / "hf_captioner" / "__init__.py").read_text())[1]
    read = {}
    for file in sorted(path.parent.rglob("*")):
        name = file.relative_to(path.parent).as_posix()
        lesson = re.fullmatch(r"lesson_(\d\d)", file.stem)
        other = file.suffix in (".ipynb", ".md") or (lesson and lesson[1] != path.name[:2])
        if file.is_file() and not other and not re.search(r"(^|/)(\.|__pycache__)", name):
            read[name] = hashlib.sha256(file.read_bytes()).hexdigest()
    return hashlib.sha256(json.dumps([version, read, list(code)]).encode()).hexdigest()


def execute(path: Path) -> list[list[dict[str, Any]]]:
    """Runs a notebook in a copy of its folder, so that nothing is left behind in its own."""
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    log.info("Executing %s", path.relative_to(ROOT))
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(path.parent, folder, dirs_exist_ok=True)
        try:
            NotebookClient(notebook, timeout=None, resources={"metadata": {"path": folder}}).execute()
        except CellExecutionError as error:
            raise PluginError(f"{path.relative_to(ROOT)}: {plain(str(error))}") from error
    return [cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code"]
