"""
Images of every kind, through every program: a caption of the picture as a person sees it, or an error that names the
file and takes no other image along.
"""

import base64
import contextlib
import csv
import io
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image
from testing.pictures import BAD, GOOD, noise, saved
from testing.tiny_models import tiny_model
from testing.training import arguments
from transformers import pipeline

from hf_captioner import CaptionerImageProcessor, CaptionerProcessor, files, train_tokenizer
from hf_captioner.commands import evaluate, train
from hf_captioner.commands.program import program
from hf_captioner.commands.uploads import FORMATS as FORMATS_OF_UPLOADS
from hf_captioner.commands.uploads import Upload
from hf_captioner.data import load_captions
from hf_captioner.errors import InputError
from hf_captioner.metrics import DEFAULT_METRICS, CaptionMetrics
from hf_captioner.metrics.clip import _open as opened_for_clip
from hf_captioner.models import image_reading

SIDE = 32
WORDS = "a b c d e f g h i j k l m n o p q r s t u v w x y z one two three four five six seven eight nine ten"


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    for name, content in [*((name, content) for name, (content, _) in GOOD.items()), *BAD.items()]:
        (tmp_path / "photos" / name).write_bytes(content)
    return tmp_path / "photos"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model")
    captioner = tiny_model(attention="additive")
    captioner.generation_config.update(max_new_tokens=8, num_beams=1)
    captioner.save_pretrained(folder)
    tokenizer = train_tokenizer([WORDS], vocab_size=40)
    CaptionerProcessor(CaptionerImageProcessor(size={"height": SIDE, "width": SIDE}), tokenizer).save_pretrained(
        folder
    )
    return str(folder)


@pytest.fixture(scope="module")
def pipe(model):
    return pipeline("image-captioning", model=model, device="cpu")


@pytest.fixture(scope="module")
def expected(pipe) -> dict[str, dict]:
    found = pipe([Image.fromarray(seen) for _, seen in GOOD.values()])
    captions = {name: caption for name, (caption,) in zip(GOOD, found, strict=True)}
    assert len({round(caption["score"], 6) for caption in captions.values()}) > 12, "the images must matter"
    return captions


def same(found: dict, expected: dict) -> bool:
    return "error" not in found and found["score"] == pytest.approx(expected["score"], rel=2e-3)


def interleaved() -> list[str]:
    """Bad images among good ones, so that every batch has some of both."""
    names, bad = list(GOOD), list(BAD)
    for place, name in enumerate(bad):
        names.insert(2 * place + 1, name)
    return names


def test_the_pipeline_leaves_out_what_cannot_be_read(folder, pipe, expected, faults):
    names = interleaved()
    found = pipe([str(folder / name) for name in names], batch_size=5, on_bad_image="skip")
    assert len(found) == len(names)
    captioned = {name for name, (row,) in zip(names, found, strict=True) if name in GOOD and same(row, expected[name])}
    errors = {name: row["error"] for name, (row,) in zip(names, found, strict=True) if "error" in row}
    named = {
        name
        for name, error in errors.items()
        if repr(name)[1:-1] in error and f"`images[{names.index(name)}]`" in error
    }
    faults.count("bad images in the pipeline", len(BAD), len(named & {*BAD}), "an error with the name, no other lost")
    faults.count("unusual images in the pipeline", len(GOOD), len(captioned), "the caption of what a person sees")
    assert captioned == {*GOOD} and named == {*errors} == {*BAD}
    assert all("\n" not in error and len(error) < 600 for error in errors.values())


@pytest.mark.parametrize("name", BAD)
def test_the_pipeline_raises_a_value_error_with_the_name(folder, pipe, name):
    for images, place in ((str(folder / name), ""), ([str(folder / "plain.png"), folder / name], "`images[1]`")):
        with pytest.raises(ValueError) as raised:
            pipe(images)
        assert repr(name)[1:-1] in str(raised.value) and place in str(raised.value)


