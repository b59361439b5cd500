"""Wrong answers to the exercises of lesson 3."""

import math

from solutions import lesson_03 as solutions


def entropy_with_nothing(weights):
    return -(weights * weights.log()).sum()


def negative_entropy(weights):
    return -solutions.entropy(weights)


def entropy_in_bits(weights):
    return solutions.entropy(weights) / math.log(2)


def mean_entropy(weights):
    return solutions.entropy(weights) / len(weights)


def penalty_with_padding(weights, real):
    return ((1 - weights.sum(dim=1)) ** 2).sum(dim=1)


def penalty_of_single_steps(weights, real):
    return ((1 - weights) ** 2 * real[..., None]).sum(dim=(1, 2))


def penalty_of_all_captions(weights, real):
    return solutions.coverage_penalty(weights, real).mean()


def swapped_centre(weights, size):
    return solutions.centre(weights, size)[::-1]


def corner(weights, size):
    (x, y), (rows, columns) = solutions.centre(weights, size), weights.shape
    return x - size / columns / 2, y - size / rows / 2


def peak(weights, size):
    row, column = divmod(int(weights.argmax()), weights.shape[1])
    return (column + 0.5) * size / weights.shape[1], (row + 0.5) * size / weights.shape[0]


EXERCISES = [
    ("check_entropy", "entropy", entropy_with_nothing, "0 times minus infinity"),
    ("check_entropy", "entropy", negative_entropy, "The sign is wrong"),
    ("check_entropy", "entropy", entropy_in_bits, "entropy in bits"),
    ("check_entropy", "entropy", mean_entropy, "The entropy is the sum"),
    ("check_coverage", "coverage_penalty", penalty_with_padding, "behind a caption's end"),
    ("check_coverage", "coverage_penalty", penalty_of_single_steps, "first added up over the steps"),
    ("check_coverage", "coverage_penalty", penalty_of_all_captions, "must have the shape (3,), but yours has ()"),
    ("check_centre", "centre", swapped_centre, "x counts columns, y counts rows"),
    ("check_centre", "centre", corner, "upper left corners"),
    ("check_centre", "centre", peak, "weighted by all weights"),
]
