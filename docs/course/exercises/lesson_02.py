"""CNN-RNN: the recurrent cell, the loss, and how a caption is written."""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from . import ask, exercise, number, say_if, tensor


@exercise
def check_gru(answer: Callable) -> None:
    """`answer(x, h, from_input, from_state)`: the next state of a GRU."""
    torch.manual_seed(0)
    cell = nn.GRUCell(5, 4)
    from_input, from_state = nn.Linear(5, 12), nn.Linear(4, 12)
    from_input.load_state_dict({"weight": cell.weight_ih, "bias": cell.bias_ih})
    from_state.load_state_dict({"weight": cell.weight_hh, "bias": cell.bias_hh})
    x, h = torch.randn(3, 5), torch.randn(3, 4)
    value = tensor(ask(answer, x, h, from_input, from_state), h.shape)

    reset, update, _ = (from_input(x) + from_state(h)).sigmoid().chunk(3, dim=-1)
    candidate, remembered = from_input(x).chunk(3, dim=-1)[2], from_state(h).chunk(3, dim=-1)[2]
    right = cell(x, h)
    new = torch.tanh(candidate + reset * remembered)
    say_if(
        torch.allclose(value, (1 - update) * h + update * new, atol=1e-5),
        "The update gate z is the share of the old state that is kept. In your answer it is that of the new one.",
    )
    say_if(
        torch.allclose(value, update * h + (1 - update) * torch.tanh(candidate + remembered), atol=1e-5),
        "The reset gate r is missing: it is multiplied with what the state contributes to the candidate n.",
    )
    say_if(
        torch.allclose(value, update * h + (1 - update) * torch.tanh(reset * (candidate + remembered)), atol=1e-5),
        "The reset gate r belongs to what the state contributes to the candidate n, not to what the input does.",
    )
    say_if(not torch.allclose(value, right, atol=1e-5), f"The state should be {right[0]}, but you got {value[0]}.")


@exercise
def check_perplexity(answer: Callable) -> None:
    """`answer(scores, labels)`: perplexity of captions of different lengths."""
    torch.manual_seed(0)
    scores = 2 * torch.randn(3, 6, 11)
    labels = torch.randint(0, 11, (3, 6))
    labels[1, 4:], labels[2, 2:] = -100, -100
    value = number(ask(answer, scores, labels))

    losses = F.cross_entropy(scores.mT, labels, reduction="none")  # 0 where a label is -100
    counts = (labels != -100).sum(dim=1)
    right = (losses.sum() / counts.sum()).exp().item()
    say_if(
        abs(value - losses.sum().item() / counts.sum().item()) < 1e-4,
        "This is the cross-entropy. The perplexity is e to the power of it.",
    )
    say_if(
        abs(value - (losses.sum(dim=1) / counts).mean().exp().item()) < 1e-4,
        "You took the mean of each caption first. Every word counts the same, so that long captions count more.",
    )
    say_if(
        abs(value - losses.mean().exp().item()) < 1e-4,
        "You divided by all places, those that only fill up short captions (-100) among them.",
    )
    say_if(abs(value - right) > 1e-4 * right, f"The perplexity is {right:.4f}, but you got {value:.4f}.")


@exercise
def check_greedy(answer: Callable) -> None:
    """`answer(next_scores, start, end, longest)`: the words of a caption, greedily, as a list of ids."""
    follows = {(2,): 5, (2, 5): 7, (2, 5, 7): 5, (2, 5, 7, 5): 4, (2, 5, 7, 5, 4): 3}

    def next_scores(words):
        words = tuple(int(word) for word in words)
        say_if(
            words not in follows,
            f"You asked what follows on {list(words)}. Ask with the start and all words chosen so far, and not "
            "after the end.",
        )
        return F.one_hot(torch.tensor(follows[words]), 9).float()

    words = [int(word) for word in ask(answer, next_scores, 2, 3, 10)]
    say_if(words[:1] == [2], "The start is no word of the caption: leave it out of what you return.")
    say_if(words[-1:] == [3], "The end is no word of the caption: leave it out of what you return.")
    say_if(words != [5, 7, 5, 4], f"The caption is [5, 7, 5, 4], but you got {words}.")
    words = [int(word) for word in ask(answer, next_scores, 2, 3, 3)]
    say_if(len(words) != 3, f"A caption of at most 3 words was asked for, and yours has {len(words)}.")
