"""Base classes of all captioner models: weights and loading, the template of `forward`, the language model head."""

import copy
import inspect
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import Cache, GenerationMixin, PreTrainedConfig
from transformers import initialization as init
from transformers.modeling_outputs import Seq2SeqModelOutput
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .attention import rows_per_image
from .compat import WholeWeightsMixin, check_stored
from .confidence_captioner import Familiarity
from .configuration_captioner import ConfigurationError, did_you_mean
from .generation_captioner import CaptionerGenerationMixin
from .loss_captioner import CaptionerLossMixin, CaptionerOutput, row_lengths
from .sharing_captioner import CaptionerSharingMixin
from .vision_encoder import VisionEncoder, load_vision_model

_DECODER_OUTPUT = ("last_hidden_state", "past_key_values", "hidden_states", "attentions", "cross_attentions")


def refuse_unknown(function, given: Iterable[str], known: Iterable[str]) -> None:
    """
    Raises:
        TypeError: if a keyword in `given` is neither in `known` nor a parameter of `function`: a misspelt option would
            have no effect.
    """
    for name in given:
        if name not in known:
            hint = did_you_mean(name, [*inspect.signature(function).parameters, *known])
            raise TypeError(f"{function.__qualname__}() got an unexpected keyword argument `{name}`{hint}")


def _check_weight_files(folder: Path, config: PreTrainedConfig | None) -> None:
    """
    Raises a `ValueError` if weights are pickles alone, their headers lie, an index names files elsewhere, or the files
    are far too small for the layers of the configuration, if there is one already.
    """
    names = {path.name for path in folder.iterdir()}
    pickles = sorted(name for name in names if name.startswith("pytorch_model") and name.endswith((".bin", ".json")))
    if pickles and not any(name.endswith((".safetensors", ".safetensors.index.json")) for name in names):
        raise ValueError(
            f"the weights of {folder} must be safetensors, got a pickle ({pickles[0]}), which can run code when it is "
            "read"
        )
    for name in sorted(names):
        if name.endswith(".safetensors.index.json"):
            try:
                files = set(json.loads((folder / name).read_text("utf-8"))["weight_map"].values())
            except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
                raise ValueError(f"{name} must have a `weight_map` from weights to files: {error}") from error
            for file in files:
                if not isinstance(file, str) or file not in names:
                    raise ValueError(f"`weight_map` in {name} must name files of the folder, got {file!r}")
        elif name.endswith(".safetensors"):
            try:
                with safe_open(folder / name, framework="pt"):
                    pass
            except SafetensorError as error:
                raise ValueError(f"{name} must be safetensors that can be read, got: {error}") from error
    if config is not None and "adapter_config.json" not in names:  # an adapter's base model is elsewhere
        stored = sum((folder / name).stat().st_size for name in names if name.endswith(".safetensors"))
        _check_rules(config)
        check_stored(config, stored)


def _check_rules(config: PreTrainedConfig) -> None:
    """`from_pretrained(folder, field=value)` sets fields after the configuration was validated."""
    try:
        config.validate()
    except StrictDataclassError as error:
        raise ConfigurationError(f"the configuration must keep its rules: {error}") from error


