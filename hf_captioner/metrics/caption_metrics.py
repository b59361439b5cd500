"""All metrics behind one `evaluate.Metric`."""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np

from .bleu import bleu_from_counts
from .cider import Cider, CiderD, DocumentFrequency
from .ngrams import count_ngrams, flatten_references
from .ptb_tokenizer import tokenize
from .rouge import rouge_l
from .scores import Scores

DEFAULT_METRICS = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider", "cider_d", "exact_match")


class CaptionMetrics(evaluate.Metric):
    def __init__(self, *args, keep_in_memory: bool | None = None, num_process: int = 1, **kwargs):
        # nothing on disk unless several processes share it: machines with a read-only home measure too
        if keep_in_memory is None:
            keep_in_memory = num_process == 1
        super().__init__(*args, keep_in_memory=keep_in_memory, num_process=num_process, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Image captioning metrics as the COCO caption evaluation defines them.",
            citation="",
            inputs_description="",
            features=datasets.Features(
                {
                    "predictions": datasets.Value("string"),
                    "references": datasets.Sequence(datasets.Value("string")),
                }
            ),
        )

    def _compute(
        self,
        predictions: Sequence[str],
        references: Sequence[Sequence[str]],
        metrics: Sequence[str] = DEFAULT_METRICS,
        per_image: bool = False,
        intervals: bool = False,
        document_frequency: DocumentFrequency | None = None,
    ) -> dict[str, Any]:
        candidates = tokenize(predictions)
        captions, image = flatten_references(references)
        captions = tokenize(captions)
        scores = self._scores(candidates, captions, image, metrics, document_frequency)
        result: dict[str, Any] = {name: scores[name].corpus for name in metrics}
        if per_image:
            result["per_image"] = {name: scores[name].per_image.tolist() for name in metrics}
        if intervals:
            result["intervals"] = {name: list(scores[name].confidence_interval()) for name in metrics}
        return result

    def _scores(self, candidates, captions, image, metrics, document_frequency) -> dict[str, Scores]:
        num_images = len(candidates)
        sizes = np.bincount(image, minlength=num_images)
        ends = np.cumsum(sizes)
        references = [captions[end - size : end] for size, end in zip(sizes, ends, strict=True)]
        counts, reference_counts = count_ngrams(candidates), count_ngrams(captions)
        frequency = document_frequency or DocumentFrequency.from_counts(reference_counts, image, num_images)
        scores = dict(zip(DEFAULT_METRICS[:4], bleu_from_counts(counts, reference_counts, image), strict=True))
        scores["rouge_l"] = rouge_l(candidates, references)
        for name, scorer in (("cider", Cider(frequency)), ("cider_d", CiderD(frequency))):
            cooked = scorer.cook_counts(reference_counts, sizes)
            scores[name] = Scores.from_mean(scorer.score_counts(counts, cooked))
        scores["exact_match"] = Scores.from_mean([c in r for c, r in zip(candidates, references, strict=True)])
        return scores
