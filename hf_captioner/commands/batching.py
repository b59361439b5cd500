"""Items that arrive one by one are worked on together, by one thread."""

import queue
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from typing import Any


class Batcher:
    """
    One thread, which alone does the work. It takes the first item that arrives, waits a moment for others, and works
    on all of them together; what arrives meanwhile is the next batch.

    Args:
        work: gives a list of results, one an item, in order. If it fails, every item of the batch is tried alone, so
            that an item that cannot be worked on takes no other along.
        most: items of a batch.
        wait: seconds after the first item until which others are waited for, if it is no full batch before.
        kind: items of which this is another are worked on apart; by default all go together.
        observe: called with every batch's number of items and seconds.
    """

    def __init__(
        self,
        work: Callable[[list], Sequence],
        most: int = 16,
        wait: float = 0.005,
        kind: Callable[[Any], Hashable] = lambda item: None,
        observe: Callable[[int, float], None] = lambda items, seconds: None,
    ):
        self.work, self.most, self.wait, self.kind, self.observe = work, most, wait, kind, observe
        self._queue: queue.SimpleQueue[tuple[Any, Future] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="captioner", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def submit(self, item: Any) -> Future:
        """The item's result as soon as there is one, or what `work` raised; one that is cancelled is left out."""
        future: Future = Future()
        self._queue.put((item, future))
        return future

    def close(self) -> None:
        """Ends the thread when it is through with all that was submitted."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        ends = False
        while not ends:
            batch, ends = self._next()
            kinds: dict[Hashable, list] = {}
            for item, future in batch:
                if future.set_running_or_notify_cancel():
                    kinds.setdefault(self.kind(item), []).append((item, future))
            for pairs in kinds.values():
                self._do(pairs)

    def _next(self) -> tuple[list[tuple[Any, Future]], bool]:
        """A batch, and whether it is the last."""
        batch: list[tuple[Any, Future]] = []
        end = None
        while len(batch) < self.most:
            try:
                # what is there already is taken without a look at the clock
                one = self._queue.get(timeout=None if end is None else max(0.0, end - time.monotonic()))
            except queue.Empty:
                break
            if one is None:
                return batch, True
            batch.append(one)
            end = time.monotonic() + self.wait if end is None else end
        return batch, False

    def _do(self, pairs: list[tuple[Any, Future]]) -> None:
        start = time.monotonic()
        try:
            results = list(self.work([item for item, _ in pairs]))
            if len(results) != len(pairs):
                raise RuntimeError(f"`work` must give a result an item, got {len(results)} of {len(pairs)}")
        except Exception as error:
            if len(pairs) == 1:
                pairs[0][1].set_exception(error)
            else:
                for pair in pairs:
                    self._do([pair])
            return
        # before the results are, so that who asks when its result is there finds it counted
        self.observe(len(pairs), time.monotonic() - start)
        for (_, future), result in zip(pairs, results, strict=True):
            future.set_result(result)