def test_images_without_a_file_are_named_by_their_place(pipe, tmp_path):
    good = Image.fromarray(noise())
    cut = Image.open(io.BytesIO(BAD["cut.jpg"]))
    nan = np.full((8, 8, 3), np.nan)
    for bad in (cut, nan, np.zeros((0, 0, 3)), 7, None):
        kind = TypeError if bad is None or isinstance(bad, int) else ValueError
        with pytest.raises(kind, match=r"`images\[1\]` cannot be read: "):
            pipe([good, bad, good], batch_size=3)
        with pytest.raises(kind, match=r"`images\[1\]` cannot be read: "):
            list(pipe(image for image in [good, bad, good]))
        found = pipe([good, bad, good], batch_size=3, on_bad_image="skip")
        assert found[0] == found[2] and "error" in found[1][0]
    (tmp_path / "b.png").write_bytes(b"no")
    (tmp_path / "a.png").write_bytes(saved(noise()))
    paths = {"image": [str(tmp_path / "a.png"), str(tmp_path / "b.png")]}
    rows = Dataset.from_dict(paths).cast_column("image", ImageFeature())
    found = pipe(rows["image"], on_bad_image="skip")
    assert "generated_text" in found[0][0] and "`images[1]`" in found[1][0]["error"]
    with pytest.raises(ValueError, match="`on_bad_image` must be error or skip, got 'ignore'"):
        pipe(good, on_bad_image="ignore")


def test_a_long_text_is_not_echoed_whole(pipe):
    for text in ("a" * 100_000, "http://[" + "a" * 100_000, "data:image/png;base64," + "A" * 100_000):
        with pytest.raises(ValueError) as raised:
            pipe([text])
        assert len(str(raised.value)) < 600


def test_boolean_arrays_are_black_and_white(pipe):
    black = noise()[..., 0] > 127
    expected = pipe(Image.fromarray(np.repeat((black * 255).astype(np.uint8)[..., None], 3, -1)))[0]
    assert same(pipe(black)[0], expected)


def test_captions_of_a_folder(folder, model, expected, faults):
    inputs = [f"photos/{name}" for name in interleaved()]
    with pytest.raises(SystemExit) as stopped:
        program(["caption", *inputs, "--model", model, "--output", "out.jsonl", "--batch-size", "5"])
    assert stopped.value.code == 1
    found = {row["image"].removeprefix("photos/"): row for row in map(json.loads, open("out.jsonl"))}
    captioned = {name for name in GOOD if same(found[name], expected[name])}
    errors = {name for name, row in found.items() if "error" in row}
    faults.count("bad images in `caption`", len(BAD), len(errors & {*BAD}), "a row with its error, no other lost")
    faults.count("unusual images in `caption`", len(GOOD), len(captioned), "the caption of what a person sees")
    assert captioned == {*GOOD} and errors == {*BAD}


def write_table(folder: Path, names: list[str]) -> str:
    with open(folder / "table.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption"])
        writer.writerows([name, f"a dog number {place}"] for place, name in enumerate(names))
    return str(folder / "table.csv")


def measured(output: Path) -> tuple[list, list, dict]:
    errors = json.loads((output / "errors.json").read_text()) if (output / "errors.json").exists() else []
    return (
        json.loads((output / "captions.json").read_text()),
        errors,
        json.loads((output / "metrics.json").read_text()),
    )


