"""Searches and rules by name in `caption` and `evaluate`, and the measuring of searches."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from testing import ROOT
from testing.tiny_models import tiny_model
from transformers import pipeline

from hf_captioner import CaptionerImageProcessor, CaptionerProcessor, train_tokenizer
from hf_captioner.commands import evaluate, measure_decoding
from hf_captioner.commands.caption_sets import measure_sets
from hf_captioner.commands.program import program
from hf_captioner.data import load_captions
from hf_captioner.data.caption_files import read_captions
from hf_captioner.errors import InputError
from hf_captioner.metrics import CiderD, DocumentFrequency, tokenize

DATA = "shapes:rows=5,seed=5"
DIVERSE = {"num_beam_groups": 3, "diversity_penalty": 2.0, "num_return_sequences": 3}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model")
    tokenizer = train_tokenizer([text for captions in load_captions(DATA)["captions"] for text in captions])
    captioner = tiny_model(attention="additive", vocab_size=len(tokenizer))
    captioner.generation_config.update(max_new_tokens=6, suppress_tokens=[0, 1, 2])
    captioner.save_pretrained(folder)
    CaptionerProcessor(CaptionerImageProcessor(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def photos(tmp_path, monkeypatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    names = [f"{place}.png" for place in range(3)]
    for place, name in enumerate(names):
        Image.fromarray(random.integers(0, 90 + 80 * place, (30, 40, 3)).astype(np.uint8)).save(name)
    return names


def flags(options: dict) -> list[str]:
    return [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]


def caption(model, photos, *arguments) -> None:
    program(["caption", *photos, "--model", model, *map(str, arguments)])


def test_several_captions_in_every_format(model, photos, capsys):
    expected = pipeline("image-captioning", model=model, device="cpu")(photos, decoding="diverse", **DIVERSE)
    arguments = ["--decoding", "diverse", *flags(DIVERSE)]
    for suffix in ("jsonl", "csv", "parquet"):
        caption(model, photos, *arguments, "--output", f"out.{suffix}")
        for row, captions in zip(read_captions(Path(f"out.{suffix}")), expected, strict=True):
            found = [row, *row["others"]]
            assert [each["caption"] for each in found] == [each["generated_text"] for each in captions]
            for name in ("score", "search_score"):
                values = [each[name] for each in captions]
                assert [each[name] for each in found] == pytest.approx(values, rel=1e-3, abs=1e-5)
    assert len({each["generated_text"] for each in expected[0]}) == 3
    capsys.readouterr()
    caption(model, photos, *arguments, "--score")
    line = capsys.readouterr().out.splitlines()[1].split("\t")
    assert line[0] == photos[1] and line[1::3] == [each["generated_text"] for each in expected[1]]
    assert line[3::3] == [f"{each['search_score']:.4f}" for each in expected[1]]
    # each of them may be too unlikely to be shown
    least = sorted(each["score"] for captions in expected for each in captions)[4]
    caption(model, photos, *arguments, "--min-score", least * 1.001, "--output", "few.jsonl")
    for row in read_captions(Path("few.jsonl")):
        assert [each["caption"] is None for each in (row, *row["others"])] == [
            each["score"] < least * 1.001 for each in (row, *row["others"])
        ]
    capsys.readouterr()
    caption(model, photos, *arguments, "--min-score", 1)
    assert capsys.readouterr().out.splitlines() == [f"{name}\t\t\t" for name in photos]
    # without a name no new columns
    caption(model, photos, "--output", "plain.jsonl")
    assert set(json.loads(Path("plain.jsonl").read_text().splitlines()[0])) == {"image", "caption", "score"}


def test_a_search_that_needs_the_images_gets_them(model, photos):
    """An ensemble of a captioner with itself, whose members read the images by themselves."""
    together = ["--decoding", "ensemble", "--members", model]
    for name, arguments in (("alone", []), ("together", together)):
        caption(model, photos, *arguments, "--num-beams", 3, "--batch-size", 2, "--output", f"{name}.jsonl")
        evaluate.main(
            ["--model", model, "--data", DATA, "--output_dir", name, "--metrics", "cider_d", "--num_beams", "3"]
            + ["--batch_size", "2", *arguments]
        )
    alone, both = (read_captions(Path(f"{name}.jsonl")) for name in ("alone", "together"))
    assert [row["caption"] for row in alone] == [row["caption"] for row in both]
    assert Path("alone/captions.json").read_text() == Path("together/captions.json").read_text()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--num-beam-groups", 2], "`num_beam_groups` must be given with `decoding` diverse, got 2"),
        (["--decoding", "mbr", "--num_beams", 3], "`num_beams` must be left out with `decoding` mbr"),
        (
            ["--decoding", "mbr", "--num-return-sequences", 2],
            "`num_return_sequences` must be left out with `decoding`",
        ),
        (["--num-return-sequences", 2], r"`num_return_sequences` must be at most `num_beams` \(1\), got 2"),
        (["--num-return-sequences", 0], "`num_return_sequences` must be at least 1, got 0"),
        (["--seed", 3], "`seed` must be left out with a search that does not sample, got 3"),
        (["--temperature", 0.5], "`temperature` must be left out with a search that does not sample, got 0.5"),
        (["--decoding", "constrained", "--force-words", "zebra"], "that the captioner knows, got 'zebra'"),
        (["--decoding", "diverse", "--num-beams", 4, "--num-beam-groups", 3], "must divide `num_beams` .4., got 3"),
    ],
)
def test_what_is_ignored_or_wrong_is_refused(model, photos, arguments, message):
    with pytest.raises(InputError, match=message):
        caption(model, photos, *arguments, "--output", "out.jsonl")
    # which does not bind the next run
    caption(model, photos, "--output", "out.jsonl")
    assert len(read_captions(Path("out.jsonl"))) == 3
    if arguments[0] == "--seed":  # the other command's options are the same ones
        with pytest.raises(InputError, match=message):
            evaluate.main(["--model", model, "--data", DATA, "--output_dir", "e", *map(str, arguments)])


def test_a_stopped_run_keeps_its_search(model, photos):
    arguments = ["--output", "out.jsonl", "--batch-size", 1]
    done = subprocess.run(
        [sys.executable, "-c", STOPPED, *photos, "--model", model, "--decoding", "mbr", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 7, done.stderr[-1000:]
    with pytest.raises(InputError, match="`decoding` must be as in the run that was stopped, 'mbr', got None"):
        caption(model, photos, *arguments)
    caption(model, photos, *arguments, "--decoding", "mbr")
    assert len(read_captions(Path("out.jsonl"))) == 3


STOPPED = """
import os, sys
from hf_captioner.commands import caption
from hf_captioner.commands.program import program
whole = caption.caption_batches
def one(*args):
    yield next(whole(*args))
    yield from iter(lambda: os._exit(7), None)
