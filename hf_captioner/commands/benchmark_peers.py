"""
Against transformers' own `VisionEncoderDecoderModel`, of the same sizes: a training step, and captions per second.

    python training/benchmark_peers.py
    python training/benchmark_peers.py --rows 128 --training_rows 64 --device cuda
    python training/benchmark_peers.py --decoder gpt2 --hidden_size 768 --heads 12 --intermediate_size 3072 --rows 4

Both have a ViT and a decoder of the same width, heads and feed-forward width: ours is a Transformer captioner without
encoder layers, theirs a ViT with a BERT decoder. With a GPT-2 decoder ours is what `hf-captioner convert` makes of
theirs, the same weights, so their captions are compared, too. Generation starts from what the ViT said, from which
both have the regions' keys and values yet to make; or, where it says so, from `get_encoder()`'s output, which in ours
has them.
Captions are of a fixed length. The two take turns in every round, and medians over the rounds are printed. Generation
comes first, as in a process that only captions: training leaves memory behind that is used again without being asked
of the system, which makes the copies of their beam search cheaper.
"""

import copy
import json
import statistics
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from transformers import (
    BertConfig,
    BertLMHeadModel,
    GPT2Config,
    GPT2LMHeadModel,
    VisionEncoderDecoderModel,
    ViTConfig,
)
from transformers.modeling_outputs import BaseModelOutput

from .. import TransformerCaptionerConfig, TransformerCaptionerForConditionalGeneration
from ..sharing import convert_model
from . import run
from .benchmark_loops import PAD, START, encoder_decoder, in_turns, of_length, read_arguments


@dataclass
class Arguments:
    """Sizes of both models and of the work."""

    decoder: Literal["bert", "gpt2"] = field(default="bert", metadata={"help": "type of their decoder"})
    rows: int = field(default=32, metadata={"help": "images to caption at once"})
    training_rows: int = field(default=8, metadata={"help": "images of a training step"})
    captions: int = field(default=5, metadata={"help": "captions of an image in a training step"})
    tokens: int = field(default=14, metadata={"help": "tokens of a caption"})
    beams: int = field(default=5, metadata={"help": "beams of beam search"})
    rounds: int = field(default=5, metadata={"help": "number of measurements, whose median is reported"})
    hidden_size: int = field(default=512, metadata={"help": "width of ViT and decoder"})
    layers: int = field(default=6, metadata={"help": "number of layers of the ViT and of the decoder"})
    heads: int = field(default=8, metadata={"help": "number of heads of every attention layer"})
    intermediate_size: int = field(default=2048, metadata={"help": "width of the feed-forward sublayers"})
    vocab_size: int = field(default=8000, metadata={"help": "tokens"})
    image_size: int = field(default=224, metadata={"help": "pixels of a side; patches have 16"})
    device: str = field(default="cpu", metadata={"help": "where to run"})
    threads: int | None = field(default=None, metadata={"help": "number of threads of torch; all cores by default"})
    small: bool = field(default=False, metadata={"help": "tiny sizes, to try the command in about a second"})
    output: str | None = field(default=None, metadata={"help": "file to write the seconds of every round to, as JSON"})


SMALL = dict(
    rows=2,
    training_rows=2,
    tokens=4,
    rounds=2,
    hidden_size=16,
    layers=2,
    heads=2,
    intermediate_size=16,
    vocab_size=20,
    image_size=32,
)


def build(args: Arguments) -> dict[str, torch.nn.Module]:
    """Both models, with random weights; no caption ends before its last token."""
    shape = dict(
        hidden_size=args.hidden_size,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        intermediate_size=args.intermediate_size,
    )
    vision = ViTConfig(**shape, image_size=args.image_size, patch_size=16)
    models = (converted if args.decoder == "gpt2" else of_equal_sizes)(args, shape, vision)
    for model in models.values():
        model.generation_config.eos_token_id = None
    return {name: model.to(args.device) for name, model in models.items()}


def converted(args: Arguments, shape: dict[str, int], vision: ViTConfig) -> dict[str, torch.nn.Module]:
    """A ViT with a GPT-2 decoder, and what is made of it."""
    text = GPT2Config(
        vocab_size=args.vocab_size,
        n_embd=shape["hidden_size"],
        n_layer=shape["num_hidden_layers"],
        n_head=shape["num_attention_heads"],
        n_inner=shape["intermediate_size"],
        is_decoder=True,
        add_cross_attention=True,
        bos_token_id=START,
        eos_token_id=3,
        pad_token_id=PAD,
    )
    theirs = encoder_decoder(vision, GPT2LMHeadModel(text))
    return {"ours": convert_model(theirs), "VisionEncoderDecoderModel": theirs}