def test_evaluation_goes_on_after_a_bad_image(folder, model, expected, tmp_path, capsys, faults):
    names = interleaved()
    command = ["--model", model, "--data", write_table(folder, names), "--output_dir", str(tmp_path / "out")]
    command += ["--batch_size", "5", "--metrics", *DEFAULT_METRICS]
    with pytest.raises(SystemExit) as stopped:
        evaluate.main(command)
    assert stopped.value.code == 1
    captions, errors, report = measured(tmp_path / "out")
    by_name = {names[row["image_id"]]: row["caption"] for row in captions}
    reasons = {names[row["image_id"]]: row["error"] for row in errors}
    right = {name for name, text in by_name.items() if text == expected[name]["generated_text"]}
    named = {name for name, error in reasons.items() if repr(name)[1:-1] in error}
    faults.count("bad images in `evaluate`", len(BAD), len(named & {*BAD}), "in errors.json, metrics over the rest")
    faults.count("unusual images in `evaluate`", len(GOOD), len(right), "the caption of what a person sees")
    assert right == {*GOOD} and named == {*reasons} == {*BAD}
    assert report["num_unreadable"] == len(BAD) and report["setting"]["num_images"] == len(names)
    texts, references = [], []
    for row in captions:
        texts.append(row["caption"])
        references.append([f"a dog number {row['image_id']}"])
    assert report["metrics"] == CaptionMetrics().compute(predictions=texts, references=references)
    said = capsys.readouterr().err
    assert f"{len(BAD)} of {len(names)} images could not be read" in said and f"over the other {len(GOOD)}" in said
    # mended, the same command captions what is missing and nothing else
    for name in BAD:
        (folder / name).write_bytes(GOOD["plain.png"][0])
    evaluate.main(command)
    again, errors, report = measured(tmp_path / "out")
    assert [row["image_id"] for row in again] == list(range(len(names))) and errors == []
    assert report["num_unreadable"] == 0
    assert [row for row in again if names[row["image_id"]] in GOOD] == captions


def test_evaluation_of_nothing_that_can_be_read(folder, model, tmp_path):
    command = ["--model", model, "--data", write_table(folder, list(BAD)), "--output_dir", str(tmp_path / "out")]
    with pytest.raises(InputError, match="`data` must have an image that can be read, got none"):
        evaluate.main([*command, "--metrics", "bleu_1"])


def test_training_leaves_out_what_cannot_be_read_and_says_so(folder, tmp_path, capsys, faults):
    names = interleaved()
    (folder / "gone.png").unlink(missing_ok=True)
    outside = tmp_path / "outside.png"
    outside.write_bytes(GOOD["plain.png"][0])
    os.symlink(outside, folder / "link.png")
    table = write_table(folder, [*names, "gone.png", "link.png", "../outside.png"])
    settings = dict(max_steps=1, eval_strategy="no", save_strategy="no", load_best_model_at_end=False, num_samples=30)
    settings |= dict(train_data=table, eval_data=table, per_device_train_batch_size=4)
    command = arguments(tmp_path / "out", **settings)
    with pytest.raises(InputError, match=r"`image\[\d+\]` of .*table.csv must "):
        train.main([*command, "--check_images", "true"])
    assert not (tmp_path / "out" / "model.safetensors").exists()
    with pytest.raises(SystemExit) as stopped:
        train.main([*command, "--on-bad-image", "skip"])
    assert stopped.value.code == 1
    said = capsys.readouterr().out
    count = len(BAD) + 3
    assert f"\n{2 * count} images were left out:\n" in said
    named = {name for name in [*BAD, "gone.png", "link.png", "../outside.png"] if repr(name)[1:-1] in said}
    faults.count("bad images in training", count, len(named), "left out with `--on_bad_image skip`, and named")
    assert len(named) == count and (tmp_path / "out" / "model.safetensors").exists()
    with pytest.raises(SystemExit) as stopped:  # nothing is left to do, and what is missing is still missing
        train.main([*command, "--on-bad-image", "skip"])
    again = capsys.readouterr().out
    assert stopped.value.code == 1 and again.startswith("finished already") and said.endswith(again.split("anew\n")[1])
    with pytest.raises(InputError, match="`on_bad_image` must be error or skip, got 'ignore'"):
        train.main([*command, "--on_bad_image", "ignore"])


