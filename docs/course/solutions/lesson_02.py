"""CNN-RNN: the recurrent cell, the loss, and how a caption is written."""

import torch


def gru_step(x, h, from_input, from_state):
    x_r, x_z, x_n = from_input(x).chunk(3, dim=-1)
    h_r, h_z, h_n = from_state(h).chunk(3, dim=-1)
    r, z = torch.sigmoid(x_r + h_r), torch.sigmoid(x_z + h_z)
    n = torch.tanh(x_n + r * h_n)
    return z * h + (1 - z) * n


def perplexity(scores, labels):
    real = labels != -100
    log_p = scores.log_softmax(dim=-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    return torch.exp(-log_p[real].mean())


def greedy(next_scores, start, end, longest):
    words = [start]
    while len(words) <= longest:
        word = int(next_scores(words).argmax())
        if word == end:
            break
        words.append(word)
    return words[1:]
