"""
Counts of what a server does, in the text format that Prometheus reads
(https://prometheus.io/docs/instrumenting/exposition_formats/, version 0.0.4).
"""

import threading
from bisect import bisect_left
from collections.abc import Callable, Sequence


class Count:
    """
    A number that only grows, for every value of its labels.

    Args:
        help: what is counted.
        labels: their names. Their values must be few, and come from us rather than from requests.
    """

    def __init__(self, help: str, *labels: str):
        self.help, self.labels = help, labels
        self._values: dict[tuple[str, ...], float] = {} if labels else {(): 0}
        self._lock = threading.Lock()

    def add(self, *values: object, by: float = 1) -> None:
        key = tuple(map(str, values))
        with self._lock:
            self._values[key] = self._values.get(key, 0) + by

    def value(self, *values: object) -> float:
        return self._values.get(tuple(map(str, values)), 0)

    def lines(self, name: str) -> list[str]:
        with self._lock:
            found = sorted(self._values.items())
        lines = [f"# HELP {name} {self.help}", f"# TYPE {name} counter"]
        for values, number in found:
            pairs = ",".join(f'{label}="{value}"' for label, value in zip(self.labels, values, strict=True))
            lines.append(f"{name}{{{pairs}}} {number}" if pairs else f"{name} {number}")
        return lines


class Spread:
    """
    How often a quantity was at most this or that, its sum and its count: a histogram.

    Args:
        help: what is measured, with its unit.
        bounds: in ascending order.
    """

    def __init__(self, help: str, bounds: Sequence[float]):
        self.help, self.bounds = help, tuple(bounds)
        self._counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0
        self._lock = threading.Lock()

    @property
    def count(self) -> int:
        return sum(self._counts)

    def add(self, value: float) -> None:
        with self._lock:
            self._counts[bisect_left(self.bounds, value)] += 1
            self.sum += value

    def lines(self, name: str) -> list[str]:
        with self._lock:
            counts, total = list(self._counts), self.sum
        lines = [f"# HELP {name} {self.help}", f"# TYPE {name} histogram"]
        so_far = 0
        for bound, count in zip([*map("{:g}".format, self.bounds), "+Inf"], counts, strict=True):
            so_far += count
            lines.append(f'{name}_bucket{{le="{bound}"}} {so_far}')
        return [*lines, f"{name}_sum {total}", f"{name}_count {so_far}"]


class Now:
    """A number that goes up and down, looked up when it is asked for."""

    def __init__(self, help: str, look: Callable[[], float]):
        self.help, self.look = help, look

    def lines(self, name: str) -> list[str]:
        return [f"# HELP {name} {self.help}", f"# TYPE {name} gauge", f"{name} {self.look()}"]


def exposition(metrics: dict[str, Count | Spread | Now]) -> str:
    """All of them, by name."""
    return "".join(line + "\n" for name, metric in metrics.items() for line in metric.lines(name))
