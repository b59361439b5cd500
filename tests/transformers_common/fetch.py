"""
Brings transformers' own common tests, which its wheel leaves out, from the source archive of the installed version.

    python tests/transformers_common/fetch.py

They go to `.cache/transformers_tests/<version>/transformers_tests` in the repository's root, once per version. What
the archive itself lacks (the generation and export mixins, helpers that read the Hub) is replaced by empty stand-ins:
`tests/test_generation.py` covers generation.
"""

import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import transformers

ROOT = Path(__file__).parents[2] / ".cache" / "transformers_tests" / transformers.__version__
PACKAGE = ROOT / "transformers_tests"
STAND_INS = {
    "__init__.py": "",
    "generation/__init__.py": "",
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "exporters/__init__.py": "",
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "utils/__init__.py": "",
    "utils/test_configuration_utils.py": "config_common_kwargs = {}\n",
    "fixtures/sample_text.txt": "The tokenizer tests open this file and use nothing of it.\n",
}
TOP_LEVEL_STAND_INS = {"fetch_hub_objects_for_ci.py": "def url_to_local_path(url):\n    return url\n"}


def fetch() -> Path:
    """The folder to put on `sys.path`; nothing is downloaded if it is there."""
    if not PACKAGE.is_dir():
        _download()
    for folder, stand_ins in ((PACKAGE, STAND_INS), (ROOT, TOP_LEVEL_STAND_INS)):
        for name, text in stand_ins.items():
            path = folder / name
            if not path.exists():
                path.parent.mkdir(exist_ok=True)
                path.write_text(text)
    return ROOT


def _download() -> None:
    ROOT.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT.parent) as work:
        requirement = f"transformers=={transformers.__version__}"
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", "-d", work]
        subprocess.run([*command, requirement], check=True)
        (archive,) = Path(work).glob("transformers-*.tar.gz")
        unpacked = Path(work) / "unpacked"
        with tarfile.open(archive) as tar:
            tar.extractall(unpacked, filter="data")
        (source,) = unpacked.glob("*/tests")
        new_root = Path(work) / "root"
        new_root.mkdir()
        source.rename(new_root / "transformers_tests")
        new_root.rename(ROOT)


if __name__ == "__main__":
    print(fetch())
