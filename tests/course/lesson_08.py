"""Wrong answers to the exercises of lesson 8."""


def power_of_length(log_p, length, alpha):
    return log_p / length**alpha


def multiplied(log_p, length, alpha):
    return log_p * ((5 + length) / 6) ** alpha


def mean_of_own(captions, n):
    pieces = [[tuple(words[at : at + n]) for at in range(len(words) - n + 1)] for words in captions]
    return sum(len(set(one)) / len(one) for one in pieces if one) / sum(bool(one) for one in pieces)


def number_of_different(captions, n):
    return len({tuple(words[at : at + n]) for words in captions for at in range(len(words) - n + 1)})


def _nucleus(probabilities, p, inclusive=True, scaled=True):
    kept, mass = {}, 0.0
    for word, probability in sorted(probabilities.items(), key=lambda one: -one[1]):
        if not inclusive and mass + probability > p:
            break
        kept[word] = probability
        mass += probability
        if mass >= p:
            break
    return {word: probability / (mass if scaled else 1) for word, probability in kept.items()}


def nucleus_below_p(probabilities, p):
    return _nucleus(probabilities, p, inclusive=False)


def nucleus_not_scaled(probabilities, p):
    return _nucleus(probabilities, p, scaled=False)


# the check, its solution, a plausible wrong answer, and what the check says to it
EXERCISES = [
    ("check_wu_score", "wu_score", power_of_length, "which is the penalty that we had"),
    ("check_wu_score", "wu_score", multiplied, "long captions get worse still"),
    ("check_distinct", "distinct", mean_of_own, "mean of the captions' own shares"),
    ("check_distinct", "distinct", number_of_different, "divide it by all"),
    ("check_nucleus", "nucleus", nucleus_below_p, "The word that crosses p"),
    ("check_nucleus", "nucleus", nucleus_not_scaled, "must sum to 1"),
]
