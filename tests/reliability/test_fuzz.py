"""
Whatever comes in, out comes our error or a right answer: a hundred cases of each kind in the normal run, ten thousand
in the long one. What once failed stands beside its target as an example.
"""

import io
import json
import math
import random
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from datasets import disable_progress_bars
from hypothesis import strategies as st
from PIL import Image
from testing.fuzzing import CAPTION, TEXT, bound, fuzz
from testing.tiny_models import tiny_vision

from hf_captioner import (
    CaptionerImageProcessor,
    CaptionerProcessor,
    RnnCaptionerConfig,
    TransformerCaptionerConfig,
    train_tokenizer,
)
from hf_captioner.data import CaptionCollator, load_captions
from hf_captioner.data.image_files import ImageFiles
from hf_captioner.data.reading import decode_image
from hf_captioner.errors import InputError
from hf_captioner.metrics import CaptionMetrics
from hf_captioner.models.image_processing_captioner import open_image
from hf_captioner.models.image_reading import to_rgb
from hf_captioner.models.tokenization_captioner import decode_captions

# Tokenizers


BPE = train_tokenizer(["a dog runs"], kind="bpe", vocab_size=300, model_max_length=4096)


def plain(text: str) -> str:
    """As the tokenizer's normalizer leaves it: what a round trip must give."""
    return BPE.backend_tokenizer.normalizer.normalize_str(text)


def texts_through_byte_level_tokens(text):
    tokens = BPE(text, split_special_tokens=True)["input_ids"]
    assert tokens[-1] == BPE.eos_token_id and BPE.unk_token_id not in tokens
    assert BPE.decode(tokens, skip_special_tokens=True).strip() == plain(text).strip()


def texts_through_word_tokens(captions):
    """A tokenizer of these captions gives them back, as it read them."""
    try:
        tokenizer = train_tokenizer(captions, model_max_length=4096)
    except ValueError as error:
        assert "must hold some text" in str(error) and not any(plain(caption) for caption in captions)
        return
    for caption in captions:
        tokens = tokenizer(caption, split_special_tokens=True)["input_ids"]
        assert tokens[-1] == tokenizer.eos_token_id
        assert tokens.count(tokenizer.unk_token_id) == 0 and tokens.count(tokenizer.eos_token_id) == 1
        (found,) = decode_captions(tokenizer, torch.tensor([tokens]))
        assert found == plain(caption).strip()


def test_tokenizers(cases, faults):
    fuzz(texts_through_byte_level_tokens, {"text": CAPTION}, cases, faults, note="as they were read")
    captions = st.lists(CAPTION, max_size=4)
    examples = [{"captions": ["\u2581"]}, {"captions": ["\u2581\u2581a \u2581 b"]}]
    fuzz(texts_through_word_tokens, {"captions": captions}, cases, faults, examples, "as they were read")


# Metrics


METRIC = CaptionMetrics()


def captions_and_references(pairs):
    """Scores are finite and in their range, and the order of images is of no effect."""
    predictions = [prediction for prediction, _ in pairs]
    references = [texts for _, texts in pairs]
    names = ["bleu_1", "bleu_4", "rouge_l", "cider_d", "meteor_exact_stem"]
    found = METRIC.compute(predictions=predictions, references=references, metrics=names)
    for name in names:
        assert math.isfinite(found[name]) and 0 <= found[name] <= (10 if name == "cider_d" else 1 + 1e-9), name
    order = list(range(len(pairs)))
    random.Random(len(pairs)).shuffle(order)
    again = METRIC.compute(
        predictions=[predictions[i] for i in order], references=[references[i] for i in order], metrics=names
    )
    for name in names:
        assert again[name] == pytest.approx(found[name], rel=1e-9, abs=1e-12), name


def test_metrics(cases, faults):
    pairs = st.lists(st.tuples(CAPTION, st.lists(CAPTION, min_size=1, max_size=3)), min_size=1, max_size=4)
    fuzz(captions_and_references, {"pairs": pairs}, cases, faults, note="finite, in range, whatever the order")


# The collator

PROCESSOR = CaptionerProcessor(
    CaptionerImageProcessor(size={"height": 8, "width": 8}),
    train_tokenizer(["a dog runs on the grass"], vocab_size=30),
)
PIXELS = Image.new("RGB", (8, 8))


def batches_of_captions(captions, drawn):
    rows = [{"image": PIXELS, "captions": texts, "index": place} for place, texts in enumerate(captions)]
    batch = CaptionCollator(PROCESSOR, drawn)(rows)
    most = max(min(len(texts), drawn or len(texts)) for texts in captions)
    assert batch["labels"].shape[:2] == (len(captions), most) and len(batch["pixel_values"]) == len(captions)
    for texts, labels in zip(captions, batch["labels"], strict=True):
        kept = min(len(texts), drawn or len(texts))
        for row, tokens in enumerate(labels.tolist()):
            real = [token for token in tokens if token != -100]
            assert tokens[: len(real)] == real and bool(real) == (row < kept)
            if real:  # the end is there, once, unless it was cut off
                assert real.count(PROCESSOR.tokenizer.eos_token_id) == 1 or len(real) == 64


