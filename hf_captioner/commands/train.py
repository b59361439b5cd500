r"""
Trains a captioner of any family on any source of images and captions, and saves model and processor as one folder.

    hf-captioner train --config quickstart
    hf-captioner train --config quickstart --output_dir outputs/dot --model_config '{"attention": "dot"}'

`--config` is a YAML file or the name of one that is shipped. On several GPUs, training is started by accelerate; in a
clone `training/train.py` stands for `-m hf_captioner.commands.train`:

    accelerate launch -m hf_captioner.commands.train --config flickr8k_rnn_additive \
        --train_data flickr8k/train.parquet --eval_data flickr8k/validation.parquet --vision_model efficientnet_lite2

Teachers, captioners with the same vocabulary, may say what they expect at each word of the references:

    --objective distillation --teachers outputs/soft outputs/multi_head outputs/cnn_transformer

Captioners are usually trained in two stages, here two runs: the second starts from the first one's folder and is
trained by reward.

    accelerate launch -m hf_captioner.commands.train --config flickr8k_rnn_additive_scst \
        --model outputs/flickr8k_rnn_additive --train_data ... --eval_data ...

With `--model`, `--model_config` names the fields of its configuration that change: another dropout, hard attention
after soft.

Settings are the options below, of which most are the fields of transformers' `Seq2SeqTrainingArguments`; what stands
on the command line overrides the YAML file. Without `do_train` a saved captioner is evaluated, nothing else.

A training that was stopped goes on when the same command is given again: from its newest checkpoint that is whole, to
the same weights as if it had not been stopped. Once the training has finished, the same command does nothing. With
other settings, or with a folder that holds something else, it is refused; --resume_from_checkpoint last goes on with
other settings (more epochs, another number of processes), --resume_from_checkpoint FOLDER from a checkpoint of your
choice, and --resume_from_checkpoint false refuses a folder that is not new. Settings that change nothing in what is
learned (reports, data workers, the feature cache's folder, save_total_limit) may differ.

With --on_bad_image skip, images that cannot be read are left out and named at the end, and the exit status is 1, also
when the same command is given again.
"""

import copy
import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from datasets import Dataset
from huggingface_hub.errors import StrictDataclassError
from torch.utils.data import Dataset as TorchDataset
from transformers import CONFIG_MAPPING, EarlyStoppingCallback, GenerationConfig, PreTrainedModel, set_seed

from .. import CaptionerImageProcessor, CaptionerProcessor, train_tokenizer
from ..compat import captioner_class
from ..data import CaptionCollator, cache_features
from ..data.feature_cache import fingerprint, prepares
from ..data.views import OneOfViews, RandomView, RandomViews, views_to_cache
from ..errors import InputError, one_line
from ..metrics import CaptionReward
from ..models.configuration_captioner import CaptionerConfig
from ..models.machine_captioner import choose_precision
from ..models.vision_encoder import VisionEncoder
from ..sharing import write_card
from ..trainers import CaptioningTrainer, DistillingTrainer, SelfCriticalTrainer, caption_metrics
from ..trainers.adapters import add_adapters
from ..trainers.training_seen import TrainingSeen, alarms_of
from . import run
from .inputs import read_captioner, read_captions, refusing
from .parsing import json_mapping
from .train_arguments import GENERATION, DataArguments, ModelArguments, ObjectiveArguments, parse_arguments
from .train_report import write_samples, write_training
from .train_run import TrainingRun


def build(model_args: ModelArguments, captions: list[str]) -> tuple[PreTrainedModel, CaptionerProcessor]:
    """The model, new or to be trained further, and its processor."""
    if model_args.model is None:
        model, processor = new_captioner(model_args, captions)
    else:
        model, processor = read_captioner(model_args.model, json_mapping("model_config", model_args.model_config))
        # What was measured of the weights before is not true of those to come.
        model.config.score_temperature, model.config.min_score, model.config.familiarity_rank = 1.0, None, 0
        model.familiarity = None
    check_agreement(model.config, processor.tokenizer)
    options = {name: getattr(model_args, name) for name in GENERATION}
    model.generation_config.update(**{name: value for name, value in options.items() if value is not None})
    if model_args.freeze_vision:
        model.freeze_vision()
    elif model_args.trainable_vision is not None and model_args.lora is None:
        with refusing(ValueError, re.error, what="`trainable_vision`: "):
            model.unfreeze_vision(model_args.trainable_vision)
    return model, processor


