"""`hf-captioner caption --processes`: the same rows as one process gives, whatever becomes of processes."""

import json
import multiprocessing
import os
import random
import signal
import threading
import time
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import pytest
from testing.tiny_models import noise_pictures, tiny_model, tiny_processor

from hf_captioner.commands import bulk
from hf_captioner.commands.bulk import BatchCaptioner, caption_in_processes
from hf_captioner.commands.captioner import Settings
from hf_captioner.commands.decoding_options import DecodingArguments
from hf_captioner.commands.program import program
from hf_captioner.data.image_files import ImageFile
from hf_captioner.errors import InputError
from hf_captioner.memory import memory_of


@dataclass(frozen=True)
class Deadly(ImageFile):
    """An image in whose decoder the process ends."""

    def source(self):
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> Settings:
    folder = str(tmp_path_factory.mktemp("model"))
    tiny_model(attention="additive").save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return Settings(folder, "", 2, 0.0, False, "skip", "float32", DecodingArguments())


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> list[ImageFile]:
    """Five pictures several times over, and one that cannot be read."""
    folder = tmp_path_factory.mktemp("images")
    for number in range(4):
        for place, picture in enumerate(noise_pictures(5)):
            picture.save(folder / f"{number}{place}.png")
    (folder / "15.png").write_text("no image")
    return [ImageFile(str(path)) for path in sorted(folder.iterdir())]


@pytest.fixture(scope="module")
def expected(settings, images) -> list[dict]:
    return BatchCaptioner(settings)(images)


def close(rows: list[dict], expected: list[dict]) -> bool:
    assert [row["image"] for row in rows] == [row["image"] for row in expected]
    assert [row.get("caption") for row in rows] == [row.get("caption") for row in expected]
    assert ["error" in row for row in rows] == ["error" in row for row in expected]
    return True


class Pool:
    """Stands for one of processes: a deadly image breaks it, and all that is given to it then is lost."""

    made, tried = 0, []

    def __init__(self, processes: int):
        Pool.made += 1
        self.broken = False

    def submit(self, function, settings: Settings, images: list[ImageFile]) -> Future:
        if self.broken:
            raise BrokenProcessPool
        future: Future = Future()
        Pool.tried.append([image.name for image in images])
        if any(isinstance(image, Deadly) for image in images):
            self.broken = True
            future.set_exception(BrokenProcessPool())
        else:
            future.set_result([{"image": image.name, "caption": f"of {image.name}"} for image in images])
        return future

    def shutdown(self, cancel_futures: bool = False) -> None:
        pass


def test_only_deadly_images_are_errors(monkeypatch):
    monkeypatch.setattr(bulk, "_pool", Pool)
    images = [(Deadly if number in (1, 8, 9) else ImageFile)(str(number)) for number in range(12)]
    batches = list(caption_in_processes(iter(images), None, 4, 2))
    rows = sum(batches, [])
    assert [row["image"] for row in rows] == [image.name for image in images]
    assert [row["image"] for row in rows if "error" in row] == ["1", "8", "9"]
    why = "a process that captions ended 2 times while it had this image alone"
    assert {row["error"] for row in rows if "error" in row} == {why}
    assert all(Pool.tried.count([deadly]) == 2 for deadly in ("1", "8", "9"))
    assert Pool.made < 20


# Every process below imports torch and loads a model.


@pytest.mark.slow
@pytest.mark.long  # the program gives the same, below
def test_processes_give_what_one_gives_in_order(settings, images, expected):
    batches = list(caption_in_processes(iter(images), settings, 4, 2))
    assert [len(rows) for rows in batches] == [4, 4, 4, 4, 4, 1]
    assert close(sum(batches, []), expected)
    assert sum("error" in row for row in expected) == 1


@pytest.mark.slow
@pytest.mark.parametrize("moments", [[10], pytest.param([2, 10], marks=pytest.mark.long)])
def test_killed_processes_take_no_image_along(settings, images, expected, moments):
    rows, killed = [], 0
    for batch in caption_in_processes(iter(images), settings, 2, 2):
        rows += batch
        if len(rows) in moments:
            for process in multiprocessing.active_children():
                os.kill(process.pid, signal.SIGKILL)
                killed += 1
    assert killed == 2 * len(moments)
    assert close(rows, expected)
    assert not multiprocessing.active_children()


