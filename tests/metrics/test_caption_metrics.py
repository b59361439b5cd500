"""The `evaluate.Metric`, its errors and edges; bootstrap intervals; signs of collapse."""

import json
import math
import socket
import subprocess
import sys

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
    assert result["clip_score"] == "not available, because images and clip_folder were not both given"
    assert set(result["per_image"]) == set(result["intervals"]) == set(DEFAULT_METRICS)

    (tmp_path / "java").write_text("#!/bin/sh\nexit 3\n")
    (tmp_path / "java").chmod(0o755)
    monkeypatch.setattr(java, "find_spec", lambda name: None)
    result = CaptionMetrics().compute(predictions=PREDICTIONS, references=REFERENCES, metrics=["meteor_1.5"])
    assert result == {"meteor_1.5": "not available, because pycocoevalcap is not installed"}


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
    assert result["meteor_1.5"].startswith("not available, because meteor-1.5.jar failed: ")


def test_spice_never_downloads_and_uses_the_f_score(monkeypatch, tmp_path):
    spice = pytest.importorskip("pycocoevalcap.spice.spice")
    monkeypatch.setattr(java.shutil, "which", lambda name: "/usr/bin/java")
    monkeypatch.setattr(java, "_folder", lambda metric: tmp_path)
    with pytest.raises(NotAvailableError, match="SPICE needs stanford-corenlp-3.6.0.jar in .*would download it"):
        java.spice([["a"]], [[["a"]]])

    class Program:
        def compute_score(self, truths, answers):
            assert truths == {0: ["a dog", "the dog"], 1: ["x"]} and answers == {0: ["a dog"], 1: [""]}
            return 0.5, [{"All": {"f": 0.5}}, {"All": {"f": float("nan")}}]

    (tmp_path / "lib").mkdir()
    for name in ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar"):
        (tmp_path / "lib" / name).touch()
    monkeypatch.setattr(spice, "Spice", Program)
    scores = java.spice([["a", "dog"], []], [[["a", "dog"], ["the", "dog"]], [["x"]]])
    assert scores.per_image.tolist() == [0.5, 0] and scores.corpus == 0.25


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
