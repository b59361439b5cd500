"""Trainings in processes of their own that are killed at a chosen moment."""

import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from .apart import apart

_FILE_EVENTS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate"}


class Moment(NamedTuple):
    """
    When a process kills itself: at the `count`-th event of a kind. Kinds: `step` (begun, before and after the
    optimiser's part, ended), `write` (a file is opened, moved or removed while a checkpoint is written), `evaluation`
    (a batch), `cache` (a batch of features), `end` (files, when training has ended), `clock` (milliseconds of
    training, after which another process kills it wherever it is).
    """

    kind: str
    count: int
    rank: int = 0


class _Killer:
    """Counts the events of a process, and kills it at its moment."""

    def __init__(self, moment: Moment | None, mark: Path):
        self.moment = moment
        self.mark = mark  # a file that says who it was
        self.counts: Counter = Counter()
        self.inside = ""

    def event(self, kind: str) -> None:
        if self.moment is not None and (kind, self.counts[kind]) == self.moment[:2]:
            self.inside = ""
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        self.counts[kind] += 1

    def audit(self, name: str, details: tuple) -> None:
        if self.inside and name in _FILE_EVENTS:
            self.event(self.inside)

    def watch(self) -> None:
        from transformers import TrainerCallback

        from hf_captioner.commands import train
        from hf_captioner.models.vision_encoder import VisionEncoder
        from hf_captioner.trainers import CaptioningTrainer

        killer, sys_hook = self, self.audit

        class Steps(TrainerCallback):
            def on_step_begin(self, *args, **kwargs):
                killer.event("step")

            on_pre_optimizer_step = on_optimizer_step = on_step_end = on_step_begin

        def before(owner, name, kind):
            usual = getattr(owner, name)

            def wrapped(*args, **kwargs):
                killer.event(kind)
                return usual(*args, **kwargs)

            setattr(owner, name, wrapped)

        def around(owner, name, kind, after=""):
            usual = getattr(owner, name)

            def wrapped(*args, **kwargs):
                killer.inside = kind
                result = usual(*args, **kwargs)
                killer.inside = after
                return result

            setattr(owner, name, wrapped)

        usual_train = CaptioningTrainer.train

        def timed(*args, **kwargs):
            start = time.monotonic()
            if killer.moment is not None and killer.moment.kind == "clock":
                kill_later(killer.moment.count / 1000, killer.mark)
            result = usual_train(*args, **kwargs)
            killer.counts["clock"] = int(1000 * (time.monotonic() - start))
            return result

        CaptioningTrainer.train = timed

        def with_steps(trainer, *args, **kwargs):
            usual_init(trainer, *args, **kwargs)
            trainer.add_callback(Steps())

        usual_init, CaptioningTrainer.__init__ = CaptioningTrainer.__init__, with_steps
        before(CaptioningTrainer, "prediction_step", "evaluation")
        around(CaptioningTrainer, "save_checkpoint", "write")
        around(CaptioningTrainer, "train", "", after="end")
        usual_cache = train.cache_features

        def cache_features(*args, **kwargs):
            usual = VisionEncoder.forward
            before(VisionEncoder, "forward", "cache")
            try:
                return usual_cache(*args, **kwargs)
            finally:
                VisionEncoder.forward = usual

        train.cache_features = cache_features
        sys.addaudithook(sys_hook)


def _train(argv: list[str], moment: Moment | None, counts: str, prepare: Callable[[], None] | None) -> None:
    """A training, in the process that was made for it."""
    from hf_captioner.commands import run, train

    if prepare is not None:
        prepare()
    rank = int(os.environ.get("RANK", 0))
    killer = _Killer(moment if moment is not None and moment.rank == rank else None, Path(f"{counts}.killed"))
    killer.watch()
    run(train.main, argv)
    if rank == 0:
        Path(counts).write_text(json.dumps(killer.counts))


def kill_later(seconds: float, mark: Path) -> None:
    """Kills this process from another one, which holds no lock of it."""
    victim = os.getpid()
    if os.fork() == 0:
        time.sleep(seconds)
        if os.getppid() == victim:
            mark.touch()
            os.kill(victim, signal.SIGKILL)
        os._exit(0)


class Training(NamedTuple):
    """How a training ended."""

    exit: int  # -9 if it was killed at its moment
    log: str
    counts: dict[str, int]  # events of the first process, if it came to its end


def train_apart(
    argv: list[str],
    log: Path,
    moment: Moment | None = None,
    processes: int = 1,
    largest: int | None = None,
    prepare: Callable[[], None] | None = None,
) -> Training:
    """
    Runs `hf-captioner train` with these arguments.

    Args:
        moment: when one of the processes is killed.
        log, processes, largest: as for [`apart`].
        prepare: called in each process before the training.
    """
    counts = Path(f"{log}.json")
    killed = Path(f"{counts}.killed")
    for path in (counts, killed):
        path.unlink(missing_ok=True)
    ended = apart(_train, (argv, moment, str(counts), prepare), log, processes, largest)
    # The others may notice before they are killed, too, and end with an error.
    code = -signal.SIGKILL if killed.exists() else ended.exit
    return Training(code, ended.log, json.loads(counts.read_text()) if counts.exists() else {})
