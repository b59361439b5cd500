"""Data sources, their checks, the shapes, the collator and the feature cache."""

import hashlib
import io
import json
import os

import numpy as np
import pytest
import torch
from datasets import Dataset, Image, IterableDataset
from PIL import Image as PILImage
from testing.tiny_models import tiny_model
from torch.utils.data import DataLoader

from hf_captioner import CaptionerImageProcessor, CaptionerProcessor, train_tokenizer
from hf_captioner.data import CaptionCollator, cache_features, load_captions, shapes_dataset
from hf_captioner.data.shapes import COLORS, SHAPES, draw_row


def png(value: int, size: int = 20) -> bytes:
    buffer = io.BytesIO()
    PILImage.new("RGB", (size, size), (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def images(tmp_path):
    """A folder with the pictures 0.png to 3.png, whose red value is ten times their number."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.png").write_bytes(png(10 * number))
    return folder


def content(dataset):
    return [
        (image.getpixel((0, 0))[0] // 10, captions)
        for image, captions in zip(dataset["image"], dataset["captions"], strict=True)
    ]


def test_parquet_with_bytes_and_lists(tmp_path):
    rows = {
        "image": [{"bytes": png(10 * i), "path": None} for i in range(2)],
        "captions": [["a", "b"], ["c"]],
        "id": [7, 8],
    }
    Dataset.from_dict(rows).cast_column("image", Image()).to_parquet(tmp_path / "data.parquet")
    dataset = load_captions(str(tmp_path / "data.parquet"))
    assert content(dataset) == [(0, ["a", "b"]), (1, ["c"])] and dataset["id"][:] == [7, 8]
    assert content(load_captions(str(tmp_path))) == content(dataset)


def test_csv_with_a_row_per_caption(images):
    (images / "captions.csv").write_text("image,caption\n0.png,a\n2.png,b\n0.png,c\n")
    for source in (images, images / "captions.csv"):
        assert content(load_captions(str(source))) == [(0, ["a", "c"]), (2, ["b"])]


def test_json_lines_with_several_columns(images):
    rows = [
        {"file_name": "1.png", "first": "a", "second": None},
        {"file_name": "3.png", "first": "b", "second": "c"},
    ]
    (images / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    dataset = load_captions(str(images), caption_columns=["first", "second"])
    assert content(dataset) == [(1, ["a"]), (3, ["b", "c"])]


def test_a_saved_data_set_with_splits(tmp_path):
    from datasets import DatasetDict

    part = Dataset.from_dict({"img": [{"bytes": png(20), "path": None}], "text": ["a"]}).cast_column("img", Image())
    DatasetDict(train=part, test=part).save_to_disk(tmp_path / "saved")
    assert content(load_captions(str(tmp_path / "saved"), split="test")) == [(2, ["a"])]
    with pytest.raises(ValueError, match="`split`.*train, test.*'dev'"):
        load_captions(str(tmp_path / "saved"), split="dev")


@pytest.mark.parametrize(
    "table,settings,message",
    [
        ("picture,caption\n0.png,a\n", {}, "`image_column`.*picture, caption"),
        ("image,caption\n0.png,a\n", dict(image_column="photo"), "`image_column`.*'photo'"),
        ("image,words\n0.png,a\n", {}, "`caption_columns`.*image, words"),
        ("image,caption\n0.png,a\n", dict(caption_columns=["text"]), "`caption_columns`.*'text'"),
        ('image,caption\n0.png,a\n1.png," "\n', {}, r"`caption\[1\]`.*' '"),
        ("image,caption\n0.png,a\n1.png,\n", {}, "row 1 has none"),
        ("image,caption\n0.png,3\n", {}, r"`caption\[0\]`.*got 3"),
        ("image,caption\n0.png,a\n9.png,b\n", {}, r"`image\[1\]`.*9.png"),
        ("image,caption\n../secret.png,a\n", {}, r"`image\[0\]`.*inside.*\.\./secret.png"),
        ("image,caption\n/etc/hostname,a\n", {}, r"`image\[0\]`.*inside.*/etc/hostname"),
        ("image,caption\nlink.png,a\n", {}, r"`image\[0\]`.*inside.*link.png"),
        ("image,caption\n0.png,a\nbroken.png,b\n", {}, r"`image\[1\]`.*broken.png"),
        ("image,caption\ncut.png,a\n", {}, r"`image\[0\]`.*cut.png"),
    ],
)
def test_a_bad_table_is_refused_in_one_line(images, table, settings, message):
    (images.parent / "secret.png").write_bytes(png(0))
    os.symlink(images.parent / "secret.png", images / "link.png")
    (images / "broken.png").write_bytes(b"no picture")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    PILImage.fromarray(noise).save(images / "whole.png")
    (images / "cut.png").write_bytes((images / "whole.png").read_bytes()[:2000])
    (images / "captions.csv").write_text(table)
    with pytest.raises(ValueError, match=message) as error:
        load_captions(str(images), **settings)
    assert "\n" not in str(error.value)


def test_missing_sources(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_captions(str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="nowhere.parquet"):
        load_captions("nowhere.parquet")
    with pytest.raises(ValueError, match="metadata"):
        load_captions(str(tmp_path))
    with pytest.raises(ValueError, match="shapes:lines=3"):
        load_captions("shapes:lines=3")
    (tmp_path / "notes.docx").write_text("")
    with pytest.raises(ValueError, match="docx"):
        load_captions(str(tmp_path / "notes.docx"))


def test_shapes_are_the_same_everywhere():
    digest = hashlib.sha256()
    for index in range(20):
        row = draw_row(3, index)
        digest.update(row["pixels"].tobytes())
        digest.update(json.dumps([row["captions"], row["objects"], row["mentions"]]).encode())
    assert digest.hexdigest() == "f8a29c188aabc9b319ec7c359b9dcf73ad5308a99fc417abc2c9d9d71bfa832d"


def test_shapes_boxes_and_captions_are_true():
    dataset = shapes_dataset(60, seed=5)
    counts = set()
    for row in dataset:
        pixels = np.asarray(row["image"]).astype(int)
        background = np.ones(pixels.shape[:2], dtype=bool)
        for shape in row["objects"]:
            left, top, right, bottom = shape["box"]
            colored = (pixels == COLORS[shape["color"]]).all(-1)
            inside = np.zeros_like(colored)
            inside[top:bottom, left:right] = True
            mine = colored & inside
            rows, columns = np.nonzero(mine)  # the box is tight
            assert (rows.min(), rows.max() + 1) == (top, bottom)
            assert (columns.min(), columns.max() + 1) == (left, right) or shape["shape"] == "triangle"
            background &= ~mine
        assert pixels[background].max() < 130  # darker than every shape's brightest channel
        assert len(row["captions"]) == len(set(row["captions"])) == 5
        for caption, mentions in zip(row["captions"], row["mentions"], strict=True):
            said = [word for word in caption.replace(",", "").split() if word in SHAPES]
            assert said == [row["objects"][index]["shape"] for index in mentions]
        if len(row["objects"]) == 2:
            first, second = (np.array(shape["box"]) for shape in row["objects"])
            above = " above " in row["captions"][0]
            assert first[3] <= second[1] if above else first[2] <= second[0]
        counts.add(len(row["objects"]))
    assert counts == {1, 2, 3}


def test_a_longer_set_of_shapes_begins_with_a_shorter_one():
    short, long = shapes_dataset(3, seed=2), shapes_dataset(6, seed=2)
    assert short[:]["captions"] == long[:3]["captions"]
    assert shapes_dataset(3, seed=3)[:]["captions"] != short[:]["captions"]
    assert load_captions("shapes:rows=3,seed=2")[:]["captions"] == short[:]["captions"]


@pytest.fixture
def processor():
    tokenizer = train_tokenizer([f"picture {'x' * i}{i}" for i in range(10)] + ["picture"])
    return CaptionerProcessor(CaptionerImageProcessor(size={"height": 32, "width": 32}), tokenizer)


def test_the_collator_keeps_captions_with_their_image(processor):
    rows = [
        {"image": PILImage.new("RGB", (8, 8), (i, i, i)), "captions": ["picture"] * i, "index": 10 + i}
        for i in (1, 3, 2)
    ]
    batch = CaptionCollator(processor)(rows)
    assert batch["labels"].shape[:2] == (3, 3) and batch["index"].tolist() == [11, 13, 12]
    real = (batch["labels"] != -100).any(-1)
    assert real.tolist() == [[True, False, False], [True, True, True], [True, True, False]]
    assert CaptionCollator(processor, captions_per_image=2)(rows)["labels"].shape[:2] == (3, 2)
    with pytest.raises(ValueError, match="captions_per_image.*0"):
        CaptionCollator(processor, captions_per_image=0)


def test_captions_are_drawn_anew(processor):
    rows = [{"image": PILImage.new("RGB", (8, 8)), "captions": [f"picture {'x' * i}{i}" for i in range(10)]}]
    collator = CaptionCollator(processor, captions_per_image=1)
    assert len({tuple(collator(rows)["labels"].flatten().tolist()) for _ in range(40)}) > 5


def test_an_iterable_data_set_and_a_short_last_batch(processor):
    """Image i is grey level i and has i % 3 + 1 captions that name it."""

    def generate():
        for i in range(8):
            yield {
                "image": PILImage.new("RGB", (8, 8), (i * 20,) * 3),
                "captions": [f"picture {'x' * i}{i}"] * (i % 3 + 1),
            }

    loader = DataLoader(IterableDataset.from_generator(generate), batch_size=3, collate_fn=CaptionCollator(processor))
    seen = 0
    for batch in loader:
        for pixels, labels in zip(batch["pixel_values"], batch["labels"], strict=True):
            level = round(float(pixels[0, 0, 0] * 0.229 + 0.485) * 255 / 20)
            real = labels[(labels != -100).any(-1)]
            assert level == seen and len(real) == level % 3 + 1
            for row in real:
                text = processor.tokenizer.decode(row[row != -100], skip_special_tokens=True)
                assert text == f"picture {'x' * level}{level}"
            seen += 1
    assert seen == 8


def test_cached_features_are_those_of_the_vision_model(processor, tmp_path):
    model = tiny_model()
    dataset = shapes_dataset(7, seed=1).select_columns(["image", "captions"])
    cached = cache_features(dataset, model.vision_encoder, processor.image_processor, tmp_path, batch_size=3)
    with torch.no_grad():
        pixels = processor.image_processor(dataset["image"][:], return_tensors="pt")["pixel_values"]
        expected = model.vision_encoder(pixels)[0]
    assert len(cached) == 7 and "image" not in cached[0] and cached[2]["captions"] == dataset[2]["captions"]
    torch.testing.assert_close(torch.stack([row["image_features"] for row in cached]), expected)
    batch = CaptionCollator(processor)([cached[i] for i in (4, 1)])
    torch.testing.assert_close(batch["image_features"], expected[[4, 1]])
    assert "pixel_values" not in batch
    model(**batch).loss.backward()


def test_the_cache_is_made_once_and_anew_when_something_changes(processor, tmp_path):
    model = tiny_model()
    dataset = shapes_dataset(4, seed=1)
    calls = []
    model.vision_encoder.register_forward_pre_hook(lambda *_: calls.append(1))

    def run(dataset=dataset, image_processor=processor.image_processor):
        before = len(calls)
        cache_features(dataset, model.vision_encoder, image_processor, tmp_path)
        return len(calls) > before

    assert run() and not run()
    processor.save_pretrained(tmp_path / "saved")
    assert not run(image_processor=CaptionerProcessor.from_pretrained(tmp_path / "saved").image_processor)
    assert run(dataset=shapes_dataset(4, seed=2))
    assert run(image_processor=CaptionerImageProcessor(size={"height": 64, "width": 64}))
    with torch.no_grad():
        next(model.vision_encoder.parameters()).add_(0.1)
    assert run() and not run()
    assert not list(tmp_path.glob("*.tmp"))
