r"""
Trains a captioner of any family on any source of images and captions, and saves model and processor as one folder.

    hf-captioner train --config quickstart
    hf-captioner train --config quickstart --output_dir outputs/dot --model_config '{"attention": "dot"}'

`--config` is a YAML file or the name of one that is shipped. On several GPUs, training is started by accelerate; in a
clone `training/train.py` stands for `-m hf_captioner.commands.train`:

    accelerate launch -m hf_captioner.commands.train --config flickr8k_rnn_additive \
        --train_data flickr8k/train.parquet --eval_data flickr8k/validation.parquet --vision_model mobilenet_v2

The usual two stages are two runs: the second goes on from the first one's folder and is rewarded for what it says.

    accelerate launch -m hf_captioner.commands.train --config flickr8k_rnn_additive_scst \
        --model outputs/flickr8k_rnn_additive --train_data ... --eval_data ...

Settings are the options below, of which most are the fields of transformers' `Seq2SeqTrainingArguments`; what stands
on the command line goes before what stands in the YAML file.
"""

import json
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
import yaml
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    GenerationConfig,
    Seq2SeqTrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from .. import CaptionerImageProcessor, CaptionerProcessor, train_tokenizer
from ..data import CaptionCollator, cache_features, load_captions
from ..explain import save_attention_picture
from ..metrics import CaptionReward
from ..models.tokenization_captioner import decode_captions, token_texts
from ..sharing.card import NUM_SAMPLES, write_card
from ..trainers import CaptioningTrainer, SelfCriticalTrainer, caption_metrics
from . import run
from .parsing import CommandParser
from .shipped import find_config


@dataclass
class ModelArguments:
    """What to train."""

    model: str | None = field(default=None, metadata={"help": "folder or Hub name of a captioner to train further"})
    model_type: str = field(default="rnn_captioner", metadata={"help": "family of a new captioner"})
    model_config: str = field(default="{}", metadata={"help": "fields of its configuration, as JSON"})
    vision_model: str | None = field(
        default=None, metadata={"help": "folder or Hub name of pretrained vision weights"}
    )
    image_size: int | None = field(default=None, metadata={"help": "side of the square that images are resized to"})
    freeze_vision: bool = field(default=False, metadata={"help": "leave the vision model as it is"})
    vision_learning_rate: float | None = field(default=None, metadata={"help": "the others' learning rate by default"})
    tokenizer: str = field(default="word", metadata={"help": "kind of a new captioner's tokenizer: word or bpe"})
    vocab_size: int = field(default=10000, metadata={"help": "most tokens of a new tokenizer"})
    min_frequency: int = field(default=1, metadata={"help": "how often a word must occur to be kept"})
    max_new_tokens: int = field(default=20, metadata={"help": "longest caption to generate, in tokens"})
    num_beams: int = field(default=3, metadata={"help": "beams of the saved generation defaults"})


@dataclass
class DataArguments:
    """What to train it on."""

    train_data: str = field(metadata={"help": "a table, a folder, a Hub data set, or shapes:rows=6000,seed=0"})
    eval_data: str = field(metadata={"help": "the same for evaluation"})
    train_split: str | None = field(default=None, metadata={"help": "split of a data set with several"})
    eval_split: str | None = field(default=None, metadata={"help": "split of a data set with several"})
    image_column: str | None = field(default=None, metadata={"help": "found by its usual names by default"})
    caption_columns: list[str] | None = field(default=None, metadata={"help": "found by their usual names by default"})
    captions_per_image: int | None = field(default=None, metadata={"help": "drawn for each step; all by default"})
    check_images: bool = field(default=True, metadata={"help": "decode every image before training starts"})
    feature_cache: str | None = field(
        default=None, metadata={"help": "folder to keep a frozen vision model's features in, so that it runs once"}
    )
    num_samples: int = field(default=12, metadata={"help": "captions to write down after training"})


@dataclass
class ObjectiveArguments:
    """What to train it for."""

    objective: str = field(
        default="cross_entropy",
        metadata={"help": "cross_entropy: the references' words; self_critical: captions that are worth much"},
    )
    reward: str = field(
        default='{"cider_d": 1.0}', metadata={"help": "self_critical: metrics and their weights, as JSON"}
    )
    reward_baseline: str = field(
        default="leave_one_out", metadata={"help": "self_critical: greedy, or leave_one_out, the other samples' mean"}
    )
    samples_per_image: int = field(default=5, metadata={"help": "self_critical: captions drawn of an image"})

    def __post_init__(self):
        if self.objective not in ("cross_entropy", "self_critical"):
            raise ValueError(f"`objective` must be cross_entropy or self_critical, got {self.objective!r}")


