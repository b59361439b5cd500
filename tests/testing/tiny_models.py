"""Tiny captioners with random, asymmetric weights."""

import numpy as np
import torch
from PIL import Image
from transformers import ResNetConfig, ViTConfig

from hf_captioner import (
    CaptionerImageProcessor,
    CaptionerProcessor,
    RnnCaptionerConfig,
    RnnCaptionerForConditionalGeneration,
    TransformerCaptionerConfig,
    TransformerCaptionerForConditionalGeneration,
    train_tokenizer,
)
from hf_captioner.models.configuration_rnn_captioner import ATTENTIONS as ATTENTION_CLASSES

ATTENTIONS = tuple(ATTENTION_CLASSES)
VOCAB = 40
IMAGE = 32


def tiny_vision() -> ResNetConfig:
    """Feature maps of 4 x 4 regions of 12 channels from 32 x 32 pixels."""
    return ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic")


def tiny_vit() -> ViTConfig:
    """Tokens of 4 x 4 patches, 12 channels, from 32 x 32 pixels."""
    return ViTConfig(
        hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=8
    )


# One of every kind, for tests of what all captioners have in common.
TRANSFORMERS = {
    "cnn_transformer": dict(model_type="transformer_captioner", tie_word_embeddings=False),
    "cnn_transformer_pre_learned": dict(
        model_type="transformer_captioner",
        norm="pre",
        position_embedding_type="learned",
        max_position_embeddings=12,
    ),
    "vit_transformer": dict(
        model_type="transformer_captioner", vision_config=tiny_vit(), encoder_layers=0, tie_word_embeddings=False
    ),
}
SYSTEMS = {
    **{attention: dict(attention=attention) for attention in ATTENTIONS},
    "hard_additive": dict(attention="additive", attention_sampling="hard"),
    "hard_multi_head": dict(attention="multi_head", attention_sampling="hard"),
    **TRANSFORMERS,
}


_FACTORS = {
    "bias": 0.2,
    "embed_tokens": 0.3,
    "feed_forward": 0.5,
    "norm.weight": 0.5,
    "query.weight": 2.0,
    "region_projection.weight": 3.0,
    "self_attention.output": 0.5,
}


def tiny_config(model_type: str = "rnn_captioner", **changes) -> RnnCaptionerConfig | TransformerCaptionerConfig:
    settings = dict(vision_config=tiny_vision(), vocab_size=VOCAB, hidden_size=16, num_attention_heads=2, dropout=0.0)
    if model_type == "rnn_captioner":
        settings["attention_size"] = 8
        alignment = ATTENTION_CLASSES.get(changes.get("attention", "additive"))
        for name in ("attention_size", "num_attention_heads"):
            if alignment is None or name not in alignment.fields:
                settings.pop(name)
        return RnnCaptionerConfig(**{**settings, **changes})
    settings |= dict(encoder_layers=2, decoder_layers=2, intermediate_size=24)
    return TransformerCaptionerConfig(**{**settings, **changes})


def randomise(model, scale: float = 0.5, seed: int = 0):
    """Weights far from their initial values, so that logits, attention and every bias matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "vision_encoder" not in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)  # in the default type
    return model.eval()


def tiny_model(
    seed: int = 0, **changes
) -> RnnCaptionerForConditionalGeneration | TransformerCaptionerForConditionalGeneration:
    torch.manual_seed(seed)
    config = tiny_config(**changes)
    if config.model_type == "rnn_captioner":
        return randomise(RnnCaptionerForConditionalGeneration(config), seed=seed)
    model = randomise(TransformerCaptionerForConditionalGeneration(config), seed=seed)
    # Images, places and words must all show in what is said: normalisation lets whatever is largest drown the rest.
    with torch.no_grad():
        for name, parameter in model.model.named_parameters():
            for part, factor in _FACTORS.items():
                if part in name and "vision_encoder" not in name:
                    parameter *= factor
            if "norm.weight" in name:
                parameter += 1
    return model


def random_images(batch: int = 3, size: int = IMAGE, seed: int = 1) -> torch.Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float32).to(
        torch.get_default_dtype()
    )


WORDS = "a b c d e f g h i j k l m n o p q r s t u v w x y z one two three four five six seven eight nine ten"


def tiny_processor() -> CaptionerProcessor:
    """Of a tiny model: its images' size, and a vocabulary of its length."""
    size = {"height": IMAGE, "width": IMAGE}
    return CaptionerProcessor(CaptionerImageProcessor(size=size), train_tokenizer([WORDS], vocab_size=VOCAB))


def noise_pictures(count: int = 3) -> list[Image.Image]:
    """Noise of another colour and size each."""
    random = np.random.default_rng(0)
    colours = [(255, 60, 20), (20, 90, 255), (60, 255, 60), (250, 250, 30), (5, 5, 5)]
    return [
        Image.fromarray(random.integers(0, 1 + np.array(colour), (40 + 8 * i, 48, 3)).astype(np.uint8))
        for i, colour in enumerate(colours[:count])
    ]


def random_labels(batch: int = 3, rows: int = 2, length: int = 6, seed: int = 2) -> torch.Tensor:
    """Captions of different lengths; the last row of the first image is empty when there are several."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, VOCAB, (batch, rows, length), generator=generator)
    for image in range(batch):
        for row in range(rows):
            end = int(torch.randint(2, length, (1,), generator=generator))
            labels[image, row, end] = 3
            labels[image, row, end + 1 :] = -100
    if rows > 1:
        labels[0, -1] = -100
    return labels
