"""
Captioning on a Ray cluster. Ray Data has the actors, starts them anew where one ends or a machine is lost, and gives
them the parts of the work; here is what one part becomes: a file that is written once, whoever writes it.
"""

import json
import logging
import math
import os
import pickle
import socket
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from uuid import uuid4

import pyarrow
import pyarrow.parquet
import torch
from tqdm.auto import tqdm

from ..data.caption_files import COLUMNS, SOME, SUFFIXES, write_captions
from ..data.image_files import ImageFiles, Part, images_of, size_of
from ..errors import InputError, brief
from ..files import replacing
from ..memory import keep_freed_memory
from .bulk import BatchCaptioner
from .captioner import Settings

SHARD = 1000  # images of a shard at most,
SHARES = 8  # and fewer where actors would have less than so many each
ATTEMPTS = 2  # at images in whose midst an actor ended, before they are taken apart
SECONDS = 5  # within which the head of a cluster must answer
JOB = "_job.json"  # readers of folders of Parquet files leave out what begins so


class ShardCaptioner:
    """
    An actor of `map_batches`, which turns a part of the images into a shard of captions.

    A shard is there as a whole or not at all, and is left as it is if it is there: what Ray begins again, for an actor
    that was killed or a machine that was lost, is done once. Beside the shard that is in work lies a file of the rows
    so far, with which the next actor goes on, and of what was begun and did not end. Where an actor has ended
    `ATTEMPTS` times, images are captioned batch by batch and at last one by one, so that the one that is to blame
    becomes a row with an error.

    Args:
        make: a captioner of batches, as [`BatchCaptioner`] of some settings; called for the first shard.
        output: the folder of the shards.
        batch_size: images of a batch.
        columns: of the shards.
        folder: to which relative paths belong.
        threads: of torch.
    """

    def __init__(
        self,
        make: Callable[[], BatchCaptioner],
        output: Path,
        batch_size: int,
        columns: list[str],
        folder: str,
        threads: int,
    ):
        self.make, self.output, self.batch_size, self.columns, self.folder = make, output, batch_size, columns, folder
        self.threads = threads
        self.captioner: BatchCaptioner | None = None

    def __call__(self, batch: dict) -> dict:
        """
        Args:
            batch: the `shard`, a file's name, and its `images`, a pickled [`Part`], in arrays of one.

        Returns:
            the number of `images`, and why they could not be captioned at all (`refused`, otherwise empty), likewise:
            what is raised would come to the user with the traceback of three programs.
        """
        try:
            count = self.write(str(batch["shard"][0]), pickle.loads(batch["images"][0]))
        except InputError as error:
            return {"images": [0], "refused": [str(error)]}
        except OSError as error:
            rule = f"must be a cluster whose nodes all see {self.folder} and can write {self.output}"
            return {"images": [0], "refused": [f"`--ray-address` {rule}, got {brief(error)}"]}
        return {"images": [count], "refused": [""]}

    def write(self, shard: str, part: Part) -> int:
        if self.captioner is None:
            os.chdir(self.folder)
            os.environ["TOKENIZERS_PARALLELISM"] = "false"
            torch.set_num_threads(self.threads)
            keep_freed_memory()
            self.captioner = self.make()
        path = self.output / shard
        if path.exists():
            return pyarrow.parquet.read_metadata(path).num_rows
        with _Progress(path.with_name(f".{path.stem}.progress")) as progress:
            while (done := len(progress.rows)) < size_of(part):
                self.go_on(part, progress)
                if len(progress.rows) == done:
                    raise InputError(f"`INPUT` must stay as it is while it is captioned, got less in {shard}")
        # a name of its own: a machine that was taken for lost may be at the same shard
        new = path.with_name(f".{path.stem}.{uuid4().hex}{path.suffix}")
        write_captions(new, progress.rows, columns=self.columns)
        os.replace(new, path)
        progress.path.unlink(missing_ok=True)
        return len(progress.rows)

    def go_on(self, part: Part, progress: "_Progress") -> None:
        """Captions all images that are left, or the next batch, or the next image alone."""
        assert self.captioner is not None
        place, size = len(progress.rows), self.batch_size
        images = islice(images_of(part), place, None)
        if not progress.failed("all"):
            what = "all"
        elif not progress.failed("batch", range(place - size + 1, place + 1)):
            what, images = "batch", islice(images, size)
        else:
            what, images = "image", islice(images, 1)
            if progress.failed("image", [place]):
                why = f"a process that captions ended {ATTEMPTS} times while it had this image alone"
                progress.add([{"image": image.name, "error": why} for image in images])
                return
        batches = self.captioner.batches(images, size)
        while True:
            with progress.noted(what):
                rows = next(batches, None)
            if rows is None:
                return
            progress.add(rows)