def parse_arguments(
    argv: list[str],
) -> tuple[ModelArguments, DataArguments, ObjectiveArguments, Seq2SeqTrainingArguments]:
    """The YAML file's settings as if they stood on the command line, before those that do; mappings are merged."""
    settings, rest = {}, list(argv)
    if "--config" in rest:
        at = rest.index("--config")
        settings = yaml.safe_load(find_config(rest[at + 1]).read_text()) or {}
        del rest[at : at + 2]
    if "--model_config" in rest:
        at = rest.index("--model_config")
        settings["model_config"] = {**settings.get("model_config", {}), **json.loads(rest[at + 1])}
        del rest[at : at + 2]
    arguments = []
    for name, value in settings.items():
        if value is None:
            continue
        arguments.append(f"--{name}")
        arguments += [
            json.dumps(item) if isinstance(item, dict) else str(item)
            for item in (value if isinstance(value, list) else [value])
        ]
    if not torch.accelerator.is_available():  # else `bf16` is refused, which CPUs can do
        arguments += ["--use_cpu", "true"]
    types = (ModelArguments, DataArguments, ObjectiveArguments, Seq2SeqTrainingArguments)
    return CommandParser(*types, description=__doc__).parse(arguments + rest)


def build(model_args: ModelArguments, captions: list[str]):
    """The model, new or to be trained further, and its processor."""
    if model_args.model is not None:
        model = AutoModelForImageTextToText.from_pretrained(model_args.model, dtype=torch.float32)
        processor = CaptionerProcessor.from_pretrained(model_args.model)
    else:
        tokenizer = train_tokenizer(
            captions, model_args.tokenizer, vocab_size=model_args.vocab_size, min_frequency=model_args.min_frequency
        )
        config = AutoConfig.for_model(
            model_args.model_type, vocab_size=len(tokenizer), **json.loads(model_args.model_config)
        )
        size = (
            {}
            if model_args.image_size is None
            else {"size": dict.fromkeys(("height", "width"), model_args.image_size)}
        )
        model_class = AutoModelForImageTextToText._model_mapping[type(config)]
        if model_args.vision_model is None:
            model = model_class(config)
            image_processor = CaptionerImageProcessor(**size)
        else:
            model = model_class.from_vision_pretrained(model_args.vision_model, config)
            image_processor = CaptionerImageProcessor.from_vision_pretrained(model_args.vision_model, **size)
        processor = CaptionerProcessor(image_processor, tokenizer)
    check_agreement(model.config, processor.tokenizer)
    model.generation_config = GenerationConfig(
        max_new_tokens=model_args.max_new_tokens,
        num_beams=model_args.num_beams,
        suppress_tokens=[processor.tokenizer.unk_token_id] if model_args.tokenizer == "word" else None,
        pad_token_id=model.config.pad_token_id,
        bos_token_id=model.config.bos_token_id,
        eos_token_id=model.config.eos_token_id,
        decoder_start_token_id=model.config.decoder_start_token_id,
    )
    if model_args.freeze_vision:
        model.freeze_vision()
    return model, processor


def check_agreement(config, tokenizer) -> None:
    """Ids that differ between model and tokenizer would train, and say nonsense."""
    pairs = {
        "vocab_size": (config.vocab_size, len(tokenizer)),
        "pad_token_id": (config.pad_token_id, tokenizer.pad_token_id),
        "eos_token_id": (config.eos_token_id, tokenizer.eos_token_id),
        "decoder_start_token_id": (config.decoder_start_token_id, tokenizer.bos_token_id),
    }
    for name, (ours, theirs) in pairs.items():
        if ours != theirs:
            raise ValueError(f"`{name}` must be the same in model and tokenizer, got {ours} and {theirs}")


def trainer_of(objective: ObjectiveArguments, references: list[list[str]]):
    """The trainer's class, and what it needs beside the arguments that all have; `references` of the training set."""
    if objective.objective == "cross_entropy":
        return CaptioningTrainer, {}
    settings = dict(
        references=references,
        reward=CaptionReward(references, json.loads(objective.reward)),
        samples_per_image=objective.samples_per_image,
        baseline=objective.reward_baseline,
    )
    return SelfCriticalTrainer, settings


def resume_point(args: Seq2SeqTrainingArguments) -> str | None:
    """The checkpoint to go on from; an earlier run is never overwritten by accident."""
    last = get_last_checkpoint(args.output_dir) if Path(args.output_dir).is_dir() else None
    if args.resume_from_checkpoint in (None, "", "false", "False"):
        if last is not None:
            raise ValueError(
                "`output_dir` must be new, or go on from its checkpoints with --resume_from_checkpoint last, "
                f"got {last}"
            )
        return None
    if args.resume_from_checkpoint in ("last", "true", "True"):
        return last
    return args.resume_from_checkpoint


