"""What is installed, and that the tools around the code agree with each other."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import yaml
from testing import ROOT

import hf_captioner
from hf_captioner.commands import captioning

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def pins(name: str) -> dict[str, str]:
    """The versions in a constraints file, by package."""
    lines = (ROOT / name).read_text().splitlines()
    return dict(re.fullmatch(r"([\w.-]+)==(\S+)", line).groups() for line in lines if not line.startswith("#"))


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.slow
def test_the_wheel_has_every_file_and_the_version(tmp_path):
    files = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "hf_captioner", "pyproject.toml"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if files.returncode:
        pytest.skip("not a git checkout: which files belong to the package is not known")
    names = [name for name in files.stdout.split("\0") if name and (ROOT / name).is_file()]
    for name in [*names, PROJECT["project"]["readme"], "LICENSE"]:  # a copy, for building leaves files behind
        (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / "source" / name)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "-w", tmp_path, tmp_path / "source"], check=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.startswith(f"hf_captioner-{hf_captioner.__version__}-")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith("hf_captioner/")}
    assert packed == {name for name in names if name.startswith("hf_captioner/")}
    assert "hf_captioner/py.typed" in packed


def test_the_version_has_one_source(tmp_path):
    """A clone on `PYTHONPATH` knows it without being installed."""
    assert "version" not in PROJECT["project"] and PROJECT["project"]["dynamic"] == ["version"]
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "hf_captioner.__version__"}
    (tmp_path / "hf_captioner").symlink_to(ROOT / "hf_captioner")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    code = "import hf_captioner; print(hf_captioner.__file__, hf_captioner.__version__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [str(tmp_path / "hf_captioner" / "__init__.py"), hf_captioner.__version__]


def test_reports_have_the_version_of_the_code_that_runs(monkeypatch):
    """Not that of an installation: there may be none, or an older one."""

    def not_installed(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(captioning, "version", not_installed)
    assert captioning.versions()["hf_captioner"] == hf_captioner.__version__


def test_hooks_use_the_ruff_of_the_constraints():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert {hook["entry"].split(" --")[0] for hook in hooks} == {"ruff check", "ruff format"}
    for hook in hooks:
        assert hook["additional_dependencies"] == [f"ruff=={pins('constraints.txt')['ruff']}"]
    assert pins("constraints-oldest.txt")["ruff"] == pins("constraints.txt")["ruff"]


@pytest.mark.parametrize("extra", ["", *PROJECT["project"]["optional-dependencies"]])
def test_every_dependency_is_pinned(extra):
    project = PROJECT["project"]
    wanted = project["optional-dependencies"][extra] if extra else project["dependencies"]
    names = {canonical(re.match(r"[\w.-]+", requirement)[0]) for requirement in wanted} - {"hf-captioner"}
    assert names <= {canonical(name) for name in pins("constraints.txt")}


@pytest.mark.parametrize("path", sorted((ROOT / ".github" / "workflows").glob("*.yml")), ids=lambda path: path.name)
def test_workflows_run_make_targets_only(path):
    for job in yaml.safe_load(path.read_text())["jobs"].values():
        matrix = job.get("strategy", {}).get("matrix", {}).get("include", [{}])
        commands = [step["run"] for step in job["steps"] if "run" in step]
        assert commands
        for command in commands:
            for row in matrix:
                made = re.sub(r"\$\{\{ matrix\.(\w+) \}\}", lambda name, row=row: row[name[1]], command)
                assert made.removeprefix("make ") in TARGETS and made.startswith("make "), made


def test_phony_targets_are_all_targets():
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
    assert set(phony) == TARGETS


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "RELEASING.md", "docs/architecture.md"])
def test_documents_name_targets_and_files_that_exist(name):
    text = (ROOT / name).read_text()
    for target in re.findall(r"`?make ([a-z][a-z-]+)", text):
        assert target in TARGETS, target
    for file in re.findall(r"`([\w./-]+\.(?:py|md|toml|txt))`", text):
        found = [ROOT / file, *(Path(ROOT) / "tests").rglob(Path(file).name)]
        assert any(path.exists() for path in found), file
