"""What a caption is worth in training by reward."""

from collections.abc import Mapping, Sequence

import numpy as np

from .cider import Cider, CiderD, DocumentFrequency
from .ptb_tokenizer import tokenize

# No tokenizer makes this word of text, so it stands for nothing but the end.
END = "<eos>"

METRICS = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "cider", "cider_d", "rouge_l")


class CaptionReward:
    """
    A weighted sum of metrics of single captions, in which the end of a caption is a word like the others. Without it a
    caption that breaks off ("a man with a") is worth as much as a whole one, and captioners learn to break off.

    Args:
        references: one or more captions of each of B images. CIDEr weighs words by how many of these images have them.
        weights: of the metrics' names, among bleu_1 to bleu_4 (0 to 1), cider, cider_d (0 to 10) and rouge_l (0 to 1);
            CIDEr-D alone by default.

    Raises:
        ValueError: if there are no references, an image has none, or a metric's name is unknown.
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
            images: the place of each one's image in `references`.
            ended: whether each one came to its end.

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
