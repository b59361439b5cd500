"""All metrics as one `evaluate.Metric`."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import datasets
import evaluate
import numpy as np

from ..compat import MetricWithoutFolder
from . import java
from .bleu_score import bleu_from_counts
from .chair_score import COCO_WORDS, chair
from .cider import Cider, CiderD, DocumentFrequency
from .clip import clip_scores
from .image_use_score import image_use
from .meteor import meteor_exact_stem
from .ngrams import count_ngrams, flatten_references
from .ptb_tokenizer import tokenize
from .rouge import rouge_l
from .scores import NotAvailableError, Scores

BLEU = ("bleu_1", "bleu_2", "bleu_3", "bleu_4")
DEFAULT_METRICS = (*BLEU, "rouge_l", "cider", "cider_d", "meteor_exact_stem", "exact_match")
"""What is computed if nothing else is asked for: all that needs neither Java nor a model.

Examples:
    >>> from hf_captioner.metrics import DEFAULT_METRICS
    >>> "cider_d" in DEFAULT_METRICS, "spice" in DEFAULT_METRICS
    (True, False)
"""

CLIP, CHAIR = ("clip_score", "ref_clip_score"), ("chair_i", "chair_s")
ALL_METRICS = (*DEFAULT_METRICS, "image_use", "meteor_1.5", "spice", "spider", *CLIP, *CHAIR)
"""The names of all metrics; those beyond the default ones may not be available on a machine, and then say why.

Examples:
    >>> from hf_captioner.metrics import ALL_METRICS, DEFAULT_METRICS
    >>> [name for name in ALL_METRICS if name not in DEFAULT_METRICS]
    ['image_use', 'meteor_1.5', 'spice', 'spider', 'clip_score', 'ref_clip_score', 'chair_i', 'chair_s']
"""

_DESCRIPTION = """\
BLEU-1 to 4, ROUGE-L and CIDEr-D as the COCO caption evaluation computes them, on the tokens that it computes them on,
and further caption metrics."""

_INPUTS = """
Args:
    predictions (list of str): one caption for each image.
    references (list of list of str): one or more captions for each image.
    metrics (list of str): metrics to compute, by default all that need neither Java nor a model: `bleu_1` to `bleu_4`,
        `rouge_l`, `cider`, `cider_d`, `meteor_exact_stem`, `exact_match` (share of captions equal to one of their
        references word for word). Also `meteor_1.5` and `spice` (Java, pycocoevalcap) and `clip_score` (`images`,
        `clip_folder`).
    per_image (bool): add `per_image`, the scores of each image by metric.
    intervals (bool): add `intervals`, the 95 % bootstrap interval over images by metric.
    document_frequency (DocumentFrequency): precomputed document frequencies for CIDEr. By default they are counted in
        `references`, as in the COCO evaluation; a single image then scores 0.
    images (list of PIL images or paths): one for each prediction, for `clip_score`.
    clip_folder (path): a folder with a CLIP model, for `clip_score` and `ref_clip_score`.
    java_dir (path): a folder with the jars of METEOR and SPICE; nothing is downloaded.
    objects (list of lists of str): the objects in each image, for `chair_i` and `chair_s`.
    object_words (dict): from what captions say to the names in `objects`, by default those of COCO.

Returns:
    A dict from each metric's name to its corpus score: 0 to 1, CIDEr 0 to 10, `image_use` -10 to 10, SPIDEr 0 to 5.5,
    CLIPScore 0 to 2.5, RefCLIPScore 0 to 1.43. The value of a
    metric that cannot be computed on this machine is a text, "not available, because ...".

Raises:
    TypeError: a caption is not a string, or an image's references are not a list.
    ValueError: there are no predictions, or more or fewer than references; an image has no reference; a metric is
        unknown.
