"""`hf-captioner caption --ray-address`: shards on a cluster, whatever becomes of its actors and machines."""

import io
import json
import multiprocessing
import os
import pickle
import random
import signal
import socket
import sys
import tarfile
import threading
import time
from functools import partial
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image
from testing.held import held_by
from testing.sleeping import SleepingCaptioner
from testing.tiny_models import noise_pictures, tiny_model, tiny_processor

from hf_captioner.commands import bulk_ray
from hf_captioner.commands.bulk_ray import ShardCaptioner, actors_of, caption_on_ray, ray_cluster
from hf_captioner.commands.captioner import Settings
from hf_captioner.commands.decoding_options import DecodingArguments
from hf_captioner.commands.program import program
from hf_captioner.data.image_files import ImageFiles
from hf_captioner.errors import InputError

COLUMNS = ["image", "caption", "score", "error"]
SETTINGS = Settings("nowhere", "", 2, 0.0, False, "skip", "float32", DecodingArguments())


def folder_of(folder: Path, count: int, start: int = 0) -> Path:
    """Pictures whose width is their number, of which every seventh cannot be read."""
    folder.mkdir()
    for number in range(start, start + count):
        if number % 7 == 5:
            (folder / f"{number:05}.png").write_text("no image")
        else:
            (folder / f"{number:05}.png").write_bytes(picture(number))
    return folder


def picture(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (1 + number, 2), number % 256).save(buffer, "PNG")
    return buffer.getvalue()


def actor(output: Path, diary: Path, batch_size: int = 4) -> ShardCaptioner:
    output.mkdir(exist_ok=True)
    diary.mkdir(exist_ok=True)
    return ShardCaptioner(partial(SleepingCaptioner, 0, diary), output, batch_size, COLUMNS, os.getcwd(), 1)


def read_all(output: Path) -> list[dict]:
    return pyarrow.parquet.read_table(output).to_pylist()


def test_a_shard_has_a_row_for_each_image(tmp_path):
    images = ImageFiles([str(folder_of(tmp_path / "images", 30))])
    captioner = actor(tmp_path / "out", tmp_path / "diary")
    for number, part in enumerate(images.parts(12)):
        batch = {"shard": [f"captions-{number:05}.parquet"], "images": [pickle.dumps(part)]}
        assert captioner(batch) == {"images": [min(12, 30 - 12 * number)], "refused": [""]}
    rows = read_all(tmp_path / "out")
    assert [row["image"] for row in rows] == [image.name for image in images] and list(rows[0]) == COLUMNS
    assert [row["caption"] for row in rows] == [None if n % 7 == 5 else f"{1 + n} by 2" for n in range(30)]
    assert [row["error"] is None for row in rows] == [n % 7 != 5 for n in range(30)]
    assert len(list((tmp_path / "out").iterdir())) == 3, "nothing else is left"


def test_a_shard_that_is_there_is_left_alone(tmp_path):
    (part,) = ImageFiles([str(folder_of(tmp_path / "images", 5))]).parts(5)
    captioner = actor(tmp_path / "out", tmp_path / "diary")
    assert captioner.write("captions-00000.parquet", part) == 5
    noted, before = list((tmp_path / "diary").iterdir()), (tmp_path / "out" / "captions-00000.parquet").stat()
    content = noted[0].read_text()
    assert captioner.write("captions-00000.parquet", part) == 5
    assert (tmp_path / "out" / "captions-00000.parquet").stat() == before and noted[0].read_text() == content


def in_process(function, *arguments) -> int | None:
    """The exit status of a function in a process of its own."""
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    process.start()
    process.join(60)
    return process.exitcode


