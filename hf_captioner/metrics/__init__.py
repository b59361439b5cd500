"""The field's caption metrics, equal to the COCO caption evaluation's, without Java and without a network."""

from typing import TYPE_CHECKING

from .alarms import Alarm, find_alarms
from .bleu_score import bleu
from .chair_score import chair, object_words
from .cider import Cider, CiderD, CookedReferences, DocumentFrequency
from .clip import clip_score, clip_scores
from .collapse import collapse_checks
from .comparison import Difference, agreement, compare_scores, holm
from .diversity import caption_diversity
from .image_use_score import image_use
from .meteor import meteor_exact_stem
from .ptb_tokenizer import tokenize
from .reward import CaptionReward
from .rouge import rouge_l
from .scores import Scores

if TYPE_CHECKING:
    from .caption_metrics import ALL_METRICS, DEFAULT_METRICS, CaptionMetrics, score_captions
else:

    def __getattr__(name: str):
        # imported on first access: `evaluate` takes seconds to import, and rewards for training do not need it
        if name in ("ALL_METRICS", "CaptionMetrics", "DEFAULT_METRICS", "score_captions"):
            from . import caption_metrics

            return getattr(caption_metrics, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "ALL_METRICS",
    "Alarm",
    "CaptionMetrics",
    "CaptionReward",
    "Cider",
    "CiderD",
    "CookedReferences",
    "DEFAULT_METRICS",
    "Difference",
    "DocumentFrequency",
    "Scores",
    "agreement",
    "bleu",
    "caption_diversity",
    "chair",
    "clip_score",
    "clip_scores",
    "collapse_checks",
    "compare_scores",
    "find_alarms",
    "holm",
    "image_use",
    "meteor_exact_stem",
    "object_words",
    "rouge_l",
    "score_captions",
    "tokenize",
]
