"""`hf-captioner benchmark`: what is compared does the same work, and the numbers are those of the clock."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from testing import ROOT
from torch import nn

from hf_captioner.commands import benchmark
from hf_captioner.commands.benchmark import Arguments, Comparison, changes, history_line, like, read_history, table
from hf_captioner.commands.benchmark_loops import (
    START,
    SYSTEMS,
    TutorialCaptioner,
    bare_search,
    blip_decoder,
    blip_loss,
    blip_search,
    build,
    encoder_decoder_loss,
    encoder_decoder_search,
    searched,
    vision_encoder_decoder,
)
from hf_captioner.errors import InputError

SIZES = dict(vocab_size=30, hidden_size=16, layers=2, heads=2, intermediate_size=24)


@pytest.fixture
def features():
    torch.manual_seed(1)
    return 3 * torch.randn(3, 4, 12)


def sharpened(model: nn.Module, seed: int = 0) -> nn.Module:
    """With larger weights, so that captions differ from image to image."""
    torch.manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=2 * parameter[0].numel() ** -0.5)
    return model


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_bare_loop_says_what_generate_says(system, features):
    model, different = build(system, 12, SIZES), 0
    for seed in range(4):
        sharpened(model, seed)
        for beams in (1, 3):
            said = bare_search(model, features, 5, beams)
            assert said.shape == (3, 5) and torch.equal(said, searched(model, features, 5, beams))
            different += len(said.unique(dim=0)) > 1
    assert different, "captions depend on the image"


def test_the_tutorial_finds_the_best_of_all_captions(features):
    model = sharpened(TutorialCaptioner(12, 8, 5))
    said = model.search(features, 2, 5)  # every first word is kept
    for image, caption in zip(features, said, strict=True):
        all_captions = torch.tensor(list(itertools.product(range(5), repeat=2)))
        losses = torch.stack([model(image[None], one[None, None]) for one in all_captions])
        assert torch.equal(caption, all_captions[losses.argmin()])


def test_the_tutorial_learns_from_every_caption(features):
    """Its loss is that of one word after the other, each after the words before it."""
    model = sharpened(TutorialCaptioner(12, 8, 9))
    labels = torch.randint(9, (3, 2, 4))
    expected = []
    for image, captions in zip(features, labels, strict=True):
        for caption in captions:
            h, c = model.begin(image[None])
            for before, word in zip([START, *caption.tolist()], caption.tolist(), strict=False):
                logits, h, c = model.step(torch.tensor([before]), image[None], h, c)
                expected.append(-logits.log_softmax(1)[0, word])
    torch.testing.assert_close(model(features, labels), torch.stack(expected).mean())


def test_models_of_others_look_at_the_regions(features):
    theirs, blip = vision_encoder_decoder(12, SIZES), blip_decoder(12, SIZES)
    for search, model in ((encoder_decoder_search, theirs), (blip_search, blip)):
        for beams in (1, 3):
            different = 0
            for seed in range(8):
                said = search(sharpened(model, seed), features, 5, beams)
                different += not torch.equal(said, search(model, -features, 5, beams))
            assert said.shape == (3, 5) and different
    labels = torch.randint(4, 30, (3, 2, 5))
    for loss, model in ((encoder_decoder_loss, theirs), (blip_loss, blip)):
        one, two = (loss(model, features, labels[:, [i]]) for i in range(2))
        torch.testing.assert_close(loss(model, features, labels), (one + two) / 2)
    words = torch.cat([torch.full((3, 1), START), labels[:, 0]], dim=1)
    logits = blip(input_ids=words[:, :-1], encoder_hidden_states=features, is_decoder=True).logits
    expected = nn.functional.cross_entropy(logits.transpose(1, 2), words[:, 1:])
    torch.testing.assert_close(blip_loss(blip, features, labels[:, [0]]), expected)


def test_ratios_are_medians_of_rounds_for_an_image():
    runs = {"ours": (lambda: None, 4), "bare loop": (lambda: None, 4), "BLIP": (lambda: None, 2)}
    what = dict(part="decoding", system="dot", regions="7x7x8", batch=4, search="greedy")
    comparison = Comparison(
        what, runs, {"ours": [1.0, 2.0, 4.0], "bare loop": [1.0, 1.0, 1.0], "BLIP": [1.0, 3.0, 2.0]}
    )
    found = [comparison.described()]
    assert found[0]["ratios"] == {"bare loop": 0.5, "BLIP": 2.0}
    assert table(found).splitlines()[-1] == "| decoding | dot | 7x7x8 | 4 | greedy | 2.0 | 0.50 | 2.00 |"
    calls = []
    slow = Comparison(what, {name: (lambda name=name: calls.append(name), 1) for name in ("ours", "bare loop")})
    slow.measure(Arguments(rounds=9, seconds=0))
    assert calls == ["ours", "bare loop"] * 4 and [len(one) for one in slow.seconds.values()] == [3, 3]


def line(version: str, processor: str = "a", ratio: float = 2.0, **changed) -> dict:
    machine = {"processor": processor, "cores": 2, "threads": 2, "torch": version}
    return {
        "version": version,
        "date": "2026-01-02",
        "machine": machine,
        "ratios": {"x: BLIP": ratio, "y": 1.0},
        **changed,
    }


def test_a_release_is_compared_with_the_last_one_on_a_like_machine(tmp_path):
    assert like(line("1")["machine"], line("2")["machine"])
    assert not like(line("1")["machine"], {**line("1")["machine"], "device": "H100"})
    before = [line("0.1"), line("0.2", ratio=4.0), line("0.3", processor="b")]
    said = changes(line("0.4", ratio=3.0), before)
    assert said.splitlines()[1:] == ["-25.0%  x: BLIP: 3.000, 4.000", "+0.0%  y: 1.000, 1.000"] and "0.2" in said
    assert changes(line("0.4", processor="c"), before) == "No release was measured on a machine like this one."
    path = tmp_path / "history.jsonl"
    assert read_history(path) == []
    for content in ("{}", "[1]", "words", '{"machine": 1, "ratios": {}, "version": "", "date": ""}'):
        path.write_text(content)
        with pytest.raises(InputError, match="`history` must be lines that `--release` wrote"):
            read_history(path)


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    parts = ["--parts", "decoding", "training", "growth", "--systems", "additive", "vit_transformer"]
    benchmark.main(["--small", *parts, "--output_dir", "out", "--release"])
    said = capsys.readouterr().out
    assert said.count("| decoding | additive | 2x2x16 |") == 4 and "No release was measured" in said
    found = json.loads(Path("out/benchmark.json").read_text())["found"]
    assert {one["part"] for one in found} == {"decoding", "training", "growth"}
    assert all(min(seconds) > 0 for one in found for seconds in one["seconds"].values())
    assert Path("out/benchmark.png").stat().st_size > 5000 and Path("out/benchmark.md").read_text() in said + "\n"
    (noted,) = read_history(Path("benchmarks/history.jsonl"))
    assert "training vit_transformer 2x2x16 2 2 captions an image: VisionEncoderDecoderModel" in noted["ratios"]
    assert noted["ratios"] == history_line(found, noted["machine"])["ratios"]
    benchmark.main(["--small", *parts])
    assert f"at {noted['version']} ({noted['date']}) on a machine like this one:" in capsys.readouterr().out
    assert len(read_history(Path("benchmarks/history.jsonl"))) == 1


@pytest.mark.slow
@pytest.mark.long
def test_all_parts(tmp_path, monkeypatch, capsys):
    """Memory, files and exports start processes of their own."""
    monkeypatch.chdir(tmp_path)
    benchmark.main(["--small", "--parts", "memory", "files", "export", "--data", "shapes:rows=6,seed=1", "--release"])
    said = capsys.readouterr().out
    assert "Memory of BLIP for 2 images" in said and "failed" not in said and "| onnx int8 |" in said
    (noted,) = read_history(Path("benchmarks/history.jsonl"))
    assert sum(name.startswith("memory") for name in noted["ratios"]) >= 3
    assert noted["ratios"]["files auto: of what the parts allow"] > 0


@pytest.mark.parametrize(
    "option,value,message",
    [
        ("parts", "speed", "`parts` must be among decoding"),
        ("systems", "lstm", "`systems` must be among none"),
        ("regions", "7x7", "`regions` must be rows, columns and channels as in 7x7x1280, got '7x7'"),
        ("rounds", "0", "`rounds` must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_measured_is_refused(option, value, message):
    with pytest.raises(InputError, match=message):
        benchmark.main([f"--{option}", value])


def test_the_page_has_what_was_measured_last():
    """docs/speed.md, of the last line of the history: each row begins with the name of its ratios."""
    lines = (ROOT / "docs" / "speed.md").read_text().splitlines()
    ratios = read_history(ROOT / "benchmarks" / "history.jsonl")[-1]["ratios"]
    columns, seen = [], 0
    for line in lines:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] == "measured":
            columns = cells[1:]
        elif line.startswith("| `") and columns:
            for column, cell in zip(columns, cells[1:], strict=True):
                known = ratios.get(f"{cells[0].strip('`')}: {column}")
                assert cell == ("" if known is None else f"{known:.2f}"), line
                seen += known is not None
        else:
            columns = columns if line.startswith("| ---") else []
    assert seen > 50
