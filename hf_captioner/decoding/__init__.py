"""What steers `generate()`, and what reads its result, word by word."""

from .bayes import minimum_bayes_risk
from .constrained import constrained_beam_search
from .diverse import diverse_beam_search
from .models_together import ensemble
from .rules import MinimumWords, NoBadEnding, NoRepeatedWords, NoUnknownWord
from .stochastic import stochastic_beam_search
from .words import WordLimit, word_probabilities

__all__ = [
    "MinimumWords",
    "NoBadEnding",
    "NoRepeatedWords",
    "NoUnknownWord",
    "WordLimit",
    "constrained_beam_search",
    "diverse_beam_search",
    "ensemble",
    "minimum_bayes_risk",
    "stochastic_beam_search",
    "word_probabilities",
]
