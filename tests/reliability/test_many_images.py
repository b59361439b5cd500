"""The pipeline over twenty thousand images: neither memory nor threads nor file handles grow with their number."""

import gc
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from testing.apart import apart
from testing.held import held_by
from testing.pictures import BAD, noise, saved
from testing.serving import tiny_folder

BAD_EVERY, FILE_EVERY = 50, 10  # of so many images one cannot be read, and one is a file
BLOCK = 1000  # images, half of them in a list


class Pictures(Sequence):
    """Images that are made when they are asked for: noise of many sizes, and files, of which some are broken."""

    def __init__(self, folder: Path, start: int, count: int):
        self.folder, self.start, self.count = folder, start, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, place: int) -> Image.Image | str:
        if place >= self.count:
            raise IndexError(place)
        number = self.start + place
        if number % BAD_EVERY == 7:
            return str(self.folder / ["cut.jpg", "words.jpg", "gone.png"][number // BAD_EVERY % 3])
        if number % FILE_EVERY == 3:
            return str(self.folder / "good.jpg")
        random = np.random.default_rng(number)
        return Image.fromarray(random.integers(0, 256, (*random.integers(8, 200, 2), 3)).astype(np.uint8))


def one_by_one(pictures: Pictures) -> Iterator[Image.Image | str]:
    yield from pictures


def caption_many(model: str, folder: str, counts: list[int], noted: str) -> None:
    """Writes down what this process holds after so many images."""
    from transformers import pipeline

    pipe = pipeline("image-captioning", model=model, device="cpu")
    options = dict(batch_size=16, on_bad_image="skip", num_beams=1)
    held = []
    for done in range(0, counts[-1], BLOCK):  # so that captions of as many images are kept at a time
        half = BLOCK // 2
        rows = pipe(Pictures(Path(folder), done, half), **options)
        rows += list(pipe(one_by_one(Pictures(Path(folder), done + half, half)), **options))
        wrong = [number for number, (row,) in enumerate(rows, done) if ("error" in row) != (number % BAD_EVERY == 7)]
        assert len(rows) == BLOCK and not wrong, wrong[:5]
        del rows
        if done + BLOCK in counts:
            gc.collect()
            time.sleep(1)  # threads that read images end
            held.append([done + BLOCK, *held_by(os.getpid())])
            Path(noted).write_text(json.dumps(held))


def run_many(tmp_path: Path, counts: list[int]) -> list[list[float]]:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "good.jpg").write_bytes(saved(noise(200, 304), "JPEG"))
    for name in ("cut.jpg", "words.jpg"):
        (tmp_path / "files" / name).write_bytes(BAD[name])
    arguments = (tiny_folder(tmp_path / "model"), str(tmp_path / "files"), counts, str(tmp_path / "held.json"))
    ended = apart(caption_many, arguments, tmp_path / "log", seconds=3000)
    assert ended.exit == 0, ended.log[-3000:]
    held = json.loads((tmp_path / "held.json").read_text())
    print("images, MB, threads, handles:", *held, sep="\n")
    return held


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="no /proc, which tells what a process holds")
def test_nothing_grows_in_twenty_thousand_images(tmp_path):
    """Half of them in lists, which threads read ahead, half from a generator; what 2,000 had need of is enough."""
    (_, memory, threads, handles), *later = run_many(tmp_path, [2_000, 5_000, 10_000, 20_000])
    for count, memory_then, threads_then, handles_then in later:
        found = (count, memory_then, threads_then, handles_then)
        assert memory_then < memory + 20 and threads_then <= threads and handles_then <= handles, (found, memory)
