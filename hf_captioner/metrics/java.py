"""METEOR 1.5 and SPICE, which exist in Java only. Nothing is downloaded; a missing program is reported as such."""

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from .meteor import meteor_from_sums
from .scores import NotAvailableError, Scores

METEOR_JAR, SPICE_JAR = "meteor-1.5.jar", "spice-1.0.jar"
# What SPICE is published without, because of its size; 3.6.0 is the version that it was written for.
CORENLP_JARS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")


def meteor(
    candidates: Sequence[Sequence[str]],
    references: Sequence[Sequence[Sequence[str]]],
    java_dir: str | os.PathLike | None = None,
) -> Scores:
    """METEOR 1.5 (Denkowski and Lavie 2014) with all four stages, by the authors' program.

    Args:
        candidates: B captions, each a list of words.
        references: B lists of one or more captions, each a list of words.
        java_dir: a folder with `meteor-1.5.jar` in it or below it, and beside that `data/paraphrase-en.gz`; by default
            pycocoevalcap's copy.

    Returns:
        The scores (0 to 1); as in METEOR, the corpus score comes from the sums of the images' statistics.

    Raises:
        NotAvailableError: there is no Java or no such file, or the program fails.
    """
    jar = _find([METEOR_JAR], _folders("meteor", java_dir), "METEOR")[METEOR_JAR]
    lines = [
        " ||| ".join(["SCORE", *(_as_field(reference) for reference in captions), _as_field(candidate)])
        for candidate, captions in zip(candidates, references, strict=True)
    ]
    command = ["java", "-Xmx2G", "-jar", jar.name, "-", "-", "-stdio", "-l", "en", "-norm"]
    answer = _run(command, jar.parent, "METEOR", "\n".join(lines) + "\n").splitlines()
    statistics = np.array([line.split() for line in answer], np.float64)
    if statistics.shape != (len(lines), 23):
        raise NotAvailableError(f"METEOR answered {len(answer)} lines to {len(lines)} questions")
    statistics, matches = statistics[:, :21], statistics[:, 21:]
    # in its sum of chunks the program counts 0 for a caption that matches its reference as a whole
    statistics[(matches == statistics[:, :2]).all(axis=1) & (statistics[:, 20] == 1), 20] = 0
    return Scores(statistics, meteor_from_sums)


def spice(
    candidates: Sequence[Sequence[str]],
    references: Sequence[Sequence[Sequence[str]]],
    java_dir: str | os.PathLike | None = None,
) -> Scores:
    """SPICE (Anderson et al. 2016), by the authors' program.

    Args:
        candidates: B captions, each a list of words.
        references: B lists of one or more captions, each a list of words.
        java_dir: a folder with the jars of SPICE in it or below it. It must have those of Stanford CoreNLP 3.6.0,
            which pycocoevalcap lacks; others that are not there are taken from pycocoevalcap's copy.

    Returns:
        The scores (0 to 1); the corpus score is the images' mean.

    Raises:
        NotAvailableError: there is no Java or a jar is missing, or the program fails.
    """
    folders = _folders("spice", java_dir)
    _find([SPICE_JAR, *CORENLP_JARS], folders, "SPICE")
    jars = {jar.name: jar.absolute() for folder in reversed(folders) for jar in sorted(folder.rglob("*.jar"))}
    questions = [
        {"image_id": image, "test": " ".join(candidate), "refs": [" ".join(words) for words in captions]}
        for image, (candidate, captions) in enumerate(zip(candidates, references, strict=True))
    ]
    with TemporaryDirectory() as folder:
        Path(folder, "in.json").write_text(json.dumps(questions), "utf-8")
        command = ["java", "-Xmx8G", "-cp", os.pathsep.join(map(str, jars.values())), "edu.anu.spice.SpiceScorer"]
        _run([*command, "in.json", "-out", "out.json", "-silent"], Path(folder), "SPICE")
        try:
            answers = json.loads(Path(folder, "out.json").read_text("utf-8"))
            shares = {answer["image_id"]: float(answer["scores"]["All"]["f"]) for answer in answers}
            values = [shares[image] for image in range(len(questions))]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise NotAvailableError(f"SPICE left no scores ({error!r})") from error
    # captions without any object or relation have no F score
    return Scores.from_mean(np.nan_to_num(values))


def _folders(metric: str, java_dir: str | os.PathLike | None) -> list[Path]:
    """Where jars may lie: the folder that was named, then pycocoevalcap's."""
    if shutil.which("java") is None:
        raise NotAvailableError("Java is not installed")
    folders = [] if java_dir is None else [Path(java_dir)]
    if find_spec("pycocoevalcap") is not None:
        module = find_spec(f"pycocoevalcap.{metric}.{metric}")
        if module is not None and module.origin is not None:
            folders.append(Path(module.origin).parent)
    if not folders:
        raise NotAvailableError("pycocoevalcap is not installed, and no folder with jars (java_dir) was named")
    return folders


def _find(names: Sequence[str], folders: Sequence[Path], program: str) -> dict[str, Path]:
    """The first file of each of these names."""
    found = {}
    for name in names:
        paths = [path for folder in folders for path in sorted(folder.rglob(name))]
        if not paths:
            places = " or ".join(map(str, folders))
            raise NotAvailableError(f"{program} needs {name}, which is not in {places}; it is never downloaded")
        found[name] = paths[0]
    return found


def _as_field(words: Sequence[str]) -> str:
    return " ".join(words).replace("|||", "")


def _run(command: list[str], folder: Path, program: str, text: str = "") -> str:
    try:
        done = subprocess.run(command, cwd=folder, input=text, capture_output=True, encoding="utf-8", check=True)
    except subprocess.CalledProcessError as error:
        said = error.stderr.strip().splitlines()
        raise NotAvailableError(f"{program} failed: {said[0] if said else error}") from error
    except OSError as error:
        raise NotAvailableError(f"{program} failed: {error}") from error
    return done.stdout