def test_an_image_that_ends_its_process_is_a_row_in_the_end(tmp_path):
    folder = folder_of(tmp_path / "images", 11)
    (folder / "00006deadly.png").write_bytes(picture(1))
    (part,) = ImageFiles([str(folder)]).parts(12)
    captioner = actor(tmp_path / "out", tmp_path / "diary")
    ended = []
    while not ended or ended[-1] != 0:
        ended.append(in_process(captioner.write, "captions-00000.parquet", part))
        assert len(ended) < 20
    # twice while all were read ahead, at most before each batch; twice with its batch; twice with the image alone
    assert set(ended[:-1]) == {-signal.SIGKILL} and 6 <= len(ended[:-1]) <= 8
    rows = read_all(tmp_path / "out")
    assert [row["image"] for row in rows] == sorted(str(path) for path in folder.iterdir())
    assert rows[7]["error"] == "a process that captions ended 2 times while it had this image alone"
    assert [row["error"] is None for row in rows] == [n not in (5, 7) for n in range(12)]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["captions-00000.parquet"]


def test_what_only_failed_is_not_held_against_the_images(tmp_path):
    """An exception, as of a disk that is full, and two stops of the whole run: no row is an error for that."""
    (part,) = ImageFiles([str(folder_of(tmp_path / "images", 4))]).parts(4)
    captioner = actor(tmp_path / "out", tmp_path / "diary")
    captioner.captioner = None
    for make, error in (
        (partial(failing, OSError("no room")), OSError),
        (partial(failing, InputError("no")), InputError),
    ):
        other = ShardCaptioner(make, tmp_path / "out", 4, COLUMNS, os.getcwd(), 1)
        for _ in range(3):
            with pytest.raises(error):
                other.write("captions-00000.parquet", part)
    stopped = '["begun", 0, "all"]\n' * 3 + '["begun", 0, "batch"]\n["rows", 0, [{"ima'
    (tmp_path / "out" / ".captions-00000.progress").write_text(stopped)
    assert captioner.write("captions-00000.parquet", part) == 4
    assert all(row["error"] is None for row in read_all(tmp_path / "out"))


def test_the_next_actor_goes_on_with_the_rows_of_the_one_that_was_killed(tmp_path):
    """Whatever is written beside it by a machine that was taken for lost."""
    folder = folder_of(tmp_path / "images", 30)
    (part,) = ImageFiles([str(folder)]).parts(30)
    names = sorted(str(path) for path in folder.iterdir())
    captioner = actor(tmp_path / "out", tmp_path / "diary")
    said = [{"image": name, "caption": "said before", "score": 0.25} for name in names[:10]]
    lines = [
        ["begun", 0, "all"],
        ["rows", 0, said[:4]],
        ["rows", 0, said[:6]],
        ["rows", 4, said[4:]],
        ["rows", 4, said],
    ]
    (tmp_path / "out" / ".captions-00000.progress").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert captioner.write("captions-00000.parquet", part) == 30
    rows = read_all(tmp_path / "out")
    assert [row["image"] for row in rows] == names
    assert [row["caption"] == "said before" for row in rows] == [n < 10 for n in range(30)]


def test_images_that_become_fewer_are_told(tmp_path):
    found = pyarrow.table({"image": [{"bytes": picture(n), "path": None} for n in range(6)]})
    pyarrow.parquet.write_table(found, tmp_path / "t.parquet")
    (part,) = ImageFiles([str(tmp_path / "t.parquet")]).parts(6)
    pyarrow.parquet.write_table(found[:4], tmp_path / "t.parquet")
    with pytest.raises(InputError, match="`INPUT` must stay as it is"):
        actor(tmp_path / "out", tmp_path / "diary").write("captions-00000.parquet", part)


def failing(error: Exception):
    raise error


def test_what_is_wrong_with_all_is_told_and_not_raised(tmp_path):
    (part,) = ImageFiles([str(folder_of(tmp_path / "images", 4))]).parts(4)
    batch = {"shard": ["captions-00000.parquet"], "images": [pickle.dumps(part)]}
    refusing = ShardCaptioner(partial(failing, InputError("no such model")), tmp_path, 4, COLUMNS, os.getcwd(), 1)
    assert refusing(batch) == {"images": [0], "refused": ["no such model"]}
    nowhere = actor(tmp_path / "out", tmp_path / "diary")
    nowhere.output = tmp_path / "gone"
    (refused,) = nowhere(batch)["refused"]
    assert refused.startswith("`--ray-address` must be a cluster whose nodes all see") and "gone" in refused