class Killer(threading.Thread):
    """Kills one of the processes at random times, and keeps how much memory (MB) each had, second by second."""

    def __init__(self, every: float, most: int):
        super().__init__(daemon=True)
        self.every, self.most, self.killed, self.over = every, most, 0, threading.Event()
        self.memory: dict[int, list[float]] = {}

    def run(self) -> None:
        chance, wait = random.Random(0), self.every
        while not self.over.wait(1):
            at_work = [process.pid for process in multiprocessing.active_children()]
            for pid in at_work:
                self.memory.setdefault(pid, []).append(memory_of("VmRSS", pid))
            wait -= 1
            if wait < 0 and at_work and self.killed < self.most:
                os.kill(chance.choice(at_work), signal.SIGKILL)
                self.killed, wait = self.killed + 1, self.every * chance.uniform(0.5, 1.5)


@pytest.mark.slow
@pytest.mark.long
def test_twenty_thousand_images_through_kills(settings, images, tmp_path):
    count, readable = 20_000, [image for image in images if Path(image.name).stem != "15"]
    for number in range(count):
        source = tmp_path / f"{number:05}.png"
        source.write_text("no image") if number % 7 == 5 else source.hardlink_to(readable[number % 20].name)
    files = [ImageFile(str(path)) for path in sorted(tmp_path.iterdir())]
    expected = {number: row["caption"] for number, row in enumerate(BatchCaptioner(settings)(readable[:20]))}
    killer, held, start = Killer(every=8, most=4), [], time.monotonic()
    killer.start()
    rows = []
    for batch in caption_in_processes(iter(files), settings, 32, 2):
        rows += batch
        held.append(memory_of("VmRSS"))
    killer.over.set()
    took = time.monotonic() - start
    assert [row["image"] for row in rows] == [image.name for image in files]
    for number, row in enumerate(rows):
        assert row.get("caption") == (None if number % 7 == 5 else expected[number % 20])
        assert ("error" in row) == (number % 7 == 5) and "ended" not in row.get("error", "")
    old = [memory[15:] for memory in killer.memory.values() if len(memory) > 20]  # those that have long been at work
    grown = max(max(memory) - memory[0] for memory in old)
    print(f"{count} images in {took:.0f} s, {killer.killed} processes killed, one that was not grew by {grown:.1f} MB")
    print(f"the program from {held[len(held) // 4]:.0f} to {held[-1]:.0f} MB")  # with the rows themselves
    assert killer.killed == 4 and grown < 20 and held[-1] < held[len(held) // 4] + 20


@dataclass(frozen=True)
class Slow(ImageFile):
    """An image that takes the time of a large model, whatever the cores have to do."""

    def source(self):
        time.sleep(0.05)
        return super().source()


@pytest.mark.slow
@pytest.mark.long
def test_two_processes_are_faster_than_one(settings, images):
    """The model's time is simulated by a sleep: two cores that compute are not always to be had."""
    seconds = {}
    for processes in (1, 2):
        some = (Slow(images[number % 20].name) for number in range(2000))
        batches = caption_in_processes(some, settings, 8, processes)
        next(batches)  # until here processes start and load their model
        start = time.monotonic()
        assert sum(map(len, batches)) == 2000 - 8
        seconds[processes] = time.monotonic() - start
    print(f"2,000 images: one process {seconds[1]:.1f} s, two {seconds[2]:.1f} s, {seconds[1] / seconds[2]:.2f}x")
    assert seconds[1] / seconds[2] >= 1.7


@pytest.mark.slow
@pytest.mark.long
def test_an_image_that_ends_its_process_is_a_row(settings, images, expected):
    some = [images[0], Deadly("deadly.png"), images[1], images[2]]
    rows = sum(caption_in_processes(iter(some), settings, 2, 2), [])
    assert rows[1] == {"image": "deadly.png", "error": rows[1]["error"]} and "ended 2 times" in rows[1]["error"]
    assert close([rows[0], *rows[2:]], expected[:3])


@pytest.mark.slow
def test_no_such_captioner_is_told_at_once(settings, images, tmp_path):
    nowhere = Settings(str(tmp_path), *list(vars(settings).values())[1:])
    with pytest.raises(InputError, match="`--model` must be the folder"):
        list(caption_in_processes(iter(images), nowhere, 4, 1))


@pytest.mark.slow
def test_the_program(settings, images, expected, tmp_path):
    output = tmp_path / "captions.jsonl"
    folder = str(Path(images[0].name).parent)
    command = ["caption", folder, "--model", settings.model, "--output", str(output), "--processes", "2"]
    with pytest.raises(SystemExit) as status:
        program([*command, "--num-beams", "2", "--min-score", "0", "--batch-size", "5", "--dtype", "float32"])
    assert status.value.code == 1  # one could not be read
    assert close([json.loads(line) for line in output.read_text().splitlines()], expected)
    with pytest.raises(InputError, match="`--processes` must be 1 with a search that draws samples, got 2"):
        program([*command, "--decoding", "stochastic"])
