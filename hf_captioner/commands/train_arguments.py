"""The settings of `train`: three groups of our own, and transformers' `Seq2SeqTrainingArguments`."""

import json
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import Seq2SeqTrainingArguments
from transformers.integrations import is_deepspeed_available
from transformers.trainer_utils import HubStrategy, IntervalStrategy

from ..data.views import RandomView
from ..errors import InputError
from ..models.machine_captioner import DTYPES
from ..trainers.captioning_trainer import check_hub_strategy
from .inputs import SourceArguments
from .parsing import CommandParser, json_mapping, read_settings
from .shipped import find_config

logger = logging.getLogger(__name__)


def refuse_without_effect(arguments, names, when: str) -> None:
    """Raises an `InputError` if any of these options was given."""
    given = [name for name in names if getattr(arguments, name) is not None]
    if given:
        named = ", ".join(f"`{name}`" for name in given)
        values = ", ".join(repr(getattr(arguments, name)) for name in given)
        raise InputError(f"{named} must be left out {when}, got {values}")


def fill_in(arguments, defaults: dict) -> None:
    for name, default in defaults.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, default)


def check_positive(arguments, *names: str) -> None:
    for name in names:
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise InputError(f"`{name}` must be at least 1, got {value}")


# What makes a new captioner. A saved one has all of it, and these options would do nothing.
NEW_CAPTIONER = dict(
    model_type="rnn_captioner",
    vision_model=None,
    image_size=None,
    tokenizer="word",
    vocab_size=10000,
    min_frequency=1,
)
NEW_GENERATION = dict(max_new_tokens=20, num_beams=3)
GENERATION = (*NEW_GENERATION, "length_penalty", "no_repeat_ngram_size")  # what is saved as generation defaults
SELF_CRITICAL = dict(
    reward='{"cider_d": 1.0}',
    reward_baseline="leave_one_out",
    samples_per_image=5,
    candidates="samples",
    cross_entropy=0.0,
)
DISTILLATION = dict(teacher_weight=0.5)
OBJECTIVES = ("cross_entropy", "distillation", "self_critical")


@dataclass
class ModelArguments:
    """What to train. `model` goes on from a saved captioner; what describes a new one must then be left out."""

    model: str | None = field(default=None, metadata={"help": "folder or Hub name of a captioner to train further"})
    model_type: str | None = field(
        default=None, metadata={"help": "family of a new captioner, rnn_captioner by default"}
    )
    model_config: str | None = field(
        default=None,
        metadata={
            "help": "fields of its configuration, as a JSON object, with `model` those that change; they override "
            "those of the settings file"
        },
    )
    vision_model: str | None = field(
        default=None, metadata={"help": "folder or Hub name of pretrained vision weights for a new captioner"}
    )
    image_size: int | None = field(default=None, metadata={"help": "side of the square that images are resized to"})
    freeze_vision: bool = field(default=False, metadata={"help": "do not train the vision model"})
    trainable_vision: str | None = field(
        default=None,
        metadata={
            "help": "train only the vision model's parameters in whose name this regular expression is found; the "
            "vision model stays in evaluation mode"
        },
    )
    lora: int | None = field(
        default=None,
        metadata={
            "help": "train low-rank adapters of this rank (8) in the vision model in place of its weights, with "
            "`trainable_vision` only in the layers that it names; the saved model has them in its weights"
        },
    )
    vision_learning_rate: float | None = field(
        default=None, metadata={"help": "of the vision model's parameters; `learning_rate` by default"}
    )
    tokenizer: str | None = field(
        default=None, metadata={"help": "kind of a new captioner's tokenizer: word, the default, or bpe"}
    )
    vocab_size: int | None = field(
        default=None, metadata={"help": "maximum number of tokens of a new tokenizer, 10000 by default"}
    )
    min_frequency: int | None = field(
        default=None, metadata={"help": "how often a word must occur to get into the vocabulary, once by default"}
    )
    max_new_tokens: int | None = field(
        default=None,
        metadata={"help": "maximum number of tokens of a caption; a saved captioner's own, or 20, by default"},
    )
    num_beams: int | None = field(
        default=None,
        metadata={"help": "number of beams to save as the default; a saved captioner's own, or 3, by default"},
    )

    length_penalty: float | None = field(
        default=None, metadata={"help": "exponent of the length in beam search, saved as the default likewise"}
    )
    no_repeat_ngram_size: int | None = field(
        default=None,
        metadata={
            "help": "sequences of so many tokens come once in a caption, saved as the default likewise; 0: no rule"
        },
    )

    def __post_init__(self):
        check_positive(self, "lora", "image_size", "vocab_size", "min_frequency", "max_new_tokens", "num_beams")
        if self.no_repeat_ngram_size is not None and self.no_repeat_ngram_size < 0:
            raise InputError(f"`no_repeat_ngram_size` must be at least 0, got {self.no_repeat_ngram_size}")
        fill_in(self, dict(model_config="{}"))
        if "vocab_size" in json_mapping("model_config", self.model_config):
            raise InputError("`model_config` must not hold `vocab_size`, which is the tokenizer's: set the option")
        if self.model is not None:
            refuse_without_effect(self, NEW_CAPTIONER, "with `model`, which has its own")
        else:
            fill_in(self, NEW_CAPTIONER | NEW_GENERATION)
        if self.freeze_vision:
            refuse_without_effect(self, ["lora", "trainable_vision", "vision_learning_rate"], "with `freeze_vision`")


