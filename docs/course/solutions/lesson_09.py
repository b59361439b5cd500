"""Solutions to the exercises of lesson 9."""

import math


def leave_one_out(rewards):
    others = rewards.shape[1] - 1
    return (rewards.sum(1, keepdim=True) - rewards) / others


def policy_loss(log_probs, labels, advantages):
    log_p = log_probs.masked_fill(labels == -100, 0).sum(1)  # of whole captions
    return -(advantages * log_p).mean()


def fair_precision(caption, references):
    if not caption:
        return 0.0
    c = len(caption)
    clipped = (min(caption.count(word), max(one.count(word) for one in references)) for word in set(caption))
    precision = sum(clipped) / c
    r = min((len(reference) for reference in references), key=lambda length: (abs(length - c), length))
    return precision * min(1.0, math.exp(1 - r / c))
