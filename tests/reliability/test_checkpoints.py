"""Checkpoints tell what is wrong with them; a full disk and a folder in use end a training with one line."""

import errno
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from test_resume import RNN, outcome, settings
from testing.kills import Moment, train_apart
from testing.training import arguments

from hf_captioner.commands import run, train
from hf_captioner.errors import InputError
from hf_captioner.trainers import checkpoints as module
from hf_captioner.trainers.checkpoints import MANIFEST, check, checkpoints, defects, newest_whole, publish

SHORT = settings(**RNN, max_steps=2, save_steps=1, eval_steps=1, gradient_accumulation_steps=1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A finished training with checkpoint-1 and checkpoint-2, of which the second is the best."""
    folder = tmp_path_factory.mktemp("trained") / "folder"
    train.main(arguments(folder, **SHORT))
    return folder


@pytest.fixture
def folder(trained, tmp_path) -> Path:
    return shutil.copytree(trained, tmp_path / "folder")


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def flip(path: Path) -> None:
    """One bit, in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [Path.unlink, truncate, empty, flip], ids=lambda damage: damage.__name__)
def test_damage_is_noticed_and_named(folder, tmp_path, damage, faults):
    files = sorted(path.relative_to(folder / "checkpoint-2") for path in (folder / "checkpoint-2").rglob("*.*"))
    wanted = {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", MANIFEST}
    assert wanted <= {str(name) for name in files}
    named = 0
    for number, name in enumerate(files):
        damaged = shutil.copytree(folder, tmp_path / str(number))
        damage(damaged / "checkpoint-2" / name)
        if str(name) == MANIFEST and damage is flip:
            shutil.rmtree(damaged)  # a name or a number that is not compared, perhaps
            continue
        found, passed_over = newest_whole(damaged)
        named += found == damaged / "checkpoint-1" and f"checkpoint-2: `{name}` " in passed_over[0]
        assert len(passed_over) == 1
    tried = len(files) - (damage is flip)
    faults.count(f"file of a checkpoint damaged: {damage.__name__}", tried, named, "noticed, named and passed over")
    assert named == tried


def test_a_checkpoint_that_is_named_is_checked_too(folder):
    check(folder / "checkpoint-2", needs_best=True)
    truncate(folder / "checkpoint-1" / "optimizer.pt")
    with pytest.raises(InputError, match=r"checkpoint-1: `optimizer.pt` has [\d,]+ bytes where [\d,]+ were written"):
        train.main(arguments(folder, **SHORT, resume_from_checkpoint=folder / "checkpoint-1"))
    shutil.rmtree(folder / "checkpoint-2")
    with pytest.raises(InputError, match="none is .checkpoint-1: `optimizer.pt`.*mend one, or delete them"):
        train.main(arguments(folder, **SHORT, resume_from_checkpoint="last"))


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "model.safetensors"])
def test_without_a_manifest_files_must_be_there(folder, name):
    """As other trainers and earlier versions leave them. They are taken if they are named, but not as the last one."""
    checkpoint = folder / "checkpoint-2"
    (checkpoint / MANIFEST).unlink()
    check(checkpoint, needs_best=False)
    assert newest_whole(folder) == (folder / "checkpoint-1", [f"checkpoint-2: `{MANIFEST}` is missing"])
    (checkpoint / name).unlink()
    with pytest.raises(InputError, match=f"{Path(name).stem[:9]}|safetensors"):
        check(checkpoint, needs_best=False)


def test_the_best_checkpoint_must_be_whole_if_it_is_needed(folder):
    state = json.loads((folder / "checkpoint-2/trainer_state.json").read_text())
    (folder / "checkpoint-2" / MANIFEST).unlink()
    (folder / "checkpoint-2/trainer_state.json").write_text(json.dumps({**state, "best_global_step": 1}))
    check(folder / "checkpoint-2", needs_best=True)
    truncate(folder / "checkpoint-1/model.safetensors")
    with pytest.raises(
        InputError, match="`load_best_model_at_end` needs .*checkpoint-1, the best until checkpoint-2: `m"
    ):
        check(folder / "checkpoint-2", needs_best=True)
    check(folder / "checkpoint-2", needs_best=False)


