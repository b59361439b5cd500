"""How fast the metrics are, beside pycocoevalcap's in the same run.

    python training/benchmark_metrics.py
    python training/benchmark_metrics.py --images 1000 --repeats 3 --json outputs/metrics_speed.json

Captions are drawn from a small grammar with a skewed vocabulary, so nothing needs to be fetched. Scorers get the same
tokens. Needs pycocoevalcap, and Java for its tokeniser and METEOR; what is missing is left out of the table.
"""

import contextlib
import io
import json
import platform
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np

from ..metrics import (
    DEFAULT_METRICS,
    CiderD,
    DocumentFrequency,
    agreement,
    bleu,
    compare_scores,
    meteor_exact_stem,
    rouge_l,
    score_captions,
    tokenize,
)
from ..metrics.caption_metrics import score_words
from ..metrics.ptb_tokenizer import clear_cache
from . import run
from .parsing import CommandParser

THREE = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider_d")


@dataclass
class Arguments:
    images: int = field(default=6000, metadata={"help": "Candidates, each with five references."})
    captions: int = field(default=30000, metadata={"help": "Captions to tokenise."})
    repeats: int = field(default=5, metadata={"help": "Measurements, of which the median counts."})
    seed: int = 0
    json: str | None = field(default=None, metadata={"help": "File for the medians in seconds."})


def make_captions(count: int, seed: int) -> list[str]:
    """Captions of about eleven words, as of "A kipri sta in the lumer .": a vocabulary of 8,000 words, of which a few
    are frequent and most are rare."""
    generator = np.random.default_rng(seed)
    syllables = ["ba", "do", "ki", "lu", "mer", "nos", "pri", "sta", "ten", "wo"]
    vocabulary = ["".join(syllables[int(digit)] for digit in str(number)) for number in range(1, 8001)]
    vocabulary[40:43] = ["man's", "t-shirt", "don't"]
    before = ["", "", "a", "a", "the", "in a", "with", "and"]
    captions = []
    for length in generator.integers(3, 9, size=count):
        ranks = np.minimum(generator.zipf(1.3, size=length) - 1, 7999)
        words = [f"{generator.choice(before)} {vocabulary[rank]}".strip() for rank in ranks]
        captions.append(" ".join(words).capitalize() + " .")
    return captions


def main(argv: list[str] | None = None) -> None:
    (arguments,) = CommandParser(Arguments, description=__doc__).parse(argv)
    captions = make_captions(arguments.captions, arguments.seed)
    texts = make_captions(6 * arguments.images, arguments.seed + 1)
    words = tokenize(texts)
    candidates = words[: arguments.images]
    references = [words[start : start + 5] for start in range(arguments.images, 6 * arguments.images, 5)]

    medians: dict[str, dict[str, float]] = {}
    for name, (ours, theirs) in comparisons(captions, candidates, references, texts).items():
        medians[name] = {"ours": median(ours, arguments.repeats)}
        if theirs is not None:
            medians[name]["pycocoevalcap"] = median(theirs, arguments.repeats)

    print(f"{arguments.images} candidates with 5 references, {arguments.captions} captions to tokenise;")
    print(f"median seconds of {arguments.repeats}; Python {platform.python_version()}, numpy {version('numpy')}\n")
    print("| | ours | pycocoevalcap | times faster |\n| --- | --- | --- | --- |")
    for name, times in medians.items():
        other = times.get("pycocoevalcap")
        print(
            f"| {name} | {times['ours']:.3f} | " + (f"{other:.3f} | {other / times['ours']:.1f} |" if other else "| |")
        )
    if arguments.json:
        Path(arguments.json).parent.mkdir(parents=True, exist_ok=True)
        Path(arguments.json).write_text(json.dumps(medians, indent=2) + "\n")


def comparisons(captions, candidates, references, texts) -> dict[str, tuple[Callable, Callable | None]]:
    """What is measured: our function and pycocoevalcap's, None where that cannot run."""
    answers = {image: [" ".join(candidate)] for image, candidate in enumerate(candidates)}
    truths = {image: [" ".join(caption) for caption in captions] for image, captions in enumerate(references)}
    lines = {number: [{"caption": caption}] for number, caption in enumerate(captions)}
    scorer = CiderD(DocumentFrequency.from_references(references))
    cooked = scorer.cook(references)
    images = np.repeat(np.arange(min(64, len(candidates))), 5)
    samples = [candidates[image] for image in images]

    def tokenize_cold():
        clear_cache()
        tokenize(captions)

    def compare_two(images: int = 5000):
        """What `hf-captioner compare` does for two files of captions, from their texts on."""
        first, second = texts[:images], texts[-images:]
        truths = [texts[start : start + 5] for start in range(len(candidates), len(texts), 5)][:images]
        metrics = (*DEFAULT_METRICS, "image_use")
        scores = {name: score_captions(said, truths, metrics)[0] for name, said in (("a", first), ("b", second))}
        compare_scores(scores, resamples=1000)
        frequency = DocumentFrequency.from_references([tokenize(group) for group in truths])
        agreement(tokenize(first), tokenize(second), frequency)

    def cider_d():
        scorer = CiderD(DocumentFrequency.from_references(references))
        scorer.score(candidates, scorer.cook(references))

    found: dict[str, tuple[Callable, Callable | None]] = {
        "tokenisation, first time": (tokenize_cold, None),
        "tokenisation, words known": (lambda: tokenize(captions), None),
        "BLEU-1 to 4": (lambda: bleu(candidates, references), None),
        "ROUGE-L": (lambda: rouge_l(candidates, references), None),
        "CIDEr-D": (cider_d, None),
        "these three together": (lambda: score_words(candidates, references, THREE), None),
        "METEOR (ours: exact, stem)": (lambda: meteor_exact_stem(candidates, references), None),
        "two captioners compared, 5,000 images, all metrics without Java, 1,000 resamples": (compare_two, None),
        f"CIDEr-D of {len(samples)} samples, references cooked": (
            lambda: scorer.score(samples, cooked.take(images)),
            None,
        ),
    }
    try:
        from pycocoevalcap.bleu.bleu import Bleu
        from pycocoevalcap.cider.cider import Cider
        from pycocoevalcap.meteor.meteor import Meteor
        from pycocoevalcap.rouge.rouge import Rouge
        from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer
    except ImportError:
        print("pycocoevalcap is not installed: nothing to compare with", file=sys.stderr)
        return found

    theirs = {
        "BLEU-1 to 4": lambda: Bleu(4).compute_score(truths, answers, verbose=0),
        "ROUGE-L": lambda: Rouge().compute_score(truths, answers),
        "CIDEr-D": lambda: Cider().compute_score(truths, answers),
    }
    three = tuple(theirs.values())
    theirs["these three together"] = lambda: [scorer() for scorer in three]
    if shutil.which("java"):
        theirs["tokenisation, first time"] = theirs["tokenisation, words known"] = lambda: PTBTokenizer().tokenize(
            lines
        )
        theirs["METEOR (ours: exact, stem)"] = lambda: Meteor().compute_score(truths, answers)
    return {name: (ours, theirs.get(name)) for name, (ours, _) in found.items()}


def median(function: Callable, repeats: int) -> float:
    times = []
    for _ in range(repeats):
        with contextlib.redirect_stdout(io.StringIO()):
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
    return statistics.median(times)


if __name__ == "__main__":
    run(main)
