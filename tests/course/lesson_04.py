"""Wrong answers to the exercises of lesson 4."""

import torch


def without_baseline(weights, chosen, reward, baseline):
    return reward * (torch.eye(len(weights))[chosen] - weights)


def chosen_alone(weights, chosen, reward, baseline):
    """As if the other scores had nothing to do with the chosen region's weight."""
    return (reward - baseline) * torch.eye(len(weights))[chosen]


def downhill(weights, chosen, reward, baseline):
    return (baseline - reward) * (torch.eye(len(weights))[chosen] - weights)


def mean_of_all(rewards):
    return rewards.mean().expand(len(rewards))


def divided_by_all(rewards):
    return (rewards.sum() - rewards) / len(rewards)


def reward_so_far(rewards):
    return rewards.cumsum(0)


def later_words_alone(rewards):
    return rewards.flip(0).cumsum(0).flip(0) - rewards


# the check, its solution, a plausible wrong answer, and what the check says to it
EXERCISES = [
    ("check_gradient_estimate", "gradient_estimate", without_baseline, "baseline is missing"),
    ("check_gradient_estimate", "gradient_estimate", chosen_alone, "Softmax ties all scores together"),
    ("check_gradient_estimate", "gradient_estimate", downhill, "sign is turned around"),
    ("check_leave_one_out", "leave_one_out_baselines", mean_of_all, "each draw leaves itself out"),
    ("check_leave_one_out", "leave_one_out_baselines", divided_by_all, "one number less"),
    ("check_reward_to_go", "reward_to_go", reward_so_far, "cannot change the words before it"),
    ("check_reward_to_go", "reward_to_go", later_words_alone, "own word is missing"),
]