"""

_CITATION = """\
@article{chen2015microsoft,
  title={Microsoft COCO Captions: Data Collection and Evaluation Server},
  author={Chen, Xinlei and Fang, Hao and Lin, Tsung-Yi and Vedantam, Ramakrishna and Gupta, Saurabh and Dollar, Piotr
          and Zitnick, C. Lawrence},
  journal={arXiv:1504.00325},
  year={2015}
}"""


class CaptionMetrics(MetricWithoutFolder, evaluate.Metric):
    """The metrics of image captioning, as an `evaluate.Metric`.

    `compute` takes what [`score_captions`] takes, and `per_image=True`, which adds the scores of each image by metric,
    or `intervals=True`, which adds the 95 % bootstrap intervals over images. It returns a dictionary with the corpus
    score of each metric: 0 to 1, CIDEr 0 to 10, `image_use` -10 to 10, SPIDEr 0 to 5.5, CLIPScore 0 to 2.5,
    RefCLIPScore 0 to 1.43. In the place of one that cannot be computed on this machine there is a text, "not
    available, because ...".

    Raises:
        TypeError: by `compute`, if a caption is not a string, or an image's references are not a list.
        ValueError: by `compute`, if there are no predictions, or more or fewer than references, an image has no
            reference, or a metric is unknown.

    Examples:
        >>> from hf_captioner.metrics import CaptionMetrics
        >>> metrics = CaptionMetrics()
        >>> predictions = ["a dog runs", "two cats on a red sofa"]
        >>> references = [["A dog runs.", "The dog is running."], ["Two cats on a sofa.", "Cats are sleeping."]]
        >>> scores = metrics.compute(predictions=predictions, references=references)
        >>> {name: round(scores[name], 2) for name in ("bleu_1", "bleu_4", "cider_d", "exact_match")}
        {'bleu_1': 0.89, 'bleu_4': 0.6, 'cider_d': 3.81, 'exact_match': 0.5}
    """

    def __init__(self, *args, keep_in_memory: bool | None = None, num_process: int = 1, **kwargs):
        # a file is needed only if several processes share the metric; without one a read-only home does not matter
        if keep_in_memory is None:
            keep_in_memory = num_process == 1
        super().__init__(*args, keep_in_memory=keep_in_memory, num_process=num_process, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": text, "references": datasets.Sequence(text)}),
        )

    def add_batch(
        self,
        *,
        predictions: Sequence[str] = (),
        references: Sequence[Sequence[str]] = (),
        **kwargs,
    ) -> None:
        """Adds captions and their references to those that `compute` will score."""
        _check_lists(predictions, references)
        super().add_batch(predictions=list(predictions), references=list(references), **kwargs)

    def add(self, *, prediction: str = "", reference: Sequence[str] = (), **kwargs) -> None:
        """Adds one caption and its references to those that `compute` will score."""
        _check_lists([prediction], [reference])
        super().add(prediction=prediction, reference=list(reference), **kwargs)

    def _compute(
        self,
        predictions: Sequence[str],
        references: Sequence[Sequence[str]],
        metrics: Sequence[str] = DEFAULT_METRICS,
        per_image: bool = False,
        intervals: bool = False,
        **options,
    ) -> dict[str, Any]:
        scores, missing = score_captions(predictions, references, metrics, **options)
        result: dict[str, Any] = {name: missing[name] if name in missing else scores[name].corpus for name in metrics}
        available = [name for name in metrics if name not in missing]
        if per_image:
            result["per_image"] = {name: scores[name].per_image.tolist() for name in available}
        if intervals:
            result["intervals"] = {name: list(scores[name].confidence_interval()) for name in available}
        return result


def score_captions(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    metrics: Sequence[str] = DEFAULT_METRICS,
    document_frequency: DocumentFrequency | None = None,
    images: Sequence[Any] | None = None,
    clip_folder: str | os.PathLike | None = None,
    java_dir: str | os.PathLike | None = None,
    objects: Sequence[Iterable[str]] | None = None,
    object_words: Mapping[str, str] = COCO_WORDS,
) -> tuple[dict[str, Scores], dict[str, str]]:
    """The scores of each image, from which corpora can be scored and compared.

    Args:
        predictions: B captions.
        references: B lists of one or more captions.
        metrics: names, of `ALL_METRICS`.
        document_frequency: for CIDEr; by default counted in `references`, as in the COCO evaluation, by which a single
            image scores 0.
        images: B images (PIL) or paths, for `clip_score` and `ref_clip_score`.
        clip_folder: a folder with a CLIP model, for these two.
        java_dir: a folder with the jars of METEOR and SPICE; nothing is downloaded.
        objects: the objects in each of B images, for `chair_i` and `chair_s`.
        object_words: from what captions say to the names in `objects`, by default those of COCO.

    Returns:
        The scores by metric, and for each metric that cannot be computed the reason: "not available, because ...".

    Raises:
        ValueError: a metric is unknown.

    Examples:
        >>> from hf_captioner.metrics import score_captions
        >>> references = [["A dog runs.", "The dog is running."], ["Two cats on a sofa."]]
        >>> scores, missing = score_captions(["a dog runs", "a cat"], references, metrics=["bleu_1", "clip_score"])
        >>> scores["bleu_1"].per_image.round(2)
        array([1.  , 0.11])
        >>> missing["clip_score"]
        'not available, because images and clip_folder were not both given'
    """
    unknown = [name for name in metrics if name not in ALL_METRICS]
    if unknown:
        raise ValueError(f"metrics must be among {', '.join(ALL_METRICS)}; got {unknown[0]!r}")
    candidates, truths = tokenize(predictions), [tokenize(captions) for captions in references]
    spider = "spider" in metrics
    words = [*metrics, "cider_d"] if spider else metrics
    scores = score_words(candidates, truths, words, document_frequency)
    missing: dict[str, str] = {}
    perhaps: dict[str, Callable[[], Scores]] = {
        "meteor_exact_stem": lambda: meteor_exact_stem(candidates, truths),
        "meteor_1.5": lambda: java.meteor(candidates, truths, java_dir),
        "spice": lambda: java.spice(candidates, truths, java_dir),
    }
    for name, scorer in perhaps.items():
        if name in metrics or (name == "spice" and spider):
            try:
                scores[name] = scorer()
            except NotAvailableError as error:
                missing[name] = f"not available, because {error}"
    if spider and "spice" in missing:
        missing["spider"] = missing["spice"]
    elif spider:
        # Liu et al. 2017 ("Improved Image Captioning via Policy Gradient Optimization of SPIDEr"): equal weights.
        scores["spider"] = Scores.from_mean((scores["spice"].per_image + scores["cider_d"].per_image) / 2)
    if "image_use" in metrics:
        scores["image_use"] = image_use(candidates, truths, document_frequency)
    if wanted := [name for name in CLIP if name in metrics]:
        if images is None or clip_folder is None:
            missing |= dict.fromkeys(wanted, "not available, because images and clip_folder were not both given")
        else:
            texts = references if "ref_clip_score" in metrics else None
            scores |= clip_scores(predictions, images, clip_folder, texts)
    if wanted := [name for name in CHAIR if name in metrics]:
        if objects is None:
            missing |= dict.fromkeys(wanted, "not available, because the objects in the images are not known")
        else:
            scores |= chair(candidates, objects, truths, object_words)
    return {name: scores[name] for name in metrics if name in scores}, {
        name: missing[name] for name in metrics if name in missing
    }


def _check_lists(predictions: Any, references: Any) -> None:
    for name, value in (("predictions", predictions), ("references", references)):
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise TypeError(f"{name} must be a list, got {value!r}")
    if len(predictions) != len(references):
        raise ValueError(
            f"references must have one list for each of the {len(predictions)} predictions, got {len(references)}"
        )
    if len(predictions) == 0:
        raise ValueError("predictions must hold at least one caption, got none")
    for image, (prediction, captions) in enumerate(zip(predictions, references, strict=True)):
        _check_text(f"predictions[{image}]", prediction)
        if isinstance(captions, str) or not isinstance(captions, Sequence):
            raise TypeError(f"references[{image}] must be a list of captions, got {captions!r}")
        if len(captions) == 0:
            raise ValueError(f"references[{image}] must hold at least one caption, got none")
        for place, caption in enumerate(captions):
            _check_text(f"references[{image}][{place}]", caption)


def _check_text(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, got {value!r}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name} must be valid Unicode, got {value!r}") from None


def score_words(
    candidates: Sequence[Sequence[str]],
    references: Sequence[Sequence[Sequence[str]]],
    metrics: Sequence[str] = DEFAULT_METRICS,
    document_frequency: DocumentFrequency | None = None,
) -> dict[str, Scores]:
    """BLEU, CIDEr, ROUGE-L and exact match of tokenised captions, by metric. N-grams are counted once for all of them.

    Args:
        candidates: B captions, each a list of words.
        references: B lists of one or more captions, each a list of words.
        metrics: names of metrics; other metrics than those above are ignored.
        document_frequency: precomputed document frequencies for CIDEr, by default counted in the references.
    """
    scores: dict[str, Scores] = {}
    if set(metrics) & {*BLEU, "cider", "cider_d"}:
        captions, image = flatten_references(references)
        counts, reference_counts = count_ngrams(candidates), count_ngrams(captions)
        if set(metrics) & set(BLEU):
            scores |= zip(BLEU, bleu_from_counts(counts, reference_counts, image), strict=True)
        frequency = document_frequency or DocumentFrequency.from_counts(reference_counts, image, len(references))
        for name, scorer in (("cider", Cider(frequency)), ("cider_d", CiderD(frequency))):
            if name in metrics:
                cooked = scorer.cook_counts(reference_counts, np.bincount(image))
                scores[name] = Scores.from_mean(scorer.score_counts(counts, cooked))
    if "exact_match" in metrics:
        pairs = zip(candidates, references, strict=True)
        scores["exact_match"] = Scores.from_mean([candidate in captions for candidate, captions in pairs])
    if "rouge_l" in metrics:
        scores["rouge_l"] = rouge_l(candidates, references)
    return scores
