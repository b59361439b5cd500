"""Beam search: length penalties, diversity, and the nucleus."""

from collections.abc import Callable

from . import WrongAnswer, ask, exercise, number, say_if


@exercise
def check_wu_score(answer: Callable) -> None:
    """`answer(log_p, length, alpha)`: the score of Wu et al. 2016."""
    for log_p, length, alpha in ((-6.0, 7, 1.0), (-6.0, 13, 1.0), (-3.0, 4, 0.6), (-2.5, 1, 0.6), (-4.0, 9, 0.0)):
        value = number(ask(answer, log_p, length, alpha))
        right = log_p / ((5 + length) / 6) ** alpha
        off = abs(value - right) > 1e-6
        say_if(
            off and abs(value - log_p / length**alpha) < 1e-6,
            "This divides by the length to the power of alpha, which is the penalty that we had.",
        )
        say_if(
            off and abs(value - log_p * ((5 + length) / 6) ** alpha) < 1e-6,
            "The log probability must be divided by the penalty. Multiplied with it, long captions get worse still.",
        )
        say_if(off, f"For ({log_p}, {length}, {alpha}) the score is {right:.4f}, but you got {value:.4f}.")


@exercise
def check_distinct(answer: Callable) -> None:
    """`answer(captions, n)`: distinct-n of a set of captions."""
    captions = [text.split() for text in ("a dog runs", "a dog runs fast", "a dog and a dog", "here")]
    for n in (1, 2, 3):
        pieces = [[tuple(words[at : at + n]) for at in range(len(words) - n + 1)] for words in captions]
        together = [ngram for one in pieces for ngram in one]
        right = len(set(together)) / len(together)
        value = number(ask(answer, captions, n))
        own = [len(set(one)) / len(one) for one in pieces if one]
        say_if(
            abs(value - sum(own) / len(own)) < 1e-9 and abs(value - right) > 1e-9,
            "This is the mean of the captions' own shares. Two equal captions would then count as two different ones; "
            "put all n-grams together first.",
        )
        say_if(abs(value - len(set(together))) < 1e-9, "This is the number of different n-grams; divide it by all.")
        say_if(abs(value - right) > 1e-9, f"With n = {n} it is {right:.4f}, but you got {value:.4f}.")


@exercise
def check_nucleus(answer: Callable) -> None:
    """`answer(probabilities, p)`: the probabilities of the nucleus."""
    probabilities = {"of": 0.0625, "a": 0.5, "the": 0.25, "dog": 0.125, "an": 0.0625}
    for p, kept in ((0.4, ["a"]), (0.5, ["a"]), (0.6, ["a", "the"]), (0.8, ["a", "the", "dog"])):
        given = dict(probabilities)
        result = ask(answer, given, p)
        if not isinstance(result, dict):
            raise WrongAnswer(f"The answer must be a dictionary, but it is {result!r}.")
        say_if(given != probabilities, "Your function changes the dictionary that it was given. Make a new one.")
        say_if(
            set(result) == set(kept[:-1]) and len(kept) > 1 or not result,
            f"With p = {p} you keep {sorted(result)}, which have less than {p} together. The word that crosses p "
            "belongs to the nucleus.",
        )
        say_if(set(result) != set(kept), f"With p = {p} the nucleus is {kept}, but you keep {sorted(result)}.")
        total = sum(number(value) for value in result.values())
        say_if(abs(total - 1) > 1e-9, f"The nucleus' probabilities must sum to 1, but yours sum to {total:.4f}.")
        for word in kept:
            right = probabilities[word] / sum(probabilities[one] for one in kept)
            say_if(
                abs(result[word] - right) > 1e-9,
                f'With p = {p}, "{word}" has {right:.4f} in the nucleus, but you gave it {result[word]:.4f}.',
            )