def test_an_image_that_was_not_checked_is_named_when_it_is_read(folder):
    """As in the middle of a training with `check_images` off."""
    rows = load_captions(write_table(folder, ["plain.png", "cut.jpg", "nan.tif"]), check_images=False)
    assert rows[0]["image"].size == (56, 40)
    for place, name in ((1, "cut.jpg"), (2, "nan.tif")):
        with pytest.raises(InputError, match=f"`image` must be an image that can be read, got '.*{name}'"):
            rows[place]
    Dataset.from_dict({"image": [BAD["cut.png"]], "caption": ["a"]}).to_parquet(folder / "t.parquet")
    rows = load_captions(str(folder / "t.parquet"), check_images=False)
    with pytest.raises(InputError, match="`image` must be an image that can be read, got 200 bytes"):
        rows[0]


def test_clip_sees_what_captioners_see(folder):
    for name, (_, seen) in GOOD.items():
        if name in ("grey16.png", "deep32.tif", "float.tif"):
            with pytest.raises(ValueError, match=rf"images\[7\] '.*{name}' must .*8 bits a channel"):
                opened_for_clip(folder / name, 7)
        else:
            assert np.abs(np.asarray(opened_for_clip(folder / name, 0)).astype(int) - seen).max() <= 1, name
    for name in set(BAD) - {"nan.tif"}:
        with pytest.raises(ValueError, match=re.escape(f"images[3] {str(folder / name)!r}")):
            opened_for_clip(folder / name, 3)


