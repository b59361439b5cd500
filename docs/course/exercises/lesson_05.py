"""Queries, keys and values."""

from collections.abc import Callable

import torch

from . import ask, exercise, say_if, tensor


def _numbers(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(one, other, atol=1e-5)


@exercise
def check_scaled_scores(answer: Callable) -> None:
    """`answer(queries, keys)`: scaled dot products of all pairs."""
    queries, keys = _numbers(3, 5, seed=0), _numbers(4, 5, seed=1)
    products = queries @ keys.T
    value = tensor(ask(answer, queries.clone(), keys.clone()), (3, 4))
    say_if(_same(value, products), "These dot products still have to be divided by the root of the width.")
    say_if(
        _same(value, products / 5),
        "The scores are divided by the width d. The variance of a dot product is d, its standard deviation the root.",
    )
    say_if(
        _same(value, products / 3**0.5) or _same(value, products / 2),
        "The root is that of the number of queries or keys. It should be that of the width, which is summed over.",
    )
    say_if(
        not _same(value, products / 5**0.5),
        f"The score of the first query and the first key is {products[0, 0] / 5**0.5:.4f}, but you got "
        f"{value[0, 0]:.4f}.",
    )


@exercise
def check_attention(answer: Callable) -> None:
    """`answer(queries, keys, values)`: softmax(Q K^T / sqrt(d)) V."""
    queries, keys, values = _numbers(3, 5, seed=2), _numbers(4, 5, seed=3), _numbers(4, 2, seed=4)
    scores = queries @ keys.T / 5**0.5
    value = tensor(ask(answer, queries.clone(), keys.clone(), values.clone()), (3, 2))
    say_if(
        _same(value, scores.softmax(dim=0) @ values),
        "The softmax runs over the queries. The weights of each query over all keys must sum to 1.",
    )
    say_if(
        _same(value, (scores * 5**0.5).softmax(dim=-1) @ values),
        "The scores are not scaled.",
    )
    say_if(_same(value, scores @ values), "The softmax is missing: the scores are no weights yet.")
    right = scores.softmax(dim=-1) @ values
    say_if(
        not _same(value, right),
        f"The context of the first query is {right[0].tolist()}, but you got {value[0].tolist()}.",
    )


@exercise
def check_split_heads(answer: Callable) -> None:
    """`answer(matrix, heads)`: (T, d) -> (heads, T, d / heads)."""
    matrix = torch.arange(24.0).view(4, 6)
    value = tensor(ask(answer, matrix.clone(), 3), (3, 4, 2))
    say_if(
        _same(value, matrix.reshape(3, 4, 2)),
        "The shape is right, but the numbers are cut by rows, so that a head gets some of the words. Each head gets "
        "all words, and some of the columns: cut the columns first, then change the order of the dimensions.",
    )
    say_if(
        _same(value, matrix.view(4, 2, 3).permute(2, 0, 1)),
        "Each head has every third column. Its columns must be neighbours.",
    )
    right = torch.stack(matrix.chunk(3, dim=1))
    say_if(not _same(value, right), f"The first head works with {right[0].tolist()}, but you got {value[0].tolist()}.")