@torch.no_grad()
def write_samples(model, processor, dataset, count: int, folder: Path) -> list[dict]:
    """
    Captions the first images: `samples.json`, the first four in `examples/`, and their `attention.png` if the model
    attends.

    Returns:
        for each image the `caption` and its `references`.
    """
    rows = dataset.select(range(min(count, len(dataset))))
    model.eval()
    pixels = processor(images=rows["image"][:], return_tensors="pt")["pixel_values"].to(model.device)
    attends = model.config.attends
    outputs = model.generate(pixel_values=pixels, output_attentions=attends, return_dict_in_generate=True)
    captions = decode_captions(processor.tokenizer, outputs.sequences.cpu())
    samples = [{"caption": c, "references": r} for c, r in zip(captions, rows["captions"][:], strict=True)]
    (folder / "samples.json").write_text(json.dumps(samples, indent=2, ensure_ascii=False) + "\n")
    (folder / "examples").mkdir(exist_ok=True)
    for index, image in enumerate(rows["image"][:NUM_SAMPLES]):
        image = image.convert("RGB")
        image.thumbnail((224, 224))
        image.save(folder / "examples" / f"{index}.jpg")
    if attends:
        maps = model.attention_maps(outputs)[:4].cpu()
        words = [[word for word in token_texts(processor.tokenizer, row)] for row in outputs.sequences[:4, 1:].cpu()]
        said = [weights.flatten(1).sum(1) > 0 for weights in maps]  # nothing after the end
        save_attention_picture(
            folder / "attention.png",
            rows["image"][:4],
            [words[i][: int(keep.sum())] for i, keep in enumerate(said)],
            [weights[keep].numpy() for weights, keep in zip(maps, said, strict=True)],
        )
    return samples


def write_training(folder: Path, argv: list[str], model_args: ModelArguments, data_args: DataArguments) -> None:
    """`training.json`, what the card tells of the training beside the trainer's own files."""
    command = ["accelerate", "launch", "training/train.py"]
    for before, part in zip([None, *argv], argv, strict=False):
        if before != "--hub_token" and part.split("=")[0] != "--hub_token":  # nobody else's business
            command.append(part)
    names = ("train_data", "train_split", "eval_data", "eval_split")
    training = {"command": shlex.join(command), "num_beams": model_args.num_beams}
    training |= {name: getattr(data_args, name) for name in names}
    (folder / "training.json").write_text(json.dumps(training, indent=2, ensure_ascii=False) + "\n")


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    model_args, data_args, objective, args = parse_arguments(argv)
    args.predict_with_generate, args.remove_unused_columns = True, False
    checkpoint = resume_point(args)
    set_seed(args.seed)

    with args.main_process_first(desc="loading the data"):
        train, evaluation = (
            load_captions(
                source,
                split=split,
                image_column=data_args.image_column,
                caption_columns=data_args.caption_columns,
                check_images=data_args.check_images,
            )
            for source, split in (
                (data_args.train_data, data_args.train_split),
                (data_args.eval_data, data_args.eval_split),
            )
        )
    references = evaluation["captions"][:]
    train_references = train["captions"][:]
    model, processor = build(model_args, [text for captions in train_references for text in captions])

    trainer_class, settings = trainer_of(objective, train_references)
    train, indexed = (
        part.select_columns(["image", "captions"]).add_column("index", list(range(len(part))))
        for part in (train, evaluation)
    )
    if data_args.feature_cache is not None:
        if not model_args.freeze_vision:
            raise ValueError("`feature_cache` needs `freeze_vision`: features of a model that learns do not stay")
        model.to(args.device)
        with args.main_process_first(desc="caching features"):
            train, indexed = (
                cache_features(part, model.vision_encoder, processor.image_processor, data_args.feature_cache)
                for part in (train, indexed)
            )
    trainer = trainer_class(
        model=model,
        args=args,
        train_dataset=train,
        eval_dataset=indexed,
        data_collator=CaptionCollator(processor, data_args.captions_per_image),
        processing_class=processor,
        compute_metrics=caption_metrics(processor.tokenizer, references),
        vision_learning_rate=model_args.vision_learning_rate,
        **settings,
    )
    if args.do_train:
        trainer.train(resume_from_checkpoint=checkpoint)
        trainer.save_model()
        trainer.save_state()
    metrics = trainer.evaluate(num_beams=model_args.num_beams)
    trainer.log_metrics("eval", metrics)
    trainer.save_metrics("eval", metrics)
    if trainer.is_world_process_zero():
        folder = Path(args.output_dir)
        for sample in write_samples(model, processor, evaluation, data_args.num_samples, folder)[:4]:
            print(f"\nmodel: {sample['caption']}")
            print("\n".join(f" true: {reference}" for reference in sample["references"]))
        write_training(folder, argv, model_args, data_args)
        write_card(folder, name=trainer.hub_model_id if args.push_to_hub else None)
        print(f"\nmodel and processor: {folder}")
    if args.push_to_hub:
        trainer.push_to_hub()


if __name__ == "__main__":
    run(main)
