"""The feature cache serves the features of the images that are there, or says what is wrong with it."""

import copy
import io
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from testing import ROOT
from testing.tiny_models import tiny_model

from hf_captioner import CaptionerImageProcessor
from hf_captioner.data import cache_features, feature_cache, load_captions
from hf_captioner.errors import InputError
from hf_captioner.models.machine_captioner import choose_precision


def picture(seed: int) -> bytes:
    values = np.random.default_rng(seed).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(values).save(file, "BMP")  # all of one size
    return file.getvalue()


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture
def cache(tmp_path, monkeypatch, model):
    """Seven images in files of three; a call caches them and says how many were computed."""
    monkeypatch.setattr(feature_cache, "IMAGES_PER_FILE", 3)
    for number in range(7):
        (tmp_path / f"{number}.bmp").write_bytes(picture(number))
    (tmp_path / "t.csv").write_text("image,caption\n" + "".join(f"{number}.bmp,a dog\n" for number in range(7)))
    processor = CaptionerImageProcessor(size={"height": 32, "width": 32})
    computed = []
    hook = model.vision_encoder.register_forward_pre_hook(lambda _, inputs: computed.append(len(inputs[0])))

    def run(order=range(7), processor=processor, **options):
        computed.clear()
        dataset = load_captions(str(tmp_path / "t.csv"), check_images=False).select(list(order))
        found = cache_features(dataset, model.vision_encoder, processor, tmp_path / "cache", batch_size=2, **options)
        for row, image in enumerate(dataset["image"]):
            with torch.no_grad():
                expected, _ = model.vision_encoder(processor(image, return_tensors="pt")["pixel_values"])
            torch.testing.assert_close(found[row]["image_features"], expected[0])
            computed.pop()
        return sum(computed)

    yield run
    hook.remove()


def files(tmp_path) -> list[Path]:
    return sorted(tmp_path.glob("cache/*/*"), key=lambda path: path.stat().st_mtime_ns)


def test_replaced_images_are_computed_anew_and_others_are_not(cache, tmp_path):
    assert cache() == 7 and cache() == 0
    path = tmp_path / "4.bmp"
    before = path.stat()
    path.write_bytes(picture(40))  # of the same name, size and date
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert cache() == 3, "the file of three images that it is in"
    assert cache() == 0
    assert cache(order=[1, 0, 2, 3, 4, 5, 6]) == 3 and cache(order=range(6)) == 0


def test_what_features_depend_on_makes_others(cache, model, monkeypatch):
    cache()
    assert cache(processor=CaptionerImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.1, 0.2, 0.3])) == 7
    monkeypatch.setattr(feature_cache, "version", lambda name: "0.0.1")
    assert cache() == 7
    monkeypatch.undo()
    monkeypatch.setattr(feature_cache, "IMAGES_PER_FILE", 3)
    monkeypatch.setattr(model.vision_encoder, "keeps_other_tokens", True, raising=False)
    assert cache() == 7
    monkeypatch.setattr(model.vision_encoder.model.config, "hidden_act", "silu")
    assert cache() == 7


def test_features_of_one_precision_never_meet_another(cache, model, tmp_path):
    exact, auto = choose_precision("float32"), choose_precision("auto")
    assert cache() == 7 and cache(precision=exact) == 0, "as the vision model stands, by default"
    assert cache(precision=auto) == 7 and cache(precision=auto) == 0 and cache(precision=exact) == 0
    assert len(list((tmp_path / "cache").iterdir())) == 2

    half = copy.deepcopy(model.vision_encoder).to(torch.bfloat16)
    processor = CaptionerImageProcessor(size={"height": 32, "width": 32})
    dataset = load_captions(str(tmp_path / "t.csv"), check_images=False)
    found = cache_features(
        dataset, half, processor, tmp_path / "cache", precision=choose_precision("bfloat16"), dtype=torch.float32
    )
    stored = load_file(found.files[1].path)["features"]
    assert len(list((tmp_path / "cache").iterdir())) == 3 and stored.dtype == torch.bfloat16
    assert torch.equal(found[4]["image_features"], stored[1].float())
    whole = cache_features(dataset, model.vision_encoder, processor, tmp_path / "cache")
    for row in range(7):
        expected = whole[row]["image_features"]
        error = (found[row]["image_features"] - expected).norm() / expected.norm()
        assert 0 < error < 0.03


