"""transformers' `VisionEncoderDecoderModel` with small random weights, and its folder with a GPT-2 tokenizer."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    DeiTConfig,
    GPT2Config,
    GPT2Tokenizer,
    PreTrainedConfig,
    SwinConfig,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
)

END = "<|endoftext|>"
CAPTIONS = ["a small red circle above a large blue square", "two dogs run over the grass, and a man is looking"]
_TINY = dict(
    hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8
)
# name: (encoder, width of the decoder)
SHAPES: dict[str, tuple[PreTrainedConfig, int]] = {
    "vit": (ViTConfig(**_TINY), 24),
    "vit_projected": (ViTConfig(**_TINY), 16),
    "deit": (DeiTConfig(**_TINY), 24),
    "swin_projected": (
        SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4),
        24,
    ),
}


def gpt2_tokenizer() -> GPT2Tokenizer:
    """Byte-level pairs learnt from two captions; as in GPT-2, one special token is the last of the vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CAPTIONS, trainers.BpeTrainer(vocab_size=299, initial_alphabet=alphabet, show_progress=False)
    )
    learnt = json.loads(tokenizer.to_str())["model"]
    vocabulary = {**learnt["vocab"], END: len(learnt["vocab"])}
    return GPT2Tokenizer(vocab=vocabulary, merges=[tuple(pair) for pair in learnt["merges"]])


def random_peer(shape: str = "vit", seed: int = 0, **changes) -> VisionEncoderDecoderModel:
    """With weights so large that images, places and words all show in what is said; `changes` are the decoder's."""
    encoder, width = SHAPES[shape]
    end = len(gpt2_tokenizer()) - 1
    decoder = GPT2Config(
        **{
            **dict(vocab_size=end + 1, n_positions=32, n_embd=width, n_layer=2, n_head=2),
            **dict(bos_token_id=end, eos_token_id=end, add_cross_attention=True, is_decoder=True),
            **changes,
        }
    )
    peer = VisionEncoderDecoderModel(VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in peer.named_parameters():
            # Words are alike, and places differ: with tied embeddings a word would else be followed by itself.
            size = 0.1 if "wte" in name else 1.0 if "wpe" in name else 0.3
            parameter += size * torch.randn(parameter.shape, generator=generator)
        peer.decoder.transformer.wte.weight[end] *= 2  # or no caption would end
    peer.config.decoder_start_token_id = peer.config.pad_token_id = peer.config.eos_token_id = end
    peer.generation_config.update(decoder_start_token_id=end, pad_token_id=end, eos_token_id=end, max_length=14)
    return peer.eval()


def peer_folder(folder: Path, shape: str = "vit", **changes) -> VisionEncoderDecoderModel:
    """Saves such a captioner as its authors would, with image settings and a card."""
    peer = random_peer(shape, **changes)
    peer.save_pretrained(folder)
    gpt2_tokenizer().save_pretrained(folder)
    images = {
        "vit": {"image_processor_type": "ViTImageProcessor", "size": 32, "resample": 2, "image_mean": [0.5] * 3},
        "deit": {"image_processor_type": "DeiTImageProcessor", "size": 40, "crop_size": 32},
    }[shape]
    (folder / "preprocessor_config.json").write_text(json.dumps(images))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Theirs\n")
    return peer
