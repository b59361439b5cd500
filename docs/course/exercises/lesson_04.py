"""Hard attention and REINFORCE."""

from collections.abc import Callable

import torch

from . import ask, exercise, say_if, tensor


@exercise
def check_gradient_estimate(answer: Callable) -> None:
    """`answer(weights, chosen, reward, baseline)`: one estimate of the gradient by the scores."""
    weights = torch.tensor([0.5, 0.2, 0.3])
    for chosen, reward, baseline in ((1, -2.0, -3.0), (2, -4.0, -1.5)):
        hit = torch.tensor([float(place == chosen) for place in range(3)])
        right = (reward - baseline) * (hit - weights)
        value = tensor(ask(answer, weights.clone(), chosen, reward, baseline), (3,))
        say_if(
            torch.allclose(value, reward * (hit - weights)),
            "The baseline is missing: compare the reward with it.",
        )
        say_if(
            torch.allclose(value, (reward - baseline) * hit),
            "Only the chosen region's score moves here. Softmax ties all scores together: the gradient of the "
            "logarithm of a weight is 1 at the chosen region, minus the weights at all regions.",
        )
        say_if(
            torch.allclose(value, -right),
            "The sign is turned around: a choice that was better than the baseline must become more probable.",
        )
        say_if(
            not torch.allclose(value, right),
            f"For region {chosen}, reward {reward} and baseline {baseline} the estimate is {right.tolist()}, but you "
            f"got {value.tolist()}.",
        )


@exercise
def check_leave_one_out(answer: Callable) -> None:
    """`answer(rewards)`: for each draw the mean of the others."""
    rewards = torch.tensor([-1.0, -4.0, -2.5, -3.0])
    right = torch.stack([torch.cat([rewards[:place], rewards[place + 1 :]]).mean() for place in range(4)])
    value = tensor(ask(answer, rewards.clone()), (4,))
    say_if(
        torch.allclose(value, rewards.mean().expand(4)),
        "This is the mean of all draws. A baseline must not depend on the draw that it is compared with, so each draw "
        "leaves itself out.",
    )
    say_if(
        torch.allclose(value, (rewards.sum() - rewards) / 4),
        "The sum of the others is right, but there is one number less to divide it by.",
    )
    say_if(
        not torch.allclose(value, right),
        f"For the rewards {rewards.tolist()} the baselines are {right.tolist()}, but you got {value.tolist()}.",
    )


@exercise
def check_reward_to_go(answer: Callable) -> None:
    """`answer(rewards)`: for each word the sum of its reward and those of all later words."""
    rewards = torch.tensor([-1.0, -0.5, -3.0, -2.0])
    right = torch.stack([rewards[place:].sum() for place in range(4)])
    value = tensor(ask(answer, rewards.clone()), (4,))
    say_if(
        torch.allclose(value, rewards.cumsum(0)),
        "These are the sums up to each word. A choice cannot change the words before it: sum from its own word on.",
    )
    say_if(
        torch.allclose(value, right - rewards),
        "A choice's own word is missing: it is the first that the choice has an effect on.",
    )
    say_if(
        not torch.allclose(value, right),
        f"For the rewards {rewards.tolist()} the sums are {right.tolist()}, but you got {value.tolist()}.",
    )