def of_equal_sizes(args: Arguments, shape: dict[str, int], vision: ViTConfig) -> dict[str, torch.nn.Module]:
    """A ViT with a BERT decoder, and a Transformer captioner of its sizes."""
    ours = TransformerCaptionerForConditionalGeneration(
        TransformerCaptionerConfig(
            vision_config=vision,
            vocab_size=args.vocab_size,
            hidden_size=args.hidden_size,
            encoder_layers=0,
            decoder_layers=args.layers,
            num_attention_heads=args.heads,
            intermediate_size=args.intermediate_size,
        )
    )
    text = BertConfig(**shape, vocab_size=args.vocab_size, is_decoder=True, add_cross_attention=True)
    theirs = encoder_decoder(vision, BertLMHeadModel(text))
    return {"ours": ours, "VisionEncoderDecoderModel": theirs}


def train_step(model, optimizer, pixels: torch.Tensor, labels: torch.Tensor) -> None:
    """One step on all captions (B, k, T) of the images; theirs takes one caption per image, so images are repeated."""
    model.train()
    if isinstance(model, VisionEncoderDecoderModel):
        pixels, labels = pixels.repeat_interleave(labels.shape[1], dim=0), labels.flatten(0, 1)
    model(pixel_values=pixels, labels=labels).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


@torch.no_grad()
def encode(model, features: torch.Tensor):
    """`get_encoder()`'s output from the ViT's (B, 1 + L, D)."""
    if isinstance(model, VisionEncoderDecoderModel):
        return BaseModelOutput(last_hidden_state=features)
    return model.get_encoder()(image_features=features)


@torch.no_grad()
def caption(model, encoder_outputs, tokens: int, num_beams: int) -> torch.Tensor:
    """Captions (B, 1 + T) of B images from `get_encoder()`'s output."""
    model.eval()
    images = len(encoder_outputs.last_hidden_state)
    sequences = model.generate(encoder_outputs=copy.copy(encoder_outputs), **of_length(tokens, num_beams))
    assert sequences.shape == (images, 1 + tokens), sequences.shape
    return sequences


def measure(args: Arguments) -> tuple[dict[str, dict[str, list[float]]], dict[str, int]]:
    """
    Of both models, the seconds of every round, for each kind of work; and, where they have the same weights, to how
    many images they give the same caption.
    """
    torch.manual_seed(0)
    models = build(args)
    pixels = torch.randn(args.training_rows, 3, args.image_size, args.image_size, device=args.device)
    labels = torch.randint(4, args.vocab_size, (args.training_rows, args.captions, args.tokens), device=args.device)
    features = torch.randn(args.rows, 1 + (args.image_size // 16) ** 2, args.hidden_size, device=args.device)
    encoded = {name: encode(model, features) for name, model in models.items()}
    optimizers = {name: torch.optim.AdamW(model.parameters(), lr=1e-5) for name, model in models.items()}
    works = {
        "greedy": lambda name: caption(models[name], encode(models[name], features), args.tokens, 1),
        f"beam {args.beams}": lambda name: caption(
            models[name], encode(models[name], features), args.tokens, args.beams
        ),
        f"beam {args.beams} from `get_encoder()`'s output": lambda name: caption(
            models[name], encoded[name], args.tokens, args.beams
        ),
        "training step, 1 caption an image": lambda name: train_step(
            models[name], optimizers[name], pixels, labels[:, :1]
        ),
        f"training step, {args.captions} captions an image": lambda name: train_step(
            models[name], optimizers[name], pixels, labels
        ),
    }
    same = {}
    if args.decoder == "gpt2":
        for num_beams in (1, args.beams):
            ours, theirs = (
                caption(models[name], encode(models[name], features), args.tokens, num_beams) for name in models
            )
            same["greedy" if num_beams == 1 else f"beam {num_beams}"] = int((ours == theirs).all(dim=1).sum())
    seconds = {
        work: in_turns({name: partial(run_once, name) for name in models}, args.rounds, args.device)
        for work, run_once in works.items()
    }
    return seconds, same


def table(args: Arguments, seconds: dict[str, dict[str, list[float]]]) -> str:
    """Medians as captions per second, in markdown."""
    names = list(next(iter(seconds.values())))
    lines = [f"| captions per second | {' | '.join(names)} | times faster |", "| --- |" + " ---: |" * (len(names) + 1)]
    for work, found in seconds.items():
        count = args.rows
        if "training" in work:
            count = args.training_rows * (1 if " 1 caption " in work else args.captions)
        medians = [statistics.median(found[name]) for name in names]
        rates = " | ".join(f"{count / median:.1f}" for median in medians)
        lines.append(f"| {work} | {rates} | {medians[1] / medians[0]:.2f} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    args = read_arguments(Arguments, SMALL, argv, __doc__)
    seconds, same = measure(args)
    print(
        f"{args.layers} layers, width {args.hidden_size}, {1 + (args.image_size // 16) ** 2} regions, "
        f"{args.rows} images ({args.training_rows} in training), {args.tokens} tokens, {args.rounds} rounds, "
        f"{args.device}, {torch.get_num_threads()} threads, torch {torch.__version__}\n"
    )
    print(table(args, seconds))
    for work, count in same.items():
        print(f"\nThe same caption, {work}: {count} of {args.rows} images.")
    if args.output is not None:
        with open(args.output, "w") as file:
            json.dump(seconds, file, indent=2)


if __name__ == "__main__":
    run(main)
