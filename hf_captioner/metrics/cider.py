"""CIDEr and CIDEr-D (Vedantam, Zitnick and Parikh 2015), fast enough to be a reward in training."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .ngrams import ORDERS, NgramCounts, count_by_ngram, count_ngrams, find_ascending, flatten_references

SIGMA = 6.0


class DocumentFrequency:
    """Document frequencies: in how many images each n-gram occurs. CIDEr computes its weights from them.

    Args:
        ngrams: (K,) uint64, hashes of n-grams, ascending (see `NgramCounts`).
        counts: (K,) number of images with that n-gram in at least one reference.
        num_images: number of images counted.

    Raises:
        ValueError: `num_images` is below 1, or `counts` are more or fewer than `ngrams`.

    Examples:
        >>> from hf_captioner.metrics import DocumentFrequency, tokenize
        >>> references = [tokenize(["A dog runs.", "A dog."]), tokenize(["A cat sleeps."]), tokenize(["A cat."])]
        >>> frequency = DocumentFrequency.from_references(references)
        >>> frequency.num_images, int(frequency.counts.max())  # "a" occurs in every image
        (3, 3)
        >>> frequency.save("frequency.npz")
        >>> DocumentFrequency.load("frequency.npz").num_images
        3
    """

    def __init__(self, ngrams: np.ndarray, counts: np.ndarray, num_images: int):
        if num_images < 1:
            raise ValueError(f"num_images must be at least 1, got {num_images}")
        if len(ngrams) != len(counts):
            raise ValueError(f"counts must be as many as ngrams ({len(ngrams)}), got {len(counts)}")
        self.ngrams, self.counts, self.num_images = ngrams, counts, num_images

    @classmethod
    def from_references(cls, references: Sequence[Sequence[Sequence[str]]]) -> "DocumentFrequency":
        """Counts the tokenised references (images, captions, words)."""
        captions, image = flatten_references(references)
        return cls.from_counts(count_ngrams(captions), image, len(references))

    @classmethod
    def from_counts(cls, counts: NgramCounts, image: np.ndarray, num_images: int) -> "DocumentFrequency":
        """As `from_references`, from counted n-grams; `image (R,)` is the image of each reference's row."""
        ngrams, images = count_by_ngram(counts, image)
        return cls(ngrams, images, num_images)

    def inverse(self, ngrams: np.ndarray) -> np.ndarray:
        """log(images / images with the n-gram) for each of `ngrams (E,)`; an unknown n-gram counts as in one image."""
        found, places = find_ascending(ngrams, self.ngrams)
        counts = np.ones(len(ngrams))
        counts[found] = self.counts[places]
        return np.log(self.num_images) - np.log(counts)

    def save(self, path: str | os.PathLike) -> None:
        """Writes one .npz file with three arrays, without pickled objects."""
        with open(path, "wb") as file:
            np.savez(file, ngrams=self.ngrams, counts=self.counts, num_images=np.int64(self.num_images))

    @classmethod
    def load(cls, path: str | os.PathLike) -> "DocumentFrequency":
        """Reads what `save` wrote.

        Raises:
            ValueError: the file does not hold document frequencies.
        """
        with np.load(path, allow_pickle=False) as file:
            if not {"ngrams", "counts", "num_images"} <= set(file):
                raise ValueError(f"path must be a file that DocumentFrequency.save wrote, got {os.fspath(path)!r}")
            return cls(file["ngrams"], file["counts"], int(file["num_images"]))


@dataclass(frozen=True)
class CookedReferences:
    """References with precomputed weights and norms, for scoring against them many times: R captions of B images, with
    E distinct pairs of n-gram and caption.

    Examples:
        >>> from hf_captioner.metrics import CiderD, DocumentFrequency, tokenize
        >>> references = [tokenize(["A dog runs.", "A dog."]), tokenize(["A cat sleeps."])]
        >>> cooked = CiderD(DocumentFrequency.from_references(references)).cook(references)
        >>> cooked.captions_per_image, cooked.take([1, 1, 0]).captions_per_image
        (array([2, 1]), array([1, 1, 2]))
    """

    ngram: np.ndarray  # (E,) uint64
    order: np.ndarray  # (E,) n - 1
    weight: np.ndarray  # (E,) term frequency times inverse document frequency
    caption: np.ndarray  # (E,) the caption it belongs to
    norm: np.ndarray  # (R, 4)
    length: np.ndarray  # (R,)
    captions_per_image: np.ndarray  # (B,); the captions of an image are adjacent

    def take(self, images: Sequence[int] | np.ndarray) -> "CookedReferences":
        """The references of `images`, in that order; an image may come several times (one for each sample)."""
        images = np.asarray(images, np.int64)
        captions, _ = _members(self.captions_per_image, images)
        places, caption = _members(self._entries_per_caption, captions)
        entries = self._by_caption[places]
        return CookedReferences(
            self.ngram[entries],
            self.order[entries],
            self.weight[entries],
            caption,
            self.norm[captions],
            self.length[captions],
            self.captions_per_image[images],
        )

    @cached_property
    def _entries_per_caption(self) -> np.ndarray:
        return np.bincount(self.caption, minlength=len(self.length))

    @cached_property
    def _by_caption(self) -> np.ndarray:
        return np.argsort(self.caption, kind="stable")


