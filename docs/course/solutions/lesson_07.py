"""Solutions to the exercises of lesson 7."""

import torch


def shift_right(labels, start, padding):
    shifted = torch.full_like(labels, start)
    shifted[:, 1:] = labels[:, :-1]
    return shifted.masked_fill(shifted == -100, padding)


def causal_mask(queries, keys):
    # The first query is word number keys - queries, counted from 0.
    return torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)


def scores_computed(length):
    # Step t: without a cache t queries meet t keys, with it one query does.
    steps = range(1, length + 1)
    return sum(t * t for t in steps), sum(steps)
