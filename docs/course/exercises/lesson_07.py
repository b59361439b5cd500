"""CNN-Transformer and ViT-Transformer: teacher forcing, masks and the cache."""

from collections.abc import Callable

import torch

from . import ask, exercise, number, say_if, tensor


@exercise
def check_shift_right(answer: Callable) -> None:
    """`answer(labels, start, padding)`: the decoder's inputs (N, T)."""
    start, padding = 2, 1
    labels = torch.tensor([[7, 5, 9, 3], [8, 3, -100, -100], [4, 6, 3, -100]])
    right = torch.tensor([[2, 7, 5, 9], [2, 8, 3, 1], [2, 4, 6, 3]])
    given = labels.clone()
    result = tensor(ask(answer, given, start, padding), tuple(labels.shape))
    say_if(not torch.equal(given, labels), "Your function changes the labels, which the loss still needs. Copy them.")
    say_if(
        torch.equal(result, labels.masked_fill(labels == -100, padding)),
        "These are the labels themselves: at each place the decoder would read the very word that it has to say.",
    )
    say_if(bool((result == -100).any()), "There is still a -100. It marks a place without a word and is no id.")
    say_if(not torch.equal(result, right), f"For the labels {labels.tolist()} it is {right.tolist()}, not yours.")


@exercise
def check_causal_mask(answer: Callable) -> None:
    """`answer(queries, keys)`: a boolean mask (queries, keys)."""
    for queries, keys in ((4, 4), (1, 6), (3, 8)):
        result = tensor(ask(answer, queries, keys), (queries, keys))
        say_if(result.dtype != torch.bool, f"The mask must be boolean, but its type is {result.dtype}.")
        right = torch.arange(keys) <= torch.arange(keys - queries, keys)[:, None]
        say_if(
            torch.equal(result, torch.ones(queries, keys, dtype=torch.bool).tril()) and queries < keys,
            f"With {queries} queries and {keys} keys, your first query sees the first key alone. But it is word "
            f"{keys - queries + 1}, and may see all keys in the cache and its own.",
        )
        say_if(torch.equal(result, ~right), "It is the other way round: true is where a query may look.")
        say_if(not torch.equal(result, right), f"With {queries} queries and {keys} keys, it is {right.tolist()}.")


@exercise
def check_scores_computed(answer: Callable) -> None:
    """`answer(length)`: the numbers of scores without and with a cache."""
    for length in (1, 2, 7, 30):
        result = ask(answer, length)
        say_if(not isinstance(result, tuple) or len(result) != 2, "Return two numbers, without and with a cache.")
        without, cached = (number(part) for part in result)
        right = sum(words**2 for words in range(1, length + 1)), sum(range(1, length + 1))
        say_if(
            without == length**2 != right[0],
            f"{length} times {length} is the last step alone. There are {length} steps, and step t computes t times t "
            "scores.",
        )
        say_if(
            cached == length != right[1],
            "One new word passes through the layer at each step, but its query meets the keys of all words so far.",
        )
        say_if(
            (without, cached) != right,
            f"For {length} words there are {right[0]} and {right[1]}, but you got {without:g} and {cached:g}.",
        )