def test_actors_are_one_for_each_gpu_or_else_for_each_cpu():
    assert actors_of([{"CPU": 8.0, "memory": 1.0}, {"CPU": 4.0}, {}]) == (12, 1, 0)
    assert actors_of([{"CPU": 64.0}, {"CPU": 16.0, "GPU": 4.0}, {"CPU": 24.0, "GPU": 2.0}]) == (6, 4, 1)
    assert actors_of([{"CPU": 1.0, "GPU": 4.0}]) == (4, 1, 1)
    with pytest.raises(InputError, match="with a CPU or GPU, got one without"):
        actors_of([{"memory": 1.0}])


def refused(*arguments: str) -> str:
    with pytest.raises(InputError) as error:
        program(["caption", *arguments])
    return str(error.value)


def test_options_that_do_not_go_together(tmp_path):
    some = str(folder_of(tmp_path / "images", 1))
    ray = ["--ray-address", "local"]
    for output in ([], ["--output", str(tmp_path / "captions.parquet")], ["--output", f"{some}/00000.png"]):
        assert "`--output` must be a folder with `--ray-address`" in refused(some, *ray, *output)
    output = ["--output", str(tmp_path / "out")]
    assert "`--sidecar` must be left out" in refused(some, *ray, *output, "--sidecar")
    assert "`--existing append` must be left out" in refused(some, *ray, *output, "--existing", "append")
    assert "`--ray-address` must be left out" in refused(some, *ray, *output, "--decoding", "stochastic")
    assert not (tmp_path / "out").exists()


def test_a_cluster_that_does_not_answer_is_told_in_seconds(tmp_path, monkeypatch):
    some, start = str(folder_of(tmp_path / "images", 1)), time.monotonic()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"127.0.0.1:{port}"
    said = refused(some, "--ray-address", address, "--output", str(tmp_path / "out"))
    assert f"`--ray-address` must be a cluster that answers, got {address}" in said
    for address in ("somewhere", "ray://127.0.0.1:10001", "127.0.0.1:port", ":6379"):
        said = refused(some, "--ray-address", address, "--output", str(tmp_path / "out"))
        assert f"`--ray-address` must be local, auto or HOST:PORT, got {address!r}" in said
    assert time.monotonic() - start < 60 and not (tmp_path / "out").exists()
    monkeypatch.setitem(sys.modules, "ray", None)
    said = refused(some, "--ray-address", "local", "--output", str(tmp_path / "out"))
    assert said.endswith("must have the package ray: pip install 'hf_captioner[ray]'")


def begin(output: Path, images: ImageFiles, share: int = 3, **changes) -> int:
    return bulk_ray._begin_job(output, images, Settings(**{**vars(SETTINGS), **changes}), share)


def test_the_folder_of_another_job_is_refused(tmp_path):
    images = ImageFiles([str(folder_of(tmp_path / "images", 9))])
    others = ImageFiles([str(folder_of(tmp_path / "others", 9))])
    output = tmp_path / "out"
    assert begin(output, images) == 3
    assert begin(output, images, share=1000) == 3, "shards are those of the first run"
    with pytest.raises(
        InputError, match="`num_beams` must be as in the run whose captions are in .*out, 2, got 3; an"
    ):
        begin(output, images, num_beams=3)
    with pytest.raises(InputError, match="`images` must be as in the run"):
        begin(output, others)
    for content in ("{}", "[]", "x", '{"shard_size": 0}'):
        (output / "_job.json").write_text(content)
        with pytest.raises(InputError, match="_job.json must be what an earlier run wrote"):
            begin(output, images)
    with pytest.raises(InputError, match="`--output` must be a new folder .*, got .*images, where 00000.png is"):
        begin(tmp_path / "images", images)
    assert begin(tmp_path / "large", images, share=10**6) == bulk_ray.SHARD
    assert begin(tmp_path / "small", images, share=0) == 1


