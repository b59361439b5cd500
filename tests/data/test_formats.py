"""The same images and captions in every format that people have give the same data set, and what is wrong is named."""

import csv
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as PILImage
from testing import ROOT
from testing.training import arguments

from hf_captioner.commands import train
from hf_captioner.data import load_captions
from hf_captioner.errors import InputError

COUNT = 24


def picture(number: int) -> PILImage.Image:
    values = np.random.default_rng(number).integers(0, 256, (40, 48, 3)).astype(np.uint8)
    return PILImage.fromarray(values)


ROWS = [(f"photo_{number:02d}.png", [f"a dog, number {number}", f"dog {number} runs"]) for number in range(COUNT)]


def write_images(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, (name, _) in enumerate(ROWS):
        picture(number).save(folder / name)


def image_bytes(number: int) -> bytes:
    file = io.BytesIO()
    picture(number).save(file, "PNG")
    return file.getvalue()


def write_csv(folder: Path) -> Path:
    write_images(folder)
    with open(folder / "table.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "caption"])
        writer.writerows([name, text] for name, captions in ROWS for text in captions)
    return folder / "table.csv"


def write_json_lines(folder: Path) -> Path:
    write_images(folder / "sub")
    lines = [json.dumps({"image": f"./sub/{name}", "captions": captions}) for name, captions in ROWS]
    (folder / "rows.jsonl").write_text("\n".join(lines))
    return folder / "rows.jsonl"


def write_parquet(folder: Path) -> Path:
    folder.mkdir()
    cells = [{"bytes": image_bytes(number), "path": name} for number, (name, _) in enumerate(ROWS)]
    features = Features({"image": Image(), "captions": List(Value("string"))})
    Dataset.from_dict({"image": cells, "captions": [captions for _, captions in ROWS]}, features).to_parquet(
        folder / "data.parquet"
    )
    return folder / "data.parquet"


def write_metadata(folder: Path) -> Path:
    write_images(folder)
    with open(folder / "metadata.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "first", "second"])
        writer.writerows([name, *captions] for name, captions in ROWS)
    return folder


def write_texts(folder: Path) -> Path:
    write_images(folder)
    for name, captions in ROWS:
        (folder / name).with_suffix(".txt").write_text("\n".join(captions) + "\n")
    return folder


def write_coco(folder: Path) -> Path:
    write_images(folder / "val2014")
    images = [{"id": 7 * number, "file_name": name} for number, (name, _) in enumerate(ROWS)]
    annotations = [
        {"id": place, "image_id": 7 * number, "caption": captions[which]}
        for place, (number, which) in enumerate((number, which) for which in range(2) for number in range(COUNT))
        for captions in [ROWS[number][1]]
    ]
    (folder / "annotations").mkdir()
    path = folder / "annotations" / "captions_val2014.json"
    path.write_text(json.dumps({"info": {}, "images": images, "annotations": annotations, "licenses": []}))
    return path


def write_karpathy(folder: Path) -> Path:
    write_images(folder / "images")
    images = [
        {
            "filename": name,
            "imgid": number,
            "split": "train" if number % 2 else "restval",
            "sentences": [{"tokens": text.split(), "raw": text} for text in captions],
        }
        for number, (name, captions) in enumerate(ROWS)
    ]
    images.append({**images[0], "filename": "elsewhere.png", "split": "test"})
    (folder / "dataset_flickr8k.json").write_text(json.dumps({"images": images, "dataset": "flickr8k"}))
    return folder / "dataset_flickr8k.json"


def write_flickr_csv(folder: Path) -> Path:
    write_images(folder / "Images")
    lines = ["image,caption"]
    for name, captions in ROWS:
        lines += [f'{name},"{captions[0]}"', f"{name},{captions[1]}"]
    (folder / "captions.txt").write_text("\n".join(lines) + "\n")
    return folder / "captions.txt"


def write_flickr_token(folder: Path) -> Path:
    write_images(folder / "Flicker8k_Dataset")
    lines = [f"{name}#{place}\t{text}" for name, captions in ROWS for place, text in enumerate(captions)]
    lines.append("photo_00.png.1#0\tof no image, as in the published file")
    (folder / "Flickr8k.token.txt").write_text("\n".join(lines) + "\n")
    return folder / "Flickr8k.token.txt"


def write_shards(folder: Path) -> Path:
    folder.mkdir()
    for shard in range(2):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as archive:
            for number in range(shard * COUNT // 2, (shard + 1) * COUNT // 2):
                stem = Path(ROWS[number][0]).stem
                for suffix, content in (
                    ("png", image_bytes(number)),
                    ("txt", "\n".join(ROWS[number][1]).encode()),
                ):
                    member = tarfile.TarInfo(f"{stem}.{suffix}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    return folder


def write_saved(folder: Path) -> Path:
    features = Features({"image": Image(), "captions": List(Value("string"))})
    cells = [{"bytes": image_bytes(number), "path": name} for number, (name, _) in enumerate(ROWS)]
    Dataset.from_dict({"image": cells, "captions": [captions for _, captions in ROWS]}, features).save_to_disk(folder)
    return folder


WRITERS = {
    "csv": (write_csv, {}),
    "json lines": (write_json_lines, {}),
    "parquet": (write_parquet, {}),
    "metadata": (write_metadata, {"caption_columns": ["first", "second"]}),
    "text files": (write_texts, {}),
    "coco": (write_coco, {}),
    "karpathy": (write_karpathy, {"split": "restval+train"}),
    "flickr csv": (write_flickr_csv, {}),
    "flickr token": (write_flickr_token, {}),
    "webdataset": (write_shards, {}),
    "saved": (write_saved, {}),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_rows(tmp_path, name):
    write, options = WRITERS[name]
    dataset = load_captions(str(write(tmp_path / "data")), **options)
    assert dataset["captions"][:] == [captions for _, captions in ROWS]
    assert len(dataset) == COUNT
    for number, image in enumerate(dataset["image"]):
        assert np.array_equal(np.asarray(image.convert("RGB")), np.asarray(picture(number)))


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITERS)
def test_every_format_trains(tmp_path, name):
    write, options = WRITERS[name]
    source = str(write(tmp_path / "data"))
    settings = dict(max_steps=2, eval_strategy="no", save_strategy="no", load_best_model_at_end=False, num_samples=1)
    more = {"train_split": options["split"], "eval_split": options["split"]} if "split" in options else {}
    columns = ["--caption_columns", *options["caption_columns"]] if "caption_columns" in options else []
    train.main([*arguments(tmp_path / "out", train_data=source, eval_data=source, **settings, **more), *columns])
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_a_format_and_a_folder_can_be_named(tmp_path):
    write_images(tmp_path / "elsewhere")
    lines = [f"{name}#0\t{captions[0]}" for name, captions in ROWS]
    (tmp_path / "mine.lst").write_text("\n".join(lines))
    options = dict(format="flickr_token", image_folder=str(tmp_path / "elsewhere"))
    assert len(load_captions(str(tmp_path / "mine.lst"), **options)) == COUNT
    with pytest.raises(InputError, match="`image_folder` must be named: 'photo_00.png'"):
        load_captions(str(tmp_path / "mine.lst"), format="flickr_token")
    with pytest.raises(InputError, match="`format` must be one of .*karpathy.*'tsv'"):
        load_captions(str(tmp_path / "mine.lst"), format="tsv")
    with pytest.raises(InputError, match="`image_folder` must be a folder"):
        load_captions(str(tmp_path / "mine.lst"), format="flickr_token", image_folder="nowhere")


def test_texts_that_look_like_missing_values_are_captions(tmp_path):
    write_images(tmp_path)
    names = ["NA", "null", "None", "nan", "n/a"]
    lines = ["file_name,caption", *(f"photo_0{number}.png,{name}" for number, name in enumerate(names))]
    (tmp_path / "table.csv").write_text("\n".join(lines))
    assert load_captions(str(tmp_path / "table.csv"))["captions"][:] == [[name] for name in names]


def test_two_spellings_of_a_path_are_one_image(tmp_path):
    write_images(tmp_path)
    (tmp_path / "table.csv").write_text("file_name,caption\n./photo_00.png,a\nphoto_00.png,b\nx/../photo_00.png,c\n")
    assert load_captions(str(tmp_path / "table.csv"))["captions"][:] == [["a", "b", "c"]]


@pytest.mark.parametrize(
    "path", ["/etc/hostname", "http://127.0.0.1:9/x.png", "zip://x.png::http://127.0.0.1:9/a.zip", "../outside.png"]
)
@pytest.mark.parametrize("as_struct", [True, False])
def test_a_parquet_file_reads_no_other_files_and_no_addresses(tmp_path, path, as_struct):
    folder = tmp_path / "data"
    folder.mkdir()
    picture(0).save(tmp_path / "outside.png")
    cell = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    table = pyarrow.table(
        {"image": pyarrow.array([{"bytes": None, "path": path}], cell), "captions": pyarrow.array([["a dog"]])}
    )
    if not as_struct:  # as `datasets` writes columns of images
        features = Features({"image": Image(), "captions": List(Value("string"))}).to_dict()
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pyarrow.parquet.write_table(table, folder / "data.parquet")
    with pytest.raises(InputError, match="`image\\[0\\]` of .* must (lie inside|be a file in)"):
        load_captions(str(folder / "data.parquet"), check_images=False)


def test_rows_with_and_without_bytes_are_refused(tmp_path):
    cells = [{"bytes": image_bytes(0), "path": "a.png"}, {"bytes": None, "path": "/etc/hostname"}]
    features = Features({"image": Image(), "captions": List(Value("string"))})
    Dataset.from_dict({"image": cells, "captions": [["a"], ["b"]]}, features).to_parquet(tmp_path / "data.parquet")
    with pytest.raises(
        InputError, match="`image\\[1\\]` of .* must hold the image as the others do, got /etc/hostname"
    ):
        load_captions(str(tmp_path / "data.parquet"), check_images=False)


@pytest.mark.parametrize(
    "name,content,message",
    [
        ("t.csv", b"file_name,caption\nphoto_00.png,caf\xe9\n", "`source` must be text in UTF-8.*t.csv.*0xe9"),
        ("t.csv", b"", "`source` must not be empty.*t.csv"),
        ("t.csv", b"file_name,caption\n", "`source` must have at least one row"),
        ("t.csv", b'file_name,caption\nphoto_00.png,"no end\n', "`source` must be data that can be read.*t.csv"),
        ("t.csv", b"file_name,caption\n7,a dog\n", "`file_name` of .* must hold images or their paths, got int64"),
        ("t.csv", b"file_name,caption\n,a dog\nphoto_00.png,b\n", "`file_name\\[0\\]` of .* must be a path"),
        ("t.json", b'[{"file_name": "photo_00.png", ', "`source` must be data that can be read.*t.json"),
        (
            "t.json",
            b'{"images": [{"id": 1}], "annotations": []}',
            "`file_name` of images\\[0\\] of .*t.json must be str",
        ),
        ("t.json", b'{"images": 3, "annotations": []}', "`images` of .*t.json must be list"),
        (
            "t.json",
            b'{"images": [{"id": 1, "file_name": "a"}], "annotations": [{"image_id": 2, "caption": "x"}]}',
            "`image_id` of annotations\\[0\\] of .* must be one of `images`, got 2",
        ),
        ("t.json", b'{"images": [{"sentences": []}]}', "`split` of images of"),
        ("t.txt", b"photo_00.png#0\ta dog\nnonsense\n", "line 2 of .*t.txt must be name.jpg#0.*nonsense"),
        ("captions.txt", b"image,caption\nphoto_00.png\n", "line 2 of .*captions.txt must be an image and a caption"),
        ("t.tar", b"no archive", "`source` must be data that can be read.*t.tar"),
    ],
)
def test_what_cannot_be_read_is_one_line_with_the_file(tmp_path, name, content, message):
    write_images(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_captions(str(tmp_path / name))


def test_an_image_without_its_text_is_named(tmp_path):
    write_texts(tmp_path / "data")
    (tmp_path / "data" / "photo_03.txt").unlink()
    with pytest.raises(InputError, match="must have a text beside it, got .*photo_03.png without photo_03.txt"):
        load_captions(str(tmp_path / "data"))


def test_splits_of_karpathys_file_are_named(tmp_path):
    source = str(write_karpathy(tmp_path / "data"))
    assert len(load_captions(source, split="train")) == COUNT // 2
    for split in (None, "validation"):
        with pytest.raises(InputError, match="`split` of .* must be one of restval, train, test"):
            load_captions(source, split=split)


def test_the_same_source_is_the_same_data_set_in_every_process(tmp_path):
    """Columns were removed in the order of a set, and the feature cache was made anew for each of its orders."""
    write_metadata(tmp_path / "data")
    code = (
        "import sys; from hf_captioner.data import load_captions; from hf_captioner.data.feature_cache import *;"
        "rows = load_captions(sys.argv[1], caption_columns=['first', 'second']);"
        "images = rows.select_columns(['image']).cast_column('image', datasets.Image(decode=False));"
        "print(rows.column_names, [digest.hex() for digest in image_digests(images)])"
    )
    seen = set()
    for seed in ("1", "2", "3"):
        environment = {
            **os.environ,
            "PYTHONHASHSEED": seed,
            "PYTHONPATH": str(ROOT),
            "HF_HOME": str(tmp_path / "home"),
        }
        command = [sys.executable, "-c", code, str(tmp_path / "data")]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
        seen.add(done.stdout)
    assert len(seen) == 1
