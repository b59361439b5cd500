"""Minimum Bayes risk."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from ..compat import draw_samples
from ..errors import InputError
from ..metrics import Cider, CiderD, DocumentFrequency, tokenize
from ..metrics.reward import METRICS
from .candidates import chosen, said

Utility = Callable[[list[list[int]], list[list[int]]], Sequence[float]]


class MetricUtility:
    """
    A metric of single captions as the utility of [`minimum_bayes_risk`]: what a caption would score if its one
    reference were another.

    Args:
        tokenizer: of the captions.
        metric: one of `metrics.reward.METRICS`.
        document_frequency: for CIDEr, best that of the captions trained on. Without it all sequences of words weigh
            the same, since the samples of one image do not say which words are rare.

    Raises:
        InputError: if the metric is unknown, or has no document frequencies.

    Examples:
        >>> from hf_captioner import train_tokenizer
        >>> from hf_captioner.decoding import MetricUtility
        >>> tokenizer = train_tokenizer(["a dog runs on grass", "a cat runs"])
        >>> dog, cat = tokenizer(["a dog runs", "a cat runs"], add_special_tokens=False)["input_ids"]
        >>> MetricUtility(tokenizer, "rouge_l")([dog, dog], [dog, cat]).round(2)
        array([1.  , 0.67])
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        metric: str = "cider_d",
        document_frequency: DocumentFrequency | None = None,
    ):
        if metric not in METRICS:
            raise InputError(f"`utility` must be one of {', '.join(METRICS)}; got {metric!r}")
        scorers = {"cider": Cider, "cider_d": CiderD}
        if document_frequency is not None and metric not in scorers:
            raise InputError(f"`utility_frequency` must be left out with `utility` {metric!r}, which does not use it")
        # the same weight for all: it is in the vectors and in their norms, so that its size does not matter
        document_frequency = document_frequency or DocumentFrequency(np.empty(0, np.uint64), np.empty(0), 2)
        self.tokenizer, self.metric = tokenizer, metric
        self.scorer = scorers[metric](document_frequency) if metric in scorers else None

    def __call__(self, captions: list[list[int]], references: list[list[int]]) -> np.ndarray:
        """Twice n captions as lists of tokens -> n numbers. Equal pairs, of which samples have many, count once."""
        places: dict[tuple[int, ...], int] = {}
        pairs = [[places.setdefault(tuple(tokens), len(places)) for tokens in side] for side in (captions, references)]
        words = tokenize(self.tokenizer.batch_decode(list(map(list, places)), skip_special_tokens=True))
        (first, second), where = np.unique(np.array(pairs), axis=1, return_inverse=True)
        texts = [words[place] for place in first]
        if self.scorer is not None:
            values = self.scorer.score(texts, self.scorer.cook([[text] for text in words]).take(second))
        else:
            from ..metrics.caption_metrics import score_words  # imports `evaluate`, which CIDEr does without

            values = score_words(texts, [[words[place]] for place in second], [self.metric])[self.metric].per_image
        return values[where]


def minimum_bayes_risk(
    model,
    input_ids,
    logits_processor,
    stopping_criteria,
    generation_config,
    utility: Utility | None = None,
    **model_kwargs,
):
    """
    Of `num_return_sequences` sampled captions, the one that is on average most like the others (Freitag et al. 2022,
    "High Quality Rather than High Model Probability"). One caption is returned for each image.

        model.generate(pixel_values, custom_generate=minimum_bayes_risk, do_sample=True, num_return_sequences=20,
                       utility=utility)

    Args:
        utility: `utility(captions, references)` takes two lists of n captions as lists of tokens, the start and all
            after the end left out, and returns n numbers: how good each caption is if its reference is right.
            [`MetricUtility`] or a function.

    Returns:
        as `generate()`; `sequences_scores` are the mean utilities.

    Raises:
        InputError: without `utility` or `do_sample=True`, or if beams are asked for. Those of the captioner's own
            settings are not used.

    Examples:
        >>> import hf_captioner, torch
        >>> from transformers import pipeline
        >>> from hf_captioner.data import shapes_dataset
        >>> from hf_captioner.decoding import MetricUtility, minimum_bayes_risk
        >>> captioner, image = pipeline("image-captioning"), shapes_dataset(1)[0]["image"]
        >>> options = dict(utility=MetricUtility(captioner.tokenizer), do_sample=True)
        >>> _ = torch.manual_seed(0)
        >>> [caption] = captioner(image, decoding=minimum_bayes_risk, num_return_sequences=10, **options)
        >>> 0 < caption["search_score"] < 10  # its mean CIDEr-D to the ten samples, of which it is one
        True
    """
    if utility is None:
        raise InputError("minimum_bayes_risk must be given `utility`, got none")
    if not generation_config.do_sample:
        raise InputError("minimum_bayes_risk must be given `do_sample=True`: it chooses among sampled captions")
    if generation_config.num_beams != 1:
        beams = generation_config.num_beams
        raise InputError(f"`num_beams` must be left out or 1 with minimum_bayes_risk, which samples, got {beams}")
    count, prompt = generation_config.num_return_sequences, input_ids.shape[1]
    samples = draw_samples(
        model,
        input_ids,
        logits_processor=logits_processor,
        stopping_criteria=stopping_criteria,
        generation_config=generation_config,
        **model_kwargs,
    )
    tokens = samples.sequences if generation_config.return_dict_in_generate else samples
    captions = said(model, tokens, prompt)
    pairs = [
        (image + i, image + j) for image in range(0, len(captions), count) for i in range(count) for j in range(count)
    ]
    values = utility([captions[i] for i, _ in pairs], [captions[j] for _, j in pairs])
    means = torch.as_tensor(values, dtype=torch.float, device=tokens.device).view(-1, count, count).mean(2)
    scores, best = means.max(1)
    rows = best + torch.arange(len(best), device=best.device) * count
    return chosen(samples, rows, scores, prompt)


minimum_bayes_risk.generation_defaults = {"num_beams": 1}  # type: ignore[attr-defined]