class Cider:
    """Plain CIDEr (equations 1 to 3 of the paper): the mean over references, and over n = 1 to 4, of the cosine
    between tf-idf vectors of n-grams. Times 10, as in the authors' code. Words are not stemmed, as in the COCO code.

    Args:
        document_frequency: the document frequencies of a corpus of references. If it has a single image, every weight
            is log 1 = 0, and so is every score.

    Examples:
        >>> from hf_captioner.metrics import Cider, DocumentFrequency, tokenize
        >>> references = [tokenize(["A dog runs.", "A dog."]), tokenize(["A cat sleeps."])]
        >>> cider = Cider(DocumentFrequency.from_references(references))
        >>> cider.score(tokenize(["a dog runs", "a cat"]), cider.cook(references)).round(2)
        array([5.52, 3.54])
    """

    def __init__(self, document_frequency: DocumentFrequency):
        self.document_frequency = document_frequency

    def cook(self, references: Sequence[Sequence[Sequence[str]]]) -> CookedReferences:
        """Prepares tokenised references (images, captions, words) for `score`.

        Raises:
            ValueError: an image has no reference.
        """
        for place, truths in enumerate(references):
            if len(truths) == 0:
                raise ValueError(f"references[{place}] must hold at least one caption, got none")
        captions, image = flatten_references(references)
        return self.cook_counts(count_ngrams(captions), np.bincount(image))

    def cook_counts(self, counts: NgramCounts, captions_per_image: np.ndarray) -> CookedReferences:
        """As `cook`, from counted n-grams."""
        weight, norm = self._weigh(counts)
        return CookedReferences(
            counts.ngram, counts.order, weight, counts.row, norm, counts.length, captions_per_image
        )

    def score(self, candidates: Sequence[Sequence[str]], references: CookedReferences) -> np.ndarray:
        """Scores (B,) of one candidate, a list of words, for each image of `references`.

        Raises:
            ValueError: there are more or fewer candidates than images.
        """
        return self.score_counts(count_ngrams(candidates), references)

    def score_counts(self, candidates: NgramCounts, references: CookedReferences) -> np.ndarray:
        """As `score`, from counted n-grams."""
        images, captions = len(references.captions_per_image), len(references.length)
        if len(candidates.length) != images:
            raise ValueError(f"candidates must be one for each of the {images} images, got {len(candidates.length)}")
        weight, norm = self._weigh(candidates)
        image = np.repeat(np.arange(images), references.captions_per_image)  # (R,)

        found, entries = candidates.find(references.ngram, image[references.caption])
        products = self._product(weight[entries], references.weight[found])
        cell = references.caption[found] * ORDERS + references.order[found]
        dot = np.bincount(cell, products, captions * ORDERS).reshape(captions, ORDERS)
        norms = norm[image] * references.norm
        # a caption shorter than n words has no n-gram and a norm of 0: no similarity, not 0 / 0
        cosine = np.divide(dot, norms, out=np.zeros_like(norms), where=norms > 0)
        similarity = cosine.mean(axis=1) * self._length_penalty(candidates.length[image], references.length)
        return 10 * np.bincount(image, similarity, images) / references.captions_per_image

    def _weigh(self, counts: NgramCounts) -> tuple[np.ndarray, np.ndarray]:
        """The tf-idf weight (E,) of each entry and the vectors' norms (R, 4)."""
        weight = counts.count * self.document_frequency.inverse(counts.ngram)
        return weight, np.sqrt(counts.sum_by_row_and_order(weight**2))

    def _product(self, candidate: np.ndarray, reference: np.ndarray) -> np.ndarray:
        return candidate * reference

    def _length_penalty(self, candidate: np.ndarray, reference: np.ndarray) -> np.ndarray:
        return np.ones(len(reference))


class CiderD(Cider):
    """CIDEr-D (equation 4 of the paper, sigma = 6), which the COCO evaluation prints as "CIDEr": repeating a word
    does not raise the score (clipping), and a Gaussian penalises lengths that differ from the reference's.

    Examples:
        In a training loop, references are cooked once, and taken for the image of each sample:

        >>> from hf_captioner.metrics import CiderD, DocumentFrequency, tokenize
        >>> references = [tokenize(["A dog runs.", "A dog."]), tokenize(["A cat sleeps."])]
        >>> cider_d = CiderD(DocumentFrequency.from_references(references))
        >>> cooked = cider_d.cook(references)
        >>> samples, images = tokenize(["a dog runs", "a dog dog dog", "a cat sleeps"]), [0, 0, 1]
        >>> cider_d.score(samples, cooked.take(images)).round(2)
        array([5.49, 1.6 , 7.5 ])
    """

    def _product(self, candidate: np.ndarray, reference: np.ndarray) -> np.ndarray:
        return np.minimum(candidate, reference) * reference

    def _length_penalty(self, candidate: np.ndarray, reference: np.ndarray) -> np.ndarray:
        # COCO's code uses the number of bigrams as the length, so captions of no word and of one word are equally long
        difference = np.maximum(candidate, 1) - np.maximum(reference, 1)
        return np.exp(-(difference**2) / (2 * SIGMA**2))


def _members(sizes: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For an array in which group g has `sizes[g]` adjacent members: the positions of all members of `groups`, and for
    each member the index of its group in `groups`."""
    chosen = sizes[groups]
    starts = (np.cumsum(sizes) - sizes)[groups]
    group = np.repeat(np.arange(len(groups)), chosen)
    return np.arange(len(group)) + (starts - np.cumsum(chosen) + chosen)[group], group