@dataclass
class DataArguments(SourceArguments):
    """What to train it on."""

    train_data: str = field(metadata={"help": "a table, a folder, a Hub data set, or shapes:rows=6000,seed=0"})
    eval_data: str = field(metadata={"help": "the same for evaluation"})
    train_split: str | None = field(default=None, metadata={"help": "name of the split, if the source has several"})
    eval_split: str | None = field(default=None, metadata={"help": "name of the split, if the source has several"})
    captions_per_image: int | None = field(
        default=None, metadata={"help": "how many to sample for each step; all by default"}
    )
    flip: bool = field(
        default=False, metadata={"help": "mirror training images at random; not where captions name left and right"}
    )
    smallest_crop: float | None = field(
        default=None,
        metadata={"help": "show a random part of each training image, at least this share of its area (0.7)"},
    )
    check_images: bool = field(default=True, metadata={"help": "decode every image before training starts"})
    on_bad_image: str = field(
        default="error",
        metadata={
            "help": "error: an image that cannot be read ends the run; skip: every image is decoded before training "
            "starts, and those that cannot be read are left out and named at the end, with exit status 1"
        },
    )
    feature_cache: str | None = field(
        default=None,
        metadata={
            "help": "folder for the features of a frozen vision model, which then runs once per image, not per epoch"
        },
    )
    cached_crops: int | None = field(
        default=None,
        metadata={
            "help": "number of cropped views in `feature_cache`, beside the whole image and with `flip` its mirror"
        },
    )
    dtype: str | None = field(
        default=None,
        metadata={
            "help": "of the features in `feature_cache` and how they are computed: auto, the default, is the fastest "
            "way to float32; float32: bit for bit what the vision model itself gives; bfloat16: faster where a "
            "processor has it, half as large and less exact"
        },
    )
    num_samples: int = field(
        default=12,
        metadata={"help": "number of evaluation images whose captions are written to samples.json after training"},
    )

    def __post_init__(self):
        check_positive(self, "captions_per_image", "num_samples", "cached_crops")
        RandomView(self.flip, self.smallest_crop)  # refuses other shares than those of an area
        if self.feature_cache is None:
            refuse_without_effect(self, ["cached_crops", "dtype"], "without `feature_cache`")
        elif (self.cached_crops is None) != (self.smallest_crop is None):
            raise InputError(
                "`smallest_crop` and `cached_crops` must come together with `feature_cache`, "
                f"got {self.smallest_crop} and {self.cached_crops}"
            )
        elif self.dtype not in (None, *DTYPES):
            raise InputError(f"`dtype` must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if self.on_bad_image not in ("error", "skip"):
            raise InputError(f"`on_bad_image` must be error or skip, got {self.on_bad_image!r}")


@dataclass
class ObjectiveArguments:
    """What to train it for, which of its weights are kept, and when to stop."""

    objective: str = field(
        default="cross_entropy",
        metadata={
            "help": "cross_entropy: likelihood of the reference captions; distillation: besides, what teachers expect "
            "at each of their words; self_critical: reward of sampled captions"
        },
    )
    teachers: list[str] | None = field(
        default=None,
        metadata={
            "help": "distillation: folders or Hub names of captioners with the same vocabulary, which see the same "
            "images; the mean of their probabilities is learned"
        },
    )
    teacher_weight: float | None = field(
        default=None,
        metadata={
            "help": "distillation: weight of the teachers in the loss, 0.5 by default; the references have the rest"
        },
    )
    reward: str | None = field(
        default=None,
        metadata={"help": 'self_critical: metrics and their weights, as JSON, {"cider_d": 1.0} by default'},
    )
    reward_baseline: str | None = field(
        default=None,
        metadata={
            "help": "self_critical: greedy caption, or leave_one_out, the mean of the image's other samples (default)"
        },
    )
    samples_per_image: int | None = field(
        default=None, metadata={"help": "self_critical: number of candidate captions for each image, 5 by default"}
    )
    candidates: str | None = field(
        default=None,
        metadata={"help": "self_critical: samples, the default, or beams, what beam search finds with so many beams"},
    )
    cross_entropy: float | None = field(
        default=None,
        metadata={"help": "self_critical: weight of the references' likelihood in the loss, 0 by default"},
    )
    ema_decay: float | None = field(
        default=None,
        metadata={
            "help": "evaluate and save a moving average of the weights, of which a step leaves this much (0.999)"
        },
    )
    early_stopping_patience: int | None = field(
        default=None,
        metadata={"help": "stop after so many evaluations in a row without a better `metric_for_best_model`"},
    )

    def __post_init__(self):
        check_positive(self, "early_stopping_patience")
        if self.objective not in OBJECTIVES:
            raise InputError(f"`objective` must be one of {', '.join(OBJECTIVES)}, got {self.objective!r}")
        if self.objective == "self_critical":
            fill_in(self, SELF_CRITICAL)
            weights = json_mapping("reward", self.reward)
            if not all(type(weight) in (int, float) for weight in weights.values()):
                raise InputError(f"`reward` must be metrics and their weights, numbers, got {self.reward!r}")
        else:
            refuse_without_effect(self, SELF_CRITICAL, "unless `objective` is self_critical")
        if self.objective == "distillation":
            fill_in(self, DISTILLATION)
            if not self.teachers:
                raise InputError("`teachers` must be the folders of captioners to learn from, got none")
            if not 0 <= self.teacher_weight <= 1:
                raise InputError(f"`teacher_weight` must be from 0 to 1, got {self.teacher_weight}")
        else:
            refuse_without_effect(self, ["teachers", *DISTILLATION], "unless `objective` is distillation")


def parse_arguments(
    argv: list[str], description: str = ""
) -> tuple[ModelArguments, DataArguments, ObjectiveArguments, Seq2SeqTrainingArguments]:
    """
    The settings of a command line, and of the YAML file that its `--config` names: the command line overrides it, but
    `model_config` is merged field by field, so that a single one can be changed. `--model` on the command line stands
    in place of all with which the file describes a new captioner, its `model_config` included.

    Args:
        argv: the arguments.
        description: what `--help` shows before the options.

    Raises:
        InputError: if a setting is unknown, missing, of the wrong type, breaks a rule or would have no effect, or what
            it needs is not installed.
    """
    option = dict(
        metavar="FILE",
        help="YAML file of these options, or the name of one that is shipped; the command line overrides it",
    )
    first = CommandParser(add_help=False)
    first.add_argument("--config", **option)
    first.add_argument("--model")
    given = first.parse_known_args(argv)[0]

    types = (ModelArguments, DataArguments, ObjectiveArguments, Seq2SeqTrainingArguments)
    parser = CommandParser(*types, description=description)
    parser.add_argument("--config", **option)
    # Rows have images and references, which forward() does not take; and without an accelerator `bf16`, which CPUs can
    # do, is refused unless the CPU is asked for.
    parser.set_defaults(
        predict_with_generate=True, remove_unused_columns=False, use_cpu=not torch.accelerator.is_available()
    )
    settings = {} if given.config is None else read_settings(find_config(given.config), parser)
    if given.model is not None and "model" not in settings:
        described = {*NEW_CAPTIONER, "model_config"}
        if dropped := [name for name in settings if name in described]:
            logger.warning("`model` stands in place of %s in %s", ", ".join(dropped), given.config)
        settings = {name: value for name, value in settings.items() if name not in described}
    parser.set_defaults(**settings)
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true" and not is_deepspeed_available():
        raise InputError("deepspeed, which this training is launched with, must be installed (pip install deepspeed)")
    model_args, data_args, objective, args, _ = parser.parse(argv)
    if "model_config" in settings:
        fields = json_mapping("model_config", settings["model_config"])
        model_args.model_config = json.dumps(fields | json.loads(model_args.model_config))
    check_together(model_args, data_args, objective, args)
    return model_args, data_args, objective, args


def check_together(
    model_args: ModelArguments,
    data_args: DataArguments,
    objective: ObjectiveArguments,
    args: Seq2SeqTrainingArguments,
) -> None:
    """Settings of different groups that exclude or need each other, and what would fail after hours only."""
    if args.output_dir is not None and Path(args.output_dir).is_file():
        raise InputError(f"`output_dir` must be a folder, got the file {args.output_dir}")
    if args.remove_unused_columns:
        raise InputError("`remove_unused_columns` must be false, for images and captions would be removed, got True")
    if data_args.feature_cache is not None and not model_args.freeze_vision:
        raise InputError(
            "`feature_cache` needs `freeze_vision`: the features of a vision model that is trained change"
        )
    if objective.early_stopping_patience is not None and (
        args.metric_for_best_model is None or args.eval_strategy == IntervalStrategy.NO
    ):
        raise InputError(
            "`early_stopping_patience` needs `metric_for_best_model` and an `eval_strategy`, "
            f"got {args.metric_for_best_model} and {args.eval_strategy.value}"
        )
    check_hub_strategy(args)
    if model_args.lora is not None and args.push_to_hub and args.hub_strategy != HubStrategy.END:
        raise InputError(
            "`hub_strategy` must be end with `lora`, because checkpoints hold adapters, which only the trainer can "
            f"load, got {args.hub_strategy.value}"
        )
    if not args.do_train:
        if model_args.model is None:
            raise InputError("`do_train` must be true unless `model` names a captioner to evaluate, got False")
        if args.resume_from_checkpoint:
            raise InputError(
                f"`resume_from_checkpoint` must be left out without `do_train`, got {args.resume_from_checkpoint!r}"
            )
        if args.push_to_hub:
            raise InputError("`push_to_hub` must be false without `do_train`, which leaves nothing to push, got True")
