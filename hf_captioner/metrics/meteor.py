"""METEOR's exact and stem stages, without Java."""

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import regex

from .scores import NotAvailableError, Scores

# English parameters of METEOR 1.5 (Denkowski and Lavie 2014, table 1): the weight of precision against recall,
# exponent and weight of the fragmentation penalty, the weight of content words against function words, and the
# weights of the stages.
ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75
EXACT, STEM, SYNONYM, PARAPHRASE = 1.0, 0.6, 0.8, 0.6
BEAM = 200

# The words that make up more than a thousandth of English news text, which is how the paper defines function words.
FUNCTION_WORDS = frozenset(
    (
        "\" $ ' ( ) , - -- -lrb- -rrb- . : ? 's 't a about after all also an and are as at be been but by can "
        "could first for from had has have he her his i if in into is it its last more new no not of on one "
        "or other out over people s said she so some than that the their there they this time to two up was "
        "we were what when which who will with would year years you"
    ).split()
)


def meteor_exact_stem(candidates: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> Scores:
    """METEOR 1.5 (Denkowski and Lavie 2014) of English with two of its four stages: equal words and equal stems.

    The stages for synonyms and paraphrases are left out because they need WordNet and a table of paraphrases. Scores
    are therefore lower than those of METEOR 1.5 and comparable only with each other. Function words, weights and
    alignment are those of METEOR 1.5: run with `-m "exact stem"` it gives the same numbers, except for rare long
    captions whose best alignment its beam search misses. Splitting into words supports Latin and Cyrillic script.

    Args:
        candidates: B captions, each a list of words.
        references: B lists of one or more captions, each a list of words.

    Returns:
        The scores (0 to 1). The corpus score is computed from the sum of the images' statistics; those of an image
        come from the reference that it matches best.

    Raises:
        NotAvailableError: nltk, which has the stemmer, is not installed.
    """
    statistics = [_best(*pair) for pair in zip(candidates, references, strict=True)]
    return Scores(np.array(statistics, np.float64), meteor_from_sums)


def _best(candidate: Sequence[str], references: Sequence[Sequence[str]]) -> list[int]:
    candidate = _split(tuple(candidate))
    statistics = [_compare(candidate, _split(tuple(reference))) for reference in references]
    return statistics[int(np.argmax(meteor_from_sums(np.array(statistics, np.float64))))]


def meteor_from_sums(sums: np.ndarray) -> np.ndarray:
    """METEOR from sums (..., 4 + 4 stages + 1) of its statistics: words of the candidate and of the reference,
    function words of both; for each stage matched content words of both, matched function words of both; chunks, 0
    when all words of both matched in one."""
    words, functions, stages = sums[..., 0:2], sums[..., 2:4], sums[..., 4:-1]
    stages = stages.reshape(*stages.shape[:-1], -1, 2, 2)  # (..., stage, content or function, candidate or reference)
    weights = np.array([EXACT, STEM, SYNONYM, PARAPHRASE])[: stages.shape[-3], None]
    matched = (weights * (DELTA * stages[..., 0, :] + (1 - DELTA) * stages[..., 1, :])).sum(axis=-2)
    share = _ratio(matched, DELTA * (words - functions) + (1 - DELTA) * functions)
    precision, recall = share[..., 0], share[..., 1]
    mean = _ratio(precision * recall, ALPHA * precision + (1 - ALPHA) * recall)
    matches, chunks = stages.sum(axis=(-3, -2)), sums[..., -1]
    fragmentation = _ratio(chunks, matches.mean(axis=-1))
    return mean * (1 - GAMMA * fragmentation**BETA)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def _compare(candidate: tuple[str, ...], reference: tuple[str, ...]) -> list[int]:
    """The statistics that `meteor_from_sums` adds up, for the stages exact and stem."""
    pairs, chunks = _align(candidate, reference)
    statistics = [0] * 13
    for side, words in enumerate((candidate, reference)):
        statistics[side] = len(words)
        statistics[2 + side] = sum(word in FUNCTION_WORDS for word in words)
        for pair in pairs:
            stage = 4 if candidate[pair[0]] == reference[pair[1]] else 8
            statistics[stage + 2 * (words[pair[side]] in FUNCTION_WORDS) + side] += 1
    whole = chunks == 1 and len(pairs) == len(candidate) == len(reference)
    statistics[12] = 0 if whole else chunks
    return statistics


def _align(candidate: tuple[str, ...], reference: tuple[str, ...]) -> tuple[list[tuple[int, int]], int]:
    """Pairs words with equal stems, each at most once.

    Two words that can be paired only with each other always are. Other pairs are chosen as METEOR's program does,
    which differs slightly from the paper. In this order, the alignment has
    1. as many pairs of equal words as possible;
    2. as few chunks (runs of words that are in both captions in the same order) as possible, so words with equal stems
       stay unpaired if pairing them would add a chunk;
    3. as many pairs as possible;
    4. the smallest sum of distances between paired words.
    It is found by beam search over the candidate's words. The program's beam is narrower and misses the best alignment
    of some long captions.

    Returns:
        The pairs (place in the candidate, place in the reference), and the number of chunks.
    """
    places: dict[str, list[int]] = {}
    for place, word in enumerate(reference):
        places.setdefault(_stem(word), []).append(place)
    stems = [_stem(word) for word in candidate]
    # A word can be paired with an equal one as often as both captions have it, so at most this many equal words stay
    # alone in the best alignment.
    counts = Counter(reference)
    most_alone = sum(max(0, count - counts[word]) for word, count in Counter(candidate).items() if word in counts)

    # Key: the reference words taken, as bits, and the last one. Value: four numbers to minimise in this order, pairs.
    beam: dict[tuple[int, int], tuple] = {(0, -2): (0, 0, 0, 0, ())}
    for here, (stem, word) in enumerate(zip(stems, candidate, strict=True)):
        options = places.get(stem, ())
        only = len(options) == 1 and stems.count(stem) == 1
        alone = int(word in counts)
        longer: dict[tuple[int, int], tuple] = {}
        for (taken, last), (unequal, chunks, unpaired, distance, pairs) in beam.items():
            if not only and unequal + alone <= most_alone:
                _keep(longer, (taken, -2), (unequal + alone, chunks, unpaired + 1, distance, pairs))
            for place in options:
                missed = unequal + (alone and reference[place] != word)
                if not taken >> place & 1 and missed <= most_alone:
                    state = (missed, chunks + (place != last + 1), unpaired, distance + abs(here - place))
                    _keep(longer, (taken | 1 << place, place), (*state, (*pairs, (here, place))))
        beam = dict(sorted(longer.items(), key=lambda item: item[1])[:BEAM]) if len(longer) > BEAM else longer
    _, chunks, _, _, pairs = min(beam.values())
    return list(pairs), chunks


def _keep(beam: dict, key: tuple, state: tuple) -> None:
    if key not in beam or state < beam[key]:
        beam[key] = state


@lru_cache(maxsize=1 << 15)
def _split(words: tuple[str, ...]) -> tuple[str, ...]:
    """METEOR's own tokens (its option -norm, which COCO uses) from COCO's: also split at hyphens and most marks."""
    line = " ".join(words)
    if not (line.isascii() and line.replace(" ", "").isalnum()):
        line = regex.sub(r"(?<![\w.])(?:\p{L}+\.)+\p{L}+\.(?!\w)", lambda match: match[0].replace(".", ""), line)
        line = regex.sub(r"(\w)-+(\w)", r"\1 \2", line)
        line = regex.sub(r"[^0-9A-Za-z\u00c0-\u024f\u0400-\u04ff\s.,'-]", r" \g<0> ", line)
        line = regex.sub(r"(?<!\p{L})'|'(?!\p{L})", " ' ", line)
        line = regex.sub(r"(?<=\p{L})'(?=\p{L})", " '", line)
        line = regex.sub(r"(?<!\d),|,(?!\d)", " , ", line)
        line = regex.sub(r"(?<=\w)(?<!\bvs)\.(?=\s+[^A-Za-z]|$)", " .", line)
    return tuple(line.split())


@lru_cache(maxsize=1 << 16)
def _stem(word: str) -> str:
    return _stemmer().stem(word)


@lru_cache(maxsize=1)
def _stemmer():
    try:
        from nltk.stem.snowball import EnglishStemmer  # Porter's second stemmer, which METEOR 1.5 uses
    except ImportError:
        raise NotAvailableError("nltk is not installed") from None
    return EnglishStemmer()
