"""Items that arrive one by one are worked on together."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from hf_captioner.commands.batching import Batcher


class Work:
    """Squares numbers; negative ones fail. Keeps the batches it was given, and waits while it is held."""

    def __init__(self, held: bool = False):
        self.batches, self.threads = [], set()
        self.may_go = threading.Event()
        if not held:
            self.may_go.set()

    def __call__(self, items: list[int]) -> list[int]:
        assert self.may_go.wait(30)
        self.batches.append(items)
        self.threads.add(threading.get_ident())
        if any(item < 0 for item in items):
            raise ValueError(f"must not be negative, got {min(items)}")
        return [item * item for item in items]


def until(condition) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_every_item_has_its_own_result_whatever_it_is_worked_on_with():
    work, seen = Work(), []
    batcher = Batcher(work, most=7, wait=0.002, observe=lambda items, seconds: seen.append((items, seconds)))
    numbers = np.random.default_rng(0).integers(0, 10_000, 400).tolist()
    with ThreadPoolExecutor(16) as clients:
        found = list(clients.map(lambda number: batcher.submit(number).result(30), numbers))
    batcher.close()
    assert found == [number * number for number in numbers]
    assert sorted(number for batch in work.batches for number in batch) == sorted(numbers)
    assert max(map(len, work.batches)) <= 7 and len(work.batches) < len(numbers)
    assert [items for items, _ in seen] == [len(batch) for batch in work.batches]
    assert all(seconds >= 0 for _, seconds in seen)
    assert len(work.threads) == 1 and threading.get_ident() not in work.threads


def test_what_arrives_while_others_are_worked_on_is_the_next_batch():
    work = Work(held=True)
    batcher = Batcher(work, most=4, wait=0.0)
    first = batcher.submit(1)
    until(lambda: first.running())
    rest = [batcher.submit(number) for number in range(2, 9)]
    work.may_go.set()
    assert [future.result(30) for future in rest] == [number * number for number in range(2, 9)]
    assert work.batches == [[1], [2, 3, 4, 5], [6, 7, 8]]
    batcher.close()


def test_the_first_waits_for_others_but_a_full_batch_for_none():
    work = Work()
    batcher = Batcher(work, most=3, wait=20.0)
    start = time.monotonic()
    found = [batcher.submit(number) for number in (1, 2, 3)]
    assert [future.result(30) for future in found] == [1, 4, 9] and time.monotonic() - start < 10
    batcher.wait = 0.2
    found = [batcher.submit(4)]
    time.sleep(0.02)
    found.append(batcher.submit(5))
    assert [future.result(30) for future in found] == [16, 25]
    assert work.batches == [[1, 2, 3], [4, 5]]
    batcher.close()


def test_what_fails_fails_alone():
    work, seen = Work(held=True), []
    batcher = Batcher(work, most=5, wait=0.0, observe=lambda items, seconds: seen.append(items))
    futures = [batcher.submit(0)]
    until(lambda: futures[0].running())
    futures += [batcher.submit(number) for number in (3, -2, 5, -7)]
    work.may_go.set()
    assert [futures[place].result(30) for place in (0, 1, 3)] == [0, 9, 25]
    for place, number in ((2, -2), (4, -7)):
        with pytest.raises(ValueError, match=f"got {number}"):
            futures[place].result(30)
    assert work.batches == [[0], [3, -2, 5, -7], [3], [-2], [5], [-7]] and seen == [1, 1, 1]
    assert batcher.submit(6).result(30) == 36 and batcher.alive
    batcher.close()
    assert not batcher.alive


def test_other_kinds_are_worked_on_apart():
    work = Work(held=True)
    batcher = Batcher(work, most=6, wait=0.0, kind=lambda number: number % 3)
    first = batcher.submit(30)
    until(lambda: first.running())
    rest = [batcher.submit(number) for number in (1, 2, 4, 3, 5, 7)]
    work.may_go.set()
    assert [future.result(30) for future in rest] == [1, 4, 16, 9, 25, 49]
    assert work.batches == [[30], [1, 4, 7], [2, 5], [3]]
    batcher.close()


def test_what_is_cancelled_is_not_worked_on():
    work = Work(held=True)
    batcher = Batcher(work, most=4, wait=0.0)
    first = batcher.submit(1)
    until(lambda: first.running())
    second, third = batcher.submit(2), batcher.submit(3)
    assert second.cancel() and not first.cancel()
    work.may_go.set()
    assert (first.result(30), third.result(30)) == (1, 9) and work.batches == [[1], [3]]
    batcher.close()


def test_it_ends_when_all_is_done():
    work = Work(held=True)
    batcher = Batcher(work, most=2, wait=0.0)
    futures = [batcher.submit(number) for number in range(5)]
    closing = threading.Thread(target=batcher.close)
    closing.start()
    time.sleep(0.05)
    assert closing.is_alive() and not futures[-1].done()
    work.may_go.set()
    closing.join(30)
    assert [future.result(0) for future in futures] == [0, 1, 4, 9, 16] and not batcher.alive


def test_a_result_too_few_is_an_error_and_nobody_waits_for_ever():
    batcher = Batcher(lambda items: [], most=2, wait=0.0)
    with pytest.raises(RuntimeError, match="a result an item, got 0 of 1"):
        batcher.submit(1).result(30)
    batcher.close()
