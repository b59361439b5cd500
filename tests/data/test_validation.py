"""Forty planted defects are all found in one run, and none in clean data."""

import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from hf_captioner.commands import validate_data
from hf_captioner.data import validate
from hf_captioner.data.duplicates import Pictures, difference_hash


def photo(seed: int, size=(64, 48)) -> Image.Image:
    """Coarse noise: no two are alike, and each stays itself when it is saved otherwise."""
    values = np.random.default_rng(seed).integers(0, 256, (12, 16, 3)).astype(np.uint8)
    return Image.fromarray(values).resize(size, Image.Resampling.BICUBIC)


def write(folder, rows) -> str:
    """A folder with a table of `file_name` and `captions`."""
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return str(folder)


def clean(folder, count=12, first=0):
    folder.mkdir()
    rows = []
    for number in range(first, first + count):
        photo(number).save(folder / f"{number}.png")
        rows.append({"file_name": f"{number}.png", "captions": [f"a dog runs past {number} trees", f"dog {number}"]})
    return rows


def test_there_is_nothing_to_find_in_clean_data(tmp_path):
    training = write(tmp_path / "train", clean(tmp_path / "train"))
    evaluation = write(tmp_path / "test", clean(tmp_path / "test", first=100))
    report = validate(training, evaluation)
    assert report.defects == []
    assert report.sources[training] == {"images": 12, "captions": 24, "words": 4.0}
    assert report.lengths == {2: 12, 6: 12}
    first, second = report.vocabulary[0], report.vocabulary[1]
    assert first["min_frequency"] == 1 and first["unknown"] == 0
    # "a dog runs past N trees" and "dog N": four words of each caption alone are those of all, numbers occur twice
    assert first["words"] == 5 + 12 and second["words"] == 5 + 12
    assert report.vocabulary[2]["words"] == 5 and report.vocabulary[2]["unknown"] == pytest.approx(24 / 96)
    assert first["unknown_evaluation"] == pytest.approx(24 / 96)  # the evaluation's numbers are others
    assert report.estimates["feature_cache_gb"] > 0 and report.estimates["seconds_reading"] > 0
    assert "no defects" in report.text()


def test_forty_planted_defects_are_found_in_one_run(tmp_path):
    folder = tmp_path / "train"
    rows = clean(folder, count=60)
    planted: Counter = Counter()

    def plant(kind, row, **changes):
        planted[kind] += 1
        rows[row] |= changes

    for row in (0, 1, 2, 38):
        (folder / f"{row}.png").unlink()
        plant("image-missing", row)
    (tmp_path / "outside.png").write_bytes((folder / "3.png").read_bytes())
    plant("image-outside", 3, file_name="../outside.png")
    plant("image-outside", 4, file_name="/etc/hostname")
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    plant("image-outside", 5, file_name="link.png")
    (folder / "6.png").write_bytes(b"")
    (folder / "7.png").write_text("<svg/>")
    (folder / "8.png").write_bytes((folder / "9.png").read_bytes()[:200])
    for row in (6, 7, 8):
        plant("image-unreadable", row)
    for row, size in ((10, (1, 1)), (11, (64, 8)), (12, (31, 31))):
        photo(row, size).save(folder / f"{row}.png")
        plant("image-tiny", row)
    for row in (13, 14, 15):
        (folder / f"{row}.png").write_bytes((folder / "30.png").read_bytes())
        plant("image-duplicate", row)
    photo(31).save(folder / "16.jpg", quality=90)
    plant("image-near-duplicate", 16, file_name="16.jpg")
    photo(32).resize((128, 96)).save(folder / "17.png")
    plant("image-near-duplicate", 17)
    photo(33).point(lambda value: min(255, value + 8)).save(folder / "18.png")
    plant("image-near-duplicate", 18)
    for row, text in ((19, ""), (20, "  "), (21, "\n"), (39, "\u2003")):
        plant("caption-empty", row, captions=["a dog", text])
    for row in (22, 23):
        plant("caption-missing", row, captions=[])
    plant("caption-missing", 24, captions=None)
    for row in (25, 26, 27):
        plant("caption-duplicate", row, captions=["A dog runs.", "a dog  runs"])
    for row in (28, 29, 34, 44):
        plant("caption-long", row, captions=["very " * 61 + "long"])
    plant("caption-file-name", 35, captions=["35"])
    plant("caption-file-name", 36, captions=["36.png"])
    plant("caption-file-name", 37, captions=["37.PNG"])
    source = write(folder, rows)
    evaluation = tmp_path / "test"
    others = clean(evaluation, count=5, first=200)
    for number, row in ((40, 0), (41, 1)):
        (evaluation / f"{200 + row}.png").write_bytes((folder / f"{number}.png").read_bytes())
        planted["image-in-both"] += 1
    for number, row in ((42, 2), (43, 3)):
        photo(number).save(evaluation / f"{200 + row}.jpg", quality=90)
        others[row]["file_name"] = f"{200 + row}.jpg"
        planted["image-in-both"] += 1
    report = validate(source, write(evaluation, others))
    found = Counter(defect.kind for defect in report.defects)
    assert sum(planted.values()) == 40 and found == planted
    for defect in report.defects:
        assert defect.source in defect.message and " must " in defect.message and "\n" not in defect.message
    for row in (0, 6, 13, 16, 19):  # the right rows
        assert any(f"[{row}]`" in defect.message for defect in report.defects), row