def new_captioner(model_args: ModelArguments, captions: list[str]) -> tuple[PreTrainedModel, CaptionerProcessor]:
    """A captioner whose words are those of the captions, and which generates known words alone."""
    with refusing(ValueError, what="`tokenizer`: "):
        tokenizer = train_tokenizer(
            captions, model_args.tokenizer, vocab_size=model_args.vocab_size, min_frequency=model_args.min_frequency
        )
    family = CONFIG_MAPPING[model_args.model_type] if model_args.model_type in CONFIG_MAPPING else object
    if not issubclass(family, CaptionerConfig):
        raise InputError(f"`model_type` must be a captioner's, such as rnn_captioner, got {model_args.model_type!r}")
    side = model_args.image_size
    size = {} if side is None else {"size": {"height": side, "width": side}}
    with refusing(ValueError, StrictDataclassError, what="`model_config`: "):
        config = family(vocab_size=len(tokenizer), **json.loads(model_args.model_config))
        model_class = captioner_class(config)
        model = model_class(config) if model_args.vision_model is None else None
    if model is None:
        with refusing(OSError, ValueError, what="`vision_model`: "):
            model = model_class.from_vision_pretrained(model_args.vision_model, config)
            image_processor = CaptionerImageProcessor.from_vision_pretrained(model_args.vision_model, **size)
    else:
        image_processor = CaptionerImageProcessor(**size)
    model.generation_config = GenerationConfig(
        suppress_tokens=[tokenizer.unk_token_id] if model_args.tokenizer == "word" else None,
        pad_token_id=config.pad_token_id,
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        decoder_start_token_id=config.decoder_start_token_id,
    )
    return model, CaptionerProcessor(image_processor, tokenizer)


def check_agreement(config, tokenizer) -> None:
    """
    Raises an `InputError` if ids differ between model and tokenizer: training would run, but captions would be
    nonsense. The model may end captions with several tokens; the tokenizer's must be among them.
    """
    pairs = {
        "vocab_size": (config.vocab_size, len(tokenizer)),
        "pad_token_id": (config.pad_token_id, tokenizer.pad_token_id),
        "eos_token_id": (config.eos_token_id, tokenizer.eos_token_id),
        "decoder_start_token_id": (config.decoder_start_token_id, tokenizer.bos_token_id),
    }
    if config.pad_token_id is None:  # it never reads what the tokenizer fills up with
        pairs.pop("pad_token_id")
    for name, (ours, theirs) in pairs.items():
        if theirs not in (ours if isinstance(ours, list) else [ours]):
            raise InputError(f"`{name}` must be the same in model and tokenizer, got {ours} and {theirs}")


def read_teachers(
    folders: list[str], model: PreTrainedModel, processor: CaptionerProcessor, cached: bool
) -> list[PreTrainedModel]:
    """
    Captioners for a student to learn from.

    Args:
        folders: theirs, or their names on the Hub.
        model, processor: the student's.
        cached: whether they are shown the features of the student's vision model in place of images.

    Raises:
        InputError: if one is none, speaks other words, or would have to see an image as the student does not.
    """
    teachers = []
    seen = fingerprint(model.vision_encoder, processor.image_processor) if cached else None
    for folder in folders:
        teacher, other = read_captioner(folder, option="teachers")
        if other.tokenizer.get_vocab() != processor.tokenizer.get_vocab():
            raise InputError(f"`teachers` must have the student's vocabulary, got {folder} with another")
        if prepares(other.image_processor) != prepares(processor.image_processor):
            raise InputError(f"`teachers` must take images as the student does, got {folder}, which resizes otherwise")
        if cached and fingerprint(teacher.vision_encoder, other.image_processor) != seen:
            raise InputError(
                f"`teachers` must have the student's vision model with `feature_cache`, got {folder} with another"
            )
        teachers.append(teacher)
    return teachers


