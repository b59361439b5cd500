"""The examples of `docs/serve.md` do what the page says."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from testing import ROOT
from testing.serving import served_captioner, serving

from hf_captioner.checkpoints import PHOTOGRAPHS

PAGE = (ROOT / "docs" / "serve.md").read_text()
ADDRESS = "http://127.0.0.1:8000"
# a command, and what it answers
EXAMPLES = re.findall(r"```bash\n(.*?)```\n\n```json\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def url():
    with serving(served_captioner(PHOTOGRAPHS)) as running:
        yield running.url


@pytest.fixture
def folder(tmp_path):
    shutil.copy(ROOT / "tests" / "checkpoints" / "photograph.jpg", tmp_path / "photo.jpg")
    return tmp_path


def same(found, shown, path: str = "") -> None:
    """Identical but for what is new in every answer, and the last digits of a score."""
    assert type(found) is type(shown), path
    if isinstance(shown, dict):
        assert list(found) == list(shown), path
        for name in shown:
            same(found[name], shown[name], f"{path}.{name}")
    elif isinstance(shown, list):
        assert len(found) == len(shown), path
        for place, (one, other) in enumerate(zip(found, shown, strict=True)):
            same(one, other, f"{path}[{place}]")
    elif isinstance(shown, float):
        assert found == pytest.approx(shown, abs=0.01), path
    elif path not in (".id", ".created"):
        assert found == shown, path


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl, which the page's examples use")
def test_the_page_shows_what_curl_shows(url, folder):
    assert len(EXAMPLES) == 5
    for command, shown in EXAMPLES:
        command = command.replace(ADDRESS, url)
        done = subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        for found, line in zip(lines, shown.splitlines(), strict=True):
            same(found, json.loads(line))


@pytest.mark.slow
def test_the_page_shows_what_openais_client_does(url, folder):
    pytest.importorskip("openai", reason="OpenAI's client is not installed")
    (code,) = (part for part in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "OpenAI" in part)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code.replace(ADDRESS, url)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.strip() == json.loads(EXAMPLES[0][1])["caption"], done.stderr
