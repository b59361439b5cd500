"""Wrong answers to the exercises of lesson 7."""

import torch


def unshifted(labels, start, padding):
    return labels.masked_fill(labels == -100, padding)


def shifted_with_holes(labels, start, padding):
    shifted = labels.roll(1, dims=1)
    shifted[:, 0] = start
    return shifted


def shifted_in_place(labels, start, padding):
    labels[:, 1:] = labels[:, :-1].clone()
    labels[:, 0] = start
    return labels.masked_fill_(labels == -100, padding)


def mask_without_the_past(queries, keys):
    return torch.ones(queries, keys, dtype=torch.bool).tril()


def what_is_hidden(queries, keys):
    return torch.ones(queries, keys, dtype=torch.bool).triu(keys - queries + 1)


def last_step_alone(length):
    return length**2, length


def one_score_for_a_word(length):
    return sum(words**2 for words in range(1, length + 1)), length


# the check, its solution, a plausible wrong answer, and what the check says to it
EXERCISES = [
    ("check_shift_right", "shift_right", unshifted, "the very word that it has to say"),
    ("check_shift_right", "shift_right", shifted_with_holes, "There is still a -100"),
    ("check_shift_right", "shift_right", shifted_in_place, "changes the labels"),
    ("check_causal_mask", "causal_mask", mask_without_the_past, "may see all keys in the cache"),
    ("check_causal_mask", "causal_mask", what_is_hidden, "the other way round"),
    ("check_scores_computed", "scores_computed", last_step_alone, "is the last step alone"),
    ("check_scores_computed", "scores_computed", one_score_for_a_word, "meets the keys of all words so far"),
]
