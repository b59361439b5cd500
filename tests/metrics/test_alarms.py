"""Every cause is told by its numbers, healthy trainings raise nothing, and consequences do not hide their cause."""

import math

import pytest

from hf_captioner.metrics import collapse_checks, find_alarms
from hf_captioner.metrics.alarms import FEW_CAPTIONS, SAME_FEATURES, SAME_MAPS, UNIFORM, UNKNOWN_WORDS

# Measured at the end of the first epoch of quickstart.yaml.
HEALTHY = dict(
    word_loss=3.12887,
    uniform_loss=3.52636,
    unknown_words=0.0,
    loss=0.65265,
    training_loss=0.66718,
    learning_rate=0.00299,
    unique_ratio=0.692,
    cider_d=2.90377,
    image_use=2.34472,
    image_use_low=2.22581,
    image_use_high=2.46364,
    features_differ=0.77017,
    loss_use=1.82268,
    loss_use_low=1.50161,
    loss_use_high=2.20441,
    attention_entropy=0.83556,
    attention_images=0.42916,
    attention_steps=0.19861,
)
BLIND = dict(image_use=0.01, image_use_low=-0.02, image_use_high=0.03)
BLIND |= dict(loss_use=0.0, loss_use_low=-0.01, loss_use_high=0.01)
CAUSES = {
    "not_finite": dict(loss=math.nan),
    "learning_rate_zero": dict(learning_rate=0.0),
    "learning_rate_high": dict(loss=9.0),
    "loss_not_falling": dict(loss=3.2),
    "unknown_words": dict(unknown_words=UNKNOWN_WORDS + 0.01),
    "same_features": dict(features_differ=SAME_FEATURES / 2),
    "blind": BLIND,
    "captions_alike": dict(unique_ratio=FEW_CAPTIONS / 2),
    "attention_uniform": dict(attention_entropy=(1 + UNIFORM) / 2),
    "attention_constant": dict(attention_images=SAME_MAPS / 2),
    "attention_still": dict(attention_steps=SAME_MAPS / 2),
}


def causes(measured: dict, **about) -> list[str]:
    return [alarm.cause for alarm in find_alarms(measured, **about)]


@pytest.mark.parametrize("cause", CAUSES)
def test_each_cause_is_told_and_no_other(cause):
    assert causes(HEALTHY) == []
    assert causes(HEALTHY | CAUSES[cause]) == [cause]


@pytest.mark.parametrize("number", HEALTHY)
def test_a_number_that_is_not_known_says_nothing(number):
    assert causes({name: value for name, value in HEALTHY.items() if name != number}) == []


def test_the_cause_stands_for_what_follows_from_it():
    """Of a training without a learning rate, and of one whose features are the same."""
    nothing = HEALTHY | CAUSES["captions_alike"] | BLIND | CAUSES["attention_uniform"]
    assert causes(nothing | CAUSES["learning_rate_zero"]) == ["learning_rate_zero"]
    assert causes(nothing | CAUSES["loss_not_falling"]) == ["loss_not_falling"]
    assert causes(nothing | CAUSES["same_features"]) == ["same_features"]
    assert causes(nothing) == ["blind", "attention_uniform"]
    assert causes(HEALTHY | dict(training_loss=math.inf, loss=9.0)) == ["not_finite"]


def test_a_slow_start_is_no_blindness():
    """One caption for all images, but the loss shows that the image matters."""
    slow = HEALTHY | dict(unique_ratio=0.002, image_use=0.0, image_use_low=0.0, image_use_high=0.0)
    assert causes(slow, late=False) == []
    assert causes(slow, late=True) == ["captions_alike"]
    assert causes(slow | dict(most_unique=0.5), late=False) == ["captions_alike"]  # it was better before
    blind = slow | dict(loss_use=0.0, loss_use_low=-1e-3, loss_use_high=1e-3)
    assert causes(blind, late=False) == ["blind"]


def test_before_it_has_settled_only_what_does_not_heal_is_told():
    early = HEALTHY | BLIND | dict(loss=3.2, attention_entropy=1.0)
    assert causes(early, settled=False) == []
    assert causes(early | CAUSES["same_features"], settled=False) == ["same_features"]
    assert causes(early | dict(loss=math.inf), settled=False) == ["not_finite"]


def test_captions_alone_tell_a_blind_captioner_if_there_are_enough_of_them():
    things = [f"{thing} {place}" for thing in ("dog", "cat", "car", "boat") for place in range(30)]
    references = [[f"a {thing} is here", f"there is a {thing}"] for thing in things]
    assert causes(collapse_checks([f"a {thing} is here" for thing in things], references)) == []
    assert causes(collapse_checks(["a dog is here"] * len(things), references)) == ["blind"]
    few = dict(cider_d=0.5, image_use=0.05, image_use_low=-0.6, image_use_high=0.7, unique_ratio=0.9)
    assert causes(few) == []  # the interval of a few images says nothing


def test_texts_say_what_was_measured():
    (alarm,) = find_alarms(HEALTHY | BLIND)
    assert "0.010 (95 % interval -0.020 to 0.030)" in alarm.text and "other images" in alarm.text
    (alarm,) = find_alarms(HEALTHY | dict(loss=9.0))
    assert "9.000" in alarm.text and "3.526" in alarm.text and "0.00299" in alarm.text
