"""Checkpoints that are there as a whole or not at all, and can tell whether they still are what was written."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from ..errors import InputError

MANIFEST = "manifest.json"
UNFINISHED = "_unfinished"  # folder for checkpoints that are being written; pushes leave out what begins with "_"
# To go on exactly. The first two are in every checkpoint but those of `save_only_model`; sharded ones lack the others.
NEEDED = ("trainer_state.json", "rng_state*.pth")
USUAL = ("optimizer.pt", "scheduler.pt", "*.safetensors")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(folder: Path) -> dict[str, Path]:
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path for path in paths if path.name != MANIFEST}


def publish(written: Path, checkpoint: Path) -> None:
    """
    Makes a checkpoint of a folder that lies beside it: writes the manifest, which has every file's size and SHA-256,
    waits until all is on the disk, and moves the folder to its place, where an earlier one may stand.
    """
    described = {}
    for name, path in _files(written).items():
        described[name] = {"bytes": path.stat().st_size, "sha256": _digest(path)}
    (written / MANIFEST).write_text(json.dumps({"files": described}, indent=2) + "\n")
    for path in (*_files(written).values(), written / MANIFEST, written):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    if checkpoint.exists():
        aside = written.with_name(f"earlier-{checkpoint.name}")
        checkpoint.rename(aside)
        written.rename(checkpoint)
        shutil.rmtree(aside)
    else:
        written.rename(checkpoint)


def defects(checkpoint: Path, manifest: bool = True) -> list[str]:
    """
    What is wrong with a checkpoint, each defect with the name of the file: files that are missing, or other than what
    was written.

    Args:
        checkpoint: a folder.
        manifest: whether it must have a manifest. Those of earlier versions and of other trainers have none, and of
            their files nothing but the names can be checked.
    """

    def missing(patterns: Iterable[str]) -> list[str]:
        return [f"`{pattern}` is missing" for pattern in patterns if not any(checkpoint.glob(pattern))]

    try:
        files = json.loads((checkpoint / MANIFEST).read_text())["files"]
    except FileNotFoundError:
        return missing([*NEEDED, *USUAL, *([MANIFEST] if manifest else [])])
    except (ValueError, KeyError, TypeError):
        return [f"`{MANIFEST}` is damaged"]
    found, there = [], _files(checkpoint)
    for name, written in files.items():
        if name not in there:
            found.append(f"`{name}` is missing")
        elif (size := there[name].stat().st_size) != written["bytes"]:
            found.append(f"`{name}` has {size:,} bytes where {written['bytes']:,} were written")
        elif _digest(there[name]) != written["sha256"]:
            found.append(f"`{name}` has other bytes than were written")
    return found or missing(NEEDED)


def check(checkpoint: Path, needs_best: bool) -> None:
    """
    Raises an `InputError` if a training cannot go on from a checkpoint as if it had not been stopped.

    Args:
        checkpoint: a folder.
        needs_best: whether the training ends with the best checkpoint, which may be an earlier one.
    """
    if wrong := defects(checkpoint, manifest=False):
        raise InputError(f"`resume_from_checkpoint` must be a whole checkpoint, got {checkpoint}: {', '.join(wrong)}")
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    if needs_best and state.get("best_global_step"):
        best = checkpoint.with_name(f"checkpoint-{state['best_global_step']}")
        wrong = defects(best, manifest=False) if best.is_dir() else ["it is missing"]
        if best != checkpoint and wrong:
            raise InputError(
                f"`load_best_model_at_end` needs {best}, the best until {checkpoint.name}: {', '.join(wrong)}"
            )


def checkpoints(folder: Path) -> list[Path]:
    """Those of a training, the newest first."""
    steps = {path: path.name.removeprefix("checkpoint-") for path in folder.glob("checkpoint-*") if path.is_dir()}
    return sorted((path for path, step in steps.items() if step.isdecimal()), key=lambda path: -int(steps[path]))


def newest_whole(folder: Path) -> tuple[Path | None, list[str]]:
    """
    The checkpoint to go on from.

    Args:
        folder: where a training has its checkpoints.

    Returns:
        the newest one that is whole, `None` if there are none at all; and why newer ones were passed over.

    Raises:
        InputError: if there are checkpoints, and none is whole.
    """
    passed_over: list[str] = []
    for checkpoint in checkpoints(folder):
        wrong = defects(checkpoint)
        if not wrong:
            return checkpoint, passed_over
        passed_over.append(f"{checkpoint.name}: {', '.join(wrong)}")
    if passed_over:
        raise InputError(
            f"`resume_from_checkpoint` must be whole, and in {folder} none is ({'; '.join(passed_over)}): mend one, "
            "or delete them to begin anew"
        )
    return None, []
