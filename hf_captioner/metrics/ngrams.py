"""Counts of the n-grams (n = 1 to 4) of tokenised captions, as flat arrays that BLEU and CIDEr share."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from itertools import chain

import numpy as np

ORDERS = 4
# An n-gram is named by a 64-bit polynomial hash of its words' hashes, so it has the same name in every caption,
# process and file without a table of all n-grams. Among COCO's four million n-grams the chance of a single collision
# is below one in a million. Both multipliers are odd, hence invertible modulo 2^64.
_WORD_MULTIPLIER = np.uint64(0x9E3779B97F4A7C13)
_ROW_MULTIPLIER = np.uint64(0xD1B54A32D192ED03)


@dataclass(frozen=True)
class NgramCounts:
    """The distinct n-grams of each row, in ascending order of `key`. A row is a caption; E entries, R rows."""

    key: np.ndarray  # (E,) uint64, the n-gram within its row: see `keys`
    ngram: np.ndarray  # (E,) uint64, the n-gram's name
    row: np.ndarray  # (E,)
    order: np.ndarray  # (E,) n - 1
    count: np.ndarray  # (E,) how often the row has this n-gram
    length: np.ndarray  # (R,) number of words of each row

    def sum_by_row_and_order(self, values: np.ndarray) -> np.ndarray:
        """Sums `values (E,)`, one for each entry, to (R, 4)."""
        rows = len(self.length)
        return np.bincount(self.row * ORDERS + self.order, values, rows * ORDERS).reshape(rows, ORDERS)


@lru_cache(maxsize=1 << 17)
def _word_hash(word: str) -> int:
    return int.from_bytes(blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def keys(ngram: np.ndarray, row: np.ndarray) -> np.ndarray:
    """One uint64 for the pair (n-gram, row), the same wherever the pair is met."""
    return ngram + row.astype(np.uint64) * _ROW_MULTIPLIER


def count_ngrams(captions: Sequence[Sequence[str]]) -> NgramCounts:
    """Counts the n-grams of each caption, given as a list of words; row i is caption i."""
    length = np.fromiter(map(len, captions), np.int64, len(captions))
    total = int(length.sum())
    words = np.fromiter(map(_word_hash, chain.from_iterable(captions)), np.uint64, total)
    row = np.repeat(np.arange(len(captions)), length)
    words_left = np.repeat(np.cumsum(length), length) - np.arange(total)  # from here to the caption's end

    ngrams, rows, orders = [], [], []
    ngram = words
    for order in range(ORDERS):
        if order:
            ngram = ngram[:-1] * _WORD_MULTIPLIER + words[order:]
        starts = words_left[: len(ngram)] > order
        ngrams.append(ngram[starts])
        rows.append(row[: len(ngram)][starts])
        orders.append(np.full(len(ngrams[-1]), order))
    ngram, row, order = np.concatenate(ngrams), np.concatenate(rows), np.concatenate(orders)

    key = keys(ngram, row)
    by_key = np.argsort(key)
    key = key[by_key]
    first = np.flatnonzero(np.diff(key, prepend=~key[:1]) != 0)
    count = np.diff(first, append=len(key))
    chosen = by_key[first]
    return NgramCounts(key[first], ngram[chosen], row[chosen], order[chosen], count, length)


def find(wanted: np.ndarray, sorted_keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where `wanted (W,)` stand in `sorted_keys (K,)`: `hits`, the positions in `wanted` of those that are there at
    all, and `places`, their positions in `sorted_keys`."""
    if len(sorted_keys) == 0:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    places = np.minimum(np.searchsorted(sorted_keys, wanted), len(sorted_keys) - 1)
    hits = np.flatnonzero(sorted_keys[places] == wanted)
    return hits, places[hits]


def flatten_references(references: Sequence[Sequence[Sequence[str]]]) -> tuple[list[Sequence[str]], np.ndarray]:
    """All reference captions one after another, and the image (R,) that each belongs to."""
    image = np.repeat(np.arange(len(references)), [len(captions) for captions in references])
    return list(chain.from_iterable(references)), image
