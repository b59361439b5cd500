"""From JPEG files to captions: the table's numbers are those of the captions and the seconds."""

import json

import pytest
from testing.tiny_models import tiny_model, tiny_processor

from hf_captioner.commands import benchmark_speed
from hf_captioner.errors import InputError


def test_the_table_is_made_of_every_type(tmp_path, capsys):
    folder = tmp_path / "captioner"
    tiny_model(attention="additive").save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    arguments = ["--model", str(folder), "--data", "shapes:rows=7,seed=1", "--num_beams", "1"]
    arguments += ["--group", "2", "--batch_size", "2", "--rounds", "2", "--output", str(tmp_path / "found.json")]
    benchmark_speed.main(arguments)
    found = json.loads((tmp_path / "found.json").read_text())
    assert {dtype: len(texts) for dtype, texts in found["captions"].items()} == dict(auto=7, float32=7, bfloat16=7)
    assert found["captions"]["auto"] == found["captions"]["float32"] and len(found["references"]) == 7
    for spent in found["seconds"].values():
        for values in spent.values():
            assert len(values) == 2 and min(values) > 0
    lines = capsys.readouterr().out.splitlines()
    first, second = (line for line in lines if line.startswith(("| float32", "| auto")))
    assert "| 1.00 | 1.00 | 1.00 | 100.0% |" in first and "100.0%" in second
    with pytest.raises(InputError, match="`group` must be at least 1, got 0"):
        benchmark_speed.main(["--data", "shapes", "--group", "0"])


def test_ratios_are_medians_of_what_took_turns():
    spent = {
        "float32": [6.0, 4.0, 9.0],
        "auto": [2.0, 4.0, 3.0],
        "bfloat16": [1.0, 1.0, 1.0],
    }
    texts = {"float32": ["a dog", "a cat"], "auto": ["a dog", "a cat"], "bfloat16": ["a dog", "a dog"]}
    found = {
        "captions": texts,
        "seconds": {
            dtype: {
                part: [(place + 1) * value for value in values] for place, part in enumerate(benchmark_speed.PARTS)
            }
            for dtype, values in spent.items()
        },
        "references": [["a dog", "the dog"], ["a cat", "the cat"]],
    }
    arguments = benchmark_speed.Arguments(data="", group=12)
    lines = benchmark_speed.table(arguments, found).splitlines()
    assert lines[2].startswith("| float32 | 2.0 | 1.00 | 1.00 | 1.00 | 100.0% |")
    assert lines[3].startswith("| auto | 4.0 | 3.00 | 3.00 | 3.00 | 100.0% |")
    assert lines[4].startswith("| bfloat16 | 12.0 | 6.00 | 6.00 | 6.00 | 50.0% |")
    assert lines[-1] == "Reading alone, one image after the other: 2 a second."