@pytest.mark.slow
def test_the_program(tmp_path, capfd):
    """A cluster of this machine: the same rows as without one."""
    ray = pytest.importorskip("ray")
    model, images, output = str(tmp_path / "model"), tmp_path / "images", tmp_path / "out"
    tiny_model(attention="additive").save_pretrained(model)
    tiny_processor().save_pretrained(model)
    images.mkdir()
    for place, one in enumerate(noise_pictures(5)):
        one.save(images / f"{place}.png")
    (images / "2.png").write_text("no image")
    command = ["caption", str(images), "--model", model, "--num-beams", "2", "--batch-size", "2", "--dtype", "float32"]
    with pytest.raises(SystemExit) as status:
        program([*command, "--output", str(tmp_path / "alone.parquet")])
    assert status.value.code == 1
    expected = read_all(tmp_path / "alone.parquet")
    with pytest.raises(SystemExit) as status:
        program([*command, "--output", str(output), "--ray-address", "local", "--processes", "1"])
    assert status.value.code == 1 and not ray.is_initialized()
    rows = read_all(output)
    assert [row["image"] for row in rows] == [row["image"] for row in expected]
    assert [row["caption"] for row in rows] == [row["caption"] for row in expected]
    assert [row["error"] for row in rows] == [row["error"] for row in expected]
    assert "4 captioned, 1 could not be read" in capfd.readouterr().err
    assert "_job.json" in os.listdir(output) and len(os.listdir(output)) == len(rows) + 1


@pytest.mark.slow
@pytest.mark.long
def test_no_such_captioner_is_told_in_one_line(tmp_path):
    pytest.importorskip("ray")
    images = str(folder_of(tmp_path / "images", 3))
    said = refused(
        images, "--model", str(tmp_path / "gone"), "--output", str(tmp_path / "out"), "--ray-address", "local"
    )
    assert said.startswith("`--model` must be the folder or Hub name of a captioner")


class TwoNodes:
    """Two machines of one processor each, which are processes of this one."""

    def __init__(self):
        from ray.cluster_utils import Cluster

        options = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 2**28}
        self.cluster = Cluster(initialize_head=True, head_node_args=options)
        self.other = self.cluster.add_node(num_cpus=1, object_store_memory=2**28)

    def lose_one(self) -> None:
        self.cluster.remove_node(self.other, allow_graceful=False)

    def add_one(self) -> None:
        self.other = self.cluster.add_node(num_cpus=1, object_store_memory=2**28)


@pytest.fixture(scope="module")
def two_nodes():
    pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))  # `testing`, for the actors
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        nodes = TwoNodes()
        yield nodes
        nodes.cluster.shutdown()


class Killer(threading.Thread):
    """Kills, at random times, the actor that last wrote into the diary."""

    def __init__(self, diary: Path, every: float):
        super().__init__(daemon=True)
        self.diary, self.every, self.killed, self.over = diary, every, [], threading.Event()

    def run(self) -> None:
        chance = random.Random(0)
        while not self.over.wait(chance.uniform(0.5, 1.5) * self.every):
            actors = [path for path in self.diary.iterdir() if path.name not in self.killed]
            if actors:
                found = max(actors, key=lambda path: path.stat().st_mtime_ns).name
                try:
                    os.kill(int(found), signal.SIGKILL)
                except ProcessLookupError:
                    continue
                self.killed.append(found)


def sources(folder: Path, count: int) -> list[str]:
    """Images half in a folder, a quarter in a table and a quarter in a shard; every seventh cannot be read."""
    folder.mkdir()
    half, quarter = count // 2, count // 4
    folder_of(folder / "files", half)
    contents = [b"no image" if n % 7 == 5 else picture(n % 64) for n in range(2 * quarter)]
    cells = [{"bytes": content, "path": None} for content in contents[:quarter]]
    pyarrow.parquet.write_table(pyarrow.table({"image": cells}), folder / "t.parquet", row_group_size=100)
    with tarfile.open(folder / "s.tar", "w") as shard:
        for number, content in enumerate(contents[quarter:]):
            member = tarfile.TarInfo(f"{number:06}.png")
            member.size = len(content)
            shard.addfile(member, io.BytesIO(content))
    return [str(folder / name) for name in ("files", "t.parquet", "s.tar")]


