"""The `evaluate.Metric`, its errors and edges; bootstrap intervals; signs of collapse."""

import json
import math
import shutil
import socket
import subprocess
import sys
import zipfile

import evaluate
import numpy as np
import pytest
from testing.caption_corpora import generated_captions, generated_corpus

from hf_captioner.metrics import (
    ALL_METRICS,
    DEFAULT_METRICS,
    CaptionMetrics,
    DocumentFrequency,
    Scores,
    bleu,
    collapse_checks,
    java,
    meteor,
    tokenize,
)
from hf_captioner.metrics.scores import NotAvailableError

PREDICTIONS = ["A dog runs on grass.", "two cats", "a red ball"]
REFERENCES = [
    ["a dog runs on grass", "The dog is running!"],
    ["Two cats sleep."],
    ["a ball", "red ball", "A red Ball"],
]


def numbers(result):
    for value in result.values():
        if isinstance(value, dict):
            yield from numbers(value)
        elif isinstance(value, list):
            yield from value
        else:
            yield value


def test_default_metrics_of_ragged_references():
    metrics = CaptionMetrics()
    assert isinstance(metrics, evaluate.Metric)
    result = metrics.compute(predictions=PREDICTIONS, references=REFERENCES)
    assert tuple(result) == DEFAULT_METRICS
    assert result["exact_match"] == pytest.approx(2 / 3)
    assert result["bleu_1"] == pytest.approx(math.exp(1 - 11 / 10))  # all words match, two cats are a word short
    assert all(type(value) is float for value in result.values())


def test_per_image_scores_and_intervals():
    result = CaptionMetrics().compute(predictions=PREDICTIONS, references=REFERENCES, per_image=True, intervals=True)
    assert result["per_image"]["exact_match"] == [1, 0, 1]
    assert set(result["per_image"]) == set(result["intervals"]) == set(DEFAULT_METRICS)
    for name in ("rouge_l", "cider", "cider_d"):
        assert np.mean(result["per_image"][name]) == pytest.approx(result[name])
    for name, (low, high) in result["intervals"].items():
        assert low <= result[name] <= high and low < high
    json.dumps(result, allow_nan=False)


def test_metrics_can_be_chosen():
    result = CaptionMetrics().compute(predictions=PREDICTIONS, references=REFERENCES, metrics=["cider_d", "bleu_4"])
    assert list(result) == ["cider_d", "bleu_4"]
    whole = CaptionMetrics().compute(predictions=PREDICTIONS, references=REFERENCES)
    assert result == {name: whole[name] for name in result}


def test_batches_score_as_the_whole_and_an_instance_can_be_used_again():
    metrics = CaptionMetrics()
    whole = metrics.compute(predictions=PREDICTIONS, references=REFERENCES)
    metrics.add_batch(predictions=PREDICTIONS[:2], references=REFERENCES[:2])
    metrics.add(prediction=PREDICTIONS[2], reference=REFERENCES[2])
    assert metrics.compute() == whole


def test_one_image_has_a_cider_only_with_frequencies_from_elsewhere():
    one = {"predictions": PREDICTIONS[:1], "references": REFERENCES[:1]}
    alone = CaptionMetrics().compute(**one, per_image=True)
    assert alone["cider"] == alone["cider_d"] == 0 and alone["bleu_4"] == pytest.approx(1)
    frequency = DocumentFrequency.from_references([tokenize(captions) for captions in REFERENCES])
    assert CaptionMetrics().compute(**one, document_frequency=frequency)["cider_d"] > 5


def test_no_nan_anywhere():
    captions = generated_captions(60, seed=6) + ["", " ", ".", "x", "x" * 5000, "a " * 400]
    references = [[captions[-image], ""][: 1 + image % 2] for image in range(len(captions))]
    result = CaptionMetrics().compute(predictions=captions, references=references, per_image=True, intervals=True)
    assert np.isfinite(list(numbers(result))).all()
    empty = CaptionMetrics().compute(predictions=["", ""], references=[[""], ["a"]], per_image=True, intervals=True)
    assert np.isfinite(list(numbers(empty))).all() and empty["per_image"]["bleu_1"] == [0, 0]


