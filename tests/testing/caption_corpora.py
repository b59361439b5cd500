"""Captions to compare metrics on: generated ones with everything that breaks tokenisers, and Flickr8k's."""

import ast
import random

import pytest

from testing import DATA

FRAGMENTS = """
a A the The man dog dogs dog's dogs' Mr. Mrs. Dr. St. st. Jr. vs. etc. e.g. i.e., a.m. p.m. U.S. U.S.'s Ph.D. no. No.
fig. I I. B. J. mass. Mass. approx. don't can't isn't I'm we've they'll she'd 's 't n't cannot gonna 'tis o'clock
O'Brien ma'am y'all rock'n'roll 'em 'n' d'Artagnan l'eau jack-o'-lantern ol' t-shirt T-shirts 12-year-old x-ray
half- -pipe
well-to-do wi-fi and/or w/o black/white AT&T R&B M&M's 1 2 5 12 50 1990 555-1234 1,000 1.5 .5 1/2 24/7 1st 2nd 3D
4x4 '80s 80's 1990s 10:30 10:30am 5pm $5 $5.00 £3 €4 5¢ 50% #1 #tag @user a@b.com http://x.com/a?b=c www.foo.com
foo.com foo_bar.jpg 001.jpg a.b a,b a;b a!b a/b a_b a--b a...b a…b a–b “hello” ‘hello’ "hello" 'hello' «hello»
(hello) [x] {y} < > <b> & &amp; &lt; " ' `` '' ` – — - -- --- . .. ... … , ; : ! ? !! ?! * ** / \\ ~ ^ _ = + @ # $ %
° × ™ ½ 3½ ² ★ ❤️ 😀 🐕‍🦺 é café naïve über Straße ΑΒΓ 日本語 Привет हिन्दी עברית don’t ’tis ’90s it’s :) ;) :-(
^_^ -_- <3
""".split()
WORDS = "a a a the man woman dog two dogs red ball on in grass plays with runs is 's n't playing played".split()


def generated_captions(count: int, seed: int) -> list[str]:
    """Texts of none to nine fragments, some written together."""
    generator = random.Random(seed)
    captions = []
    for _ in range(count):
        pieces = [generator.choice(FRAGMENTS) for _ in range(generator.randrange(10))]
        captions.append("".join(piece + generator.choice(["", " ", " ", " ", "  ", "\t"]) for piece in pieces))
    return captions


def generated_corpus(images: int, seed: int) -> tuple[list[list[str]], list[list[list[str]]]]:
    """Tokenised candidates and references: 1 to 20 references, empty and one-word captions, words that repeat."""
    generator = random.Random(seed)

    def caption(words: list[str]) -> list[str]:
        return [generator.choice(words) for _ in range(generator.choice([0, 1, 1, 2, 3, 4, 5, 8, 12, 30]))]

    candidates, references = [], []
    for image in range(images):
        words = WORDS + [f"thing{image % 7}", "café", "日本語", "-lrb-"]
        references.append([caption(words) for _ in range(generator.choice([1, 1, 2, 3, 5, 5, 20]))])
        # some candidates are a reference, some share nothing with any
        candidates.append(list(references[-1][0]) if image % 5 == 0 else caption(["zz"] if image % 11 == 0 else words))
    return candidates, references


def flickr8k(split: str) -> list[list[str]]:
    """The captions of each photograph of a split; skips the test where they are missing."""
    path = DATA / "flickr8k" / f"{split}.parquet"
    if not path.exists():
        pytest.skip(f"{path} is missing; HF_CAPTIONER_DATA names the folder that has flickr8k/")
    from pyarrow.parquet import read_table

    captions = read_table(path, columns=["captions"])["captions"].to_pylist()
    return [ast.literal_eval(text) if isinstance(text, str) else text for text in captions]


def flickr8k_corpus() -> tuple[list[list[str]], list[list[list[str]]]]:
    """Candidates for each photograph of the validation set, tokenised: a caption held out from its references, another
    photograph's caption, one that breaks off, one in disorder, an empty one."""
    from hf_captioner.metrics import tokenize

    generator = random.Random(0)
    references = [tokenize(captions) for captions in flickr8k("validation")]
    candidates = []
    for image, captions in enumerate(references):
        kind = image % 5
        if kind == 0:
            candidate = captions.pop()
        elif kind == 1:
            candidate = generator.choice(references[image - 3])
        elif kind == 2:
            candidate = captions[0][: generator.randrange(len(captions[0]) + 1)]
        elif kind == 3:
            candidate = generator.sample(captions[-1], len(captions[-1]))
        else:
            candidate = [] if image % 25 == 4 else [*captions[0][:3], *references[image - 1][0]]
        candidates.append(list(candidate))
    return candidates, references