def test_the_collator(cases, faults):
    captions = st.lists(st.lists(CAPTION, min_size=1, max_size=3), min_size=1, max_size=3)
    drawn = st.none() | st.integers(1, 4)
    fuzz(
        batches_of_captions, {"captions": captions, "drawn": drawn}, cases, faults, note="captions stay in their rows"
    )


# Pictures


def arrays_as_pictures(values, kind, scale):
    array = (np.array(values, dtype=np.float64) * scale).reshape(kind[1:])
    with np.errstate(all="ignore"):
        array = array.astype(kind[0])
    try:
        picture = to_rgb(array)
    except ValueError as error:
        assert "an image" in str(error)
        return
    assert picture.mode == "RGB" and 0 not in picture.size
    assert np.array_equal(np.asarray(to_rgb(picture)), np.asarray(picture))


_FILES = {}
for _kind, _mode in (("PNG", "RGBA"), ("JPEG", "CMYK"), ("GIF", "P"), ("WEBP", "RGB"), ("TIFF", "F"), ("BMP", "RGB")):
    _file = io.BytesIO()
    _noise = np.random.default_rng(0).integers(0, 256, (16, 16, 4), dtype=np.uint8)
    Image.fromarray(_noise).convert("RGB").convert("L" if _mode == "F" else "RGB").convert(_mode).save(_file, _kind)
    _FILES[_kind] = _file.getvalue()


def bytes_of_an_image(folder, content):
    """Through the reader of data sets and the one of the pipeline."""
    try:
        to_rgb(decode_image({"bytes": content, "path": None}, "`image[0]`"))
    except ValueError as error:
        assert "`image[0]` must be an image that can be read, got " in str(error) and "\n" not in str(error)
    path = folder / "x.img"
    path.write_bytes(content)
    try:
        image = open_image(path)
    except ValueError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        return
    assert min(image.size) >= 0


def broken_image_files(folder, kind, cut, changes):
    content = bytearray(_FILES[kind][: max(1, int(cut * len(_FILES[kind])))])
    for place, value in changes:
        content[place % len(content)] = value
    bytes_of_an_image(folder, bytes(content))


@pytest.mark.filterwarnings("ignore")  # of Pillow, about what is wrong with a file
def test_pictures(cases, faults, tmp_path):
    shapes = [(4, 4), (4, 4, 1), (2, 2, 4), (1, 2, 8), (16,), (2, 2, 2, 2)]
    kinds = st.tuples(st.sampled_from(["?", "u1", "u2", "i4", "i8", "f2", "f4", "f8"]), st.sampled_from(shapes)).map(
        lambda pair: (pair[0], *pair[1])
    )
    numbers = st.lists(st.floats(-2, 2, width=32) | st.sampled_from([math.nan, math.inf]), min_size=16, max_size=16)
    scale = st.sampled_from([1, 0.5, 100, 255, 257, 1e30])
    fuzz(arrays_as_pictures, {"values": numbers, "kind": kinds, "scale": scale}, cases, faults)

    changes = st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), max_size=6)
    cut = st.just(1.0) | st.floats(0, 1)
    values = {"kind": st.sampled_from(sorted(_FILES)), "cut": cut, "changes": changes}
    fuzz(bound(broken_image_files, tmp_path), values, cases, faults, note="a picture, or an error that names it")


# Configurations

JUNK = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.lists(st.integers(), max_size=2)
)
JUNK |= st.dictionaries(st.text(max_size=5), st.integers(), max_size=2)
FIELDS = sorted({*RnnCaptionerConfig.__annotations__, *TransformerCaptionerConfig.__annotations__, "hidden_size"})
FIELDS = [name for name in FIELDS if name not in ("vision_config", "sub_configs", "model_type")]


def configurations(family, changes):
    """Refused with the field's name, or accepted and the same after JSON."""
    try:
        config = family(vision_config=tiny_vision(), **changes)
    except Exception as error:
        known = isinstance(error, (ValueError, TypeError)) or "StrictDataclass" in type(error).__name__
        assert known, repr(error)
        assert any(name in str(error) for name in changes), error
        return
    again = family(**json.loads(config.to_json_string(use_diff=False)))
    assert json.loads(again.to_json_string()) == json.loads(config.to_json_string())


def test_configurations(cases, faults):
    families = st.sampled_from([RnnCaptionerConfig, TransformerCaptionerConfig])
    changes = st.dictionaries(st.sampled_from(FIELDS), JUNK, min_size=1, max_size=2)
    examples = [
        {"family": RnnCaptionerConfig, "changes": changes}
        for changes in ({"hidden_size": 0}, {"doubly_stochastic_lambda": math.inf}, {"score_temperature": math.nan})
    ]
    note = "refused by name, or kept"
    fuzz(configurations, {"family": families, "changes": changes}, cases, faults, examples, note)


# Tables

