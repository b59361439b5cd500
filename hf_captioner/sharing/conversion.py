"""Other people's captioners as captioners of this package: the same weights, in our arrangement."""

import copy
import json
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, snapshot_download
from huggingface_hub.errors import HFValidationError
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers import (
    AutoConfig,
    AutoTokenizer,
    DeiTConfig,
    GenerationConfig,
    GPT2Config,
    PreTrainedConfig,
    SwinConfig,
    TokenizersBackend,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
)

from ..errors import InputError
from ..models.configuration_transformer_captioner import TransformerCaptionerConfig
from ..models.image_processing_captioner import CaptionerImageProcessor
from ..models.modeling_transformer_captioner import TransformerCaptionerForConditionalGeneration
from ..models.processing_captioner import CaptionerProcessor
from ..models.sharing_captioner import NO_LICENSE
from ..models.vision_encoder import probe_layout
from .card import write_card

ENCODERS = (ViTConfig, DeiTConfig, SwinConfig)
TOLERANCE = 1e-4  # of the largest logit, or of 1
# What is fetched from the Hub: neither code nor pickles.
_FILES = ("*.json", "*.safetensors", "*.txt", "README.md")
# Files by which the checkpoints of two other projects are known, and why these can't be held. They are never opened.
_OTHERS = (
    (
        "*.pth.tar",
        "sgrvinod/a-PyTorch-Tutorial-to-Image-Captioning",
        "its alignment passes a ReLU where ours has tanh, and its context a gate for each channel where ours has one",
    ),
    (
        "infos_*.pkl",
        "ruotianluo/ImageCaptioning.pytorch",
        "its cells take the maximum of two candidates (maxout), and its image vectors come from other tools",
    ),
)


def convert_captioner(path_or_name: str, output: Path, revision: str | None = None) -> float:
    """
    Writes the folder of a captioner of ours that says what a `VisionEncoderDecoderModel` of transformers says: model,
    processor, generation settings, card.

    Args:
        path_or_name: a folder or a Hub repository of such a model, with weights in safetensors, a ViT, DeiT or Swin
            encoder and a GPT-2 decoder.
        output: the folder to write, which is made.
        revision: branch, tag, commit or pull request (`refs/pr/1`) of the repository.

    Returns:
        the largest difference of a logit of both models, on random images and tokens.

    Raises:
        InputError: if there is no such model, it is of another kind, or the two don't give the same logits.

    Examples:
        The folder `peer` has a `VisionEncoderDecoderModel`, its tokenizer and its image processor.

        >>> from pathlib import Path
        >>> from transformers import AutoModelForImageTextToText
        >>> from hf_captioner.sharing import convert_captioner
        >>> convert_captioner("peer", Path("captioner")) < 1e-3
        True
        >>> type(AutoModelForImageTextToText.from_pretrained("captioner")).__name__
        'TransformerCaptionerForConditionalGeneration'
    """
    folder = _fetch(path_or_name, revision)
    peer = _load(folder, path_or_name)
    model = convert_model(peer)
    processor = _processor(folder, model)
    difference, limit = _difference(model, peer)
    if not difference <= limit:
        raise InputError(
            f"{path_or_name} must give the same logits when it is converted, got a difference of {difference}"
        )
    model.save_pretrained(output)
    processor.save_pretrained(output)
    origin = {"converted_from": path_or_name, "logits_differ_by_at_most": difference}
    if not Path(path_or_name).is_dir():
        origin["revision"] = folder.name  # of a repository's files, which lie in a folder named after the commit
    (output / "conversion.json").write_text(json.dumps(origin, indent=2) + "\n", "utf-8")
    card, license = folder / "README.md", None
    if card.exists():
        license = ModelCard.load(card, ignore_metadata_errors=True).data.license
    write_card(output, license=license or NO_LICENSE)
    return difference


