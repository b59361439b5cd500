"""Masks and positions."""

import torch


def window_mask(length, back):
    return torch.ones(length, length, dtype=torch.bool).tril().triu(-back)


def masked_weights(scores, allowed):
    return scores.masked_fill(~allowed, -torch.inf).softmax(dim=-1)


def position(place, width):
    angles = place / 10000 ** (torch.arange(0, width, 2) / width)
    return torch.stack([angles.sin(), angles.cos()], dim=1).flatten()
