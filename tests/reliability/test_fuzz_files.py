"""
Files that commands go on with, measure or are set by: our error in one line, or what is in them. As in `test_fuzz.py`,
a hundred cases of each kind in the normal run and ten thousand in the long one.
"""

import json
from pathlib import Path

import yaml
from hypothesis import strategies as st
from testing.fuzzing import SOME, TEXT, bound, fuzz

from hf_captioner.commands.parsing import CommandParser, read_settings
from hf_captioner.commands.train_arguments import DataArguments, ModelArguments, ObjectiveArguments
from hf_captioner.data.caption_files import read_captions, write_captions
from hf_captioner.data.caption_store import Progress
from hf_captioner.data.coco_files import read_instances, read_results
from hf_captioner.errors import InputError

REFUSED = "our error in one line, or what is there"


def refused(error: InputError) -> None:
    """A program prints the message without its line breaks, of which YAML's have some."""
    assert 0 < len(str(error)) < 2000, str(error)


# What `caption` writes and goes on with

PARTS = st.floats(0, 1)
SCORES = st.fixed_dictionaries({}, optional={"score": PARTS, "search_score": st.floats(-50, 0)})
WORDS = st.lists(st.fixed_dictionaries({"word": SOME, "probability": PARTS}), min_size=1, max_size=2)
OTHERS = st.lists(st.fixed_dictionaries({"caption": SOME, "score": PARTS, "search_score": PARTS}), max_size=2)
LISTS = st.fixed_dictionaries({}, optional={"words": WORDS, "others": OTHERS})
CAPTIONED = st.builds(lambda *parts: {k: v for part in parts for k, v in part.items()}, SCORES, LISTS)
KEPT = st.lists(
    st.builds(lambda image, caption, rest: {"image": image, "caption": caption, **rest}, SOME, SOME, CAPTIONED)
    | st.fixed_dictionaries({"image": SOME, "error": SOME}),
    max_size=4,
)


def captions_kept_in_a_file(folder: Path, rows: list[dict], suffix: str) -> None:
    """What was written is read again; text files have the images and captions alone."""
    path = folder / f"out{suffix}"
    write_captions(path, rows)
    found = read_captions(path)
    if suffix == ".txt":
        rows = [{"image": row["image"], "caption": row.get("caption", "")} for row in rows]
        found = [{"image": row["image"], "caption": row["caption"]} for row in found]
    assert [row["image"] for row in found] == [row["image"] for row in rows]
    for row, other in zip(rows, found, strict=True):
        for name, value in row.items():
            assert other.get(name) == value, name
        assert all(not other[name] for name in other.keys() - row.keys()), other  # columns of other rows


def bytes_of_captions(folder: Path, content: bytes, suffix: str) -> None:
    path = folder / f"out{suffix}"
    path.write_bytes(content)
    try:
        rows = read_captions(path)
    except InputError as error:
        refused(error)
        return
    assert all(isinstance(row["image"], str) and isinstance(row.get("caption"), str | None) for row in rows)


def bytes_of_progress(folder: Path, content: bytes) -> None:
    path = folder / "out.progress"
    path.write_bytes(content)
    try:
        progress = Progress(path, {"model": "m"})
    except InputError as error:
        refused(error)
        return
    assert all(isinstance(row["image"], str) for row in progress.rows)
    progress.add([{"image": "a.png", "caption": "a"}])
    again = Progress(path, {"model": "m"}).rows
    assert json.dumps(again) == json.dumps([*progress.rows, {"image": "a.png", "caption": "a"}])  # NaN is not NaN


# Captions and objects in COCO's formats

LEAF = st.none() | st.booleans() | st.integers(-1, 3) | st.floats() | TEXT | st.just("\ud800")
RESULTS = st.lists(st.dictionaries(st.sampled_from(["image_id", "caption", "x"]), LEAF, max_size=3) | LEAF, max_size=3)
NAMED = st.dictionaries(st.sampled_from(["id", "name", "image_id", "category_id"]), LEAF | st.lists(LEAF, max_size=1))
OBJECTS = st.dictionaries(
    st.sampled_from(["images", "categories", "annotations"]), st.lists(NAMED | LEAF, max_size=2) | LEAF
)


def json_of_results(folder: Path, content: object) -> None:
    path = folder / "results.json"
    path.write_text(json.dumps(content))
    try:
        found = read_results(path)
    except InputError as error:
        refused(error)
        return
    given = [(row["image_id"], row["caption"]) for row in content]
    assert sorted((number, text) for number, texts in found.items() for text in texts) == sorted(given)


def json_of_instances(folder: Path, content: object) -> None:
    path = folder / "instances.json"
    path.write_text(json.dumps(content))
    try:
        found = read_instances(path)
    except InputError as error:
        refused(error)
        return
    assert all(isinstance(name, str) for names in found.values() for name in names)
    assert len(found) <= len(content["images"])


def bytes_of_coco_files(folder: Path, content: bytes) -> None:
    path = folder / "any.json"
    path.write_bytes(content)
    for read in (read_results, read_instances):
        try:
            read(path)
        except InputError as error:
            refused(error)


# Settings

