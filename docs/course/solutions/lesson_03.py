"""Soft attention: how spread its maps are, what they cover, where they look."""

import torch


def entropy(weights):
    some = weights[weights > 0]
    return -(some * some.log()).sum()


def coverage_penalty(weights, real):
    covered = (weights * real[..., None]).sum(dim=1)  # (N, L)
    return ((1 - covered) ** 2).sum(dim=1)


def centre(weights, size):
    rows, columns = weights.shape
    x = (torch.arange(columns) + 0.5) * size / columns
    y = (torch.arange(rows) + 0.5) * size / rows
    return (weights.sum(dim=0) * x).sum(), (weights.sum(dim=1) * y).sum()
