"""Wrong answers to the exercises of lesson 6."""

import torch


def window_of_later_places(length, back):
    return torch.ones(length, length, dtype=torch.bool).triu().tril(back)


def window_without_itself(length, back):
    return torch.ones(length, length, dtype=torch.bool).tril(-1).triu(-back)


def window_on_both_sides(length, back):
    return torch.ones(length, length, dtype=torch.bool).tril(back).triu(-back)


def window_without_end(length, back):
    return torch.ones(length, length, dtype=torch.bool).tril()


def window_too_short(length, back):
    return torch.ones(length, length, dtype=torch.bool).tril().triu(1 - back)


def window_of_numbers(length, back):
    return torch.ones(length, length).tril().triu(-back)


def weights_cut_afterwards(scores, allowed):
    return scores.softmax(dim=-1) * allowed


def scores_of_zero(scores, allowed):
    return (scores * allowed).softmax(dim=-1)


def mask_turned_around(scores, allowed):
    return scores.masked_fill(allowed, -torch.inf).softmax(dim=-1)


def sines_then_cosines(place, width):
    angles = place / 10000 ** (torch.arange(0, width, 2) / width)
    return torch.cat([angles.sin(), angles.cos()])


def an_angle_for_each_column(place, width):
    angles = place / 10000 ** (torch.arange(width) / width)
    return torch.where(torch.arange(width) % 2 == 0, angles.sin(), angles.cos())


# the check, its solution, a plausible wrong answer, and what the check says to it
EXERCISES = [
    ("check_window_mask", "window_mask", window_of_later_places, "Rows and columns are exchanged"),
    ("check_window_mask", "window_mask", window_without_itself, "may look at itself"),
    ("check_window_mask", "window_mask", window_on_both_sides, "above the diagonal"),
    ("check_window_mask", "window_mask", window_without_end, "everything before it"),
    ("check_window_mask", "window_mask", window_too_short, "one too short"),
    ("check_window_mask", "window_mask", window_of_numbers, "torch.bool"),
    ("check_masked_weights", "masked_weights", weights_cut_afterwards, "do not sum to 1"),
    ("check_masked_weights", "masked_weights", scores_of_zero, "like any other and still gets a weight"),
    ("check_masked_weights", "masked_weights", mask_turned_around, "wrong way round"),
    ("check_position", "position", sines_then_cosines, "side by side"),
    ("check_position", "position", an_angle_for_each_column, "the same angle"),
]
