"""Tables and folders of strangers and of newcomers: nothing outside them is read, and what is wrong is one line."""

import contextlib
import csv
import io
import json
import os
import re
import shutil
import socket
import sys
import tarfile
import threading
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from datasets import Dataset, DatasetDict, Features, Image, List, Value
from PIL import Image as PILImage
from testing.tiny_models import tiny_model
from testing.training import arguments

from hf_captioner import CaptionerImageProcessor, CaptionerProcessor, train_tokenizer
from hf_captioner.commands import evaluate, train
from hf_captioner.commands.program import main, program
from hf_captioner.data import load_captions, validate
from hf_captioner.errors import InputError

CELL = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
SECRET = (1, 2, 3)


def png(color=(200, 100, 50)) -> bytes:
    file = io.BytesIO()
    PILImage.new("RGB", (40, 40), color).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def asked():
    """A server on this machine, and whoever asked it for anything."""
    found: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:  # closed
                return
            with connection:
                found.append(connection.recv(1000))

    threading.Thread(target=serve, daemon=True).start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}/x.png", found
    listener.close()
    assert found == [], "something was fetched"


@pytest.fixture
def folder(tmp_path) -> Path:
    """`data/a.png`, and beside the folder `secret.png`, `secret.txt` and a saved data set, all not to be read."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.png").write_bytes(png())
    (tmp_path / "secret.png").write_bytes(png(SECRET))
    (tmp_path / "secret.txt").write_text("image,caption\na.png,secret\n")
    secret = {"image": [{"bytes": png(SECRET), "path": None}], "caption": ["secret"]}
    Dataset.from_dict(secret, Features({"image": Image(), "caption": Value("string")})).save_to_disk(
        tmp_path / "saved"
    )
    return tmp_path / "data"


PLACES = [
    "{out}",
    "../secret.png",
    "data/../../secret.png",
    "{url}",
    "zip://a.png::{url}",
    "file://{out}",
    "hf://x/y.png",
]
PLACES += ["link.png", "/etc/hostname", "a.png\0.jpg", "~/x.png"]


def parquet(folder: Path, place: str, column: str = "image", features: dict | None = None, **columns) -> Path:
    cells = pyarrow.array([{"bytes": None, "path": place}], CELL)
    table = pyarrow.table({"caption": ["a dog"], column: cells} | columns)
    if features is not None:  # as `datasets` writes it
        described = Features({"caption": Value("string"), column: Image()} | features).to_dict()
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": described}})})
    pyarrow.parquet.write_table(table, folder / "t.parquet")
    return folder / "t.parquet"


def as_struct(folder, place):
    return parquet(folder, place)


def as_image_column(folder, place):
    return parquet(folder, place, features={})


def as_string_column(folder, place):
    pyarrow.parquet.write_table(pyarrow.table({"image": [place], "caption": ["a dog"]}), folder / "t.parquet")
    return folder / "t.parquet"


def as_csv(folder, place):
    (folder / "t.csv").write_text(f'image,caption\n"{place}",a dog\n')
    return folder / "t.csv"


def as_json(folder, place):
    (folder / "t.json").write_text(json.dumps([{"file_name": place, "caption": "a dog"}]))
    return folder / "t.json"


def as_json_struct(folder, place):
    (folder / "t.jsonl").write_text(json.dumps({"image": {"bytes": None, "path": place}, "caption": "a dog"}) + "\n")
    return folder / "t.jsonl"


def as_coco(folder, place):
    images = [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": place}]
    said = [{"image_id": number, "caption": "a dog"} for number in (1, 2)]
    (folder / "t.json").write_text(json.dumps({"images": images, "annotations": said}))
    return folder / "t.json"


def as_first_of_coco(folder, place):
    content = {"images": [{"id": 2, "file_name": place}], "annotations": [{"image_id": 2, "caption": "a dog"}]}
    (folder / "t.json").write_text(json.dumps(content))
    return folder / "t.json"


def as_karpathy(folder, place):
    image = {"filepath": os.path.dirname(place), "filename": os.path.basename(place), "split": "train"}
    (folder / "t.json").write_text(json.dumps({"images": [{**image, "sentences": [{"raw": "a dog"}]}]}))
    return folder / "t.json"


def as_flickr(folder, place):
    (folder / "captions.txt").write_text(f'image,caption\n"{place}",a dog\n')
    return folder / "captions.txt"


def as_saved(folder, place):
    features = Features({"image": Image(), "caption": Value("string")})
    rows = {"image": [{"bytes": png(), "path": None}], "caption": ["a dog"]}
    Dataset.from_dict(rows, features).save_to_disk(folder / "s")
    table = pyarrow.table({"image": pyarrow.array([{"bytes": None, "path": place}], CELL), "caption": ["a dog"]})
    with pyarrow.OSFile(str(folder / "s" / "data-00000-of-00001.arrow"), "wb") as file:
        with pyarrow.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
    return folder / "s"


WAYS = [as_struct, as_image_column, as_string_column, as_csv, as_json, as_json_struct, as_coco, as_first_of_coco]
WAYS += [as_karpathy, as_flickr, as_saved]


@pytest.mark.parametrize("way", WAYS)
def test_no_table_leads_out_of_its_folder(folder, tmp_path, asked, way, faults, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    os.symlink(tmp_path / "secret.png", folder / "link.png")
    url, found = asked
    refused = 0
    for place in PLACES:
        source = way(folder, place.format(out=tmp_path / "secret.png", url=url))
        with pytest.raises(InputError) as raised:
            load_captions(str(source), check_images=False)
        refused += "\n" not in str(raised.value) and not found
        assert validate(str(source)).defects
    faults.count("paths and addresses in tables", len(PLACES), refused, "refused, nothing read or fetched")
    assert refused == len(PLACES)


@pytest.mark.parametrize("place", ["{out}", "{url}", "zip://a.png::{url}"])
def test_other_columns_are_not_decoded(folder, tmp_path, asked, place):
    place = place.format(out=tmp_path / "secret.png", url=asked[0])
    image = pyarrow.array([{"bytes": png(), "path": None}], CELL)
    features = {"image": Image(), "others": List(Image()), "deep": {"more": Image()}}
    other = [{"bytes": None, "path": place}]
    more = {"image": image, "others": pyarrow.array([other]), "deep": pyarrow.array([{"more": other[0]}])}
    source = parquet(folder, place, "second", features, **more)
    rows = load_captions(str(source))
    assert rows[0]["second"] == rows[0]["others"][0] == rows[0]["deep"]["more"] == other[0]
    assert rows[0]["image"].getpixel((0, 0)) == (200, 100, 50)
    parquet(folder, place, "caption", {"image": Image(), "caption": Image()}, image=image)
    with pytest.raises(InputError, match=r"`caption\[0\]` of .* must be text"):
        load_captions(str(source))


def test_a_saved_data_set_has_its_files_in_its_folder(folder, tmp_path):
    for names in (["../saved"], [str(tmp_path / "saved")], 3, [{"a": 1}]):
        (folder / "dataset_dict.json").write_text(json.dumps({"splits": names}))
        with pytest.raises(InputError, match="must (hold files that lie inside|be a list|be what Dataset.save)"):
            load_captions(str(folder))
    (folder / "dataset_dict.json").unlink()
    shutil.copytree(tmp_path / "saved", folder / "s")
    state = json.loads((folder / "s" / "state.json").read_text())
    for name in (str(tmp_path / "saved" / "data-00000-of-00001.arrow"), "../../saved/data-00000-of-00001.arrow"):
        (folder / "s" / "state.json").write_text(json.dumps(state | {"_data_files": [{"filename": name}]}))
        with pytest.raises(InputError, match="must hold files that lie inside .* which leads out of it"):
            load_captions(str(folder / "s"))
    (folder / "s" / "state.json").write_text(json.dumps(state))
    assert load_captions(str(folder / "s"))["captions"][:] == [["secret"]]
    both = DatasetDict(a=Dataset.from_dict({"image": [png()], "caption": ["x"]}))
    both.save_to_disk(folder / "d")
    assert load_captions(str(folder / "d"))["captions"][:] == [["x"]]


@pytest.mark.parametrize("name", ["captions.csv", "metadata.txt", "t.parquet", "t.tar", "a.txt"])
def test_files_of_a_folder_that_are_links_out_of_it(folder, tmp_path, name):
    target = tmp_path / "secret.txt"
    if name == "t.parquet":
        target = parquet(tmp_path, "a.png")
    os.symlink(target, folder / name)
    with pytest.raises(InputError, match="must (hold files that )?lie inside"):
        load_captions(str(folder))


def test_downloads_from_the_hub_are_links_into_their_blobs(tmp_path):
    home = tmp_path / "datasets--x--y"
    (home / "blobs").mkdir(parents=True)
    (home / "snapshots" / "1234").mkdir(parents=True)
    contents = {"a.png": png(), "metadata.csv": b"file_name,caption\na.png,a dog\n"}
    for name, content in contents.items():
        (home / "blobs" / f"of_{name}").write_bytes(content)
        os.symlink(f"../../blobs/of_{name}", home / "snapshots" / "1234" / name)
    assert load_captions(str(home / "snapshots" / "1234"))["captions"][:] == [["a dog"]]
    shutil.move(home / "blobs", tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", home / "blobs")
    with pytest.raises(InputError, match="must hold files that lie inside"):
        load_captions(str(home / "snapshots" / "1234"))


def test_links_in_an_archive_are_not_followed(folder):
    with tarfile.open(folder / "t.tar", "w") as archive:
        for name, content in (("a.txt", b"a dog"), ("b.txt", b"a cat")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for name in ("a.png", "b.png"):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, "../secret.png"
            archive.addfile(member)
    with pytest.raises(InputError):
        load_captions(str(folder / "t.tar"))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model")
    captioner = tiny_model(attention="additive")
    captioner.generation_config.max_new_tokens = 4
    captioner.save_pretrained(folder)
    image_processor = CaptionerImageProcessor(size={"height": 32, "width": 32})
    CaptionerProcessor(image_processor, train_tokenizer(["a dog"], vocab_size=40)).save_pretrained(folder)
    return str(folder)


def test_images_of_a_table_that_is_captioned(folder, tmp_path, asked, model, monkeypatch):
    """A row that leads elsewhere, or nowhere, has its error; the others have their captions."""
    monkeypatch.chdir(tmp_path)
    os.symlink(tmp_path / "secret.png", folder / "link.png")
    places = [place.format(out=tmp_path / "secret.png", url=asked[0]) for place in PLACES]
    rows = [{"image": place} for place in [*places, "", None, 3, "a.png"]]
    (folder / "t.json").write_text(json.dumps(rows))
    cells = [{"bytes": None, "path": place} for place in places] + [{"bytes": png(), "path": None}, None]
    pyarrow.parquet.write_table(pyarrow.table({"image": pyarrow.array(cells, CELL)}), folder / "t.parquet")
    with pytest.raises(SystemExit):
        program(["caption", "data/t.json", "data/t.parquet", "--model", model, "--output", "out.jsonl"])
    found = [json.loads(line) for line in open("out.jsonl")]
    assert {row["image"] for row in found if "caption" in row} == {"data/a.png", f"data/t.parquet[{len(places)}]"}
    assert len(found) == len(rows) + len(cells)
    reasons = {row["image"]: row["error"] for row in found if "error" in row}
    for row in (0, 1, 2, PLACES.index("link.png"), PLACES.index("/etc/hostname")):
        assert "the path must lie in the table's folder" in reasons[f"data/t.json[{row}]"]


NEWCOMERS = {
    "Latin-1": ("t.csv", "image,caption\na.png,café\n".encode("latin-1"), "text in UTF-8, got .*t.csv"),
    "UTF-16": ("t.csv", "image,caption\na.png,a\n".encode("utf-16"), "text in UTF-8, got .*t.csv"),
    "empty": ("t.csv", b"", "must not be empty, got .*t.csv"),
    "empty Parquet": ("t.parquet", b"", "must be data that can be read, got .*t.parquet"),
    "no Parquet": ("t.parquet", b"PAR1 words", "must be data that can be read, got .*t.parquet"),
    "unclosed quote": ("t.csv", b'image,caption\na.png,"a\n', r"got .*t.csv \(line 2: unexpected end"),
    "a long cell": ("t.csv", b"image,caption\na.png," + b"w" * 200_000, r"got .*t.csv \(line 2: field larger"),
    "no rows": ("t.csv", b"image,caption\n", "at least one row, got none in .*t.csv"),
    "no rows, JSON": ("t.json", b"[]", "at least one row, got none in .*t.json"),
    "broken JSON": ("t.json", b'[{"image": "a.png", ', r"got .*t.json \(Expecting"),
    "unterminated string": ("t.json", b'{"images": [{"id": 1, "file_name": "a', r"got .*t.json \(Unterminated string"),
    "broken line": ("t.jsonl", b'{"image": "a.p', "line 1 of .*t.jsonl must be a JSON object, got '{\"image"),
    "deep JSON": ("t.json", b"[" * 100_000, "t.json, nested too deeply"),
    "a number": ("t.json", b"3", "list of JSON objects, got 3 in .*t.json"),
    "null": ("t.json", b"null", "list of JSON objects, got None in .*t.json"),
    "list of lists": ("t.json", b"[[1], [2]]", "row 0 of .*t.json must be a JSON object, got \\[1\\]"),
    "two types": (
        "t.json",
        b'[{"image": "a.png"}, {"image": 3}]',
        "`image` of .*t.json must be of one type .* row 1 3",
    ),
    "integer paths": ("t.csv", b"image,caption\n3,a\n", "`image` of .*t.csv must hold .* got int64 such as 3"),
    "empty path": ("t.csv", b"image,caption\n,a\na.png,b\n", r"`image\[0\]` of .*t.csv must be a path, got ''"),
    "NUL": ("t.csv", b"image,caption\na\0.png,a\n", r"`image\[0\]` of .*t.csv must be a path, got 'a\\x00.png'"),
    "NUL in COCO": (
        "t.json",
        b'{"images": [{"id": 1, "file_name": "a\\u0000"}], "annotations": [{"image_id": 1, "caption": "x"}]}',
        r"'a\\x00' of .*t.json is not in",
    ),
    "path that is too long": ("t.csv", b"image,caption\n" + b"a" * 5000 + b".png,a\n", r"`image\[0\]` of .{,400}$"),
    "Karpathy's folder is a number": (
        "t.json",
        b'{"images": [{"split": "a", "sentences": [], "filename": "a", "filepath": 3}]}',
        r"`filepath` of images\[0\] of .*t.json must be str, got 3",
    ),
    "an annotation without an image": (
        "t.json",
        b'{"images": [{"id": 1, "file_name": "a.png"}], "annotations": [4]}',
        r"`image_id` of annotations\[0\] of .*t.json must be int or str, got None",
    ),
}


@pytest.mark.parametrize("name", NEWCOMERS)
def test_a_mistake_is_one_line_that_names_it(folder, name, faults):
    file, content, message = NEWCOMERS[name]
    (folder / file).write_bytes(content)
    with pytest.raises(InputError, match=message) as raised:
        load_captions(str(folder / file))
    assert "\n" not in str(raised.value)
    found = validate(str(folder / file))  # which goes on as far as it can
    faults.count("broken tables", 1, int(bool(found.defects)), "one line with the file, the rule and the value")
    assert found.defects


@pytest.mark.parametrize("name", ["st*r", "br[1]", "sp ace", "\U0001f415", "quo'te", "percent%20", "up.CSV"])
def test_tables_may_have_any_name(folder, name):
    path = folder / (name if "." in name else f"{name}.csv")
    path.write_text("image,caption\na.png,a dog\n")
    assert load_captions(str(path))["captions"][:] == [["a dog"]]


@pytest.mark.parametrize(
    "source",
    ["", "a\0b", "a" * 100_000, "/nowhere", "./nowhere.csv", "http://127.0.0.1:9/t.csv"],
    ids=lambda s: s[:12],
)
def test_a_source_that_is_none(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((InputError, FileNotFoundError), match="`source`") as raised:
        load_captions(source)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 400


CAPTIONS = {
    "a NUL": "a\0dog",
    "right to left": "\u05db\u05dc\u05d1 \u05e8\u05e5 \u202e\u05d1\u05d7\u05d5\u05e5",
    "combining marks": "a cafe\u0301 n\u0303" + "\u0300" * 50,
    "emoji": "a \U0001f415\u200d\U0001f9ba \U0001f468\u200d\U0001f469\u200d\U0001f467",
    "10,000 words": " ".join(f"word{number}" for number in range(10_000)),
    "NA": "NA",
    "None": "None",
    "null": "null",
    "a quote": 'a "dog", it says',
    "lines": "a\ndog\r\nruns",
    "spaces": "\u00a0a\u2003dog\u3000",
}


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv", "tsv", "parquet"])
def test_odd_captions_come_as_they_are(folder, kind):
    texts = list(CAPTIONS.values())
    if kind in ("csv", "tsv"):
        texts.remove(CAPTIONS["lines"])  # pandas makes one line break of every kind
    rows = [{"image": "a.png", "caption": text} for text in texts]
    if kind == "parquet":
        Dataset.from_list(rows).to_parquet(folder / "t.parquet")
    elif kind == "json":
        (folder / "t.json").write_text(json.dumps(rows))
    elif kind == "jsonl":
        (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with open(folder / f"t.{kind}", "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["image", "caption"], delimiter="\t" if kind == "tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    (found,) = load_captions(str(folder / f"t.{kind}"))["captions"]
    assert found == texts


def test_trained_on_odd_captions(folder, tmp_path):
    """And on an image whose captions have only unknown words: the vocabulary is that of words that come twice."""
    for number in range(4):
        (folder / f"{number}.png").write_bytes(png((60 * number, 0, 0)))
    rows = [{"image": f"{place % 3}.png", "caption": text} for place, text in enumerate(CAPTIONS.values())]
    rows += [{"image": "0.png", "caption": "a dog runs"}, {"image": "3.png", "caption": "never before seen"}]
    (folder / "t.json").write_text(json.dumps(rows))
    settings = dict(max_steps=1, eval_strategy="no", save_strategy="no", load_best_model_at_end=False, num_samples=4)
    settings |= dict(train_data=folder / "t.json", eval_data=folder / "t.json", min_frequency=2)
    train.main(arguments(tmp_path / "out", **settings))
    loss = json.loads((tmp_path / "out" / "all_results.json").read_text())["eval_loss"]
    assert 0 < loss < 20


def test_ids_that_come_twice(folder, model, tmp_path):
    (folder / "b.png").write_bytes(png((1, 1, 1)))
    (folder / "t.csv").write_text("image,caption,image_id\na.png,a,7\nb.png,b,7\n")
    with pytest.raises(InputError, match="`image_id` must be another for every image, got 7 twice"):
        evaluate.main(["--model", model, "--data", str(folder / "t.csv"), "--output_dir", str(tmp_path / "out")])
    images = [{"id": 7, "file_name": "a.png"}, {"id": 7, "file_name": "b.png"}]
    (folder / "t.json").write_text(json.dumps({"images": images, "annotations": []}))
    with pytest.raises(InputError, match=r"`id` of images\[1\] of .*t.json must be another for every image, got 7"):
        load_captions(str(folder / "t.json"))


COMMANDS = {
    "no model": (["caption", "a.png", "--model", "/nowhere"], "`--model` must be the folder .*'/nowhere'"),
    "a model that is a file": (["caption", "a.png", "--model", "t.csv"], "`--model` must be the folder .*'t.csv'"),
    "another model": (["caption", "a.png", "--model", "bert"], "`--model` must be the folder .*'bert'"),
    "a table with an open quote": (["caption", "t.csv"], "t.csv must be a table that can be read, got unexpected end"),
    "an empty table": (["caption", "empty.csv"], "empty.csv must be a table with a header"),
    "output of something else": (["caption", "a.png", "--output", "old.jsonl"], "`output` must be new .*old.jsonl"),
    "output below a file": (["caption", "a.png", "--output", "t.csv/out.txt"], "t.csv must be a file that can be"),
    "evaluate another model": (
        ["evaluate", "--model", "bert", "--data", "shapes:rows=2,seed=0", "--output_dir", "o"],
        "`model` must be a captioner's folder or Hub name, got bert",
    ),
    "evaluate into a file": (
        ["evaluate", "--model", "bert", "--data", "shapes:rows=2,seed=0", "--output_dir", "t.csv"],
        "`output_dir` must be a folder, got the file t.csv",
    ),
    "train into a file": (["train", "--output_dir", "t.csv"], "`output_dir` must be a folder, got the file t.csv"),
    "train another family": (["train", "--output_dir", "o", "--model_type", "bert"], "`model_type` must be .*'bert'"),
    "no settings": (["train", "--config", "nowhere.yaml"], "`config` must be a YAML file or one of .*'nowhere.yaml'"),
    "settings of another shape": (
        ["train", "--config", "list.yaml"],
        "`config` must be a mapping .*list in list.yaml",
    ),
    "no Hub": (
        ["train", "--output_dir", "o", "--train_data", "nobody/nothing"],
        "`source` must be data that can be read, got nobody/nothing",
    ),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_that_cannot_do_it_says_so_in_one_line(folder, monkeypatch, name, faults):
    monkeypatch.chdir(folder)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    Path("t.csv").write_text('image,caption\n"a.png,a\n')
    Path("empty.csv").write_text("")
    Path("old.jsonl").write_text('{"a": 1}\n')
    Path("list.yaml").write_text("- a\n- b\n")
    Path("bert").mkdir()
    Path("bert/config.json").write_text('{"model_type": "bert"}')
    command, message = COMMANDS[name]
    if command[0] == "train" and "--config" not in command:
        data = ["--train_data", "shapes:rows=4,seed=0", "--eval_data", "shapes:rows=4,seed=1"]
        command = ["train", "--config", "quickstart", *data, *command[1:]]
    monkeypatch.setattr(sys, "argv", ["hf-captioner", *command])
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), pytest.raises(SystemExit) as stopped:
        main()
    said = [line for line in errors.getvalue().splitlines() if line.startswith("error: ")]
    as_promised = stopped.value.code == 2 and len(said) == 1
    faults.count("mistakes at the command line", 1, int(as_promised), "one line, status 2")
    assert stopped.value.code == 2 and len(said) == 1 and "Traceback" not in errors.getvalue()
    assert len(said[0]) < 700
    assert re.search(message, said[0]), said[0]