def trainer_of(
    objective: ObjectiveArguments,
    references: list[list[str]],
    model: PreTrainedModel,
    processor: CaptionerProcessor,
    cached: bool,
):
    """
    The trainer's class and the arguments that only this class takes; `references` are those of the training set, and
    `cached` says whether training is from features.
    """
    if objective.objective == "cross_entropy":
        return CaptioningTrainer, {}
    if objective.objective == "distillation":
        teachers = read_teachers(objective.teachers, model, processor, cached)
        return DistillingTrainer, dict(teachers=teachers, teacher_weight=objective.teacher_weight)
    with refusing(ValueError, what="`reward`: "):
        reward = CaptionReward(references, json.loads(objective.reward))
    settings = dict(
        references=references,
        reward=reward,
        samples_per_image=objective.samples_per_image,
        baseline=objective.reward_baseline,
        candidates=objective.candidates,
        cross_entropy=objective.cross_entropy,
    )
    return SelfCriticalTrainer, settings


def features(
    train: Dataset,
    evaluation: Dataset,
    vision_encoder: VisionEncoder,
    image_processor: CaptionerImageProcessor,
    data_args: DataArguments,
) -> tuple[TorchDataset, TorchDataset]:
    """Both data sets with features in place of images; in training they are of another view in every epoch."""
    precision = choose_precision(data_args.dtype)
    own = next(vision_encoder.parameters()).dtype
    if data_args.dtype == "bfloat16":
        vision_encoder = copy.deepcopy(vision_encoder).to(torch.bfloat16)
    options = {"folder": data_args.feature_cache, "precision": precision, "dtype": own}

    def cached(part, view=None):
        return cache_features(part, vision_encoder, image_processor, view=view, **options)

    views = views_to_cache(data_args.flip, data_args.cached_crops or 0, data_args.smallest_crop)
    seen = [cached(train, view) for view in views]
    return seen[0] if len(seen) == 1 else OneOfViews(seen), cached(evaluation)


def check_whole_weights_not_needed(model_args: ModelArguments, objective: ObjectiveArguments) -> None:
    """Raises an `InputError` if the training does what is done with all weights in one process."""
    for name, value, usual in (
        ("objective", objective.objective, "cross_entropy"),
        ("ema_decay", objective.ema_decay, None),
        ("lora", model_args.lora, None),
    ):
        if value != usual:
            raise InputError(
                f"`{name}` must be {usual or 'left out'} where FSDP keeps weights in parts, got {value!r}; without "
                "FSDP (accelerate/ddp.yaml among the configs) every process has all of them"
            )


