"""The rooms of the package: who may import whom, read from the syntax trees."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from testing import ROOT

PACKAGE = ROOT / "hf_captioner"
FILES = sorted(PACKAGE.rglob("*.py"))
# Imports go from a room to those on earlier lines.
ORDER = (
    {"checkpoints"},
    {"models"},
    {"data", "metrics", "explain", "export", "sharing"},
    {"decoding"},
    {"trainers"},
    {"commands"},
)
RANKS = {room: rank for rank, rooms in enumerate(ORDER) for room in rooms}


def room_of(path: Path) -> str:
    """The folder of a file; an empty text for the files beside the rooms."""
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else ""


def imports(tree: ast.AST) -> Iterator[tuple[int, str, ast.stmt]]:
    """(level, module, statement) of every import, those inside functions too; level 0 is an absolute import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module or "", node


def imported_rooms(path: Path) -> set[str]:
    """The rooms that a file imports from; "" stands for the package itself and for files beside the rooms."""
    found = set()
    parents = path.relative_to(PACKAGE).parts[:-1]
    for level, module, statement in imports(ast.parse(path.read_text())):
        parts = module.split(".") if module else []
        if level == 0:
            if parts[0] != PACKAGE.name:
                continue
            inside = parts[1:]
        else:
            inside = [*parents[: len(parents) - level + 1], *parts]
        names = [alias.name for alias in statement.names] if isinstance(statement, ast.ImportFrom) else []
        for name in [inside[0]] if inside else names:
            found.add(name if (PACKAGE / name).is_dir() else "")
    return found


def test_every_folder_is_a_known_room():
    assert {room_of(path) for path in FILES} - {""} <= set(RANKS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path):
    room = room_of(path)
    others = imported_rooms(path) - {room}
    if path == PACKAGE / "__init__.py":
        assert others <= {"checkpoints", "decoding", "models", "trainers"}  # decoding and trainers on first use
    elif room == "":
        assert not others  # errors and the like serve every room
    elif room == "models":
        assert not others  # its files travel to the Hub without the rest
    else:
        assert all(other == "" or RANKS[other] < RANKS[room] for other in others), others
    if room in ("data", "metrics"):
        assert "models" not in others


def test_pictures_have_the_same_formats_in_both_lists():
    """models/ imports nothing from elsewhere, nor data and metrics anything from there, so the list stands twice."""
    from hf_captioner import files
    from hf_captioner.models import image_reading

    assert files.FORMATS == image_reading.FORMATS


@pytest.mark.parametrize("path", sorted((PACKAGE / "models").glob("*.py")), ids=lambda path: path.name)
def test_models_is_flat(path):
    """`from .file import Name` and nothing else: so transformers finds the files that a checkpoint needs."""
    assert path.parent == PACKAGE / "models"
    for level, module, statement in imports(ast.parse(path.read_text())):
        assert module.split(".")[0] != PACKAGE.name, ast.unparse(statement)
        if level:
            assert level == 1 and module and "." not in module, ast.unparse(statement)


def test_models_has_no_folders():
    assert not [path for path in (PACKAGE / "models").iterdir() if path.is_dir() and path.name != "__pycache__"]


def test_commands_alone_import_the_package_itself():
    """A room that imports `hf_captioner` could not be imported by it."""
    for path in FILES:
        if room_of(path) not in ("", "commands"):
            for level, module, statement in imports(ast.parse(path.read_text())):
                names = [alias.name for alias in statement.names] if isinstance(statement, ast.ImportFrom) else []
                if (level == 2 and not module) or (level == 0 and module == PACKAGE.name):
                    assert names and all((PACKAGE / name).is_dir() for name in names), ast.unparse(statement)


def asks_for_family(node: ast.AST) -> bool:
    """Whether an expression reads the name of a model's family: `config.model_type`, `model_type`, `getattr(...)`."""
    if isinstance(node, ast.Attribute):
        return node.attr == "model_type"
    if isinstance(node, ast.Name):
        return node.id == "model_type"
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
        return any(isinstance(argument, ast.Constant) and argument.value == "model_type" for argument in node.args)
    return False


def test_nothing_asks_for_a_family_by_name():
    """A question for the family is a method of the family; then a new one needs no change elsewhere."""
    found = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare):
                sides = [node.left, *node.comparators]
                # Whether transformers knows a vision model's type is another question.
                known = any(isinstance(side, ast.Name) and side.id == "CONFIG_MAPPING" for side in sides)
                asks = any(asks_for_family(side) for side in sides) and not known
            else:
                asks = isinstance(node, ast.Match) and asks_for_family(node.subject)
            if asks:
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node).splitlines()[0]}")
    assert not found


FRESH = """
import sys
import {module}
unwanted = {unwanted}
print([name for name in sys.modules if name.split(".")[0] in unwanted or ".".join(name.split(".")[:2]) in unwanted])
"""


def imported_by(module: str, unwanted: set[str], before: str = "") -> str:
    code = before + FRESH.format(module=module, unwanted=unwanted)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


def test_importing_the_package_imports_models_alone():
    """And where the captioner in the box lies; not the other rooms, nor what only they need."""
    rooms = {f"hf_captioner.{room}" for room in RANKS if room not in ("checkpoints", "models")}
    assert imported_by("hf_captioner", rooms | {"datasets", "evaluate", "matplotlib", "nltk", "tensorboard"}) == "[]"


def test_importing_the_package_needs_no_accelerate():
    """transformers imports accelerate itself where it is; so it is hidden, with the other packages of the extras."""
    hide = """
import importlib.metadata, importlib.util, sys
HIDDEN = ("accelerate", "evaluate", "matplotlib", "nltk", "tensorboard")
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *args: None if name.split(".")[0] in HIDDEN else find_spec(name, *args)
class Hide:
    def find_spec(self, name, *args):
        if name.split(".")[0] in HIDDEN:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Hide())
"""
    assert imported_by("hf_captioner", {"accelerate"}, hide) == "[]"


def test_metrics_imports_no_torch():
    """The package itself does, for its models; so the room is imported without it."""
    alone = f"""
import sys, types
package = types.ModuleType("hf_captioner")
package.__path__ = [{str(PACKAGE)!r}]
sys.modules["hf_captioner"] = package
"""
    assert imported_by("hf_captioner.metrics", {"torch", "transformers", "evaluate"}, alone) == "[]"
