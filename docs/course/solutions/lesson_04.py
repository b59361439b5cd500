"""Hard attention and REINFORCE."""


def gradient_estimate(weights, chosen, reward, baseline):
    direction = -weights
    direction[chosen] += 1
    return (reward - baseline) * direction


def leave_one_out_baselines(rewards):
    return (rewards.sum() - rewards) / (len(rewards) - 1)


def reward_to_go(rewards):
    return rewards.flip(0).cumsum(0).flip(0)