def test_images_are_read_ahead_by_several_threads(cache):
    """Whatever their number, features come in the images' order; `cache` compares each with its own."""
    for threads in (0, 1, 5):
        shown = CaptionerImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.1 + threads / 20, 0.2, 0.3])
        assert cache(processor=shown, num_workers=threads) == 7


def zeros(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-400:-300] = bytes(100)
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def reordered(path: Path) -> None:
    content = load_file(path)
    save_file({name: rows.flip(0) for name, rows in content.items()}, path, metadata={"grid": "[4, 4]"})


def of_other_rows(path: Path) -> None:
    shutil.copy(min(path.parent.iterdir()) if path != min(path.parent.iterdir()) else max(path.parent.iterdir()), path)


def of_something_else(path: Path) -> None:
    save_file({"features": torch.zeros(3, 4)}, path)


DAMAGES = [zeros, cut, emptied, reordered, of_other_rows, of_something_else]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named_and_computed_anew(cache, tmp_path, caplog, damage):
    cache()
    path = files(tmp_path)[1]
    damage(path)
    assert cache() == 3
    assert f"delete {path} and start again; got " in caplog.text
    assert cache() == 0


def test_damage_that_comes_later_is_named_when_the_row_is_read(cache, tmp_path, model):
    cache()
    dataset = load_captions(str(tmp_path / "t.csv"))
    processor = CaptionerImageProcessor(size={"height": 32, "width": 32})
    found = cache_features(dataset, model.vision_encoder, processor, tmp_path / "cache")
    path = files(tmp_path)[0]
    content = load_file(path)
    content["features"][1, 2, 3] += 1
    save_file(content, path, metadata={"grid": "[4, 4]"})
    found[0], found[2], found[6]
    with pytest.raises(InputError, match=f"delete {path} and start again; got other features in row 1 than"):
        found[1]


def test_a_full_disk_is_one_line_and_what_is_written_stays(cache, tmp_path, monkeypatch):
    write = Path.write_bytes

    def half(path, content):
        if path.name.endswith(".part") and len(files(tmp_path)) >= 2:
            write(path, content[:100])
            raise OSError(28, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(InputError, match="`feature_cache` must be .*with room.* got .*cache.*No space left on device"):
        cache()
    monkeypatch.setattr(Path, "write_bytes", write)
    assert [path.suffix for path in files(tmp_path)] == [".safetensors"] * 2
    assert cache() == 1


def test_an_image_that_cannot_be_read_is_named(cache, tmp_path):
    (tmp_path / "5.bmp").write_bytes(b"words")
    with pytest.raises(InputError, match=r"`image\[5\]` must be an image .*5.bmp' \(cannot identify an image\)"):
        cache()


FILL = """
import sys, time
from datasets import disable_progress_bars
from testing.tiny_models import tiny_model
from hf_captioner import CaptionerImageProcessor
from hf_captioner.data import cache_features, feature_cache, load_captions
feature_cache.IMAGES_PER_FILE = 3
model = tiny_model()
model.vision_encoder.register_forward_pre_hook(lambda *_: time.sleep(0.2))
processor = CaptionerImageProcessor(size={"height": 32, "width": 32})
cache_features(load_captions(sys.argv[1]), model.vision_encoder, processor, sys.argv[2], batch_size=1)
"""


def test_a_kill_leaves_whole_files_that_are_used(cache, tmp_path):
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", FILL, str(tmp_path / "t.csv"), str(tmp_path / "cache")]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 120
    while not any(path.suffix == ".safetensors" for path in files(tmp_path)):
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    whole = [path for path in files(tmp_path) if path.suffix == ".safetensors"]
    assert 1 <= len(whole) <= 2
    assert cache() == 7 - 3 * len(whole)
