"""`hf-captioner compare` from files of captions and from captioners' folders."""

import json
import re

import numpy as np
import pytest
import torch
from testing.tiny_models import randomise, tiny_config

from hf_captioner import (
    CaptionerImageProcessor,
    CaptionerProcessor,
    RnnCaptionerForConditionalGeneration,
    train_tokenizer,
)
from hf_captioner.commands import compare, evaluate
from hf_captioner.commands.compare import name_captioners, rows_to_show
from hf_captioner.commands.program import PASSED_ON
from hf_captioner.data import load_captions
from hf_captioner.metrics import CaptionMetrics, compare_scores, score_captions

DATA = "shapes:rows=20,seed=5"
FAST = ["--metrics", "bleu_4", "cider_d", "chair_s", "--resamples", "100"]


@pytest.fixture(scope="module")
def rows():
    return load_captions(DATA)


@pytest.fixture
def files(rows, tmp_path):
    """Captions of two captioners, one mostly right, one for other images; not in the data's order."""
    captions = rows["captions"][:]
    said = {
        "right": [texts[image % 5] for image, texts in enumerate(captions)],
        "wrong": [captions[(image * 3 + 1) % 20][0] for image in range(20)],
    }
    paths = {}
    for name, texts in said.items():
        paths[name] = tmp_path / name / "captions.json"
        paths[name].parent.mkdir()
        results = [{"image_id": image, "caption": text} for image, text in enumerate(texts)]
        paths[name].write_text(json.dumps(results[::-1]))
    return said, paths


def run(captioners, output, *extra, data=DATA):
    compare.main([*map(str, captioners), "--data", data, "--output_dir", str(output), *(extra or FAST)])
    report = json.loads((output / "comparison.json").read_text("utf-8"))
    page = (output / "comparison.html").read_text("utf-8")
    return report, json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])


def test_two_files(files, rows, tmp_path, capsys):
    said, paths = files
    report, page = run(paths.values(), tmp_path / "out")
    assert [captioner["name"] for captioner in report["captioners"]] == ["right", "wrong"]
    references = rows["captions"][:]
    for captioner in report["captioners"]:
        expected = CaptionMetrics().compute(
            predictions=said[captioner["name"]], references=references, metrics=["bleu_4", "cider_d"]
        )
        assert {name: captioner["metrics"][name] for name in expected} == expected
    (comparison,) = report["comparisons"]
    metrics = ["bleu_4", "cider_d"]
    scores = {name: score_captions(texts, references, metrics)[0] for name, texts in said.items()}
    found = compare_scores(scores, resamples=100)[("right", "wrong")]
    for name in metrics:
        entry = comparison["metrics"][name]
        assert (entry["difference"], entry["p"]) == (found[name].difference, found[name].p)
        assert entry["interval_95"] == list(found[name].interval)
    assert comparison["metrics"]["chair_s"]["a"] == 0 < comparison["metrics"]["chair_s"]["b"]
    assert comparison["metrics"]["chair_s"]["wins"] > comparison["metrics"]["chair_s"]["losses"] == 0
    assert 0 <= comparison["agreement"]["same"] < 1
    assert "100 resampled corpora" in report["method"]["interval_95"] and report["num_images"] == 20
    printed = capsys.readouterr().out
    assert f"{comparison['metrics']['cider_d']['difference']:+.4f}" in printed

    assert len(page["images"]) == 20
    shown = next(image for image in page["images"] if image["number"] == 3)
    assert shown["captions"] == [said["right"][3], said["wrong"][3]] and shown["references"] == references[3]
    assert shown["scores"]["cider_d"] == [round(s["cider_d"].per_image[3], 4) for s in scores.values()]
    assert shown["maps"] == [None, None] and shown["picture"].startswith("data:image/jpeg;base64,")


def test_the_same_file_twice(files, tmp_path):
    _, paths = files
    report, _ = run([paths["wrong"]] * 2, tmp_path / "out")
    assert [captioner["name"] for captioner in report["captioners"]] == ["wrong (1)", "wrong (2)"]
    (comparison,) = report["comparisons"]
    assert comparison["agreement"]["same"] == comparison["agreement"]["word_overlap"] == 1
    for found in comparison["metrics"].values():
        assert found["p"] == 1 and found["ties"] == 20 and found["interval_95"] == pytest.approx([0, 0], abs=1e-12)


@pytest.fixture(scope="module")
def folders(rows, tmp_path_factory):
    """One captioner that attends and one that does not."""
    found = {}
    tokenizer = train_tokenizer([caption for captions in rows["captions"] for caption in captions])
    for name, attention in (("soft", "additive"), ("plain", "none")):
        found[name] = tmp_path_factory.mktemp("models") / name
        torch.manual_seed(1)
        model = RnnCaptionerForConditionalGeneration(tiny_config(vocab_size=len(tokenizer), attention=attention))
        randomise(model, scale=1.0)
        model.generation_config.update(max_new_tokens=8, num_beams=1)
        model.save_pretrained(found[name])
        CaptionerProcessor(CaptionerImageProcessor(size={"height": 32, "width": 32}), tokenizer).save_pretrained(
            found[name]
        )
    return found