class _Progress:
    """
    A file of JSON lines that outlives the process: rows, and what was begun and what ended, each with the number of
    rows before it. A half-written line counts as none.

    Attributes:
        rows: those of the shard so far.
    """

    def __init__(self, path: Path):
        self.path = path
        self.rows: list[dict] = []
        self.open: Counter[tuple[str, int]] = Counter()

    def __enter__(self) -> "_Progress":
        self.file = open(self.path, "ab+")  # noqa: SIM115
        self.file.seek(0)
        content = self.file.read()
        whole = content[: content.rfind(b"\n") + 1]
        self.file.truncate(len(whole))
        for line in whole.splitlines():
            kind, place, what = json.loads(line)
            if kind != "rows":
                self.open[what, place] += 1 if kind == "begun" else -1
            elif place == len(self.rows):  # otherwise of a machine that was taken for lost
                self.rows += what
        return self

    def __exit__(self, *_) -> None:
        self.file.close()

    def add(self, rows: list[dict]) -> None:
        self._write("rows", len(self.rows), rows)
        self.rows += rows

    def failed(self, what: str, places: Iterable[int] | None = None) -> bool:
        """Whether it ended the process too often, at one of these places or at any."""
        return any(
            count >= ATTEMPTS
            for (kind, place), count in self.open.items()
            if kind == what and (places is None or place in places)
        )

    @contextmanager
    def noted(self, what: str) -> Iterator[None]:
        """An exception ends it as well: only what ends the process does not."""
        place = len(self.rows)
        self._write("begun", place, what)
        try:
            yield
        finally:
            self._write("ended", place, what)

    def _write(self, kind: str, place: int, what: object) -> None:
        self.file.write(json.dumps([kind, place, what]).encode() + b"\n")
        self.file.flush()


def check_folder(output: Path | None) -> Path:
    """
    The output, if it can be a folder.

    Raises:
        InputError: if it is a file, or named like one.
    """
    if output is None or output.suffix.lower() in SUFFIXES or (output.exists() and not output.is_dir()):
        raise InputError(f"`--output` must be a folder with `--ray-address`, got {output}")
    return output


