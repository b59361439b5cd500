"""Wrong answers to the exercises of lesson 2."""

import torch
from solutions import lesson_02 as solutions


def gru_with_gates_swapped(x, h, from_input, from_state):
    x_r, x_z, x_n = from_input(x).chunk(3, dim=-1)
    h_r, h_z, h_n = from_state(h).chunk(3, dim=-1)
    z = torch.sigmoid(x_z + h_z)
    return (1 - z) * h + z * torch.tanh(x_n + torch.sigmoid(x_r + h_r) * h_n)


def gru_without_reset(x, h, from_input, from_state):
    _, z, n = (from_input(x) + from_state(h)).chunk(3, dim=-1)
    return torch.sigmoid(z) * h + (1 - torch.sigmoid(z)) * torch.tanh(n)


def gru_that_resets_the_input(x, h, from_input, from_state):
    r, z, n = (from_input(x) + from_state(h)).chunk(3, dim=-1)
    return torch.sigmoid(z) * h + (1 - torch.sigmoid(z)) * torch.tanh(torch.sigmoid(r) * n)


def gru_of_one_number(x, h, from_input, from_state):
    return solutions.gru_step(x, h, from_input, from_state).sum()


def perplexity_of_captions(scores, labels):
    return torch.stack([solutions.perplexity(*one).log() for one in zip(scores, labels, strict=True)]).mean().exp()


def perplexity_with_padding(scores, labels):
    return torch.nn.functional.cross_entropy(scores.mT, labels, reduction="none").mean().exp()


def cross_entropy(scores, labels):
    return solutions.perplexity(scores, labels).log()


def greedy_with_start(next_scores, start, end, longest):
    return [start, *solutions.greedy(next_scores, start, end, longest)]


def greedy_with_end(next_scores, start, end, longest):
    return [*solutions.greedy(next_scores, start, end, longest), end]


def greedy_from_the_last_word(next_scores, start, end, longest):
    words, word = [], start
    while len(words) < longest and (word := int(next_scores([word]).argmax())) != end:
        words.append(word)
    return words


def greedy_without_limit(next_scores, start, end, longest):
    return solutions.greedy(next_scores, start, end, 100)


EXERCISES = [
    ("check_gru", "gru_step", gru_with_gates_swapped, "share of the old state that is kept"),
    ("check_gru", "gru_step", gru_without_reset, "reset gate r is missing"),
    ("check_gru", "gru_step", gru_that_resets_the_input, "not to what the input does"),
    ("check_gru", "gru_step", gru_of_one_number, "must have the shape (3, 4), but yours has ()"),
    ("check_perplexity", "perplexity", cross_entropy, "This is the cross-entropy"),
    ("check_perplexity", "perplexity", perplexity_of_captions, "mean of each caption first"),
    ("check_perplexity", "perplexity", perplexity_with_padding, "those that only fill up short captions"),
    ("check_greedy", "greedy", greedy_with_start, "The start is no word"),
    ("check_greedy", "greedy", greedy_with_end, "The end is no word"),
    ("check_greedy", "greedy", greedy_from_the_last_word, "all words chosen so far"),
    ("check_greedy", "greedy", greedy_without_limit, "at most 3 words was asked for, and yours has 4"),
]