def test_no_picture_is_a_program(folder, model, pipe, tmp_path, monkeypatch, faults):
    """Pillow has Ghostscript run EPS, which is PostScript, also where the file is called a photograph."""
    said = tmp_path / "said"
    (tmp_path / "gs").write_text(f"#!/bin/sh\necho ran >> {said}\nexit 0\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)  # as before the first such file
    content = saved(noise(), "EPS")
    (folder / "photo.jpg").write_bytes(content)
    with contextlib.suppress(OSError), Image.open(folder / "photo.jpg") as image:
        image.load()
    assert said.exists(), "otherwise this shows nothing"
    said.unlink()
    Dataset.from_dict({"image": [content], "caption": ["a"]}).to_parquet(folder / "t.parquet")
    address = "data:image/jpeg;base64," + base64.b64encode(content).decode()
    reads = {
        "the pipeline": lambda: pipe(str(folder / "photo.jpg")),
        "the pipeline, from base64": lambda: pipe(address),
        "training": lambda: load_captions(write_table(folder, ["photo.jpg"])),
        "training, from a Parquet file": lambda: load_captions(str(folder / "t.parquet")),
        "CLIP": lambda: opened_for_clip(folder / "photo.jpg", 0),
        "a server": lambda: Upload("photo.jpg", content, most_pixels=10**6).source(),
    }
    refused = 0
    for read in reads.values():
        with pytest.raises(Exception, match="cannot identify (an )?image"):
            read()
        refused += not said.exists()
    for path, row in (("photo.jpg", "photos/photo.jpg"), ("t.parquet", "photos/t.parquet[0]")):
        with pytest.raises(SystemExit):
            program(["caption", f"photos/{path}", "--model", model, "--output", f"{path}.jsonl"])
        (found,) = map(json.loads, open(f"{path}.jsonl"))
        refused += found["image"] == row and "cannot identify an image" in found["error"] and not said.exists()
    tried = len(reads) + 2
    faults.count("PostScript in the place of a photograph", tried, refused, "not opened, and no program is started")
    assert refused == tried


def test_nothing_but_text_files_is_written_beside_the_images(folder, model, tmp_path, faults):
    """Whatever lies there under the names that are written to on the way, and whatever an image is called."""
    others = {name: tmp_path / name for name in ("profile", "history")}
    for path in others.values():
        path.write_text("first line\nlast line")
    (folder / ".plain.txt.part").symlink_to(others["profile"])
    (folder / ".captions.progress").symlink_to(others["history"])
    (folder / "scan.txt").write_bytes(GOOD["plain.png"][0])
    command = ["caption", "photos/plain.png", "photos/scan.txt", "--model", model, "--sidecar"]
    command += ["--existing", "overwrite"]
    with pytest.raises(InputError, match=r"photos/.captions.progress must be the progress .* got a link"):
        program(command)
    (folder / ".captions.progress").unlink()
    for content in (b"mine", b"mine\nand yours"):  # a file of that name, of something else
        (folder / ".captions.progress").write_bytes(content)
        with contextlib.suppress(InputError):
            program([*command[:2], *command[3:]])
        kept = (folder / ".captions.progress").exists() and (folder / ".captions.progress").read_bytes() == content
        (folder / ".captions.progress").unlink(missing_ok=True)
        assert kept
    with pytest.raises(SystemExit) as stopped:
        program([*command, "--output", "out.jsonl"])
    assert stopped.value.code == 1
    rows = {row["image"]: row for row in map(json.loads, open("out.jsonl"))}
    assert (folder / "plain.txt").read_text().strip() == rows["photos/plain.png"]["caption"]
    assert rows["photos/scan.txt"]["error"] == "its text file would be the image itself"
    kept = sum(path.read_text() == "first line\nlast line" for path in others.values())
    kept += (folder / "scan.txt").read_bytes() == GOOD["plain.png"][0]
    faults.count("files of others beside images", 5, kept + 2, "left as they were by `--sidecar`")
    assert kept == 3 and not (folder / ".plain.txt.part").exists()


def test_one_list_of_formats():
    assert files.FORMATS == image_reading.FORMATS
    assert {*FORMATS_OF_UPLOADS} < {*files.FORMATS} and "EPS" not in files.FORMATS


def test_a_link_out_of_the_folder_is_refused_and_one_inside_is_read(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "secret.png").write_bytes(saved(noise()))
    (tmp_path / "data" / "a.png").write_bytes(saved(noise()))
    os.symlink("a.png", tmp_path / "data" / "inside.png")
    os.symlink(tmp_path / "secret.png", tmp_path / "data" / "out.png")
    os.symlink("nowhere.png", tmp_path / "data" / "dangling.png")
    assert len(load_captions(write_table(tmp_path / "data", ["inside.png"]))) == 1
    for name, message in (("out.png", "must lie inside"), ("dangling.png", "must be a file in")):
        with pytest.raises(InputError, match=f"{message}.*{name}"):
            load_captions(write_table(tmp_path / "data", [name]))


def test_links_and_pipes_among_the_images_of_a_folder(tmp_path, model, pipe, monkeypatch, faults):
    """A pipe that nobody writes to would be read for ever, and a folder may have a link to itself."""
    monkeypatch.chdir(tmp_path)
    photos = tmp_path / "photos"
    (photos / "folder.png").mkdir(parents=True)
    (photos / "a.png").write_bytes(saved(noise()))
    for name, target in (("none.png", "nowhere.png"), ("self.png", "self.png"), ("loop", ".")):
        os.symlink(target, photos / name)
    os.mkfifo(photos / "pipe.png")
    bad = ["none.png", "self.png", "pipe.png"]
    command = ["caption", "photos", *(f"photos/{name}" for name in bad), "--model", model]
    with pytest.raises(SystemExit) as stopped:
        program([*command, "--output", "out.jsonl"])
    rows = {row["image"]: row for row in map(json.loads, open("out.jsonl"))}
    refused = sum(rows[f"photos/{name}"]["error"] == "no such file" for name in bad)
    assert stopped.value.code == 1 and "caption" in rows["photos/a.png"]
    for name in bad:
        with pytest.raises(ValueError, match=f"the path of a file that is there.*{name}"):
            pipe(f"photos/{name}")
        with pytest.raises(InputError, match=f"must be a file in .*{name}"):
            load_captions(write_table(photos, ["a.png", name]))
    faults.count(
        "links to nothing and pipes among images", len(bad), refused, "an error with the name, none waited for"
    )
    assert refused == len(bad) and {*rows} == {f"photos/{name}" for name in ("a.png", *bad)}
