"""Captioning in several processes of one machine: every image once, in order, whatever becomes of a process."""

import os
import signal
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from itertools import islice
from multiprocessing import get_context

import torch

from ..data.image_files import ImageFile, read_ahead
from ..memory import keep_freed_memory
from .captioner import THREADS, Captioner, Settings

ATTEMPTS = 4  # at a batch; the later half of them alone, so that it is known whose fault it is
AHEAD = 2  # batches for each process that are begun before their turn


class BatchCaptioner:
    """
    A captioner for batches of images, each of which fails alone.

    Args:
        settings: of the captioner.

    Raises:
        InputError: if there is no such captioner, or it cannot do what is asked.
    """

    def __init__(self, settings: Settings):
        self.captioner = Captioner(settings)

    def __call__(self, images: list[ImageFile]) -> list[dict]:
        """A row for each image of a batch, in order: its caption and score, or its error."""
        return [row for rows in self.batches(images, len(images)) for row in rows]

    def batches(self, images: Iterable[ImageFile], batch_size: int) -> Iterator[list[dict]]:
        """The rows of batch after batch, whose images are read while the model is at the batch before."""
        batch = []
        for one in read_ahead(self.captioner.read, images, THREADS, THREADS + 2 * batch_size):
            batch.append(one)
            if len(batch) == batch_size:
                yield self.captioner.rows(batch)
                batch = []
        if batch:
            yield self.captioner.rows(batch)


@dataclass
class _Batch:
    images: list[ImageFile]
    attempts: int = 0
    rows: Future | None = None


def caption_in_processes(
    images: Iterable[ImageFile], settings: Settings, batch_size: int, processes: int
) -> Iterator[list[dict]]:
    """
    The rows of batches of images, in order.

    A process that ends, killed for its memory or by a fault in a decoder, takes no image along: what was in work is
    begun again by new processes. Where that happens again and again to a batch, its images are captioned one by one,
    and the one that is to blame becomes a row with an error.

    Args:
        images: any number; a few batches at a time are in memory.
        settings: of the captioner, which every process loads for itself.
        batch_size: images of a batch.
        processes: that share the processor's cores.

    Raises:
        InputError: if there is no such captioner, or it cannot do what is asked.
    """
    images, waiting = iter(images), deque[_Batch]()
    pool = _pool(processes)
    try:
        while True:
            suspects = any(batch.attempts >= ATTEMPTS // 2 for batch in waiting)
            while not suspects and len(waiting) < AHEAD * processes and (part := list(islice(images, batch_size))):
                waiting.append(_Batch(part))
            if not waiting:
                return
            first = waiting[0]
            try:
                for batch in [first] if suspects else waiting:
                    if batch.rows is None:
                        batch.rows = pool.submit(_caption, settings, batch.images)
                assert first.rows is not None
                rows = first.rows.result()
            except BrokenProcessPool:
                pool.shutdown()
                pool = _pool(processes)
                for batch in waiting:
                    if batch.rows is not None and not _is_done(batch.rows):
                        batch.rows, batch.attempts = None, batch.attempts + 1
                if first.attempts < ATTEMPTS:
                    continue
                if len(first.images) > 1:
                    waiting.popleft()
                    waiting.extendleft(_Batch([image], ATTEMPTS // 2) for image in reversed(first.images))
                    continue
                why = f"a process that captions ended {ATTEMPTS - ATTEMPTS // 2} times while it had this image alone"
                rows = [{"image": first.images[0].name, "error": why}]
            waiting.popleft()
            yield rows
    finally:
        pool.shutdown(cancel_futures=True)


def _is_done(rows: Future) -> bool:
    return rows.done() and rows.exception() is None


def _pool(processes: int) -> ProcessPoolExecutor:
    threads = max(1, torch.get_num_threads() // processes)
    # not forked: threads of torch do not survive that
    return ProcessPoolExecutor(processes, get_context("spawn"), partial(_begin, threads))


def _begin(threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C stops the process that asked for the work
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(threads)
    keep_freed_memory()


_captioner: BatchCaptioner | None = None  # of this process, loaded with its first batch


def _caption(settings: Settings, images: list[ImageFile]) -> list[dict]:
    global _captioner
    if _captioner is None:
        _captioner = BatchCaptioner(settings)
    return _captioner(images)