def convert_model(peer: VisionEncoderDecoderModel) -> TransformerCaptionerForConditionalGeneration:
    """
    A ViT-Transformer of ours with the weights of a `VisionEncoderDecoderModel`; both give the same logits and, as the
    generation settings are the same, the same captions.

    GPT-2 does not have the factor sqrt(hidden_size) of our word embeddings (Vaswani et al. 2017, section 3.4); the
    embeddings are divided by it and, as they may be the output layer, too, the last normalisation is multiplied. A
    layer between the vision model and the decoder (`enc_to_dec_proj`) becomes a part of the keys and values. Of its
    three kinds of dropout, ours has the residual one.

    Args:
        peer: with a ViT, DeiT or Swin encoder and a GPT-2 decoder.

    Raises:
        InputError: if it has another encoder, decoder or setting than ours can hold.

    Examples:
        >>> import torch
        >>> from transformers import GPT2Config, ViTConfig, VisionEncoderDecoderConfig, VisionEncoderDecoderModel
        >>> from hf_captioner.sharing import convert_model
        >>> sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=16)
        >>> text = GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=1)
        >>> config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(ViTConfig(**sizes), text)
        >>> theirs = VisionEncoderDecoderModel(config).eval()
        >>> ours = convert_model(theirs)
        >>> inputs = dict(pixel_values=torch.randn(1, 3, 32, 32), decoder_input_ids=torch.tensor([[0, 7, 9]]))
        >>> torch.allclose(ours(**inputs).logits, theirs(**inputs).logits, atol=1e-4)
        True
    """
    _refuse_other_kinds(peer.config)
    text, settings = peer.config.decoder, peer.generation_config
    first, bos, ends, padding = (
        # The generation settings come first, as in `generate()`.
        _first(*(getattr(source, f"{name}_token_id", None) for source in (settings, peer.config, text)))
        for name in ("decoder_start", "bos", "eos", "pad")
    )
    start = _first(first, bos)
    if start is None:
        raise InputError("`decoder_start_token_id` must be a token, or a caption would have no beginning, got None")
    # GPT-2 fills up with the token that ends a caption, so it has no padding token of its own.
    if padding in (ends if isinstance(ends, list) else [ends]):
        padding = None
    words, output = peer.decoder.transformer.wte.weight, peer.decoder.lm_head.weight
    tied = words is output or torch.equal(words, output)
    config = TransformerCaptionerConfig(
        vision_config=copy.deepcopy(peer.config.encoder),
        keep_prefix_tokens=probe_layout(peer.config.encoder).num_prefix_tokens > 0,
        vocab_size=text.vocab_size,
        hidden_size=text.hidden_size,
        encoder_layers=0,
        decoder_layers=text.num_hidden_layers,
        num_attention_heads=text.num_attention_heads,
        intermediate_size=text.n_inner or 4 * text.hidden_size,
        norm="pre",
        activation=text.activation_function,
        position_embedding_type="learned",
        max_position_embeddings=text.n_positions,
        dropout=text.resid_pdrop,
        tie_word_embeddings=tied,
        pad_token_id=padding,
        bos_token_id=_first(bos, start),
        eos_token_id=ends,
        decoder_start_token_id=start,
    )
    model = TransformerCaptionerForConditionalGeneration(config).to(peer.dtype)
    with torch.no_grad():
        _copy_weights(model, peer, tied)
    model.generation_config = GenerationConfig.from_dict(
        {
            **settings.to_diff_dict(),
            "decoder_start_token_id": start,
            "bos_token_id": config.bos_token_id,
            "eos_token_id": ends,
            "pad_token_id": _first(padding, ends[0] if isinstance(ends, list) else ends),
        }
    )
    return model.eval()


def _first(*values):
    """The first that is given."""
    return next((value for value in values if value is not None), None)


def _refuse_other_kinds(config: PreTrainedConfig) -> None:
    if not isinstance(config, VisionEncoderDecoderConfig):
        raise InputError(f"`model_type` must be vision-encoder-decoder, got {config.model_type!r}")
    encoder, decoder = config.encoder, config.decoder
    if not isinstance(encoder, ENCODERS):
        raise InputError(
            f"the encoder must be one of {', '.join(kind.model_type for kind in ENCODERS)}, got {encoder.model_type!r}"
        )
    if not isinstance(decoder, GPT2Config):
        raise InputError(f"the decoder must be gpt2, got {decoder.model_type!r}")
    for name, value in (("add_cross_attention", True), ("layer_norm_epsilon", nn.LayerNorm(1).eps)):
        if getattr(decoder, name) != value:
            raise InputError(f"`{name}` of the decoder must be {value}, got {getattr(decoder, name)}")


