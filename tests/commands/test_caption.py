"""`hf-captioner caption`: every kind of input and output, and going on after a kill."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage
from testing import ROOT
from testing.tiny_models import tiny_model
from transformers import pipeline

from hf_captioner import CaptionerImageProcessor, CaptionerProcessor, train_tokenizer
from hf_captioner.commands.program import program
from hf_captioner.data.caption_files import read_captions
from hf_captioner.data.caption_store import Progress
from hf_captioner.errors import InputError

WORDS = "a b c d e f g h i j k l m n o p q r s t u v w x y z one two three four five six seven eight nine ten"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model")
    captioner = tiny_model(attention="additive")
    captioner.generation_config.max_new_tokens = 6
    captioner.save_pretrained(folder)
    processor = CaptionerProcessor(
        CaptionerImageProcessor(size={"height": 32, "width": 32}), train_tokenizer([WORDS], vocab_size=40)
    )
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def pipe(model):
    return pipeline("image-captioning", model=model, device="cpu")


def save_image(path: Path, seed: int) -> Path:
    """Noise of another colour and size each."""
    random = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = random.integers(0, 1 + random.integers(1, 255, 3), (30 + seed % 7, 40, 3)).astype(np.uint8)
    PILImage.fromarray(pixels).save(path)
    return path


@pytest.fixture
def photos(tmp_path, monkeypatch) -> list[str]:
    """Five images, one of them below, one that is none, and what is not an image."""
    monkeypatch.chdir(tmp_path)
    paths = [
        save_image(Path(f"photos/{name}.png"), seed) for seed, name in enumerate(["a", "b", "c", "sub/d", "sub/e"])
    ]
    Path("photos/readme.md").write_text("words")
    Path("photos/.hidden.png").write_bytes(b"")
    return [str(path) for path in paths]


def run(*arguments: str, status: int = 0) -> None:
    if status == 0:
        return program(["caption", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        program(["caption", *map(str, arguments)])
    assert stopped.value.code == status


def rows(path: str) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def expected(pipe, paths: list[str], **options) -> dict[str, str]:
    return {path: pipe(path, **options)[0]["generated_text"] for path in paths}


def test_captions_are_those_of_the_pipeline(model, pipe, photos):
    run(
        "photos", "--model", model, "--output", "out.jsonl", "--batch-size", 2, "--num_beams", 3, "--prompt", "one two"
    )
    found = rows("out.jsonl")
    assert [row["image"] for row in found] == photos
    for row in found:
        (caption,) = pipe(row["image"], num_beams=3, prompt="one two")
        assert row == {
            "image": row["image"],
            "caption": caption["generated_text"],
            "score": pytest.approx(caption["score"], rel=1e-4),
        }
    assert len({row["caption"] for row in found}) > 2, "the images must matter"
    assert sorted(os.listdir()) == ["out.jsonl", "photos"]


def test_the_type_of_numbers_is_that_of_the_pipeline(model, photos):
    for dtype in ("auto", "float32", "bfloat16"):
        pipe = pipeline("image-captioning", model=model, device="cpu", dtype=dtype)
        run("photos", "--model", model, "--output", f"{dtype}.jsonl", "--batch-size", 1, "--dtype", dtype)
        for row in rows(f"{dtype}.jsonl"):
            (caption,) = pipe(row["image"])
            assert (row["caption"], row["score"]) == (caption["generated_text"], caption["score"]), "bit for bit"
    scores = [[row["score"] for row in rows(f"{dtype}.jsonl")] for dtype in ("float32", "auto", "bfloat16")]
    assert scores[1] == pytest.approx(scores[0], rel=1e-4) and scores[2] != pytest.approx(scores[0], rel=1e-4)
    with pytest.raises(InputError, match="'--dtype': .*'half' is not one of 'auto', 'float32', 'bfloat16'"):
        run("photos", "--model", model, "--dtype", "half")


def test_every_kind_of_input_names_the_same_images(model, pipe, photos, monkeypatch):
    relative = [path.removeprefix("photos/") for path in photos]
    Path("photos/list.csv").write_text("file_name,caption\n" + "".join(f"{path},x\n" for path in relative))
    Path("photos/list.tsv").write_text("id\tphoto\n" + "".join(f"1\t{path}\n" for path in relative))
    Path("photos/list.jsonl").write_text("".join(json.dumps({"image": path}) + "\n" for path in relative))
    Path("photos/list.json").write_text(json.dumps([{"image": path} for path in relative]))
    Dataset.from_dict({"image_path": relative}).to_parquet("photos/list.parquet")
    kinds = {
        "folder": ["photos/"],
        "files": photos,
        "twice": [*photos, "./photos"],
        "glob": ["photos/**/*"],
        "csv": ["photos/list.csv"],
        "tsv": ["photos/list.tsv", "--image-column", "photo"],
        "json": ["photos/list.json"],
        "jsonl": ["photos/list.jsonl"],
        "parquet": ["photos/list.parquet"],
        "stdin": ["-"],
    }
    for name, inputs in kinds.items():
        if name == "glob":
            for table in Path("photos").glob("list.*"):
                table.rename(table.name)
        if name == "csv":
            for table in Path().glob("list.*"):
                table.rename(f"photos/{table.name}")
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\n".join(photos).encode())))
        run(*inputs, "--model", model, "--output", f"{name}.jsonl")
        assert {row["image"]: row["caption"] for row in rows(f"{name}.jsonl")} == expected(pipe, photos), name


def test_images_that_a_table_holds(model, pipe, photos):
    cells = [{"bytes": Path(path).read_bytes(), "path": None} for path in photos] + [{"bytes": b"no", "path": None}]
    Dataset.from_dict({"image": cells}, Features({"image": Image()})).to_parquet("own.parquet")
    plain = {"img": [Path(path).read_bytes() for path in photos]}
    Dataset.from_dict(plain, Features({"img": Value("binary")})).to_parquet("plain.parquet")
    run("own.parquet", "plain.parquet", "--model", model, "--output", "out.csv", status=1)
    found = list(csv.DictReader(open("out.csv", newline="")))
    texts = list(expected(pipe, photos).values())
    assert [row["image"] for row in found[:2]] == ["own.parquet[0]", "own.parquet[1]"]
    assert [row["caption"] for row in found] == [*texts, "", *texts]
    assert found[5]["error"] == "cannot identify an image in 2 bytes" and found[6]["error"] == ""
    with pytest.raises(InputError, match="`--sidecar`.*own.parquet"):
        run("own.parquet", "--model", model, "--sidecar")


@pytest.mark.parametrize("suffix", ["txt", "jsonl", "csv", "parquet"])
def test_every_format_says_the_same_and_is_read_back(suffix, model, pipe, photos):
    odd = save_image(Path('photos/tab\tand "quotes", é.png'), 9)
    Path("photos/broken.png").write_bytes(b"no image")
    names = [*photos, str(odd)]
    output = Path(f"deep/out.{suffix}")
    address = "https://example.org/photo.png"
    bad = ("photos/broken.png", "nowhere.png", address)
    run(*names, *bad, "--model", model, "--output", output, "--words", status=1)
    texts = expected(pipe, names)
    found = {row["image"]: row for row in read_captions(output)}
    assert {name: found[name]["caption"] for name in names} == texts
    assert not found["photos/broken.png"].get("caption") and not found["nowhere.png"].get("caption")
    assert "no such file" in str(found["nowhere.png"]) and "identify" in str(found["photos/broken.png"])
    assert "images must be files" in str(found[address])
    if suffix != "txt":
        words = found[photos[0]]["words"]
        assert " ".join(entry["word"] for entry in words) == texts[photos[0]]
        tokens = [token for token in pipe(photos[0])[0]["tokens"] if token["token"] != "<eos>"]
        assert [entry["probability"] for entry in words] == pytest.approx([token["probability"] for token in tokens])
    if suffix == "parquet":
        schema = pyarrow.parquet.read_schema(output)
        assert (
            schema.names == ["image", "caption", "score", "error", "words"] and str(schema.field(2).type) == "double"
        )
    # again: what has a caption stays as it is, the rest is tried again
    before = output.read_bytes()
    save_image(Path("photos/broken.png"), 10)
    run("photos/broken.png", "--model", model, "--output", output, "--words")
    again = {row["image"]: row for row in read_captions(output)}
    assert again["photos/broken.png"]["caption"] == expected(pipe, ["photos/broken.png"])["photos/broken.png"]
    assert {**again, "photos/broken.png": None} == {
        **found,
        "photos/broken.png": None,
    } and before != output.read_bytes()


@pytest.mark.parametrize("target", ["sidecar", "output"])
def test_what_has_a_caption(target, model, pipe, photos):
    new, first = expected(pipe, photos), photos[0]

    def caption(*options) -> dict[str, str]:
        if target == "sidecar":
            run("photos", "--model", model, "--sidecar", *options)
            return {path: Path(path).with_suffix(".txt").read_text().strip() for path in photos}
        run("photos", "--model", model, "--output", "out.jsonl", *options)
        return {row["image"]: row["caption"] for row in rows("out.jsonl")}

    def given(text: str) -> None:
        Path(first).with_suffix(".txt").write_text(text)
        Path("out.jsonl").write_text(json.dumps({"image": first, "caption": text}) + "\n")

    given("mine")
    assert caption() == new | {first: "mine"}
    assert caption("--existing", "append") == {path: f"{text} {text}" for path, text in new.items()} | {
        first: f"mine {new[first]}"
    }
    given("mine")
    assert caption("--existing", "prepend")[first] == f"{new[first]} mine"
    assert caption("--existing", "overwrite") == new
    # who abstains takes nothing away
    given("mine")
    assert caption("--existing", "append", "--min-score", "1")[first] == "mine"
    assert not list(Path().rglob("*progress*")) and not list(Path().rglob("*.part"))


def test_rows_of_other_images_and_of_those_that_were_lost_are_kept(model, photos):
    old = [{"image": "elsewhere.png", "caption": "there"}, {"image": "lost.png", "caption": "seen once", "score": 0.5}]
    Path("out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in old))
    run(photos[0], "lost.png", "--model", model, "--output", "out.jsonl", "--existing", "overwrite", status=1)
    assert rows("out.jsonl")[:2] == old and [row["image"] for row in rows("out.jsonl")[2:]] == photos[:1]


def test_two_images_with_the_same_text_file(model, photos, capsys):
    save_image(Path("photos/a.jpg"), 8)
    for _ in range(2):
        run("photos", "--model", model, "--sidecar", status=1)
        assert "error: photos/a.png: photos/a.txt is the text file of photos/a.jpg\n" in capsys.readouterr().err


def test_the_screen_shows_lines(model, pipe, photos, capsys):
    texts = expected(pipe, photos)
    run("photos", "nowhere.png", "--model", model, status=1)
    printed = capsys.readouterr()
    assert printed.out == "".join(f"{path}\t{text}\n" for path, text in texts.items())
    assert printed.err.splitlines()[-2:] == [
        "error: nowhere.png: no such file",
        "5 captioned, 1 could not be read",
    ]
    run(photos[0], "--model", model, "--score", "--words")
    path, text, score, words = capsys.readouterr().out.strip("\n").split("\t")
    caption = pipe(photos[0])[0]
    assert float(score) == pytest.approx(caption["score"], abs=1e-4) and words.count("(") == len(text.split())


def test_abstaining_and_short_captions(model, pipe, photos):
    scores = sorted(pipe(path)[0]["score"] for path in photos)
    bound = (scores[1] + scores[2]) / 2
    run("photos", "--model", model, "--output", "out.jsonl", "--min-score", bound)
    found = rows("out.jsonl")
    assert sum(row["caption"] is None for row in found) == 2
    assert all((row["caption"] is None) is (row["score"] < bound) for row in found)
    longest = max(len(text.split()) for text in expected(pipe, photos).values())
    assert longest > 3
    run("photos", "--model", model, "--output", "short.jsonl", "--max-words", 3, "--num-beams", 3, "--prompt", "one")
    found = rows("short.jsonl")
    assert all(1 < len(row["caption"].split()) <= 3 for row in found)


def test_exif_is_minded_as_in_the_pipeline(model, pipe, photos):
    image = PILImage.open(save_image(Path("turned.jpg"), 5))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save("turned.jpg", exif=exif)
    cells = [{"bytes": Path("turned.jpg").read_bytes(), "path": None}]
    Dataset.from_dict({"image": cells}, Features({"image": Image()})).to_parquet("turned.parquet")
    run("turned.jpg", "turned.parquet", "--model", model, "--output", "out.jsonl")
    (caption,) = pipe("turned.jpg")
    assert [row["caption"] for row in rows("out.jsonl")] == 2 * [caption["generated_text"]]


def test_what_cannot_be_done(model, photos):
    Path("empty").mkdir()
    Path("table.csv").write_text("photo\na.png\n")
    Path("bad.json").write_text("[")
    Path("old.jsonl").write_text("no\n")
    for arguments, message in {
        ("photos", "--model", "empty"): "`--model` must be the folder.*'empty'",
        ("photos", "--model", model, "--output", "out.docx"): "`output` must end in .txt.*'out.docx'",
        ("photos", "--model", model, "--output", "old.jsonl"): "`output` must be new.*old.jsonl",
        ("empty", "--model", model): "`INPUT` must hold images, got none in empty",
        ("table.csv", "--model", model): "`image_column`.*photo.*table.csv",
        ("table.csv", "--image-column", "x", "--model", model): "`image_column`.*photo.*'x'",
        ("bad.json", "--model", model): "bad.json must be a table",
        ("photos", "--existing", "keep", "--model", model): "keep",
    }.items():
        with pytest.raises(InputError, match=message):
            run(*arguments)


def test_a_table_that_breaks_off(model, photos):
    cells = [{"bytes": Path(path).read_bytes(), "path": None} for path in photos]
    Dataset.from_dict({"image": cells}, Features({"image": Image()})).to_parquet("own.parquet")
    content = bytearray(Path("own.parquet").read_bytes())
    footer = 8 + int.from_bytes(content[-8:-4], "little")
    content[4:-footer] = bytes(len(content) - footer - 4)
    Path("own.parquet").write_bytes(content)
    with pytest.raises(InputError, match="own.parquet must be a table that can be read"):
        run("own.parquet", "--model", model)


def test_killed_when_all_is_written_but_the_progress_file_is_there(model, photos, monkeypatch):
    """A new start changes nothing: what is appended is appended once."""
    Path("out.jsonl").write_text(json.dumps({"image": photos[0], "caption": "mine"}) + "\n")
    arguments = ("photos", "--model", model, "--output", "out.jsonl", "--existing", "append")

    def killed(progress):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Progress, "done", killed)
        run(*arguments)
    written = rows("out.jsonl")
    assert written[0]["caption"].startswith("mine ") and Path("out.jsonl.progress").exists()
    run(*arguments)
    assert rows("out.jsonl") == written and not Path("out.jsonl.progress").exists()


def test_a_file_that_cannot_be_written(model, photos):
    Path("out.jsonl.progress").mkdir()
    with pytest.raises(InputError, match="out.jsonl.progress"):
        run("photos", "--model", model, "--output", "out.jsonl")


def start(folder: Path, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "hf_captioner.commands.program", "caption", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)


def kill_after(process: subprocess.Popen, file: Path, lines: int) -> None:
    """SIGKILL as soon as the file has so many lines."""
    end = time.monotonic() + 300
    while not file.exists() or file.read_bytes().count(b"\n") < lines:
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


@pytest.mark.slow
def test_killed_twice_it_goes_on(model, pipe, tmp_path):
    """200 images and 7 that cannot be read: each once, with the pipeline's caption or its reason, nothing twice."""
    good = [f"photos/{number // 50}/{number:03}.png" for number in range(200)]
    for seed, name in enumerate(good):
        save_image(tmp_path / name, seed)
    whole = (tmp_path / good[0]).read_bytes()
    broken = {
        "photos/empty.png": b"",
        "photos/0/words.jpg": b"these are words",
        "photos/1/cut.png": whole[: len(whole) // 2],
        "photos/1/head.png": whole[:20],
        "photos/2/zeros.jpg": bytes(1000),
        "photos/3/svg.webp": b"<svg/>",
    }
    for name, content in broken.items():
        (tmp_path / name).write_bytes(content)
    arguments = ["photos", "photos/gone.png", "--model", model, "--output", "out.parquet", "--sidecar"]
    arguments += ["--existing", "append", "--batch-size", "5"]
    broken["photos/gone.png"] = b""
    (tmp_path / good[0]).with_suffix(".txt").write_text("mine\n")
    progress = tmp_path / "out.parquet.progress"
    for lines in (30, 100):
        process = start(tmp_path, *arguments)
        kill_after(process, progress, lines)
        assert not (tmp_path / "out.parquet").exists()
        with open(progress, "ab") as file:  # as if the kill had come in the middle of a line
            file.write(b'{"image": "photos/3/19')
    assert 100 <= progress.read_bytes().count(b"\n") < 200, "it was killed in the middle"
    process = start(tmp_path, *arguments)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1
    assert errors.splitlines()[-1] == "200 captioned, 7 could not be read (out.parquet says why)"
    found = pyarrow.parquet.read_table(tmp_path / "out.parquet").to_pylist()
    assert sorted(row["image"] for row in found) == sorted([*good, *broken])
    texts = [caption["generated_text"] for (caption,) in pipe([str(tmp_path / name) for name in good])]
    assert {row["image"]: row["caption"] for row in found if row["error"] is None} == dict(
        zip(good, texts, strict=True)
    )
    assert {row["image"] for row in found if row["error"]} == {*broken}
    for name, text in zip(good, texts, strict=True):
        assert (tmp_path / name).with_suffix(".txt").read_text().strip() == ("mine " if name == good[0] else "") + text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.parquet", "photos"]
    assert len(list(tmp_path.rglob("*"))) == 2 + 4 + 200 + 6 + 200


def test_another_setting_does_not_go_on(model, photos):
    lines = [{"settings": {"model": model, "prompt": "one"}}, {"image": photos[0], "caption": "x", "score": 1.0}]
    Path("out.jsonl.progress").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(InputError, match="`prompt` must be as in the run that was stopped, 'one', got ''"):
        run("photos", "--model", model, "--output", "out.jsonl")
    lines[0] = {"settings": dict(model=model, prompt="", words=False, existing="skip")}
    Path("out.jsonl.progress").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(InputError, match="`dtype` must be as in the run that was stopped, None, got 'bfloat16'"):
        run("photos", "--model", model, "--output", "out.jsonl", "--dtype", "bfloat16")


def test_what_was_read_of_a_stopped_run_is_not_done_again(model, photos):
    """Its text files, too, are written if the kill came before them."""
    settings = dict(
        model=model, prompt="", num_beams=None, max_words=None, min_score=None, words=False, existing="skip"
    )
    row = {"image": photos[0], "caption": "from before", "score": 1.0, "beside": "from before"}
    Path("out.jsonl.progress").write_text(json.dumps({"settings": settings}) + "\n" + json.dumps(row) + "\n")
    run("photos", "--model", model, "--output", "out.jsonl", "--sidecar")
    assert rows("out.jsonl")[0] == {"image": photos[0], "caption": "from before", "score": 1.0}
    assert Path(photos[0]).with_suffix(".txt").read_text() == "from before\n"


def test_odd_names_and_texts_beside(model, photos):
    """A name or a text that is not UTF-8, and a caption with a line separator, do not stop the rest."""
    first = Path(photos[0])
    first.with_suffix(".txt").write_bytes(b"caf\xe9 \xe2\x80\xa8")
    save_image(first.with_name("b\udce9.png"), 3) if sys.platform == "linux" else None
    run("photos", "--model", model, "--sidecar", "--output", "out.jsonl", "--existing", "append", status=1)
    assert first.with_suffix(".txt").read_bytes().startswith(b"caf\xe9 ")
    (failed,) = [row for row in rows("out.jsonl") if "error" in row]
    assert failed["image"] == "photos/b\\udce9.png" and failed["error"] == "no such file, or its name is not UTF-8"