@pytest.mark.parametrize(
    ("predictions", "references", "error", "message"),
    [
        ([], [], ValueError, "predictions must hold at least one caption, got none"),
        (["a"], [["a"], ["b"]], ValueError, "one list for each of the 1 predictions, got 2"),
        (["a"], [[]], ValueError, r"references\[0\] must hold at least one caption, got none"),
        (["a", 5], [["a"], ["b"]], TypeError, r"predictions\[1\] must be a string, got 5"),
        (["a"], [["a", None]], TypeError, r"references\[0\]\[1\] must be a string, got None"),
        (["a"], ["a"], TypeError, r"references\[0\] must be a list of captions, got 'a'"),
        ("a", [["a"]], TypeError, "predictions must be a list, got 'a'"),
        (["a"], None, TypeError, "references must be a list, got None"),
        (["\ud83d"], [["a"]], ValueError, r"predictions\[0\] must be valid Unicode"),
    ],
)
def test_errors_name_field_rule_and_value(predictions, references, error, message):
    metrics = CaptionMetrics()
    with pytest.raises(error, match=message) as raised:
        metrics.compute(predictions=predictions, references=references)
    assert "\n" not in str(raised.value)
    # and leave nothing behind that the next call would score
    assert metrics.compute(predictions=["a"], references=[["a"]])["exact_match"] == 1


def test_an_unknown_metric_is_named():
    metrics = CaptionMetrics()
    with pytest.raises(ValueError, match="metrics must be among bleu_1, .*; got 'cider_x'"):
        metrics.compute(predictions=PREDICTIONS, references=REFERENCES, metrics=["cider_x"])
    assert metrics.compute(predictions=["a"], references=[["a"]])["exact_match"] == 1