def run(nodes: TwoNodes, images: ImageFiles, output: Path, diary: Path, seconds: float, processes: int) -> float:
    """The seconds that captioning took, from the first batch on: how long an actor needs to start is Ray's."""
    diary.mkdir(exist_ok=True)
    with ray_cluster(nodes.cluster.address):
        _, unread = caption_on_ray(images, SETTINGS, output, 16, processes, partial(SleepingCaptioner, seconds, diary))
        took = time.time() - min(float(path.read_text().split()[0]) for path in diary.iterdir())
    rows = read_all(output)
    names = [image.name for image in images]
    assert sorted(row["image"] for row in rows) == sorted(names) and len(set(names)) == len(rows)
    assert sum(row["error"] is not None for row in rows) == unread > 0
    assert all((row["error"] is None) == (row["caption"] is not None) for row in rows)
    assert all("ended" not in (row["error"] or "") for row in rows), "a kill is nobody's fault"
    return took


@pytest.mark.slow
@pytest.mark.long
def test_two_nodes_are_faster_than_one_worker(two_nodes, tmp_path):
    """The model's time is simulated by a sleep: two cores that compute are not always to be had."""
    images = ImageFiles(sources(tmp_path / "some", 8000))
    one, two = (run(two_nodes, images, tmp_path / f"out{n}", tmp_path / f"diary{n}", 0.02, n) for n in (1, 2))
    print(f"{len(images)} images at 20 ms: one worker {one:.1f} s, two nodes {two:.1f} s, {one / two:.2f}x")
    assert one / two >= 1.7


@pytest.mark.slow
@pytest.mark.long
def test_twenty_thousand_images_through_kills(two_nodes, tmp_path):
    """Actors are killed at random, and a node is lost for a while; the model's time is simulated by a sleep."""
    images = ImageFiles(sources(tmp_path / "some", 20_000))
    diary, output = tmp_path / "diary", tmp_path / "out"
    diary.mkdir()
    killer = Killer(diary, every=15)
    killer.start()
    lost = [threading.Timer(40, two_nodes.lose_one), threading.Timer(70, two_nodes.add_one)]
    for timer in lost:
        timer.start()
    held = [held_by(os.getpid())[0]]
    took = run(two_nodes, images, output, diary, 0.01, 2)
    killer.over.set()
    for timer in lost:
        timer.join()
    held.append(held_by(os.getpid())[0])
    assert took > 70 and len(killer.killed) >= 4, "something was killed while there was work"
    actors = [[float(line.split()[1]) for line in path.read_text().splitlines()] for path in diary.iterdir()]
    grown = max(max(memory) - memory[len(memory) // 4] for memory in actors)
    print(f"{len(images)} images in {took:.0f} s, {len(killer.killed)} actors and a node killed, {len(actors)} in all")
    print(f"an actor grew by {grown:.1f} MB, the program from {held[0]:.0f} to {held[1]:.0f} MB")
    assert grown < 20 and held[1] < held[0] + 200  # Ray's and Arrow's own are in the program's


@pytest.mark.slow
@pytest.mark.long
def test_a_run_that_was_killed_goes_on(two_nodes, tmp_path):
    images = sources(tmp_path / "some", 400)
    diary, output = tmp_path / "diary", tmp_path / "out"
    diary.mkdir()
    arguments = (two_nodes.cluster.address, images, output, diary)
    process = multiprocessing.get_context("spawn").Process(target=caption_slowly, args=arguments)
    process.start()
    end = time.monotonic() + 300
    while len(list(output.glob("captions-*"))) < 4 and time.monotonic() < end:
        time.sleep(0.05)
    process.kill()
    process.join()
    there = {path: path.stat().st_mtime_ns for path in output.glob("captions-*")}
    shards = json.loads((output / "_job.json").read_text())
    assert 4 <= len(there) < 400 / shards["shard_size"]
    run(two_nodes, ImageFiles(images), output, diary, 0, 2)
    assert there.items() <= {path: path.stat().st_mtime_ns for path in output.glob("captions-*")}.items()


def caption_slowly(address: str, images: list[str], output: Path, diary: Path) -> None:
    with ray_cluster(address):
        caption_on_ray(ImageFiles(images), SETTINGS, output, 16, 2, partial(SleepingCaptioner, 0.1, diary))