@contextmanager
def ray_cluster(address: str) -> Iterator[None]:
    """
    A connection to a Ray cluster, or one on this machine, without a dashboard, that ends with it. Nothing is reported
    to anyone.

    Args:
        address: `local`, `auto` (the one that runs on this machine, or that `RAY_ADDRESS` names) or host and port.

    Raises:
        InputError: if Ray is not installed, or there is no such cluster.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # it warns of what it does itself
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise InputError(
            f"`--ray-address` must have the package {error.name}: pip install 'hf_captioner[ray]'"
        ) from error
    options: dict = {"logging_level": "ERROR", "log_to_driver": False, "address": address}
    if address == "local":
        # only names and counts are handed over: Ray would take a third of the memory
        options |= {"include_dashboard": False, "object_store_memory": 2**28}
    elif address != "auto":
        _answering(address)
    try:
        ray.init(**options)
    except Exception as error:
        if address == "local":
            raise
        rule = "must be local, or a cluster that this machine is a node of"
        raise InputError(f"`--ray-address` {rule}, got {address}: {brief(error)}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _answering(address: str) -> None:
    host, _, port = address.rpartition(":")
    if not host or "/" in address or not port.isdecimal():
        raise InputError(f"`--ray-address` must be local, auto or HOST:PORT, got {address!r}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), SECONDS).close()
    except (OSError, OverflowError) as error:
        raise InputError(f"`--ray-address` must be a cluster that answers, got {address}: {brief(error)}") from error


def caption_on_ray(
    images: ImageFiles,
    settings: Settings,
    output: Path,
    batch_size: int,
    processes: int | None = None,
    make: Callable[[Settings], BatchCaptioner] = BatchCaptioner,
) -> tuple[int, int]:
    """
    Captions images on the cluster that this process is connected with, into shards, Parquet files with a row for each
    image: `image`, `caption`, `score` and `error`. Shards that are there are left as they are.

    Args:
        images: at most `SHARD` of which become a shard.
        settings: of the captioner.
        output: a folder that all nodes see, new or of the same work.
        batch_size: images of a batch.
        processes: that caption, at most; by default one for each GPU of the cluster, or for each CPU if it has none.
        make: the captioner of batches.

    Returns:
        how many images the captioner abstained on, and how many could not be read.

    Raises:
        InputError: if the folder is of something else, or there is no such captioner, or it cannot do what is asked.
    """
    import ray

    count, cpus, gpus = actors_of([node["Resources"] for node in ray.nodes() if node["Alive"]])
    count = min(count, processes or count)
    output = Path(os.path.abspath(output))
    size = _begin_job(output, images, settings, math.ceil(len(images) / (SHARES * count)))
    parts = {f"captions-{number:05}.parquet": part for number, part in enumerate(images.parts(size))}
    missing = {shard: part for shard, part in parts.items() if not (output / shard).exists()}
    with tqdm(total=len(images), desc="captioning", unit="image", disable=None) as bar:  # None: on a terminal
        bar.update(len(images) - sum(size_of(part) for part in missing.values()))
        if missing:
            columns = [name for name in COLUMNS if name not in SOME or name in _wanted(settings)]
            arguments = [partial(make, settings), output, batch_size, columns, os.getcwd(), cpus]
            for found in _on_actors(missing, arguments, min(count, len(missing)), cpus, gpus):
                if found["refused"]:
                    raise InputError(found["refused"])
                bar.update(found["images"])
    for left in output.glob(".captions-*"):  # of actors that were killed
        left.unlink(missing_ok=True)
    return _counts(output, parts, len(images))


def actors_of(nodes: list[dict[str, float]]) -> tuple[int, int, int]:
    """
    How many actors a cluster has room for, and the CPUs and GPUs of each: one GPU and the CPUs that come with it,
    which read the images; or, where there is no GPU, one CPU, for processes share the work better than threads do.

    Args:
        nodes: their resources, as Ray names them.

    Raises:
        InputError: if there is no room for any.
    """
    with_gpu = [(int(node["GPU"]), int(node.get("CPU", 0))) for node in nodes if node.get("GPU", 0) >= 1]
    if with_gpu:
        return sum(gpus for gpus, _ in with_gpu), max(1, min(cpus // gpus for gpus, cpus in with_gpu)), 1
    count = sum(int(node.get("CPU", 0)) for node in nodes)
    if not count:
        raise InputError("`--ray-address` must be a cluster with a CPU or GPU, got one without")
    return count, 1, 0


def _on_actors(parts: dict[str, Part], arguments: list, count: int, cpus: int, gpus: int) -> Iterator[dict]:
    """What `ShardCaptioner` says of each part, in any order."""
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars, context.print_on_execution_start = False, False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    work = [pyarrow.table({"shard": [shard], "images": [pickle.dumps(part)]}) for shard, part in parts.items()]
    # Not of a fixed size: the pool has to shrink when a machine is lost, or what that one had in work would wait.
    pool = ray.data.ActorPoolStrategy(min_size=1, max_size=count, initial_size=count)
    done = ray.data.from_arrow(work).map_batches(
        ShardCaptioner,
        batch_size=1,
        batch_format="numpy",
        compute=pool,
        fn_constructor_args=arguments,
        num_cpus=cpus,
        num_gpus=gpus,
    )
    yield from done.iter_rows()


def _wanted(settings: Settings) -> set[str]:
    """Of the columns that are not always there, those of a run."""
    decoding = settings.decoding
    found = {"words": settings.words, "search_score": decoding.decoding is not None}
    found["others"] = decoding.num_return_sequences is not None
    return {name for name, wanted in found.items() if wanted}


def _begin_job(output: Path, images: ImageFiles, settings: Settings, share: int) -> int:
    """
    Says in the folder what it is for, or finds that it says so already. Gives the number of images of a shard, which
    stays the same when the work goes on, on however many machines.
    """
    job = settings.flat() | {"images": f"{len(images)} ({images.digest()[:16]})"}
    file, anew = output / JOB, "; another folder starts anew"
    if file.exists():
        try:
            before = json.loads(file.read_text("utf-8"))
            size = before.pop("shard_size")
            if not isinstance(size, int) or size < 1:
                raise ValueError(f"`shard_size` must be at least 1, got {size!r}")
        except (ValueError, TypeError, LookupError, AttributeError, OSError) as error:
            raise InputError(f"{file} must be what an earlier run wrote, got {brief(error)}{anew}") from error
        for name, value in job.items():
            if before.get(name) != value:
                raise InputError(
                    f"`{name}` must be as in the run whose captions are in {output}, {before.get(name)!r}, got "
                    f"{value!r}{anew}"
                )
        return size
    try:
        output.mkdir(parents=True, exist_ok=True)
        other = next((path.name for path in sorted(output.iterdir()) if not path.name.startswith(".")), None)
        if other is not None:
            rule = "must be a new folder or one of the same captions"
            raise InputError(f"`--output` {rule}, got {output}, where {other} is")
        size = max(1, min(SHARD, share))
        with replacing(file) as part:
            part.write_text(json.dumps(job | {"shard_size": size}, indent=2), "utf-8")
    except OSError as error:
        raise InputError(f"`--output` must be a folder that can be written, got {output}: {error.strerror}") from error
    return size


def _counts(output: Path, parts: dict[str, Part], images: int) -> tuple[int, int]:
    """How many rows have no caption and no error, and how many an error; and no image has been forgotten."""
    rows = silent = unread = 0
    for shard in parts:
        table = pyarrow.parquet.read_table(output / shard, columns=["caption", "error"])
        errors = len(table) - table["error"].null_count
        rows, unread = rows + len(table), unread + errors
        silent += table["caption"].null_count - errors
    if rows != images:
        raise RuntimeError(f"{output} must have a row for each of {images} images, got {rows}")
    return silent, unread