caption.caption_batches = one
program(["caption", *sys.argv[1:]])
"""


def test_evaluate_measures_the_first_and_the_set(model, photos, capsys):
    def run(*arguments):
        fast = ["--metrics", "cider_d", "bleu_4", "--batch_size", "2"]
        evaluate.main(["--model", model, "--data", DATA, "--output_dir", "e", *fast, *arguments])
        return [json.loads(Path("e", f"{name}.json").read_text()) for name in ("captions", "caption_sets", "metrics")]

    captions, sets, report = run("--decoding", "diverse", *flags(DIVERSE))
    assert [each["image_id"] for each in sets] == list(range(5)) and all(len(each["captions"]) == 3 for each in sets)
    assert [each["caption"] for each in captions] == [each["captions"][0] for each in sets]
    assert max(len(text.split()) for each in sets for text in each["captions"]) <= 6, "the captioner's own length"
    references = load_captions(DATA)["captions"][:]
    assert report["sets"] == measure_sets([each["captions"] for each in sets], references)
    assert report["setting"]["decoding"] == {"decoding": "diverse", **DIVERSE}
    # the captions are there already, and are not mixed with those of another search
    assert run("--decoding", "diverse", *flags(DIVERSE))[:2] == [captions, sets]
    with pytest.raises(InputError, match="of the same setting, got e with .*diversity_penalty"):
        run("--decoding", "diverse", *flags({**DIVERSE, "diversity_penalty": 1.0}))


def test_measures_of_sets():
    references = [["a red dog runs", "the dog runs fast"], ["a cat", "the black cat"], ["two birds fly", "birds"]]
    sets = [
        ["a cat", "a red dog runs", "a cat"],
        ["a cat", "the cat", "birds"],
        ["birds", "two birds", "two birds fly"],
    ]
    found = measure_sets(sets, references)
    words = [tokenize(each) for each in references]
    scorer = CiderD(DocumentFrequency.from_references(words))
    best = [
        max(float(scorer.score(tokenize([text]), scorer.cook([truths]))[0]) for text in texts)
        for texts, truths in zip(sets, words, strict=True)
    ]
    assert found["best_cider_d"] == pytest.approx(np.mean(best)) and found["different"] == pytest.approx(8 / 3)
    assert 0 < found["self_cider"] < 1


def test_searches_are_measured(model, tmp_path, monkeypatch, capsys):
    kept = ("greedy", "beam 5", "diverse, 5 beams, penalty 4", "mbr of 20, CIDEr-D", "a forced word")
    searches = {name: measure_decoding.SEARCHES[name] for name in kept}
    monkeypatch.setattr(measure_decoding, "SEARCHES", searches)
    arguments = ["--model", model, "--data", DATA, "--frequency_data", "shapes:rows=9,seed=0", "--forced", "3"]
    measure_decoding.main([*arguments, "--batch_size", "2", "--output_dir", str(tmp_path)])
    report = json.loads((tmp_path / "decoding.json").read_text())
    rows = report["searches"]
    assert list(rows) == list(kept) and rows["a forced word"]["said"] == 3 == rows["a forced word"]["images"]
    captioner = pipeline("image-captioning", model=model, device="cpu")
    dataset = load_captions(DATA)
    texts = [captions[0]["generated_text"] for captions in captioner(dataset["image"][:], num_beams=5)]
    truths = [tokenize(captions) for captions in dataset["captions"]]
    scorer = CiderD(DocumentFrequency.from_references(truths))
    expected = float(scorer.score(tokenize(texts), scorer.cook(truths)).mean())
    assert rows["beam 5"]["cider_d"] == pytest.approx(expected, abs=1e-6)
    difference = rows["greedy"]["cider_d"] - rows["beam 5"]["cider_d"]
    assert rows["greedy"]["to_beam_5"] == pytest.approx(difference, abs=1e-9)
    table = (tmp_path / "decoding.md").read_text().splitlines()
    assert len(table) == 2 + len(kept) + 2 and "3 of 3 captions" in table[-1]
    assert {line.count("|") for line in table[: 2 + len(kept)]} == {13}
