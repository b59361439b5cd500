"""
Functions in processes of their own. One server imports what a training needs, and every process is a fork of it:
otherwise imports would take most of the time.
"""

import multiprocessing
import os
import resource
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from . import PATIENCE

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["hf_captioner.commands.train", "matplotlib.pyplot"])


class Ended(NamedTuple):
    """How processes ended."""

    exit: int  # of the one that failed: negative if it was killed by a signal, 0 if none failed
    log: str  # what they printed


def _run(function: Callable, arguments: tuple, environment: dict[str, str], log: str, largest: int | None) -> None:
    os.environ.update(environment)
    # As in a program of its own. By the method that this process was started with, each training would have a server
    # for the processes that read its images, which lives on when the training is killed.
    multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)
    handle = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    import torch

    torch.set_num_threads(1)
    if largest is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    function(*arguments)


def apart(
    function: Callable,
    arguments: tuple[Any, ...],
    log: Path,
    processes: int = 1,
    largest: int | None = None,
    seconds: float = 400,
) -> Ended:
    """
    Calls a function of a module in a process of its own, or in several that train together on gloo.

    Args:
        log: a file for what they print.
        processes: if more than one, each has the environment that torchrun gives. When one fails, the others are
            killed, as by torchrun.
        largest: bytes that a file may have; what writes more gets an error, as on a full disk.
        seconds: after which the processes are killed; PATIENCE times as many.
    """
    environments: list[dict[str, str]] = [{}]
    if processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
        environments = [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
    log.unlink(missing_ok=True)
    running = [
        _CONTEXT.Process(target=_run, args=(function, arguments, environment, str(log), largest))
        for environment in environments
    ]
    for process in running:
        process.start()
    end = time.monotonic() + seconds * PATIENCE
    while any(process.is_alive() for process in running):
        failed = any(process.exitcode for process in running if not process.is_alive())
        if failed or time.monotonic() > end:
            for process in running:
                process.kill()
        running[0].join(0.02)
    codes = [process.exitcode or 0 for process in running]
    codes.sort(key=lambda code: code == -9)  # if one failed by itself, others were killed for it
    return Ended(next((code for code in codes if code), 0), log.read_text() if log.exists() else "")
