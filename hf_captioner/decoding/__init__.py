"""What steers `generate()`, and what reads its result, word by word."""

from .bayes import MetricUtility, minimum_bayes_risk
from .by_name import generation_options
from .constrained import constrained_beam_search
from .diverse import diverse_beam_search
from .models_together import ensemble
from .reranking import ClipScorer, contrastive_reranking
from .rules import MinimumWords, NoBadEnding, NoRepeatedWords, NoUnknownWord, NoWords, WholeWords
from .stochastic import stochastic_beam_search
from .words import WordLimit, word_probabilities

__all__ = [
    "ClipScorer",
    "MetricUtility",
    "MinimumWords",
    "NoBadEnding",
    "NoRepeatedWords",
    "NoUnknownWord",
    "NoWords",
    "WholeWords",
    "WordLimit",
    "constrained_beam_search",
    "contrastive_reranking",
    "diverse_beam_search",
    "ensemble",
    "generation_options",
    "minimum_bayes_risk",
    "stochastic_beam_search",
    "word_probabilities",
]
