"""Rewards of captions for training by reward."""

from collections.abc import Mapping, Sequence

import numpy as np

from .cider import Cider, CiderD, DocumentFrequency
from .ptb_tokenizer import tokenize

# Stands for the end of a caption; tokenised text never contains it.
END = "<eos>"

METRICS = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "cider", "cider_d", "rouge_l")


class CaptionReward:
    """
    A weighted sum of metrics of single captions, in which the end of a caption counts as a word. Otherwise a caption
    that stops early ("a man with a") could get the same reward as a complete one, and captioners learn to stop early.

    Args:
        references: one or more captions for each of B images. CIDEr takes its document frequencies from them.
        weights: from the name of a metric to its weight. Metrics are bleu_1 to bleu_4 and rouge_l (0 to 1), cider and
            cider_d (0 to 10). By default CIDEr-D alone.

    Raises:
        ValueError: if there are no references, an image has none, or a metric's name is unknown.

    Examples:
        >>> from hf_captioner.metrics import CaptionReward
        >>> reward = CaptionReward([["a man with a hat"], ["a dog runs"]], weights={"bleu_2": 1.0})
        >>> reward(["a man with a hat", "a man with a"], images=[0, 0], ended=[True, True]).round(2)
        array([1.  , 0.71])
    """

    def __init__(self, references: Sequence[Sequence[str]], weights: Mapping[str, float] | None = None):
        self.weights = dict(weights or {"cider_d": 1.0})
        for name in self.weights:
            if name not in METRICS:
                raise ValueError(f"`weights` must be of {', '.join(METRICS)}; got {name!r}")
        if not len(references):
            raise ValueError("`references` must hold the captions of at least one image, got none")
        self._references = [[[*words, END] for words in tokenize(captions)] for captions in references]
        frequency = DocumentFrequency.from_references(self._references)
        scorers = {"cider": Cider(frequency), "cider_d": CiderD(frequency)}
        self._scorers = {name: scorer for name, scorer in scorers.items() if name in self.weights}
        self._cooked = {name: scorer.cook(self._references) for name, scorer in self._scorers.items()}

    def __call__(self, captions: Sequence[str], images: Sequence[int], ended: Sequence[bool], **kwargs) -> np.ndarray:
        """
        Args:
            captions: n texts.
            images: for each caption, the index of its image in `references`.
            ended: for each caption, whether it ends with EOS (and was not cut off).

        Returns:
            rewards (n,), float64.
        """
        words = [[*text, END] if end else text for text, end in zip(tokenize(captions), ended, strict=True)]
        scores = {name: scorer.score(words, self._cooked[name].take(images)) for name, scorer in self._scorers.items()}
        others = [name for name in self.weights if name not in scores]
        if others:
            from .caption_metrics import score_words  # imports `evaluate`, which CIDEr does without

            found = score_words(words, [self._references[image] for image in images], others)
            scores |= {name: found[name].per_image for name in others}
        return np.sum([weight * scores[name] for name, weight in self.weights.items()], axis=0)
