"""A server of a captioner in a thread of this process, or in a process of its own."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import uvicorn

from hf_captioner.commands.captioner import Settings
from hf_captioner.commands.connections import configured
from hf_captioner.commands.decoding_options import DecodingArguments
from hf_captioner.commands.serve import bound, model_name
from hf_captioner.commands.server import CaptionServer, Limits, ServedCaptioner

from . import ROOT
from .tiny_models import tiny_model, tiny_processor


def tiny_folder(folder: Path) -> str:
    """A saved tiny captioner whose captions depend on the image."""
    captioner = tiny_model(attention="additive")
    captioner.generation_config.update(max_new_tokens=8, num_beams=3, no_repeat_ngram_size=2)
    captioner.save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return str(folder)


def served_captioner(
    model: str,
    prompt: str = "",
    num_beams: int | None = None,
    min_score: float | None = None,
    words: bool = False,
    **decoding,
) -> ServedCaptioner:
    """As `hf-captioner serve` loads it with these options."""
    return ServedCaptioner(
        Settings(model, prompt, num_beams, min_score, words, "skip", "auto", DecodingArguments(**decoding))
    )


class Running(NamedTuple):
    """A server that runs, and its address."""

    server: CaptionServer
    url: str


@contextmanager
def serving(captioner: ServedCaptioner, limits: Limits | None = None, **options) -> Iterator[Running]:
    """Serves in a thread; further options are those of `CaptionServer`."""
    server = CaptionServer(captioner, model_name(captioner.settings.model), limits, **options)
    listener = bound("127.0.0.1", 0)
    running = uvicorn.Server(configured(server, log_level="critical"))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        while not running.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield Running(server, f"http://127.0.0.1:{listener.getsockname()[1]}")
    finally:
        running.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


@contextmanager
def serving_apart(*options: str, **environment: str) -> Iterator[tuple[subprocess.Popen, str]]:
    """`hf-captioner serve` in a process of its own, and its address; it is killed if it still runs at the end."""
    command = [sys.executable, "-m", "hf_captioner.commands.program", "serve", "--port", "0", *options]
    process = subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        text=True,
        # a shell that starts this in the background tells it, and all that it starts, to ignore Ctrl-C
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    try:
        line = process.stdout.readline()
        assert line.startswith("serving "), line
        yield process, line.split(" at ")[1].split()[0]
    finally:
        process.kill()
        process.communicate()
