"""METEOR's exact and stem stages, without Java."""

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import regex

from .ngrams import check_references
from .scores import NotAvailableError, Scores

# English parameters of METEOR 1.5 (Denkowski and Lavie 2014, table 1): the weight of precision against recall,
# exponent and weight of the fragmentation penalty, the weight of content words against function words, and the
# weights of the stages.
ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75
EXACT, STEM, SYNONYM, PARAPHRASE = 1.0, 0.6, 0.8, 0.6
# The search for an alignment: states that are kept, up to how many words, and places that a state tries.
BEAM, LONG, TRIED = 200, 60, 12

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
        ValueError: there are more or fewer candidates than images, or an image has no reference.
        NotAvailableError: nltk, which has the stemmer, is not installed.

    Examples:
        >>> from hf_captioner.metrics import meteor_exact_stem, tokenize
        >>> scores = meteor_exact_stem(tokenize(["a dog running"]), [tokenize(["A dog runs on the grass."])])
        >>> round(scores.corpus, 2)  # "running" and "runs" have one stem
        0.27
    """
    check_references(candidates, references)
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

    To find the best one for sure is NP-hard (without the third and the fourth rule it is the minimum common string
    partition: Goldstein, Kolman and Zheng 2004), so the search is bounded, beyond what people write as captions: from
    61 words on the beam is narrower, by which the time hardly grows further, and of the free places where a word may
    go, a state tries the next one of its chunk and the 12 nearest. The first rule always holds.

    Returns:
        The pairs (place in the candidate, place in the reference), and the number of chunks.
    """
    stems = [_stem(word) for word in candidate]
    stem_places, word_places = _places([_stem(word) for word in reference]), _places(reference)
    stem_counts, coming = Counter(stems), Counter(candidate)
    width = max(1, min(BEAM, BEAM * LONG // max(1, len(candidate))))

    # Key: the reference words taken, as bits, and the last one. Value: three numbers to minimise in this order, and
    # the last pair with those before it.
    beam: dict[tuple[int, int], tuple] = {(0, -2): (0, 0, 0, None)}
    for here, (stem, word) in enumerate(zip(stems, candidate, strict=True)):
        coming[word] -= 1  # how often it comes behind this place
        places, equal = stem_places.get(stem, 0), word_places.get(word, 0)
        only = places.bit_count() == 1 and stem_counts[stem] == 1
        longer: dict[tuple[int, int], tuple] = {}
        for (taken, last), (chunks, unpaired, distance, pairs) in beam.items():
            free_equal = equal & ~taken
            # A word can be paired with an equal one as often as both captions have it, and always is: it stays without
            # one only if those behind it are enough.
            spared = free_equal.bit_count() <= coming[word]
            if spared and not only:
                _keep(longer, (taken, -2), (chunks, unpaired + 1, distance, pairs))
            options = _nearest(free_equal, here, TRIED)
            if spared:
                options += _nearest(places & ~equal & ~taken, here, TRIED - len(options))
            after = 1 << last + 1 if last >= 0 else 0
            if after & places & ~taken and last + 1 not in options and (after & equal or spared):
                options.append(last + 1)
            for place in options:
                other = reference[place]
                # Nor may it take the place of another word that needs all that are left.
                if other != word and (word_places[other] & ~taken).bit_count() <= coming[other]:
                    continue
                state = (chunks + (place != last + 1), unpaired, distance + abs(here - place), (pairs, here, place))
                _keep(longer, (taken | 1 << place, place), state)
        if len(longer) > width:
            longer = dict(sorted(longer.items(), key=lambda item: item[1][:3])[:width])
        beam = longer
    chunks, _, _, pairs = min(beam.values(), key=lambda state: state[:3])
    found: list[tuple[int, int]] = []
    while pairs is not None:
        pairs, here, place = pairs
        found.append((here, place))
    return found[::-1], chunks


def _places(words: Sequence[str]) -> dict[str, int]:
    """Where each word is, as bits."""
    found: dict[str, int] = {}
    for place, word in enumerate(words):
        found[word] = found.get(word, 0) | 1 << place
    return found


def _nearest(places: int, here: int, most: int) -> list[int]:
    """Of places, as bits, those nearest to a place, from left to right."""
    if places.bit_count() > most:
        left, right = places & (1 << here) - 1, places >> here
        kept = 0
        for _ in range(most):
            before, behind = left.bit_length() - 1, (right & -right).bit_length() - 1
            if behind < 0 or (before >= 0 and here - before <= behind):
                kept |= 1 << before
                left ^= 1 << before
            else:
                kept |= 1 << here + behind
                right &= right - 1
        places = kept
    found = []
    while places:
        found.append((places & -places).bit_length() - 1)
        places &= places - 1
    return found


def _keep(beam: dict, key: tuple, state: tuple) -> None:
    if key not in beam or state[:3] < beam[key][:3]:
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
