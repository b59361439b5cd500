"""
What is wrong with a captioner, told from what was measured of it. All rules and thresholds are here: the training, the
evaluation and the card ask this file. `docs/training_seen.md` has what healthy and broken trainings measured.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

# Captions of which fewer are different than this share are alike. Healthy trainings begin below it, so early in a
# training it takes more than this to raise an alarm, see `_captions_alike`.
FEW_CAPTIONS = 0.05
FALLEN = 5.0  # times fewer different captions than at an earlier evaluation: a collapse, not a slow start
# Where the loss was not looked at: what captions may gain from their own image and still count as blind, as a share of
# their CIDEr-D and at least in its own unit.
BLIND_SHARE, BLIND_CIDER_D = 0.25, 0.1
# Relative differences of the regions of different images that come from rounding alone.
SAME_FEATURES = 1e-3
# Entropy of attention, as a share of that of equal weights; an attention that has learned nothing yet stays below.
UNIFORM = 0.9999
# Mean total variation distance from the mean map (0 to 1), below which maps are the same.
SAME_MAPS = 1e-3
DIVERGED = 1.5  # times the loss of a captioner that knows nothing; a new one is a little above it
UNKNOWN_WORDS = 0.2  # share of the references' words
NO_LEARNING_RATE = 1e-8


@dataclass(frozen=True)
class Alarm:
    """
    Something that is wrong with a captioner; [`find_alarms`] finds it.

    Attributes:
        cause: one word for it, the same in every version: `not_finite`, `learning_rate_zero`, `learning_rate_high`,
            `loss_not_falling`, `unknown_words`, `same_features`, `blind`, `captions_alike`, `attention_uniform`,
            `attention_constant`, `attention_still`.
        text: what was measured, and what the likely cause is.

    Examples:
        >>> from hf_captioner.metrics import find_alarms
        >>> [alarm] = find_alarms({"learning_rate": 0.0})
        >>> alarm.cause
        'learning_rate_zero'
        >>> print(alarm.text.partition(":")[0])
        the largest learning rate of the training is 0
    """

    cause: str
    text: str


def find_alarms(measured: Mapping[str, float], settled: bool = True, late: bool = True) -> list[Alarm]:
    """
    What is wrong with a captioner, told from what was measured of it.

    Args:
        measured: what is known, by name; a rule whose numbers are missing says nothing.

            - `unique_ratio`, `cider_d`, `image_use`, `image_use_low`, `image_use_high`: of [`collapse_checks`].
              `most_unique`: the largest `unique_ratio` of earlier evaluations.
            - `loss_use`, `loss_use_low`, `loss_use_high`: by how much a reference's loss per token grows if its image
              is exchanged for another, and the 95 % interval.
            - `features_differ`: by how much images' features differ, relative to their size.
            - `attention_entropy`, `attention_images`, `attention_steps`: entropy, 1 for equal weights, and mean total
              variation distance of maps from their mean over images and over steps.
            - `unknown_words`: share of the references' words that are unknown.
            - `loss`: of the evaluation, and `training_loss` of the log's last line; `word_loss`, that of a captioner
              which knows how frequent words are and nothing else; `uniform_loss`, that of one which knows nothing.
            - `learning_rate`: the largest of the training.
        settled: whether there were enough steps to learn how frequent words are. Before, only what cannot be healed
            by further steps is told.
        late: whether half of the training is over.

    Returns:
        the alarms, the likely cause first. What follows from it is left out: of a captioner without a learning rate it
        is not said that its captions are alike.

    Examples:
        >>> from hf_captioner.metrics import find_alarms
        >>> blind = {"unique_ratio": 0.02, "loss_use": 0.0, "loss_use_low": -0.01, "loss_use_high": 0.01}
        >>> [alarm.cause for alarm in find_alarms(blind)]
        ['blind']
        >>> find_alarms({"unique_ratio": 0.8, "loss_use": 0.6, "loss_use_low": 0.5, "loss_use_high": 0.7})
        []
    """
    if alarm := _not_finite(measured) or _no_learning_rate(measured):
        return [alarm]
    found = [_unknown_words(measured), _same_features(measured)]
    if settled and (alarm := _loss_not_fallen(measured)):
        found.append(alarm)
    elif settled and found[1] is None:
        found += [_blind(measured), _captions_alike(measured, late), *_attention(measured)]
    return [alarm for alarm in found if alarm is not None]


def _not_finite(measured: Mapping[str, float]) -> Alarm | None:
    for name in ("loss", "training_loss"):
        if not math.isfinite(measured.get(name, 0.0)):
            what = "loss of the evaluation" if name == "loss" else "training loss"
            return Alarm(
                "not_finite",
                f"the {what} is {measured[name]}: a step was too large (`learning_rate`, `max_grad_norm`, half "
                "precision) or the data have numbers that are not finite; the weights are lost, go on from an earlier "
                "checkpoint",
            )
    return None


def _no_learning_rate(measured: Mapping[str, float]) -> Alarm | None:
    if measured.get("learning_rate", 1.0) >= NO_LEARNING_RATE:
        return None
    return Alarm(
        "learning_rate_zero",
        f"the largest learning rate of the training is {measured['learning_rate']:.3g}: nothing is learned; see "
        "`learning_rate`, `lr_scheduler_type` and `warmup_steps`",
    )


def _loss_not_fallen(measured: Mapping[str, float]) -> Alarm | None:
    loss, words = measured.get("loss"), measured.get("word_loss")
    if loss is None or words is None or loss < words:
        return None
    rate = f" of {measured['learning_rate']:.3g}" if "learning_rate" in measured else ""
    if loss > DIVERGED * measured.get("uniform_loss", math.inf):
        return Alarm(
            "learning_rate_high",
            f"the loss of the evaluation, {loss:.3f}, is far above {measured['uniform_loss']:.3f}, that of a "
            f"captioner which knows nothing: the learning rate{rate} is too high, or there is no warm-up",
        )
    return Alarm(
        "loss_not_falling",
        f"the loss of the evaluation, {loss:.3f}, is not below {words:.3f}, that of a captioner which knows only how "
        f"frequent words are: the learning rate{rate} is too low or too high, or nothing that matters is trained",
    )


def _unknown_words(measured: Mapping[str, float]) -> Alarm | None:
    rate = measured.get("unknown_words", 0.0)
    if rate <= UNKNOWN_WORDS:
        return None
    return Alarm(
        "unknown_words",
        f"{100 * rate:.0f} % of the words of the evaluation's references are unknown: the tokenizer is of other "
        "captions, or `min_frequency` and `vocab_size` leave too few words",
    )


def _same_features(measured: Mapping[str, float]) -> Alarm | None:
    differ = measured.get("features_differ", 1.0)
    if differ >= SAME_FEATURES:
        return None
    return Alarm(
        "same_features",
        f"the vision model gives every image the same features (they differ by {differ:.1e} of their size): images "
        "are not read as they should be, or the vision model's weights are broken",
    )


def _sees(measured: Mapping[str, float]) -> bool | None:
    """Whether captions or, more easily told, the loss depend on the image; `None` if nobody knows."""
    known = [measured[name] > 0 for name in ("image_use_low", "loss_use_low") if name in measured]
    return any(known) if known else None


def _blind(measured: Mapping[str, float]) -> Alarm | None:
    if _sees(measured) is not False:
        return None
    parts = []
    if "image_use_low" in measured:
        limit = max(BLIND_CIDER_D, BLIND_SHARE * measured["cider_d"])
        if "loss_use_low" not in measured and measured["image_use_high"] >= limit:
            return None  # too few images to tell
        parts.append(
            f"captions handed to other images score as well: CIDEr-D {measured['cider_d']:.3f}, of which their own "
            f"image makes {_interval(measured, 'image_use')}"
        )
    if "loss_use_low" in measured:
        parts.append(f"references' loss per token grows by {_interval(measured, 'loss_use')} if images are exchanged")
    return Alarm(
        "blind",
        f"{'; '.join(parts)}: the captioner does not look; captions may belong to other images (is `index` the row?), "
        "or features say nothing about the image",
    )


def _interval(measured: Mapping[str, float], name: str) -> str:
    low, high = measured[f"{name}_low"], measured[f"{name}_high"]
    return f"{measured[name]:.3f} (95 % interval {low:.3f} to {high:.3f})"


def _captions_alike(measured: Mapping[str, float], late: bool) -> Alarm | None:
    """
    A captioner that has begun to look, as its loss shows, still gives many images the same caption: that is a slow
    start, until half of the training is over, or unless it gave more different ones before.
    """
    ratio = measured.get("unique_ratio", 1.0)
    fallen = ratio * FALLEN < measured.get("most_unique", 0.0)
    if ratio >= FEW_CAPTIONS or _sees(measured) is False or not (late or fallen):
        return None
    before = f", after {100 * measured['most_unique']:.1f} % before" if fallen else ""
    return Alarm(
        "captions_alike",
        f"only {100 * ratio:.1f} % of the captions are different{before}, although the image has an effect: the "
        "search finds one safe sentence; the training is too short, or its reward or its learning rate too high",
    )


def _attention(measured: Mapping[str, float]) -> list[Alarm | None]:
    if measured.get("attention_entropy", 0.0) > UNIFORM:
        return [
            Alarm(
                "attention_uniform",
                f"attention is the same everywhere (entropy {measured['attention_entropy']:.5f} of that of equal "
                "weights): regions do not differ, or the alignment is not trained; maps say nothing",
            )
        ]
    found: list[Alarm | None] = []
    if measured.get("attention_images", 1.0) < SAME_MAPS:
        found.append(
            Alarm(
                "attention_constant",
                "attention looks at the same places in every image (maps differ by "
                f"{measured['attention_images']:.1e}): it has learned places, not what is there",
            )
        )
    if measured.get("attention_steps", 1.0) < SAME_MAPS:
        found.append(
            Alarm(
                "attention_still",
                "attention looks at the same places at every word (maps differ by "
                f"{measured['attention_steps']:.1e}): it does not depend on the decoder's state",
            )
        )
    return found