class CaptionerPreTrainedModel(WholeWeightsMixin):
    """Base of every captioner class: initial weights, loading, and the vision model."""

    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")

    def __init__(self, config: PreTrainedConfig):
        _check_rules(config)
        super().__init__(config)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike | None, *args, use_safetensors: bool = True, **kwargs
    ) -> Any:
        """
        As in transformers, from safetensors.

        Raises:
            OSError: if there is no such folder or repository.
            ValueError: if its weights are pickles alone (`use_safetensors=False`, where they are trusted, reads them),
                can't be read, or are not those that the configuration describes.
        """
        name = pretrained_model_name_or_path
        if name is not None and os.path.isdir(name) and use_safetensors:
            config = kwargs.get("config")  # or its folder
            known = isinstance(config, PreTrainedConfig) and kwargs.get("state_dict") is None
            _check_weight_files(Path(name, kwargs.get("subfolder") or ""), config if known else None)
        try:
            return super().from_pretrained(name, *args, use_safetensors=use_safetensors, **kwargs)
        except SafetensorError as error:
            raise ValueError(f"the weights of {name} must be safetensors that can be read: {error}") from error
        except RuntimeError as error:
            if "ignore_mismatched_sizes" not in str(error):
                raise
            raise ValueError(
                f"the weights of {name} must have the shapes that the configuration says; the report above names them"
            ) from error

    @torch.no_grad()
    def _init_weights(self, module):
        # A fixed standard deviation such as 0.02 shrinks signals and gradients in narrow layers without normalisation.
        # Xavier initialisation keeps the scale of a layer's input.
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight, gain=getattr(module, "init_gain", 1.0))
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=module.embedding_dim**-0.5)
            if module.padding_idx is not None and not getattr(module.weight, "_is_hf_initialized", False):
                init.zeros_(module.weight[module.padding_idx])
        elif isinstance(module, Familiarity):  # every image is familiar
            init.zeros_(module.mean)
            init.zeros_(module.directions)
            init.ones_(module.deviations)
            init.ones_(module.rest)
            init.constant_(module.limit, torch.inf)
        else:
            super()._init_weights(module)

    @property
    def vision_encoder(self) -> VisionEncoder:
        """The module that turns images into regions."""
        return self.get_encoder().vision_encoder

    def set_attn_implementation(self, attn_implementation: str | dict, **kwargs) -> None:
        """
        As in transformers, but a vision model that supports only eager attention (or, like a CNN, has none) keeps it.
        """
        if isinstance(attn_implementation, str) and not self.vision_encoder.chooses_attention:
            attn_implementation = {"": attn_implementation, "vision_config": "eager"}
        super().set_attn_implementation(attn_implementation, **kwargs)

    def freeze_vision(self) -> None:
        """
        Freezes the vision model: its parameters get no gradient and its batch-norm running statistics no update.
        """
        self.vision_encoder.set_trainable(False)
        self.vision_encoder.train(self.training)

    def unfreeze_vision(self, pattern: str | None = None) -> None:
        """
        Makes the vision model trainable, except for parameters that its regions do not depend on (poolers, mask
        tokens).

        Args:
            pattern: a regular expression. Only parameters in whose name, as `vision_encoder.model` has it, it is found
                are trained; the vision model then stays in evaluation mode.

        Raises:
            ValueError: if no parameter's name fits.
        """
        self.vision_encoder.set_trainable(True, pattern)
        self.vision_encoder.train(self.training)

    @classmethod
    def from_vision_pretrained(cls, path_or_name: str, config: PreTrainedConfig) -> "CaptionerPreTrainedModel":
        """
        Builds a captioner with pretrained vision weights; all other weights are initialised.

        Args:
            path_or_name: a local folder or a Hub repository of any transformers vision model, or of a two-tower model
                (CLIP, SigLIP), of which the vision tower is taken.
            config: the captioner's configuration, left unchanged; the model gets a copy whose `vision_config` is that
                of the pretrained model.

        Returns:
            the model, in the configuration's `dtype` (or torch's default), regardless of the dtype that the vision
            weights were saved in.

        Raises:
            FileNotFoundError: if there is neither such a folder nor, on the Hub or in its cache, such a repository.

        Examples:
            >>> from transformers import ResNetConfig, ResNetModel
            >>> from hf_captioner import RnnCaptionerConfig, RnnCaptionerForConditionalGeneration
            >>> vision = ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic")
            >>> ResNetModel(vision).save_pretrained("resnet")  # in place of a pretrained one
            >>> config = RnnCaptionerConfig(vocab_size=40)
            >>> model = RnnCaptionerForConditionalGeneration.from_vision_pretrained("resnet", config)
            >>> model.freeze_vision()
            >>> model.config.vision_config.hidden_sizes
            [8, 12]
            >>> any(parameter.requires_grad for parameter in model.vision_encoder.parameters())
            False
        """
        dtype = config.dtype or torch.get_default_dtype()
        vision_model = load_vision_model(path_or_name, dtype)
        config = copy.deepcopy(config)
        config.vision_config = copy.deepcopy(vision_model.config)
        model = cls._from_config(config, dtype=dtype)
        model.vision_encoder.model.load_state_dict(vision_model.state_dict())
        return model


