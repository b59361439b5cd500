"""Wrong answers to the exercises of lesson 9."""

import math


def mean_of_all(rewards):
    return rewards.mean(1, keepdim=True).expand_as(rewards)


def mean_over_images(rewards):
    return (rewards.sum() - rewards) / (rewards.numel() - 1)


def advantages_instead(rewards):
    return rewards - (rewards.sum(1, keepdim=True) - rewards) / (rewards.shape[1] - 1)


def wrong_sign(log_probs, labels, advantages):
    return (advantages * log_probs.masked_fill(labels == -100, 0).sum(1)).mean()


def with_padding(log_probs, labels, advantages):
    return -(advantages * log_probs.sum(1)).mean()


def mean_over_words(log_probs, labels, advantages):
    real = labels != -100
    return -(advantages * (log_probs * real).sum(1)).sum() / real.sum()


def _precision(caption, references, clipped=True):
    found = 0
    for word in set(caption):
        most = max(one.count(word) for one in references)
        found += min(caption.count(word), most) if clipped else caption.count(word) * (most > 0)
    return found / len(caption) if caption else 0.0


def _penalty(caption, references):
    return min(1, math.exp(1 - _closest(caption, references) / len(caption))) if caption else 1.0


def _closest(caption, references):
    return min((len(one) for one in references), key=lambda length: (abs(length - len(caption)), length))


def without_brevity(caption, references):
    return _precision(caption, references)


def without_clipping(caption, references):
    return _precision(caption, references, clipped=False) * _penalty(caption, references)


def longer_of_two(caption, references):
    if not caption:
        return 0.0
    longer = max((len(one) for one in references), key=lambda length: (-abs(length - len(caption)), length))
    return _precision(caption, references) * min(1, math.exp(1 - longer / len(caption)))


def bonus_for_length(caption, references):
    return _precision(caption, references) * math.exp(1 - _closest(caption, references) / len(caption))


def longest_reference(caption, references):
    return _precision(caption, references) * min(1, math.exp(1 - max(map(len, references)) / len(caption)))


def empty_is_perfect(caption, references):
    if not caption:
        return 1.0
    return _precision(caption, references) * _penalty(caption, references)


# the check, its solution, a plausible wrong answer, and what the check says to it
EXERCISES = [
    ("check_leave_one_out", "leave_one_out", mean_of_all, "depends on the caption"),
    ("check_leave_one_out", "leave_one_out", mean_over_images, "the same image alone"),
    ("check_leave_one_out", "leave_one_out", advantages_instead, "The baseline alone"),
    ("check_policy_loss", "policy_loss", wrong_sign, "The sign is wrong"),
    ("check_policy_loss", "policy_loss", with_padding, "Words behind the end"),
    ("check_policy_loss", "policy_loss", mean_over_words, "not their mean"),
    ("check_fair_precision", "fair_precision", without_brevity, "without the penalty"),
    ("check_fair_precision", "fair_precision", without_clipping, "without clipping"),
    ("check_fair_precision", "fair_precision", longer_of_two, 'For "a small small red circle" it is 0.8000'),
    ("check_fair_precision", "fair_precision", bonus_for_length, "never above 1"),
    ("check_fair_precision", "fair_precision", longest_reference, "longest reference"),
    ("check_fair_precision", "fair_precision", empty_is_perfect, "An empty caption gets 0"),
]
