"""The field's caption metrics, equal to the COCO caption evaluation's, without Java and without a network."""

from typing import TYPE_CHECKING

from .bleu_score import bleu
from .cider import Cider, CiderD, CookedReferences, DocumentFrequency
from .clip import clip_score
from .collapse import collapse_checks
from .meteor import meteor_exact_stem
from .ptb_tokenizer import tokenize
from .reward import CaptionReward
from .rouge import rouge_l
from .scores import Scores

if TYPE_CHECKING:
    from .caption_metrics import ALL_METRICS, DEFAULT_METRICS, CaptionMetrics
else:

    def __getattr__(name: str):
        # imported on first access: `evaluate` takes seconds to import, and rewards for training do not need it
        if name in ("ALL_METRICS", "CaptionMetrics", "DEFAULT_METRICS"):
            from . import caption_metrics

            return getattr(caption_metrics, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "ALL_METRICS",
    "CaptionMetrics",
    "CaptionReward",
    "Cider",
    "CiderD",
    "CookedReferences",
    "DEFAULT_METRICS",
    "DocumentFrequency",
    "Scores",
    "bleu",
    "clip_score",
    "collapse_checks",
    "meteor_exact_stem",
    "rouge_l",
    "tokenize",
]