def check_row_lengths(decoder_attention_mask: torch.Tensor | None, past_key_values: Cache | None) -> None:
    """
    Raises:
        ValueError: if one of both is there beside `row_lengths`, which speaks of whole captions padded at their end.
    """
    for name, given in [("decoder_attention_mask", decoder_attention_mask), ("past_key_values", past_key_values)]:
        if given is not None:
            raise ValueError(f"`row_lengths` must come without `{name}`, got both")


class Dropout(nn.Dropout):
    """
    As torch's. On a CPU four elements share one random number of 64 bits, which takes a quarter of the time of torch's
    own draws, with which a small decoder spends a tenth of a training step; the probability is then a multiple of
    2^-16.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not self.training or self.p == 0 or input.device.type != "cpu":
            return super().forward(input)
        draws = torch.empty(-(-input.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        kept = draws[: input.numel()].view(input.shape) >= round(self.p * 2**16) - 2**15
        return input * (kept.to(input.dtype) / (1 - self.p))


class CaptionerModel(CaptionerPreTrainedModel):
    """
    A captioner without a language model head: `encoder`, computed once per image, and `decoder`, computed once per
    row, that is per caption.

    A family sets the class attributes below. Its encoder takes `pixel_values`, `image_features`, `grid`,
    `output_attentions` and `output_hidden_states`, and its output has `last_hidden_state` (B, L, D) and `grid`; its
    attribute `region_size` is D, and `vision_encoder` the [`VisionEncoder`]. Its
    decoder takes `decoder_input_ids` (N, T), the encoder's output, `decoder_attention_mask`, `past_key_values`,
    `output_attentions`, `output_hidden_states` and the family's options, and returns the fields of transformers'
    `BaseModelOutputWithPastAndCrossAttentions` and, if it likes, others, which `model_output_class` must have.

    Attributes:
        encoder_class: made from the configuration.
        decoder_class: made from the configuration and the channels of a region.
        model_output_class: a `Seq2SeqModelOutput`.
        decoder_options: further keyword arguments of the decoder's `forward`.
    """

    encoder_class: type[nn.Module]
    decoder_class: type[nn.Module]
    model_output_class: type[Seq2SeqModelOutput] = Seq2SeqModelOutput
    decoder_options: tuple[str, ...] = ()

    def __init__(self, config: PreTrainedConfig):
        super().__init__(config)
        self.encoder = self.encoder_class(config)
        self.decoder = self.decoder_class(config, self.encoder.region_size)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.decoder.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.decoder.embed_tokens = value

    def get_encoder(self, modality: str | None = None) -> nn.Module:
        return self.encoder

    def make_cache(self) -> Cache:
        """An empty cache of the decoder."""
        raise NotImplementedError

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        decoder_input_ids: torch.LongTensor | None = None,
        image_features: torch.FloatTensor | None = None,
        grid: tuple[int, int] | torch.LongTensor | None = None,
        encoder_outputs: ModelOutput | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **options,
    ) -> Seq2SeqModelOutput:
        """
        Arguments as in [`CaptionerForConditionalGeneration.forward`], without labels and what belongs to them.

        Returns:
            a `Seq2SeqModelOutput`; `last_hidden_state` is (N, T, H).

        Raises:
            ValueError: if the rows are not a multiple of the images, or not exactly one image input is given.
            TypeError: if there is a keyword argument that the family's decoder does not know.
        """
        refuse_unknown(type(self).forward, options, self.decoder_options)
        config = self.config
        use_cache = config.use_cache if use_cache is None else use_cache
        output_attentions = config.output_attentions if output_attentions is None else output_attentions
        output_hidden_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        if encoder_outputs is None:
            encoder_outputs = self.encoder(
                pixel_values=pixel_values,
                image_features=image_features,
                grid=grid,
                output_attentions=output_attentions,
                output_hidden_states=output_hidden_states,
            )
        rows_per_image(len(decoder_input_ids), len(encoder_outputs.last_hidden_state))
        if use_cache and past_key_values is None:
            past_key_values = self.make_cache()
        outputs = self.decoder(
            decoder_input_ids,
            encoder_outputs,
            decoder_attention_mask=decoder_attention_mask,
            past_key_values=past_key_values,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            **options,
        )
        return self.model_output_class(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=past_key_values if use_cache else None,
            decoder_hidden_states=outputs.hidden_states,
            decoder_attentions=outputs.attentions,
            cross_attentions=outputs.cross_attentions,
            encoder_last_hidden_state=encoder_outputs.last_hidden_state,
            encoder_hidden_states=encoder_outputs.hidden_states,
            encoder_attentions=encoder_outputs.attentions,
            **{name: value for name, value in outputs.items() if name not in _DECODER_OUTPUT},
        )


class CaptionerForConditionalGeneration(
    CaptionerGenerationMixin, CaptionerLossMixin, CaptionerSharingMixin, CaptionerPreTrainedModel, GenerationMixin
):
    """
    A captioner with a language model head, for training and `generate()`.

    Subclasses set `model_class` and may add terms to the loss in `attention_losses`.

    Attributes:
        familiarity: a [`Familiarity`], which takes the encoder's `last_hidden_state`, or `None` if the configuration
            says that there is none.
    """

    model_class: type[CaptionerModel]
    _tied_weights_keys = {"lm_head.weight": "model.decoder.embed_tokens.weight"}

    def __init__(self, config: PreTrainedConfig):
        super().__init__(config)
        self.model = self.model_class(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.familiarity = None
        if config.familiarity_rank:
            self.familiarity = Familiarity(self.model.encoder.region_size, config.familiarity_rank)
        self.post_init()

    def get_encoder(self, modality: str | None = None) -> nn.Module:
        return self.model.encoder

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.lm_head = new_embeddings

    def prepare_decoder_input_ids_from_labels(self, labels: torch.LongTensor) -> torch.LongTensor:
        """
        Shifts labels one position to the right: start token first, last label dropped, -100 replaced by padding (by
        the start token in a model that has none: what stands behind a caption has no effect on it).

        Args:
            labels: (N, T) or (B, k, T).

        Returns:
            decoder_input_ids of the same shape.
        """
        shifted = labels.roll(1, dims=-1)
        start, padding = self.config.decoder_start_token_id, self.config.pad_token_id
        shifted[..., 0] = start
        return shifted.masked_fill(shifted == -100, start if padding is None else padding)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        decoder_input_ids: torch.LongTensor | None = None,
        labels: torch.LongTensor | None = None,
        image_features: torch.FloatTensor | None = None,
        grid: tuple[int, int] | torch.LongTensor | None = None,
        encoder_outputs: ModelOutput | None = None,
        decoder_attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        output_logits: bool = True,
        logits_to_keep: int | torch.Tensor = 0,
        num_items_in_batch: torch.Tensor | int | None = None,
        row_weights: torch.FloatTensor | None = None,
        **options,
    ) -> CaptionerOutput:
        r"""
        Args:
            pixel_values: images (B, C, H, W).
            decoder_input_ids: (N, T), start token first; N = B * k rows, the k rows of an image adjacent. Made from
                `labels` if absent.
            labels: (B, k, T) or (B * k, T): tokens and EOS, -100 at padding. An image with fewer captions than others
                has rows of -100.
            image_features: (B, L, D), the vision model's raw regions, in place of `pixel_values`.
            grid: rows and columns (h, w) of `image_features`, L = h * w and the prefix tokens that are kept, or
                (B, 2) with the same in every row. Encoder layers need it for their positions; there a square is the
                default.
            encoder_outputs: what `get_encoder()` returned, in place of all of these.
            decoder_attention_mask: (N, S), where S includes the cached tokens: 0 for padding on the left, 1
                otherwise.
            past_key_values: the cache that an earlier call returned; `decoder_input_ids` then contain only the new
                tokens.
            use_cache: whether to return a cache. Defaults to `config.use_cache`, and to `False` with labels.
            output_attentions: whether to return the weights over regions, one (N, heads, T, L) per layer.
            output_hidden_states: whether to return the decoder's hidden states.
            output_logits: whether to return logits beside a loss. They are large, and training rarely reads them.
            logits_to_keep: number of last positions (0: all) to compute logits for, or their indices.
            num_items_in_batch: number of tokens that are not padding in the whole batch (over gradient accumulation
                steps and devices); the loss is divided by it. Defaults to the number in `labels`.
            row_weights: (N,) or (B, k). If given, the loss is the weighted sum of the rows' negative log-likelihoods,
                divided as above, without label smoothing and without the family's additional terms (used for training
                by reward).
            **options: of the family's decoder, see its base model.

        Returns:
            [`CaptionerOutput`] with `loss` (a scalar, if there are labels) and `logits` (N, T, vocab_size). In
            training mode with labels, logits are computed only where the label is not -100 and are zero elsewhere.

        Raises:
            ValueError: if the rows are not a multiple of the images, neither `decoder_input_ids` nor `labels` is
                given, or not exactly one image input is.
            TypeError: if there is a keyword argument that the family does not know.
        """
        refuse_unknown(type(self).forward, options, self.model.decoder_options)
        if labels is not None:
            if decoder_input_ids is None:
                decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
            labels = labels.flatten(0, -2)
            use_cache = False if use_cache is None else use_cache
            leaves_out_padding = self.training or row_weights is not None or not output_logits
            if leaves_out_padding and not use_cache and decoder_attention_mask is None:
                # Nothing reads what stands behind a caption; a decoder that knows the lengths need not compute it.
                if "row_lengths" in self.model.decoder_options:
                    options.setdefault("row_lengths", row_lengths(labels))
        if decoder_input_ids is None:
            raise ValueError(
                "`labels` or `decoder_input_ids` must be given, got neither; if this is training, the Trainer's "
                "`label_smoothing_factor` took the labels: set `label_smoothing` in the model's configuration instead"
            )
        reads_attentions = labels is not None and row_weights is None and self.loss_reads_attentions
        wants_attentions = self.config.output_attentions if output_attentions is None else output_attentions
        outputs = self.model(
            pixel_values=pixel_values,
            decoder_input_ids=decoder_input_ids.flatten(0, -2),
            image_features=image_features,
            grid=grid,
            encoder_outputs=encoder_outputs,
            decoder_attention_mask=decoder_attention_mask,
            past_key_values=past_key_values,
            use_cache=use_cache,
            output_attentions=wants_attentions or reads_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
            **options,
        )
        loss, log = None, None
        if labels is None:
            keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.lm_head(outputs.last_hidden_state[:, keep])
        else:
            loss, logits, log = self.caption_loss(outputs, labels, num_items_in_batch, row_weights, output_logits)
        return CaptionerOutput(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            decoder_hidden_states=outputs.decoder_hidden_states,
            decoder_attentions=outputs.decoder_attentions,
            cross_attentions=outputs.cross_attentions if wants_attentions else None,
            encoder_last_hidden_state=outputs.encoder_last_hidden_state,
            encoder_hidden_states=outputs.encoder_hidden_states,
            encoder_attentions=outputs.encoder_attentions,
            log=log,
        )