@contextmanager
def naming_lost_workers() -> Iterator[None]:
    """Raises an `InputError` if a process that reads images was ended from outside, as where memory is short."""
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker (pid"):
            raise
        raise InputError(
            "`dataloader_num_workers` must fit the machine's memory, got a worker that was ended from outside "
            f"({one_line(error)}); the same command goes on from the last checkpoint, also with fewer of them"
        ) from error


def told(left_out: list[str]) -> str:
    """How many images were left out, and which."""
    return "\n".join([f"\n{len(left_out)} images were left out:", *left_out])


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    model_args, data_args, objective, args = parse_arguments(argv, __doc__)
    training = TrainingRun(model_args, data_args, objective, args)
    checkpoint = None
    if args.do_train:
        if training.is_finished():
            training.say(f"finished already: {args.output_dir}; delete it or name another one to train anew")
            if left_out := training.left_out():
                training.say(told(left_out))
                raise SystemExit(1)
            return
        checkpoint = training.resume_point()
    set_seed(args.seed)

    left_out: list[str] | None = [] if data_args.on_bad_image == "skip" else None
    with args.main_process_first(desc="loading the data"):
        train, evaluation = (
            read_captions(
                source,
                split=split,
                check_images=data_args.check_images or left_out is not None,
                left_out=left_out,
                **data_args.source_options(),
            )
            for source, split in (
                (data_args.train_data, data_args.train_split),
                (data_args.eval_data, data_args.eval_split),
            )
        )
    references = evaluation["captions"][:]
    train_references = train["captions"][:]
    model, processor = build(model_args, [text for captions in train_references for text in captions])

    cached = data_args.feature_cache is not None
    trainer_class, settings = trainer_of(objective, train_references, model, processor, cached)
    train, indexed = (
        part.select_columns(["image", "captions"]).add_column("index", list(range(len(part))))
        for part in (train, evaluation)
    )
    adapted = None
    if model_args.lora is not None:
        with refusing(re.error, what="`trainable_vision`: "):
            adapted = add_adapters(model.vision_encoder, model_args.lora, model_args.trainable_vision)
    if cached:
        model.to(args.device)
        with args.main_process_first(desc="caching features"):
            train, indexed = features(train, indexed, model.vision_encoder, processor.image_processor, data_args)
    elif data_args.flip or data_args.smallest_crop is not None:
        train = RandomViews(train, RandomView(data_args.flip, data_args.smallest_crop))
    trainer = trainer_class(
        model=model,
        args=args,
        train_dataset=train,
        eval_dataset=indexed,
        data_collator=CaptionCollator(processor, data_args.captions_per_image),
        processing_class=processor,
        compute_metrics=caption_metrics(processor.tokenizer, references),
        vision_learning_rate=model_args.vision_learning_rate,
        ema_decay=objective.ema_decay,
        **settings,
    )
    if trainer.is_fsdp_enabled:
        check_whole_weights_not_needed(model_args, objective)
    trainer.add_callback(TrainingSeen(trainer, evaluation))
    if objective.early_stopping_patience is not None:
        trainer.add_callback(EarlyStoppingCallback(objective.early_stopping_patience))
        args.restore_callback_states_from_checkpoint = True  # a resumed training goes on counting
    if args.do_train:
        training.begin()
        with naming_lost_workers():
            trainer.train(resume_from_checkpoint=checkpoint)
        if adapted is not None:
            adapted.merge_and_unload()
        trainer.save_model()
        trainer.save_state()
    num_beams = model.generation_config.num_beams or 1
    with naming_lost_workers():
        metrics = trainer.evaluate(num_beams=num_beams)
    trainer.log_metrics("eval", metrics)
    trainer.save_metrics("eval", metrics)
    if trainer.is_world_process_zero():
        folder = Path(args.output_dir)
        if trainer.is_fsdp_enabled:  # this process has a part of the weights, the folder has all of them
            model = read_captioner(str(folder))[0].to(args.device)
        for sample in write_samples(model, processor, evaluation, data_args.num_samples, folder)[:4]:
            print(f"\nmodel: {sample['caption']}")
            print("\n".join(f" true: {reference}" for reference in sample["references"]))
        if args.do_train:
            write_training(folder, argv, num_beams, data_args, alarms_of(trainer.state.log_history))
            write_card(folder, name=trainer.hub_model_id if args.push_to_hub else None)
            print(f"\nmodel and processor: {folder}")
        else:
            print(f"\nmetrics and captions: {folder}")
        if left_out:
            print(told(left_out))
    if args.push_to_hub:
        trainer.push_to_hub()
    if args.do_train:
        training.finish(left_out or [])
    # What starts several processes kills the others when one of them fails, so the first one waits for the last; and
    # one that ends with its connections open may abort while they are torn down.
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()
    if left_out:
        raise SystemExit(1)


if __name__ == "__main__":
    run(main)
