"""Solutions to the exercises of lesson 8."""


def wu_score(log_p, length, alpha):
    return log_p / ((5 + length) ** alpha / (5 + 1) ** alpha)


def distinct(captions, n):
    ngrams = [tuple(words[place : place + n]) for words in captions for place in range(len(words) - n + 1)]
    return len(set(ngrams)) / len(ngrams)


def nucleus(probabilities, p):
    kept, mass = {}, 0.0
    for word, probability in sorted(probabilities.items(), key=lambda one: one[1], reverse=True):
        kept[word] = probability
        mass += probability
        if mass >= p:
            break
    return {word: probability / mass for word, probability in kept.items()}
