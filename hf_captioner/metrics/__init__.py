"""The field's caption metrics, equal to the COCO caption evaluation's, without Java and without a network."""

from typing import TYPE_CHECKING

from .bleu import bleu
from .cider import Cider, CiderD, DocumentFrequency
from .ptb_tokenizer import tokenize
from .rouge import rouge_l
from .scores import Scores

if TYPE_CHECKING:
    from .caption_metrics import CaptionMetrics

__all__ = ["CaptionMetrics", "Cider", "CiderD", "DocumentFrequency", "Scores", "bleu", "rouge_l", "tokenize"]


def __getattr__(name: str):
    # evaluate imports datasets and pandas, two seconds that a training loop which only wants CIDEr-D need not wait
    if name == "CaptionMetrics":
        from .caption_metrics import CaptionMetrics

        return CaptionMetrics
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
