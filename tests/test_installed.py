"""The package without the clone: what is declared, and a wheel in a fresh virtual environment."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from importlib.metadata import packages_distributions

import pytest
import yaml
from testing import ROOT
from testing.training import TINY

import hf_captioner
from hf_captioner.data import shapes_dataset

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_what_is_imported_is_declared():
    """As a dependency or, with the file's extra, as one of an extra's."""
    declared = [
        *PROJECT["dependencies"],
        *(name for extra in PROJECT["optional-dependencies"].values() for name in extra),
    ]
    declared = {re.match(r"[\w-]+", name)[0].lower().replace("_", "-") for name in declared}
    distributions = packages_distributions()
    for path in (ROOT / "hf_captioner").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                modules = [node.module]
            else:
                continue
            for module in {name.split(".")[0] for name in modules} - sys.stdlib_module_names - {"hf_captioner"}:
                names = {name.lower().replace("_", "-") for name in distributions[module]}
                assert names & declared, f"{path}: {module}"


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors", "version"} <= set(citation)
    assert citation["version"] == hf_captioner.__version__ and citation["license"] == PROJECT["license"]


@pytest.mark.slow
def test_a_wheel_in_a_fresh_environment(tmp_path):
    """Trains, measures, writes the card and captions, from an empty folder; other packages are this environment's."""
    source, environment, folder = tmp_path / "source", tmp_path / "venv", tmp_path / "empty"
    folder.mkdir()
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "hf_captioner", source / "hf_captioner", ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip"]
    wheel = [*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(tmp_path), str(source)]
    subprocess.run(wheel, check=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True, timeout=120)
    python = environment / "bin" / "python"
    install = [*pip, "--python", str(python), "install", "-q", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, timeout=300)
    (site,) = environment.glob("lib/python*/site-packages")
    # after the wheel's own, so that nothing of this environment's hf_captioner is seen
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}

    def call(*parts: str) -> str:
        done = subprocess.run(parts, cwd=folder, env=variables, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    assert call(str(python), "-c", "import hf_captioner; print(hf_captioner.__file__)").startswith(str(site))
    program = str(environment / "bin" / "hf-captioner")
    settings = ["--config", "quickstart", "--train_data", "shapes:rows=24", "--eval-data", "shapes:rows=10,seed=1"]
    settings += [
        "--model_config",
        json.dumps(TINY),
        "--max_steps",
        "3",
        "--max_new_tokens",
        "8",
        "--eval_strategy",
        "no",
    ]
    settings += ["--save_strategy", "no", "--load_best_model_at_end", "false", "--report_to", "none"]
    call(program, "train", *settings, "--output_dir", "trained")
    assert (folder / "trained" / "model.safetensors").exists()
    data = ["--data", "shapes:rows=10,seed=1", "--metrics", "bleu_4", "cider_d"]
    call(program, "evaluate", "--model", "trained", *data, "--output_dir", "measured")
    assert "bleu_4" in json.loads((folder / "measured" / "metrics.json").read_text())["metrics"]
    (folder / "trained" / "README.md").unlink()
    call(program, "card", "--model", "trained", "--evaluation", "measured")
    assert "95 % interval" in (folder / "trained" / "README.md").read_text()
    (folder / "photos").mkdir()
    for index, image in enumerate(shapes_dataset(3)["image"]):
        image.save(folder / "photos" / f"{index}.png")
    call(program, "caption", "photos", "--model", "trained", "--output", "captions.jsonl")
    rows = [json.loads(line) for line in (folder / "captions.jsonl").read_text().splitlines()]
    assert [row["image"] for row in rows] == [f"photos/{index}.png" for index in range(3)]
    launch = [str(python), "-m", "accelerate.commands.launch", "-m", "hf_captioner.commands.train"]
    call(*launch, *settings, "--output_dir", "launched")
    assert (folder / "launched" / "model.safetensors").exists()
