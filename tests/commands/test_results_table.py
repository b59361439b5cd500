"""`training/results_table.py`: from the folders that `make results` writes to cards, figures and tests."""

import json

import numpy as np
import pytest
from testing import ROOT

from hf_captioner.commands import results_table
from hf_captioner.data import shapes_dataset
from hf_captioner.errors import InputError
from hf_captioner.metrics import compare_scores, score_captions
from hf_captioner.metrics.comparison import holm

REFERENCES = shapes_dataset(12, seed=5)["captions"]
README = """---
license: unknown
---

# {name}

An introduction, trained into {results}/{name} on DATA_HERE/flickr8k/train.parquet.

## Use

How to load it.

## Examples

| image |
| --- |
| ![](examples/0.jpg) |

## Measured

Figures of {name}.
"""


def write(folder, name, captions, cider_d, minutes):
    row = folder / name
    (row / "evaluation").mkdir(parents=True)
    said = [{"image_id": image, "caption": caption} for image, caption in enumerate(captions)]
    (row / "evaluation" / "captions.json").write_text(json.dumps(said))
    report = {
        "metrics": {"bleu_4": 0.25, "cider_d": cider_d, "meteor_1.5": 0.2, "spice": "not available"},
        "intervals_95": {"bleu_4": [0.2, 0.3], "cider_d": [cider_d - 0.1, cider_d + 0.1], "meteor_1.5": [0.1, 0.3]},
        "checks": {"unique_ratio": 0.5},
        "setting": {"num_images": len(captions)},
    }
    (row / "evaluation" / "metrics.json").write_text(json.dumps(report))
    log = [
        {"loss": 2.0, "step": 5},
        {"eval_cider_d": 0.3, "step": 10},
        {"eval_cider_d": 0.4, "step": 20},
        {"train_runtime": minutes * 60, "step": 20},
    ]
    (row / "trainer_state.json").write_text(json.dumps({"global_step": 20, "log_history": log}))
    text = README.format(name=name, results=folder).replace("DATA_HERE", str(folder.parent / "data"))
    (row / "README.md").write_text(text)


def captions(right: int) -> list[str]:
    """So many of the images have a reference's own words."""
    return [texts[0] if image < right else "a blue dog" for image, texts in enumerate(REFERENCES)]


@pytest.fixture
def table(tmp_path):
    """A function that makes the table anew, with further options."""
    write(tmp_path / "results", "additive", captions(7), 0.6, 30)
    write(tmp_path / "results", "show_and_tell_lstm", captions(3), 0.3, 20)
    write(tmp_path / "results", "hard", captions(6), 0.5, 10)
    options = ["--data", "shapes:rows=12,seed=5", "--output_dir", str(tmp_path / "cards"), "--resamples", "200"]
    options += ["--results", str(tmp_path / "results")]
    return lambda *more: results_table.main([*options, *more])


def test_cards_figures_and_tests(tmp_path, table, capsys):
    table()
    printed = capsys.readouterr().out
    assert "| [additive](flickr8k_additive.md) | 25.0 (20.0 to 30.0) | 60.0 (50.0 to 70.0) | 20.0 | 50.0 % | 30 |" in (
        printed
    )
    rows = json.loads((tmp_path / "cards/flickr8k_results.json").read_text())["rows"]
    assert list(rows) == ["show_and_tell_lstm", "additive", "hard"]  # the table's order
    assert rows["show_and_tell_lstm"]["tests"] == {} and "spice" not in rows["hard"]["metrics"]
    assert rows["hard"]["curve"] == [{"step": 10, "cider_d": 0.3}, {"step": 20, "cider_d": 0.4}]
    assert rows["hard"]["minutes"] == 10 and rows["hard"]["steps"] == 20
    # the tests are those of compare_scores, corrected over the rows that have one
    said = {"show_and_tell_lstm": 3, "additive": 7, "hard": 6}
    scores = {name: score_captions(captions(right), REFERENCES, ["cider_d"])[0] for name, right in said.items()}
    pairs = [("additive", "show_and_tell_lstm"), ("hard", "additive")]
    expected = [compare_scores({name: scores[name] for name in pair}, 200)[pair]["cider_d"] for pair in pairs]
    corrected = holm([test.p for test in expected])
    for (name, _), test, p in zip(pairs, expected, corrected, strict=True):
        found = rows[name]["tests"]["cider_d"]
        assert (found["first"], found["second"], found["p"]) == (test.first, test.second, test.p)
        np.testing.assert_allclose(found["interval"], test.interval)
        assert found["p_holm"] == p
    assert rows["additive"]["tests"]["cider_d"]["first"] > rows["hard"]["tests"]["cider_d"]["first"]
    card = (tmp_path / "cards/flickr8k_hard.md").read_text()
    assert card.startswith("# hard\n\nAn introduction, trained into outputs/results/hard on ")
    assert card.endswith("## Measured\n\nFigures of hard.\n") and "How to load" not in card and "jpg" not in card
    assert (tmp_path / "cards/flickr8k_results.png").stat().st_size > 10_000


def test_rows_that_are_not_there_stay_as_they_were(tmp_path, table):
    table()
    before = json.loads((tmp_path / "cards/flickr8k_results.json").read_text())["rows"]
    (tmp_path / "results/additive").rename(tmp_path / "away")
    (tmp_path / "results/hard/evaluation/captions.json").write_text("[]")
    with pytest.raises(InputError, match="`data` must be what hard was measured on, got other images"):
        table()
    assert json.loads((tmp_path / "cards/flickr8k_results.json").read_text())["rows"] == before
    (tmp_path / "results/hard").rename(tmp_path / "away_too")
    table()
    after = json.loads((tmp_path / "cards/flickr8k_results.json").read_text())["rows"]
    assert after["additive"] == before["additive"] and list(after) == list(before)


def test_other_seeds_are_kept_beside_a_row(tmp_path, table, capsys):
    table()
    assert "seeds" not in capsys.readouterr().out
    for seed, cider_d in ((1, 0.66), (2, 0.57)):
        write(tmp_path / f"seed{seed}", "additive", captions(7), cider_d, 30)
    table("--more_seeds", str(tmp_path / "seed1"), str(tmp_path / "seed2"))
    line = "| additive | 3 | 25.0 (25.0 to 25.0) | 61.0 (57.0 to 66.0) |"
    assert capsys.readouterr().out.count(line) == 1
    table()
    assert line in capsys.readouterr().out  # what was measured stays
    with pytest.raises(InputError, match="`more_seeds` must hold rows of `results` .*got none in .*nowhere"):
        table("--more_seeds", str(tmp_path / "nowhere"))


def test_nothing_measured_is_named(tmp_path):
    with pytest.raises(InputError, match="`results` must hold rows that were measured .*additive.*got none in"):
        results_table.main(["--results", str(tmp_path), "--data", "shapes:rows=12,seed=5"])


def test_the_rows_are_those_of_make_results():
    makefile = (ROOT / "Makefile").read_text()
    listed = makefile.partition("ROWS ?= ")[2].partition("\nSEED")[0].replace("\\\n", " ").split()
    assert sorted(listed) == sorted(results_table.ROWS)
    order = list(results_table.ROWS)
    assert all(other is None or order.index(other) < order.index(name) for name, other in results_table.ROWS.items())


def test_the_page_has_the_figures_that_were_measured():
    """Of every row in flickr8k_results.json, what model_cards/README.md says."""
    text = (ROOT / "model_cards/README.md").read_text()
    rows = json.loads((ROOT / "model_cards/flickr8k_results.json").read_text())["rows"]
    for line in results_table.table(rows).splitlines():
        assert line in text.splitlines(), line
