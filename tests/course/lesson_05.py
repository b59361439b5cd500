"""Wrong answers to the exercises of lesson 5."""


def unscaled(queries, keys):
    return queries @ keys.T


def scaled_by_width(queries, keys):
    return queries @ keys.T / queries.shape[-1]


def scaled_by_keys(queries, keys):
    return queries @ keys.T / len(keys) ** 0.5


def softmax_over_queries(queries, keys, values):
    return (queries @ keys.T / queries.shape[-1] ** 0.5).softmax(dim=0) @ values


def unscaled_attention(queries, keys, values):
    return (queries @ keys.T).softmax(dim=-1) @ values


def without_softmax(queries, keys, values):
    return queries @ keys.T / queries.shape[-1] ** 0.5 @ values


def heads_of_rows(matrix, heads):
    """The right shape of the wrong numbers."""
    return matrix.reshape(heads, matrix.shape[0], -1)


def interleaved_heads(matrix, heads):
    return matrix.unflatten(1, (-1, heads)).permute(2, 0, 1)


# the check, its solution, a plausible wrong answer, and what the check says to it
EXERCISES = [
    ("check_scaled_scores", "scaled_scores", unscaled, "still have to be divided"),
    ("check_scaled_scores", "scaled_scores", scaled_by_width, "divided by the width d"),
    ("check_scaled_scores", "scaled_scores", scaled_by_keys, "number of queries or keys"),
    ("check_attention", "attention", softmax_over_queries, "runs over the queries"),
    ("check_attention", "attention", unscaled_attention, "not scaled"),
    ("check_attention", "attention", without_softmax, "softmax is missing"),
    ("check_split_heads", "split_heads", heads_of_rows, "cut by rows"),
    ("check_split_heads", "split_heads", interleaved_heads, "every third column"),
]