GROUPS = (ModelArguments, DataArguments, ObjectiveArguments)
OPTIONS = sorted(name for group in GROUPS for name in group.__dataclass_fields__)
PLAIN = st.sampled_from([0, 1, -1, 0.5, True, False, "bpe", "word", "skip", "auto", "self_critical", "a.csv", "{}"])
SETTING = PLAIN | LEAF.filter(lambda value: value != "\ud800") | st.lists(st.integers(), max_size=2)
SETTING |= st.dictionaries(TEXT, st.integers(), max_size=2)


def settings_files(folder: Path, settings: dict) -> None:
    """Every setting is refused in one line, or has the type that the option has."""
    (folder / "settings.yaml").write_text(yaml.safe_dump(settings), "utf-8")
    parser = CommandParser(*GROUPS)
    try:
        parser.set_defaults(**read_settings(folder / "settings.yaml", parser))
        parsed = parser.parse(["--train_data", "a", "--eval_data", "b"])
    except InputError as error:
        refused(error)
        return
    found = {name: value for group in parsed for name, value in vars(group).items()}
    for name in settings:
        if type(settings[name]) in (int, str, bool) and name not in ("train_data", "eval_data"):
            assert str(found[name]).lower() == str(settings[name]).lower() or not isinstance(found[name], str), name


def bytes_of_settings(folder: Path, content: bytes) -> None:
    (folder / "settings.yaml").write_bytes(content)
    parser = CommandParser(*GROUPS)
    try:
        read = read_settings(folder / "settings.yaml", parser)
    except InputError as error:
        refused(error)
        return
    assert set(read) <= set(parser.options)


SCRAPS = st.lists(
    st.sampled_from(
        [
            "image",
            "caption",
            "settings",
            "a.png",
            ",",
            ":",
            " ",
            "\n",
            '"',
            "{",
            "}",
            "[",
            "]",
            "\t",
            "\0",
            "\r",
            "1",
            "&a",
        ]
    ),
    max_size=16,
).map(lambda parts: "".join(parts).encode())
ROWS = st.lists(
    st.dictionaries(st.sampled_from(["image", "caption", "settings", "score"]), LEAF | st.just({"model": "m"})) | LEAF,
    max_size=3,
)
BYTES = (
    SCRAPS | st.binary(max_size=60) | ROWS.map(lambda rows: "".join(json.dumps(row) + "\n" for row in rows).encode())
)
DEEP = b"[" * 100_000 + b"\n"
LONG = b"9" * 5000 + b"\n"  # more digits than Python converts


def test_files_of_captions(cases, faults, tmp_path):
    suffixes = st.sampled_from([".txt", ".jsonl", ".csv", ".parquet"])
    values = {"rows": KEPT, "suffix": suffixes}
    returns = [{"image": "a\rb.png", "caption": "a\r\nb"}, {"image": "c.png", "error": "\r"}]
    examples = [{"rows": returns, "suffix": suffix} for suffix in (".txt", ".csv")]
    fuzz(bound(captions_kept_in_a_file, tmp_path), values, cases, faults, examples, "read as they were written")
    examples = [{"content": content, "suffix": ".jsonl"} for content in (DEEP, LONG, b"[]\n", b'{"image": 1}')]
    examples += [{"content": b"PAR1" + bytes(range(40)) + b"PAR1", "suffix": ".parquet"}]
    values = {"content": BYTES, "suffix": suffixes}
    fuzz(bound(bytes_of_captions, tmp_path), values, cases, faults, examples, REFUSED)
    first = b'{"settings": {"model": "m"}}\n'
    examples = [
        {"content": content} for content in (DEEP, LONG, b'{"settings": 3}\n', first + b"3\n", first + b"{}\n")
    ]
    content = BYTES | BYTES.map(first.__add__)
    fuzz(bound(bytes_of_progress, tmp_path), {"content": content}, cases, faults, examples, REFUSED)


def test_coco_files(cases, faults, tmp_path):
    fuzz(bound(json_of_results, tmp_path), {"content": RESULTS}, cases, faults, note=REFUSED)
    examples = [
        {
            "content": {
                "images": [{"id": 1}],
                "categories": [{"id": 1, "name": 5}],
                "annotations": [{"image_id": 1, "category_id": 1}],
            }
        },
        {"content": {"images": [{"id": "x" * 9000}], "categories": [], "annotations": [{"image_id": "y" * 9000}]}},
    ]
    fuzz(bound(json_of_instances, tmp_path), {"content": OBJECTS}, cases, faults, examples, REFUSED)
    examples = [{"content": DEEP}, {"content": LONG}, {"content": json.dumps(["x" * 9000]).encode()}]
    fuzz(bound(bytes_of_coco_files, tmp_path), {"content": BYTES}, cases, faults, examples, REFUSED)


def test_settings(cases, faults, tmp_path):
    chosen = st.dictionaries(st.sampled_from(OPTIONS), SETTING, max_size=3)
    fuzz(bound(settings_files, tmp_path), {"settings": chosen}, cases, faults, note=REFUSED)
    examples = [{"content": DEEP}, {"content": LONG}, {"content": b"reward: &a [*a]"}, {"content": b"? [a]\n: 1"}]
    fuzz(bound(bytes_of_settings, tmp_path), {"content": BYTES}, cases, faults, examples, REFUSED)