def _copy_weights(model: Any, peer: Any, tied: bool) -> None:
    vision = model.vision_encoder.model
    missing, unexpected = vision.load_state_dict(peer.encoder.state_dict(), strict=False)
    used = [name for name, parameter in vision.named_parameters() if name in missing and parameter.requires_grad]
    if used or unexpected:
        raise InputError(f"the encoder must have the weights of its type, got others: {(used + unexpected)[0]}")
    theirs, decoder = peer.decoder.transformer, model.model.decoder
    text, width = peer.config.decoder, peer.config.decoder.hidden_size
    root = width**0.5
    decoder.embed_tokens.weight.copy_(theirs.wte.weight / root)
    decoder.embed_positions.weight.copy_(theirs.wpe.weight)
    _copy_norm(decoder.norm, theirs.ln_f, root if tied else 1.0)
    if not tied:
        model.lm_head.weight.copy_(peer.decoder.lm_head.weight)
    between = getattr(peer, "enc_to_dec_proj", None)
    for index, (ours, block) in enumerate(zip(decoder.layers, theirs.h, strict=True)):
        # How much stronger or weaker than ours their scores are.
        strength = 1.0 if text.scale_attn_weights else (width // text.num_attention_heads) ** 0.5
        strength /= index + 1 if text.scale_attn_by_inverse_layer_idx else 1
        weights, biases = block.attn.c_attn.weight.T.chunk(3), block.attn.c_attn.bias.chunk(3)
        attention = ours.self_attention
        for layer, weight, bias in zip(
            (attention.query, attention.key, attention.value), weights, biases, strict=True
        ):
            factor = strength if layer is attention.query else 1.0
            layer.weight.copy_(weight * factor)
            layer.bias.copy_(bias * factor)
        _copy_linear(attention.output, block.attn.c_proj)

        attention, cross = ours.region_attention, block.crossattention
        attention.query.weight.copy_(cross.q_attn.weight.T * strength)
        attention.query.bias.copy_(cross.q_attn.bias * strength)
        _copy_linear(attention.output, cross.c_proj)
        key, value = cross.c_attn.weight.T.chunk(2)
        constant = cross.c_attn.bias.chunk(2)[1]  # of the keys it has no effect: all scores of a query get the same
        if between is not None:
            constant = constant + value @ between.bias
            key, value = key @ between.weight, value @ between.weight
        projection = model.get_encoder().key_value_projections[index]
        projection.key.weight.copy_(key)
        projection.value.weight.copy_(value)
        attention.output.bias += attention.output.weight @ constant  # the weights of a query sum to 1

        _copy_linear(ours.feed_forward[0], block.mlp.c_fc)
        _copy_linear(ours.feed_forward[2], block.mlp.c_proj)
        _copy_norm(ours.self_attention_residual.norm, block.ln_1)
        _copy_norm(ours.region_attention_residual.norm, block.ln_cross_attn)
        _copy_norm(ours.feed_forward_residual.norm, block.ln_2)


def _copy_linear(ours: nn.Linear, theirs: Any) -> None:
    """GPT-2's `Conv1D` is a linear layer whose weight is transposed."""
    ours.weight.copy_(theirs.weight.T)
    ours.bias.copy_(theirs.bias)


def _copy_norm(ours: nn.LayerNorm, theirs: nn.LayerNorm, factor: float = 1.0) -> None:
    ours.weight.copy_(theirs.weight * factor)
    ours.bias.copy_(theirs.bias * factor)


@torch.no_grad()
def _difference(model: Any, peer: Any) -> tuple[float, float]:
    """The largest difference of a logit, from pixels, and how large it may be."""
    config, generator = peer.config.encoder, torch.Generator().manual_seed(0)
    side = config.image_size
    height, width = side if isinstance(side, (list, tuple)) else (side, side)
    pixels = torch.randn(2, config.num_channels, height, width, generator=generator).to(model.dtype)
    vocabulary = model.config.vocab_size
    tokens = torch.randint(vocabulary, (2, min(12, model.config.max_position_embeddings)), generator=generator)
    ours, theirs = (
        captioner.eval()(pixel_values=pixels, decoder_input_ids=tokens).logits for captioner in (model, peer)
    )
    return (ours - theirs).abs().max().item(), TOLERANCE * max(1.0, theirs.abs().max().item())


def _fetch(path_or_name: str, revision: str | None) -> Path:
    """The folder itself, or that of the repository's files on this machine."""
    path = Path(path_or_name)
    names = [path.name, *(file.name for file in path.iterdir())] if path.is_dir() else [path.name]
    for pattern, project, reason in _OTHERS:
        for name in names:
            if fnmatch(name, pattern):
                raise InputError(
                    f"{path_or_name} must be a VisionEncoderDecoderModel, got a checkpoint of {project} ({name}), "
                    f"which none of our captioners can hold: {reason}. It was not opened, as it is a pickle"
                )
    if path.is_file():
        raise InputError(f"{path_or_name} must be a folder or a Hub repository, got a file")
    folder = path
    if not path.is_dir():
        try:
            folder = Path(snapshot_download(path_or_name, revision=revision, allow_patterns=list(_FILES)))
        except (OSError, HFValidationError) as error:
            raise InputError(
                "the captioner to convert must be a folder, or a repository that the Hub has and this machine can "
                f"reach or has downloaded before, got {path_or_name!r}: {error}"
            ) from error
    if not any(folder.glob("*.safetensors")):
        raise InputError(
            f"{path_or_name} must have its weights in safetensors, for a pickle (pytorch_model.bin) can run code when "
            "it is read; `VisionEncoderDecoderModel.from_pretrained(...).save_pretrained(...)`, where you trust it, "
            "writes them, and many repositories have a pull request that adds them: --revision refs/pr/NUMBER"
        )
    return folder


def _load(folder: Path, path_or_name: str) -> VisionEncoderDecoderModel:
    """In single precision, in which the weights are rearranged."""
    try:
        _refuse_other_kinds(AutoConfig.from_pretrained(folder))
        peer, report = VisionEncoderDecoderModel.from_pretrained(
            folder, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"{path_or_name} must be a VisionEncoderDecoderModel that can be read: {error}") from error
    lacking = [name for name in report["missing_keys"] if not name.startswith("encoder.pooler")]
    if lacking or report["mismatched_keys"]:
        raise InputError(
            f"{path_or_name} must have all weights, got none for {[*lacking, *report['mismatched_keys']][0]}"
        )
    return peer.eval()


def _processor(folder: Path, model: TransformerCaptionerForConditionalGeneration) -> CaptionerProcessor:
    """Image settings as they are; the tokenizer, which now appends the token that ends a caption, as labels need."""
    config = model.config
    try:
        images = CaptionerImageProcessor.from_vision_pretrained(str(folder), keep_crop=True)
        theirs = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} must have an image processor and a tokenizer: {error}") from error
    if len(theirs) > config.vocab_size:
        raise InputError(f"the tokenizer must have at most vocab_size={config.vocab_size} tokens, got {len(theirs)}")
    end = _first(model.generation_config.pad_token_id, config.decoder_start_token_id)
    ends = config.eos_token_id
    last = (ends[0] if isinstance(ends, list) else ends) if ends is not None else None
    start, padding = (theirs.convert_ids_to_tokens(token) for token in (config.decoder_start_token_id, end))
    names = {"bos_token": start, "pad_token": padding, "unk_token": theirs.unk_token}
    tokenizer = theirs.backend_tokenizer
    if last is not None:
        names["eos_token"] = theirs.convert_ids_to_tokens(last)
        tokenizer.post_processor = TemplateProcessing(
            single=f"$A {names['eos_token']}",
            pair=f"$A $B {names['eos_token']}",
            special_tokens=[(names["eos_token"], last)],
        )
    ours = TokenizersBackend(
        tokenizer_object=tokenizer,
        model_max_length=min(theirs.model_max_length, config.max_position_embeddings),
        padding_side="right",
        clean_up_tokenization_spaces=False,
        **names,
    )
    return CaptionerProcessor(images, ours)