CELLS = st.sampled_from(
    ["a.png", "./a.png", "b.png", "../secret.png", "/etc/hostname", "", "http://x/y.png", "a\0.png"]
)
CELLS |= st.none() | st.integers(-1, 3) | TEXT | st.just("\ud800")
VALUES = CAPTION | st.none() | st.integers() | st.lists(CAPTION | st.none(), max_size=2)
ROWS = st.lists(
    st.dictionaries(st.sampled_from(["image", "caption", "file_name", "x", ""]), CELLS | VALUES), max_size=4
)


def prepared(folder: Path) -> Path:
    data = folder / "data"
    data.mkdir(exist_ok=True)
    for name in ("a.png", "b.png", "../secret.png"):
        Image.new("RGB", (8, 8), (1, 2, 3) if "secret" in name else (9, 9, 9)).save(data / name)
    return data


def read(path: Path) -> None:
    """Our error in one line, or images of the folder and captions with text in them."""
    try:
        rows = load_captions(str(path))
    except InputError as error:
        assert "\n" not in str(error) and len(str(error)) < 2000, str(error)
        rows = []
    for row in rows:
        assert row["captions"] and all(isinstance(text, str) and text.strip() for text in row["captions"])
        assert row["image"].getpixel((0, 0)) == (9, 9, 9), "an image of another folder"
    try:
        for image in ImageFiles([str(path)]):  # which may end within a table that is damaged further on
            try:
                opened = image.source()
            except (OSError, ValueError):
                continue
            name = opened if isinstance(opened, str) else ""
            assert not name or "secret" not in name and Path(name).resolve().is_relative_to(path.parent.resolve())
    except InputError as error:
        assert "\n" not in str(error), str(error)


def json_of_rows(folder, rows, suffix):
    path = folder / f"t{suffix}"
    path.write_text(json.dumps(rows) if suffix == ".json" else "\n".join(map(json.dumps, rows)))
    read(path)


def parquet_of_rows(folder, rows):
    try:
        table = pyarrow.Table.from_pylist(rows)
    except (pyarrow.ArrowException, OverflowError, UnicodeEncodeError):
        return
    pyarrow.parquet.write_table(table, folder / "t.parquet")
    read(folder / "t.parquet")


def bytes_of_a_table(folder, content, suffix):
    path = folder / f"t{suffix}"
    path.write_bytes(content)
    read(path)


def json_of_annotations(folder, content):
    (folder / "t.json").write_text(json.dumps(content))
    read(folder / "t.json")


LINES = st.lists(
    st.sampled_from(
        ["image", "caption", "a.png", "b.png", ",", ",", "\n", "\n", '"', "#0\t", "a dog", "\t", "\0", "\r"]
    )
)
SCRAPS = LINES.map(lambda parts: "".join(parts).encode()) | st.binary(max_size=60)
SCRAPS |= LINES.map(lambda parts: ("image,caption\n" + "".join(parts)).encode())
SCRAPS |= LINES.map(lambda parts: "[{}, ".join(parts).encode())
LEAF = CELLS | st.sampled_from(["train", "x"])
RECORDS = st.lists(
    st.dictionaries(
        st.sampled_from("id file_name image_id caption filename split sentences raw filepath".split()),
        LEAF | st.lists(LEAF | st.dictionaries(st.just("raw"), LEAF), max_size=2),
    )
    | LEAF,
    max_size=3,
)
ANNOTATIONS = st.dictionaries(st.sampled_from(["images", "annotations", "sentences"]), RECORDS | LEAF)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    disable_progress_bars()
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    return prepared(tmp_path)


def test_tables(cases, faults, folder):
    note = "our error, or images and captions of the folder"
    suffixes = st.sampled_from([".json", ".jsonl"])
    examples = [
        {"rows": [{"image": "a.png", "caption": "a"}, {"image": 4, "caption": "a"}], "suffix": ".json"},
        {"rows": [{"image": "a\0.png", "caption": "a"}], "suffix": ".jsonl"},
        {"rows": [], "suffix": ".json"},
    ]
    fuzz(bound(json_of_rows, folder), {"rows": ROWS, "suffix": suffixes}, cases, faults, examples, note)
    fuzz(bound(json_of_annotations, folder), {"content": ANNOTATIONS}, cases, faults, note=note)
    text_suffixes = st.sampled_from([".csv", ".tsv", ".txt", ".json", ".jsonl"])
    examples = [{"content": content, "suffix": ".json"} for content in (b"null", b"3", b"[" * 100_000, b'"a')]
    examples += [{"content": content, "suffix": ".csv"} for content in (b"\x00\nimage\nimage", b'"\n"')]
    examples += [{"content": b"\t\x00\n#0\t", "suffix": ".tsv"}]
    examples += [{"content": b'image,caption\na.png,"a\n', "suffix": ".csv"}, {"content": b"", "suffix": ".tsv"}]
    fuzz(bound(bytes_of_a_table, folder), {"content": SCRAPS, "suffix": text_suffixes}, cases, faults, examples, note)


def test_parquet(cases, faults, folder):
    note = "our error, or images and captions of the folder"
    fuzz(bound(parquet_of_rows, folder), {"rows": ROWS}, cases, faults, note=note)
