"""METEOR 1.5 and SPICE, which exist in Java only. Nothing is downloaded; a missing program is reported as such."""

import shutil
import subprocess
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from .meteor import meteor_from_sums
from .scores import NotAvailableError, Scores


def meteor(candidates: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> Scores:
    """METEOR 1.5 (Denkowski and Lavie 2014) with all four stages, by pycocoevalcap's copy of the authors' program.

    Args:
        candidates: B captions, each a list of words.
        references: B lists of one or more captions, each a list of words.

    Returns:
        The scores (0 to 1); as in METEOR, the corpus score comes from the sums of the images' statistics.

    Raises:
        NotAvailableError: there is no Java or no pycocoevalcap, or the program fails.
    """
    folder = _folder("meteor")
    lines = [
        " ||| ".join(["SCORE", *(_as_field(reference) for reference in captions), _as_field(candidate)])
        for candidate, captions in zip(candidates, references, strict=True)
    ]
    command = ["java", "-Xmx2G", "-jar", "meteor-1.5.jar", "-", "-", "-stdio", "-l", "en", "-norm"]
    answer = _run(command, folder, "\n".join(lines) + "\n").splitlines()
    statistics = np.array([line.split() for line in answer], np.float64)
    if statistics.shape != (len(lines), 23):
        raise NotAvailableError(f"METEOR answered {len(answer)} lines to {len(lines)} questions")
    statistics, matches = statistics[:, :21], statistics[:, 21:]
    # in its sum of chunks the program counts 0 for a caption that matches its reference as a whole
    statistics[(matches == statistics[:, :2]).all(axis=1) & (statistics[:, 20] == 1), 20] = 0
    return Scores(statistics, meteor_from_sums)


def spice(candidates: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> Scores:
    """SPICE (Anderson et al. 2016), by pycocoevalcap's copy of the authors' program.

    Args, Returns and Raises as for `meteor`; the corpus score is the images' mean.
    """
    folder = _folder("spice")
    for name in ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar"):
        if not (folder / "lib" / name).exists():
            raise NotAvailableError(f"SPICE needs {name} in {folder / 'lib'} (pycocoevalcap.spice would download it)")
    from pycocoevalcap.spice.spice import Spice

    answers = {image: [" ".join(candidate)] for image, candidate in enumerate(candidates)}
    truths = {image: [" ".join(words) for words in captions] for image, captions in enumerate(references)}
    try:
        _, scores = Spice().compute_score(truths, answers)
    except (OSError, subprocess.CalledProcessError) as error:
        raise NotAvailableError(f"SPICE failed: {error}") from error
    # captions without any object or relation have no F score
    return Scores.from_mean(np.nan_to_num([score["All"]["f"] for score in scores]))


def _folder(metric: str) -> Path:
    if shutil.which("java") is None:
        raise NotAvailableError("Java is not installed")
    if find_spec("pycocoevalcap") is None:
        raise NotAvailableError("pycocoevalcap is not installed")
    module = find_spec(f"pycocoevalcap.{metric}.{metric}")
    if module is None or module.origin is None:
        raise NotAvailableError(f"pycocoevalcap is installed without {metric}")
    return Path(module.origin).parent


def _as_field(words: Sequence[str]) -> str:
    return " ".join(words).replace("|||", "")


def _run(command: list[str], folder: Path, text: str) -> str:
    try:
        done = subprocess.run(command, cwd=folder, input=text, capture_output=True, encoding="utf-8", check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise NotAvailableError(f"{command[3]} failed: {error}") from error
    return done.stdout
