"""Bytes that fuzzing guided by coverage has found, and those that it started from, see `guided.py`."""

import pytest
from datasets import disable_progress_bars
from guided import CORPUS, targets
from test_fuzz import prepared


@pytest.mark.filterwarnings("ignore")  # of Pillow, about what is wrong with a file
@pytest.mark.parametrize("name", sorted(targets()))
def test_what_was_found_is_an_error_of_ours_or_what_is_there(name, tmp_path, monkeypatch, faults):
    disable_progress_bars()
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    target, folder = targets()[name], prepared(tmp_path)
    files = sorted((CORPUS / name).iterdir())
    assert len(files) >= 2
    survived = 0
    try:
        for path in files:
            target(folder, path.read_bytes())
            survived += 1
    finally:
        faults.count("bytes kept from guided fuzzing", len(files), survived, "our error, or what is there")
