"""Queries, keys and values."""


def scaled_scores(queries, keys):
    return queries @ keys.T / queries.shape[-1] ** 0.5


def attention(queries, keys, values):
    return scaled_scores(queries, keys).softmax(dim=-1) @ values


def split_heads(matrix, heads):
    return matrix.unflatten(1, (heads, -1)).transpose(0, 1)