def test_what_cannot_be_had_says_why(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    result = CaptionMetrics().compute(
        predictions=PREDICTIONS, references=REFERENCES, metrics=ALL_METRICS, per_image=True, intervals=True
    )
    assert result["meteor_1.5"] == result["spice"] == "not available, because Java is not installed"
    assert result["spider"] == result["spice"]
    for name in ("clip_score", "ref_clip_score"):
        assert result[name] == "not available, because images and clip_folder were not both given"
    assert set(result["per_image"]) == set(result["intervals"]) == {*DEFAULT_METRICS, "image_use"}

    (tmp_path / "java").write_text("#!/bin/sh\nexit 3\n")
    (tmp_path / "java").chmod(0o755)
    monkeypatch.setattr(java, "find_spec", lambda name: None)
    result = CaptionMetrics().compute(predictions=PREDICTIONS, references=REFERENCES, metrics=["meteor_1.5"])
    reason = "not available, because pycocoevalcap is not installed, and no folder with jars (java_dir) was named"
    assert result == {"meteor_1.5": reason}


def test_training_goes_on_without_the_stemmer(monkeypatch):
    monkeypatch.setitem(sys.modules, "nltk.stem.snowball", None)
    meteor._stemmer.cache_clear()
    meteor._stem.cache_clear()
    result = CaptionMetrics().compute(predictions=PREDICTIONS, references=REFERENCES, per_image=True)
    meteor._stemmer.cache_clear()
    assert result["meteor_exact_stem"] == "not available, because nltk is not installed"
    assert result["cider_d"] > 0 and "meteor_exact_stem" not in result["per_image"]


def test_a_java_that_fails_is_a_reason_too(monkeypatch, tmp_path):
    pytest.importorskip("pycocoevalcap")
    (tmp_path / "java").write_text("#!/bin/sh\nexit 3\n")
    (tmp_path / "java").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    result = CaptionMetrics().compute(predictions=PREDICTIONS, references=REFERENCES, metrics=["meteor_1.5"])
    assert result["meteor_1.5"].startswith("not available, because METEOR failed: ")


# In SPICE's place: writes what it was asked beside itself, and answers with the share of distinct words.
FAKE_JAVA = """#!{python}
import json, sys
from pathlib import Path
questions = json.loads(Path("in.json").read_text())
Path({asked!r}).write_text(json.dumps([sys.argv[1:], questions]))
answer = {answer}
Path(sys.argv[sys.argv.index("-out") + 1]).write_text(json.dumps(answer))
"""
SHARES = """[
    dict(image_id=q["image_id"], scores=dict(All=dict(f=0.5 if q["test"] else float("nan")))) for q in questions[::-1]
]"""


@pytest.fixture
def fake_java(monkeypatch, tmp_path):
    def make(answer):
        (tmp_path / "bin").mkdir(exist_ok=True)
        text = FAKE_JAVA.format(python=sys.executable, asked=str(tmp_path / "asked.json"), answer=answer)
        (tmp_path / "bin" / "java").write_text(text)
        (tmp_path / "bin" / "java").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/bin:/usr/bin")
        return lambda: json.loads((tmp_path / "asked.json").read_text())

    return make


def test_spice_never_downloads(fake_java, tmp_path):
    fake_java(SHARES)
    with pytest.raises(NotAvailableError, match="SPICE needs .*jar, which is not in .*; it is never downloaded"):
        java.spice([["a"]], [[["a"]]], tmp_path)
    assert not list(tmp_path.rglob("*.jar"))


def test_spice_from_a_folder_of_jars(fake_java, tmp_path):
    asked = fake_java(SHARES)
    (tmp_path / "jars" / "lib").mkdir(parents=True)
    for name in ("spice-1.0.jar", *(f"lib/stanford-corenlp-3.6.0{kind}.jar" for kind in ("", "-models"))):
        (tmp_path / "jars" / name).touch()
    candidates, references = [["a", "dog"], [], ["x"]], [[["a", "dog"], ["the", "dog"]], [["x"]], [["y"]]]
    scores = java.spice(candidates, references, tmp_path / "jars")
    # captions without any object or relation have no F score
    assert scores.per_image.tolist() == [0.5, 0, 0.5] and scores.corpus == pytest.approx(1 / 3)
    options, questions = asked()
    assert questions[0] == {"image_id": 0, "test": "a dog", "refs": ["a dog", "the dog"]} and len(questions) == 3
    jars = options[options.index("-cp") + 1].split(":")
    assert str(tmp_path / "jars" / "lib" / "stanford-corenlp-3.6.0.jar") in jars
    names = [jar.rsplit("/", 1)[1] for jar in jars]
    assert len(set(names)) == len(names)  # a jar that is in the folder is not taken from pycocoevalcap
    assert str(tmp_path / "jars" / "spice-1.0.jar") in jars


def test_spider_is_the_mean_of_spice_and_cider_d(fake_java, tmp_path):
    fake_java(SHARES)
    for name in ("spice-1.0.jar", *java.CORENLP_JARS):
        (tmp_path / name).touch()
    words = dict(predictions=PREDICTIONS, references=REFERENCES, java_dir=tmp_path, per_image=True)
    result = CaptionMetrics().compute(**words, metrics=["spider", "spice", "cider_d"])
    each = zip(result["per_image"]["spice"], result["per_image"]["cider_d"], strict=True)
    assert result["per_image"]["spider"] == pytest.approx([(spice + cider) / 2 for spice, cider in each])
    assert result["spider"] == pytest.approx((result["spice"] + result["cider_d"]) / 2) and result["cider_d"] > 0
    assert list(CaptionMetrics().compute(**words, metrics=["spider"])) == ["spider", "per_image"]


@pytest.mark.parametrize("answer", ["[]", '[dict(image_id=0, scores=dict(All=dict(f="?")))]', "5"])
def test_a_spice_that_answers_something_else_is_a_reason(fake_java, tmp_path, answer):
    fake_java(answer)
    for name in ("spice-1.0.jar", *java.CORENLP_JARS):
        (tmp_path / name).touch()
    with pytest.raises(NotAvailableError, match="SPICE left no scores"):
        java.spice([["a"]], [[["a"]]], tmp_path)


@pytest.mark.slow
def test_the_program_itself_is_started(tmp_path):
    """Its jar is there, that of the parser is empty: its own error is what is reported."""
    if shutil.which("java") is None:
        pytest.skip("needs Java")
    pytest.importorskip("pycocoevalcap")
    for name in java.CORENLP_JARS:
        with zipfile.ZipFile(tmp_path / name, "w"):
            pass
    with pytest.raises(NotAvailableError, match="SPICE failed: .*edu/stanford/nlp"):
        java.spice([["a", "dog"]], [[["a", "dog"]]], tmp_path)


def test_needs_no_network_and_writes_nothing(monkeypatch, tmp_path):
    def refuse(*args, **kwargs):
        raise AssertionError("opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path / "cache"))
    CaptionMetrics().compute(predictions=PREDICTIONS, references=REFERENCES)
    assert not list(tmp_path.iterdir())


def test_importing_metrics_loads_neither_evaluate_nor_the_optional_libraries():
    code = (
        "import sys, hf_captioner; before = set(sys.modules); import hf_captioner.metrics as m; m.CiderD; "
        "print([name for name in ('evaluate', 'pycocoevalcap', 'nltk') if name in set(sys.modules) - before])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_bootstrap_interval_of_bleu_equals_scoring_each_resample():
    candidates, references = generated_corpus(30, seed=7)
    generator = np.random.default_rng(0)
    resamples = [generator.integers(30, size=30) for _ in range(200)]
    slow = [bleu([candidates[i] for i in drawn], [references[i] for i in drawn])[1].corpus for drawn in resamples]
    interval = bleu(candidates, references)[1].confidence_interval(resamples=200, seed=0)
    np.testing.assert_allclose(interval, np.quantile(slow, [0.025, 0.975]), atol=1e-12)
    assert interval[1] - interval[0] > 0.01


def test_bootstrap_interval_of_a_mean_is_about_two_standard_errors_wide():
    values = np.random.default_rng(1).normal(3, 2, size=400)
    low, high = Scores.from_mean(values).confidence_interval()
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.1)
    assert low < values.mean() < high
    narrow = Scores.from_mean(values).confidence_interval(level=0.5)
    assert low < narrow[0] < narrow[1] < high
    with pytest.raises(ValueError, match="level must be between 0 and 1, got 95"):
        Scores.from_mean(values).confidence_interval(level=95)


def test_collapse_checks_tell_a_captioner_from_a_parrot():
    things = ["dog", "cat", "horse", "boat", "train", "bird"]
    references = [[f"a {thing} is here .", f"There is a {thing}"] for thing in things]
    good = collapse_checks([f"A {thing} is here" for thing in things], references)
    assert good["unique_ratio"] == 1 and good["vocabulary"] == 9 and good["mean_length"] == 4
    assert good["bad_ending_rate"] == 0
    assert good["cider_d"] > 5 and good["cider_d_shuffled"] < 0.2 * good["cider_d"]
    parrot = collapse_checks(["a dog is on a"] * 5 + [""], references)
    assert parrot["unique_ratio"] == pytest.approx(2 / 6) and parrot["bad_ending_rate"] == 1
    assert parrot["vocabulary"] == 4 and parrot["mean_length"] == pytest.approx(25 / 6)
    assert good["repetition_rate"] == parrot["repetition_rate"] == 0
    stutter = ["a black hat and a black hat", "A hat, a hat, a hat.", "a b c a b", "one two", "a a a a", ""]
    assert collapse_checks(stutter, references)["repetition_rate"] == 3 / 6
    with pytest.raises(ValueError, match="predictions must be one for each of the 1 images, got 2"):
        collapse_checks(["a", "b"], [["a"]])


def test_shuffling_gives_no_image_its_own_caption():
    for seed in range(20):
        captions = ["red dog runs", "blue cat sits", "green bird flies"]
        checks = collapse_checks(captions, [[caption] for caption in captions], seed=seed)
        assert checks["cider_d_shuffled"] == 0 and checks["cider_d"] == pytest.approx(7.5)
