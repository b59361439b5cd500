"""Counts of the n-grams (n = 1 to 4) of tokenised captions, as flat arrays that BLEU and CIDEr share."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from itertools import chain

import numpy as np

ORDERS = 4
# An n-gram is identified by a 64-bit polynomial hash of its words' hashes, which is the same in every caption, process
# and file, without a table of all n-grams. The probability of any collision among COCO's four million n-grams is below
# one in a million. The multiplier is odd, hence invertible modulo 2^64.
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C13)


@dataclass(frozen=True)
class NgramCounts:
    """The distinct n-grams of R captions (rows): E entries, sorted by n-gram (its hash) and then by row."""

    ngram: np.ndarray  # (E,) uint64
    row: np.ndarray  # (E,)
    order: np.ndarray  # (E,) n - 1
    count: np.ndarray  # (E,) how often the row has this n-gram
    length: np.ndarray  # (R,) number of words of each row

    def sum_by_row_and_order(self, values: np.ndarray) -> np.ndarray:
        """Sums `values (E,)`, one for each entry, to (R, 4)."""
        rows = len(self.length)
        return np.bincount(self.row * ORDERS + self.order, values, rows * ORDERS).reshape(rows, ORDERS)

    def find(self, ngram: np.ndarray, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Looks up pairs `ngram (W,)`, `row (W,)`: the indices in W of those that exist, and their entries."""
        starts = np.flatnonzero(_changes(self.ngram))
        found, place = find_ascending(ngram, self.ngram[starts])
        rows = len(self.length)
        rank = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(self.ngram)))
        again, entries = find_ascending(place * rows + row[found], rank * rows + self.row)
        return found[again], entries


@lru_cache(maxsize=1 << 17)
def _word_hash(word: str) -> int:
    if word.split() != [word]:
        return 0  # a token with a space in it ("3 1/2") is several words for COCO's BLEU and CIDEr
    return int.from_bytes(blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def count_ngrams(captions: Sequence[Sequence[str]]) -> NgramCounts:
    """Counts the n-grams of each caption, given as a list of words; row i is caption i."""
    length = np.fromiter(map(len, captions), np.int64, len(captions))
    total = int(length.sum())
    words = np.fromiter(map(_word_hash, chain.from_iterable(captions)), np.uint64, total)
    if not words.all():
        return count_ngrams([" ".join(caption).split() for caption in captions])
    row = np.repeat(np.arange(len(captions)), length)
    words_left = np.repeat(np.cumsum(length), length) - np.arange(total)  # from here to the caption's end

    ngrams, rows, orders = [], [], []
    ngram = words
    for longer in range(ORDERS):  # words beyond the first
        if longer:
            ngram = ngram[:-1] * _MULTIPLIER + words[longer:]
        starts = np.flatnonzero(words_left[: len(ngram)] > longer)
        ngrams.append(ngram[starts])
        rows.append(row[starts])
        orders.append(np.full(len(starts), longer))
    ngram, row, order = np.concatenate(ngrams), np.concatenate(rows), np.concatenate(orders)

    by_ngram = np.argsort(ngram, kind="stable")  # stable: rows stay in order
    ngram, row = ngram[by_ngram], row[by_ngram]
    first = np.flatnonzero(_changes(ngram) | _changes(row))
    count = np.diff(first, append=len(ngram))
    return NgramCounts(ngram[first], row[first], order[by_ngram[first]], count, length)


def count_by_ngram(counts: NgramCounts, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct n-grams, ascending, and the number of images with each; `image (R,)` has, ascending, each row's."""
    image = image[counts.row]
    new_ngram = _changes(counts.ngram)
    starts = np.flatnonzero(new_ngram)
    images = np.cumsum(new_ngram | _changes(image))
    return counts.ngram[starts], np.diff(images[starts], append=images[-1:] + 1)


def _changes(values: np.ndarray) -> np.ndarray:
    """Where a value differs from the one before it, the first included."""
    changes = np.ones(len(values), bool)
    np.not_equal(values[1:], values[:-1], out=changes[1:])
    return changes


def find_ascending(wanted: np.ndarray, ascending: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if len(ascending) == 0:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    places = np.minimum(np.searchsorted(ascending, wanted), len(ascending) - 1)
    found = np.flatnonzero(ascending[places] == wanted)
    return found, places[found]


def check_references(candidates: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> None:
    """
    Raises:
        ValueError: there are more or fewer candidates than images, or an image has no reference.
    """
    if len(candidates) != len(references):
        raise ValueError(f"candidates must be one for each of the {len(references)} images, got {len(candidates)}")
    for place, captions in enumerate(references):
        if len(captions) == 0:
            raise ValueError(f"references[{place}] must hold at least one caption, got none")


def flatten_references(references: Sequence[Sequence[Sequence[str]]]) -> tuple[list[Sequence[str]], np.ndarray]:
    """All reference captions in one list, and the index of the image (R,) that each belongs to."""
    image = np.repeat(np.arange(len(references)), [len(captions) for captions in references])
    return list(chain.from_iterable(references)), image
