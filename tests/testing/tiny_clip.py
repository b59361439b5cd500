"""A tiny CLIP with random weights, as a folder."""

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, PreTrainedTokenizerFast

WORDS = ("dog", "red", "runs", "cat")


def tiny_clip(folder: Path, words: Sequence[str] = WORDS) -> Path:
    """That knows these words; its cosines have both signs."""
    vocabulary = ["<pad>", "<unk>", "<bos>", "A", "photo", "depicts", *words, "<eos>"]
    end = len(vocabulary) - 1
    text = dict(
        vocab_size=len(vocabulary), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    text |= dict(max_position_embeddings=12, eos_token_id=end, bos_token_id=2, pad_token_id=0)
    vision = dict(image_size=16, patch_size=8, hidden_size=16, intermediate_size=16)
    vision |= dict(num_hidden_layers=1, num_attention_heads=2)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for weight in model.parameters():  # large enough for cosines of both signs
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
    model.save_pretrained(folder)
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(vocabulary)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    # CLIP's embedding of a text is that of its end
    words.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", end)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", eos_token="<eos>"
    )
    size = {"height": 16, "width": 16}
    images = CLIPImageProcessor(size=size, crop_size=size)
    CLIPProcessor(images, tokenizer).save_pretrained(folder)
    return folder