def test_captions_that_are_no_text(tmp_path):
    folder = tmp_path / "train"
    rows = clean(folder, count=3)
    (folder / "table.json").write_text(json.dumps([{"file_name": row["file_name"], "caption": 7} for row in rows]))
    kinds = [defect.kind for defect in validate(str(folder / "table.json")).defects]
    assert kinds == ["caption-not-text"] * 3


def test_a_source_that_cannot_be_read_is_one_defect(tmp_path):
    (tmp_path / "table.csv").write_bytes(b"file_name,caption\na.png,caf\xe9\n")
    (defect,) = validate(str(tmp_path / "table.csv")).defects
    assert defect.kind == "source" and "UTF-8" in defect.message
    (defect,) = validate("nowhere.csv").defects
    assert defect.kind == "source" and "nowhere.csv" in defect.message


def test_hashes_of_the_same_picture_are_near_and_bands_miss_none():
    pictures, generator = Pictures(), np.random.default_rng(0)
    hashes = [difference_hash(photo(seed)) for seed in range(40)]
    for number, picture in enumerate(hashes):
        assert pictures.twin(str(number).encode(), picture) is None
        pictures.add(str(number), str(number).encode(), picture)
    for number, picture in enumerate(hashes):
        bits = generator.choice(256, 6, replace=False)
        changed = picture
        for bit in bits:
            changed ^= 1 << int(bit)
        assert pictures.twin(b"new", changed) == (str(number), False)
        assert pictures.twin(str(number).encode(), changed) == (str(number), True)
        assert pictures.twin(b"new", changed ^ (1 << next(b for b in range(256) if b not in bits))) is None


def test_the_command_reports_and_its_status_says_it(tmp_path, capsys):
    source = write(tmp_path / "train", clean(tmp_path / "train", count=3))
    validate_data.main([source, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["defects"] == []
    assert found["estimates"]["seconds_epoch_training"] > found["estimates"]["seconds_feature_cache"] > 0
    (tmp_path / "train" / "1.png").unlink()
    with pytest.raises(SystemExit) as stopped:
        validate_data.main([source])
    printed = capsys.readouterr().out
    assert stopped.value.code == 1 and "image-missing" in printed and "1 defects" in printed


def test_rows_that_cannot_be_read_do_not_hide_the_others(tmp_path):
    """Loading stops at each of these; here the rest is looked at, too."""
    rows = clean(tmp_path / "a", count=3)
    lines = ["file_name,caption", "0.png,a dog", "1.png,a dog,more", "2.png", "0.png,"]
    (tmp_path / "a" / "t.csv").write_text("\n".join(lines))
    kinds = Counter(defect.kind for defect in validate(str(tmp_path / "a" / "t.csv")).defects)
    assert kinds == {"columns-disagree": 2, "caption-missing": 1}
    lines = [json.dumps(rows[0]), "{broken", "[1]", json.dumps({**rows[1], "captions": [""]})]
    (tmp_path / "a" / "t.jsonl").write_text("\n".join(lines))
    kinds = Counter(defect.kind for defect in validate(str(tmp_path / "a" / "t.jsonl")).defects)
    assert kinds == {"row-unreadable": 2, "caption-empty": 1}
    (tmp_path / "a" / "t.txt").write_text("0.png#0\ta dog\nnonsense\n1.png#0\t\n")
    kinds = Counter(defect.kind for defect in validate(str(tmp_path / "a" / "t.txt")).defects)
    assert kinds == {"row-unreadable": 1, "caption-empty": 1}
    images = [{"id": number, "file_name": f"{number}.png"} for number in range(2)]
    annotations = [{"image_id": 0, "caption": 5}, {"image_id": 9, "caption": "x"}, {"image_id": 1, "caption": "dog"}]
    (tmp_path / "a" / "coco.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    found = validate(str(tmp_path / "a" / "coco.json")).defects
    kinds = Counter(defect.kind for defect in found)
    assert kinds == {"row-unreadable": 1, "caption-not-text": 1, "caption-missing": 1}


def test_images_of_one_colour_are_no_pictures_of_each_other(tmp_path):
    folder = tmp_path / "train"
    folder.mkdir()
    rows = []
    for number, color in enumerate(("red", "green", "blue", "white")):
        Image.new("RGB", (40, 40), color).save(folder / f"{number}.png")
        rows.append({"file_name": f"{number}.png", "captions": [f"a {color} wall"]})
    assert validate(write(folder, rows)).defects == []


def test_a_split_of_a_source_without_splits_is_refused(tmp_path):
    folder = tmp_path / "train"
    source = write(folder, clean(folder, count=2))
    (defect,) = validate(source, split="test").defects
    assert "`split` must be left out" in defect.message and "'test'" in defect.message
