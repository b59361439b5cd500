"""`hf-captioner caption --processes`: the same rows as one process gives, whatever becomes of processes."""

import json
import multiprocessing
import os
import signal
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