def test_folders_are_captioned_as_evaluate_does_and_show_where_they_looked(folders, files, tmp_path):
    captioners = [folders["soft"], folders["plain"], files[1]["right"]]
    options = ["--metrics", "cider_d", "bleu_1", "--page_images", "6", "--num_beams", "2", "--batch_size", "4"]
    report, page = run(captioners, tmp_path / "out", *options)
    assert [captioner["name"] for captioner in report["captioners"]] == ["soft", "plain", "right"]
    assert [(c["a"], c["b"]) for c in report["comparisons"]] == [
        ("soft", "plain"), ("soft", "right"), ("plain", "right"),
    ]  # fmt: skip
    assert "Holm's correction for the 3 pairs" in report["method"]["p"]
    evaluate.main(
        ["--model", str(folders["soft"]), "--data", DATA, "--output_dir", str(tmp_path / "alone"), "--num_beams", "2"]
        + ["--metrics", "cider_d", "--batch_size", "4"]
    )
    captions = json.loads((tmp_path / "alone" / "captions.json").read_text())
    assert json.loads((tmp_path / "out" / "captions" / "soft" / "captions.json").read_text()) == captions
    assert len(page["images"]) == 6
    said = {result["image_id"]: result["caption"] for result in captions}
    for image in page["images"]:
        maps = image["maps"]
        assert image["captions"][0] == said[image["number"]] and maps[1:] == [None, None]
        assert " ".join(maps[0]["words"]).split() == said[image["number"]].split()
        assert len(maps[0]["maps"]) * 3 // 4 >= len(maps[0]["words"]) * np.prod(maps[0]["grid"])


def test_what_is_wrong_is_said_in_one_line(files, folders, tmp_path):
    _, paths = files
    with pytest.raises(ValueError, match="`captioners` must be at least two, got 1"):
        run([paths["right"]], tmp_path / "out")
    with pytest.raises(ValueError, match="`names` must be another for each of the 2 captioners, got .'x', 'x'."):
        run(paths.values(), tmp_path / "out", "--names", "x", "x")
    with pytest.raises(
        ValueError, match="`captions` must be of every image of shapes:rows=22.*, image_id 20 the first"
    ):
        run(paths.values(), tmp_path / "out", data="shapes:rows=22,seed=5")
    with pytest.raises(ValueError, match="`captions` must be a file, and there is no .*nowhere.json"):
        run([paths["right"], tmp_path / "nowhere.json"], tmp_path / "out")
    with pytest.raises(ValueError, match="`model` must be a captioner's folder or Hub name, got"):
        run([paths["right"], tmp_path / "nowhere"], tmp_path / "out")
    with pytest.raises(ValueError, match="`resamples` must be at least 1, got 0"):
        run(paths.values(), tmp_path / "out", "--resamples", "0")
    with pytest.raises(ValueError, match="`metrics` must be among bleu_1, .*; got 'cider-d'"):
        run(paths.values(), tmp_path / "out", "--metrics", "cider-d")
    assert not (tmp_path / "out" / "comparison.json").exists()
    assert PASSED_ON["compare"][0] == "compare"


def test_captioners_are_called_by_what_tells_them_apart(tmp_path):
    for name in ("a/evaluation", "b/evaluation", "c"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("a/evaluation/captions.json", "b/evaluation/captions.json", "c/theirs.json"):
        (tmp_path / name).touch()
    one, other, theirs = (str(tmp_path / name) for name in ("a/evaluation", "b/evaluation", "c/theirs.json"))
    assert name_captioners([f"{one}/captions.json", f"{other}/captions.json"], None) == [
        "a/evaluation",
        "b/evaluation",
    ]
    assert name_captioners([f"{one}/captions.json", theirs], None) == ["evaluation", "theirs"]
    assert name_captioners(["user/one.5", "user/two"], None) == ["one.5", "two"]
    assert name_captioners([theirs, theirs], ["x", "y"]) == ["x", "y"]


def test_rows_of_the_page():
    """Two thirds with the largest differences of every pair on either side, the others at random."""
    values = np.stack([np.arange(100.0), np.zeros(100), -np.arange(100.0)], axis=1)
    values[:, 0] -= 50
    rows = rows_to_show(values, 30, seed=0)
    assert len(rows) == len(set(rows)) == 30
    extremes = set(rows[:20])
    assert {0, 99} <= extremes and all(row < 15 or row > 84 for row in extremes)
    assert any(20 < row < 80 for row in rows[20:]) and rows_to_show(values, 30, seed=1)[:20] == rows[:20]
    assert sorted(rows_to_show(values, 500, seed=0)) == list(range(100))
    assert rows_to_show(values, 0, seed=0) == []
