"""Training by reward: baselines, the loss, and a reward."""

import math
from collections.abc import Callable

import torch

from . import ask, exercise, number, say_if, tensor


@exercise
def check_leave_one_out(answer: Callable) -> None:
    """`answer(rewards)`: the baseline (B, k)."""
    rewards = torch.tensor([[6.0, 2.0, 1.0], [0.0, 3.0, 9.0]])
    right = (rewards.sum(1, keepdim=True) - rewards) / 2
    given = rewards.clone()
    result = ask(answer, given)
    say_if(not torch.equal(given, rewards), "Your function changes the rewards, which are still needed.")
    result = tensor(result, tuple(rewards.shape))
    say_if(
        torch.allclose(result, rewards.mean(1, keepdim=True).expand_as(rewards)),
        "This is the mean of all captions of the image. With its own reward in it, a baseline depends on the caption "
        "that it judges.",
    )
    say_if(
        torch.allclose(result, (rewards.sum() - rewards) / 5),
        "This is the mean over the other captions of all images. Compare captions of the same image alone.",
    )
    say_if(
        torch.allclose(result, rewards - right), "These are rewards minus baseline. The baseline alone is asked for."
    )
    say_if(not torch.allclose(result, right), f"For the rewards {rewards.tolist()} it is {right.tolist()}.")


@exercise
def check_policy_loss(answer: Callable) -> None:
    """`answer(log_probs, labels, advantages)`: a number."""
    log_probs = torch.tensor([[-0.5, -1.0, -0.25, -6.0], [-2.0, -0.5, -5.0, -9.0], [-1.0, -1.5, -0.5, -0.75]])
    labels = torch.tensor([[7, 5, 3, -100], [8, 3, -100, -100], [4, 6, 9, 3]])
    advantages = torch.tensor([2.0, -1.0, 0.5])
    real = labels != -100
    sums = (log_probs * real).sum(1)
    right = -(advantages * sums).mean().item()
    value = number(ask(answer, log_probs.clone(), labels.clone(), advantages.clone()))

    def close(other: torch.Tensor) -> bool:
        return abs(value - other.item()) < 1e-5

    say_if(
        close((advantages * sums).mean()), "The sign is wrong: making this small would make good captions improbable."
    )
    say_if(
        close(-(advantages * log_probs.sum(1)).mean()),
        "Words behind the end count in your loss. Where the label is -100, there is none.",
    )
    say_if(
        close(-(advantages * sums / real.sum(1)).mean()) or close(-(advantages * sums).sum() / real.sum()),
        "You divide by numbers of words. The log probability of a caption is the sum over its words, not their mean.",
    )
    say_if(close(-(advantages * sums).sum()), "This is the sum over captions; the mean is asked for.")
    say_if(abs(value - right) > 1e-5, f"The loss is {right:.4f}, but you got {value:.4f}.")


@exercise
def check_fair_precision(answer: Callable) -> None:
    """`answer(caption, references)`: clipped precision times brevity penalty."""
    references = [
        "a small red circle".split(),
        "there is a small red circle".split(),
        "a circle that is a small one".split(),
    ]
    texts = "a red circle", "a", "a small blue circle", "there is a small red and a blue circle", "a a a a"
    for text in (*texts, "a small small red circle", ""):
        caption = text.split()
        value = number(ask(answer, list(caption), [list(one) for one in references]))
        if not caption:
            say_if(value != 0, f"An empty caption gets 0, but you gave it {value:g}.")
            continue
        most = {word: max(one.count(word) for one in references) for word in caption}
        clipped = sum(min(caption.count(word), count) for word, count in most.items()) / len(caption)
        unclipped = sum(most[word] > 0 for word in caption) / len(caption)

        def brevity(length: int, said: int = len(caption)) -> float:
            return min(1.0, math.exp(1 - length / said))

        closest = min((len(one) for one in references), key=lambda length: (abs(length - len(caption)), length))
        right = clipped * brevity(closest)
        off = abs(value - right) > 1e-6
        say_if(off and abs(value - clipped) < 1e-6, f'For "{text}" this is the precision, without the penalty.')
        say_if(
            off and abs(value - clipped * math.exp(1 - closest / len(caption))) < 1e-6,
            f'"{text}" is longer than its closest reference, and the penalty is never above 1.',
        )
        say_if(
            off and abs(value - clipped * brevity(max(map(len, references)))) < 1e-6,
            "This compares with the longest reference. The one whose length is closest is meant.",
        )
        say_if(
            off and abs(value - unclipped * brevity(closest)) < 1e-6,
            f'For "{text}" you count a word more often than any reference has it: this is the precision without '
            "clipping.",
        )
        say_if(off, f'For "{text}" it is {right:.4f}, but you got {value:.4f}.')