def test_a_checkpoint_appears_when_it_is_whole(tmp_path, monkeypatch):
    written, place = tmp_path / "_unfinished/checkpoint-3", tmp_path / "checkpoint-3"
    for folder, text in ((place, "old"), (written, "new")):
        folder.mkdir(parents=True)
        for name in ("trainer_state.json", "rng_state.pth"):
            (folder / name).write_text(text)
    usual = Path.rename
    seen = []

    def rename(path, target):
        seen.append((path.name, defects(written) if written.exists() else None))
        return usual(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    publish(written, place)
    assert seen == [("checkpoint-3", []), ("checkpoint-3", [])]  # whole before the old one goes
    assert defects(place) == [] and (place / "rng_state.pth").read_text() == "new"
    assert not list((tmp_path / "_unfinished").iterdir()) and checkpoints(tmp_path) == [place]
    (tmp_path / "checkpoint-tmp").mkdir()
    (tmp_path / "checkpoint-20").mkdir()
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-20", "checkpoint-3"]


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device", "x.pt"), RuntimeError("PytorchStreamWriter failed\nat line 3")],
)
def test_a_full_disk_is_one_line_and_leaves_nothing_behind(folder, monkeypatch, capsys, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(torch, "save", fail)
    before = {path.name for path in folder.iterdir()}
    with pytest.raises(SystemExit) as stopped:
        run(train.main, arguments(folder, **{**SHORT, "max_steps": 4}, resume_from_checkpoint="last"))
    assert stopped.value.code == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: ") and "checkpoint-3 could not be written (" in line
    assert str(error).split("\n")[0].removeprefix("[Errno 28] ").split(":")[0] in line
    assert {path.name for path in folder.iterdir()} == before and defects(folder / "checkpoint-2") == []
    # The command, without a checkpoint's help, says the reason of any file.
    with pytest.raises(SystemExit) as stopped:
        run(fail, [])
    assert stopped.value.code == 2 and capsys.readouterr().err.count("\n") == 1


@pytest.mark.slow
def test_a_full_disk_ends_a_training_which_goes_on_later(tmp_path, faults):
    """
    Files beyond a size fail: the optimiser's state, then the weights. Where a file system can be made for the test, it
    is full as well.
    """
    options = settings(**RNN, max_steps=8)
    whole = train_apart(arguments(tmp_path / "whole", **options), tmp_path / "whole.log")
    assert whole.exit == 0, whole.log[-3000:]
    folder, log = tmp_path / "full", tmp_path / "full.log"
    argv = arguments(folder, **options)
    first = train_apart(argv, log, Moment("step", 15))  # in the fourth step
    assert first.exit == -9
    sizes = {path.name: path.stat().st_size for path in (folder / "checkpoint-2").iterdir()}
    assert sizes["optimizer.pt"] > sizes["model.safetensors"] + 1000
    survived = 0
    for largest in (sizes["optimizer.pt"] - 500, sizes["model.safetensors"] - 500):
        stopped = train_apart(argv, log, largest=largest)
        assert stopped.exit == 2 and "Traceback" not in stopped.log, stopped.log[-3000:]
        line = stopped.log.strip().splitlines()[-1]
        assert line.startswith(f"error: {folder}/checkpoint-4 could not be written ("), line
        assert [path.name for path in folder.glob("*checkpoint*")] == ["checkpoint-2"]
        assert not (folder / "_unfinished").exists()
        survived += newest_whole(folder) == (folder / "checkpoint-2", [])
    tried = 2
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={3 * sum(sizes.values()) // 2}", "tmpfs", str(small)]
    if shutil.which("mount") and subprocess.run(mount, capture_output=True).returncode == 0:
        try:
            stopped = train_apart(arguments(small / "full", **options), log)
            tried += 1
            lines = stopped.log.strip().splitlines()
            survived += stopped.exit == 2 and newest_whole(small / "full")[0] == small / "full/checkpoint-2"
            assert "could not be written" in lines[-1] and "Traceback" not in stopped.log, stopped.log[-3000:]
            shutil.copytree(small / "full", tmp_path / "moved")
        finally:
            subprocess.run(["umount", str(small)], check=True)
        moved = train_apart(arguments(tmp_path / "moved", **options), log)
        assert moved.exit == 0 and outcome(tmp_path / "moved") == outcome(tmp_path / "whole")
    last = train_apart(argv, log)
    same = last.exit == 0 and outcome(folder) == outcome(tmp_path / "whole")
    faults.count("disk full while a checkpoint is written", tried, survived if same else 0, "one line; goes on later")
    assert same and survived == tried


def test_the_same_command_does_nothing_once_it_has_finished(folder, trained, capsys):
    weights = (folder / "model.safetensors").stat().st_mtime_ns
    train.main(arguments(folder, **SHORT))
    assert (folder / "model.safetensors").stat().st_mtime_ns == weights
    assert capsys.readouterr().out == f"finished already: {folder}; delete it or name another one to train anew\n"
    with pytest.raises(InputError, match="`output_dir` must be new, .*checkpoint-2"):
        train.main(arguments(folder, **{**SHORT, "learning_rate": 0.01}))
    with pytest.raises(InputError, match="`output_dir` must be new, .*checkpoint-2"):
        train.main(arguments(folder, **SHORT, resume_from_checkpoint="false"))
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    with pytest.raises(InputError, match="`output_dir` must be new, .*_run.json"):  # nor is it overwritten
        train.main(arguments(folder, **{**SHORT, "learning_rate": 0.01}))
    (folder / "_run.json").unlink()
    with pytest.raises(InputError, match="`output_dir` must be new, .*config.json"):
        train.main(arguments(folder, **SHORT))


def test_an_unfinished_training_goes_on_with_the_same_settings_alone(folder, trained, capsys):
    kept = json.loads((folder / "_run.json").read_text())
    assert kept["finished"] and "learning_rate" in kept["settings"] and "hub_token" not in kept["settings"]
    (folder / "_run.json").write_text(json.dumps({**kept, "finished": False}))
    (folder / "_unfinished/checkpoint-3").mkdir(parents=True)
    truncate(folder / "checkpoint-2/optimizer.pt")
    with pytest.raises(InputError, match="got `learning_rate` 0.01 in place of 0.02; --resume_from_checkpoint last"):
        train.main(arguments(folder, **{**SHORT, "learning_rate": 0.01}))
    train.main(arguments(folder, **{**SHORT, "save_total_limit": 5}))
    printed = capsys.readouterr().out
    assert (
        "passed over checkpoint-2: `optimizer.pt` has" in printed and f"going on from {folder}/checkpoint-1" in printed
    )
    assert outcome(folder) == outcome(trained) and defects(folder / "checkpoint-2") == []
    assert json.loads((folder / "_run.json").read_text())["finished"]


def test_secrets_are_not_kept(tmp_path):
    *groups, args = train.parse_arguments(arguments(tmp_path, hub_token="hf_secret"))
    run_here = train.TrainingRun(*groups, args)
    assert "hf_secret" not in json.dumps(run_here.settings)
    run_here.begin()
    assert "hf_secret" not in (tmp_path / "_run.json").read_text()


def test_every_file_is_on_the_disk_before_a_checkpoint_appears(tmp_path, monkeypatch):
    written = tmp_path / "beside"
    (written / "part").mkdir(parents=True)
    (written / "part/a").write_text("a")
    synced = []
    monkeypatch.setattr(module.os, "fsync", lambda handle: synced.append(os.readlink(f"/proc/self/fd/{handle}")))
    publish(written, tmp_path / "checkpoint-1")
    assert {Path(path).name for path in synced} == {"a", MANIFEST, "beside"}
