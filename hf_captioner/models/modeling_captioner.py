"""What captioner models share: rows per image, loss, pretrained vision weights, attention maps."""

import copy
import inspect
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from huggingface_hub import create_repo, file_exists, upload_file
from torch import nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import Seq2SeqLMOutput
from transformers.utils.generic import can_return_tuple

from .attention import rows_per_image
from .model_card import model_card
from .vision_encoder import VisionEncoder, load_vision_model


class CaptionerPreTrainedModel(PreTrainedModel):
    """Base of every captioner class: initial weights, loading and the vision model."""

    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ("image", "text")

    def __init__(self, config: PreTrainedConfig):
        # `from_pretrained(folder, field=value)` sets fields behind the configuration's checks.
        config.validate()
        super().__init__(config)

    @torch.no_grad()
    def _init_weights(self, module):
        # The usual 0.02 would let little of the image through to the words, and little of their gradient back, unless
        # layers are wide or normalised: every linear map keeps the scale of what it is given instead.
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight, gain=getattr(module, "init_gain", 1.0))
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=module.embedding_dim**-0.5)
            if module.padding_idx is not None and not getattr(module.weight, "_is_hf_initialized", False):
                init.zeros_(module.weight[module.padding_idx])
        else:
            super()._init_weights(module)

    @property
    def vision_encoder(self) -> VisionEncoder:
        """The module that turns images into regions."""
        return self.get_encoder().vision_encoder

    def set_attn_implementation(self, attn_implementation: str | dict, **kwargs) -> None:
        """As in transformers; a vision model without attention, or without a choice of it, is passed over."""
        if isinstance(attn_implementation, str) and not self.vision_encoder.chooses_attention:
            attn_implementation = {"": attn_implementation, "vision_config": "eager"}
        super().set_attn_implementation(attn_implementation, **kwargs)

    def freeze_vision(self) -> None:
        """Excludes the vision model from training; its batch statistics stay as they are, too."""
        self.vision_encoder.set_trainable(False)
        self.vision_encoder.train(self.training)

    def unfreeze_vision(self) -> None:
        """Includes the vision model in training, but for parameters that the regions do not depend on."""
        self.vision_encoder.set_trainable(True)
        self.vision_encoder.train(self.training)

    @classmethod
    def from_vision_pretrained(cls, path_or_name: str, config: PreTrainedConfig) -> "CaptionerPreTrainedModel":
        """
        A captioner whose vision model has pretrained weights; everything else is initialised.

        Args:
            path_or_name: a local folder or a Hub repository of any transformers vision model, or of a dual model
                (CLIP, SigLIP), whose vision tower is taken.
            config: the captioner's configuration; it is not changed, its `vision_config` is replaced in the model.

        Returns:
            the model, in the configuration's `dtype` (or torch's default) whatever the folder's.

        Raises:
            FileNotFoundError: if there is neither such a folder nor, on the Hub or in its cache, such a repository.
        """
        dtype = config.dtype or torch.get_default_dtype()
        vision_model = load_vision_model(path_or_name, dtype)
        config = copy.deepcopy(config)
        config.vision_config = copy.deepcopy(vision_model.config)
        model = cls._from_config(config, dtype=dtype)
        model.vision_encoder.model.load_state_dict(vision_model.state_dict())
        return model


class CaptionerModel(CaptionerPreTrainedModel):
    """Where `encoder`, the image's side, and `decoder`, the rows' side, are; subclasses make them and run them."""

    def get_input_embeddings(self):
        return self.decoder.embed_tokens

    def set_input_embeddings(self, value):
        self.decoder.embed_tokens = value

    def get_encoder(self, modality=None):
        return self.encoder


def _at_least_single(logits: torch.Tensor) -> torch.Tensor:
    """Half precision is too coarse for a sum of log-likelihoods."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


@dataclass
class CaptionerOutput(Seq2SeqLMOutput):
    """
    Args:
        log: in training, the terms of the loss (`loss_words` and what the family adds; they add up to it) and other
            averages worth logging, by name.
    """

    log: dict[str, torch.Tensor] | None = None


def _are_copies(rows: torch.Tensor, copies: int) -> bool:
    """Whether every `copies` rows in succession are the same."""
    groups = rows.unflatten(0, (-1, copies))
    return bool((groups == groups[:, :1]).all())


class CaptionerForConditionalGeneration(CaptionerPreTrainedModel, GenerationMixin):
    """
    A captioner with a language model head, for training and `generate()`.

    Subclasses set `model_class` and may add terms to the loss in `attention_losses`.
    """

    model_class: type[CaptionerModel]
    _tied_weights_keys = {"lm_head.weight": "model.decoder.embed_tokens.weight"}

    def __init__(self, config: PreTrainedConfig):
        super().__init__(config)
        self.model = self.model_class(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_encoder(self, modality=None):
        return self.model.encoder

    def get_output_embeddings(self):
        return self.lm_head

    def set_output_embeddings(self, new_embeddings):
        self.lm_head = new_embeddings

    def save_pretrained(self, save_directory, is_main_process: bool = True, **kwargs):
        """
        As in transformers, and a card where there is none. The auto classes and the pipeline find all that they need
        in the folder.
        """
        if self._auto_class is not None:
            # What copies the code's files finds the pipeline's by this line.
            from .pipeline_captioner import TASK, ImageCaptioningPipeline

            # All anew: a model that came from the Hub names the classes of the repository that it came from.
            config, model, pipeline = (
                f"{cls.__module__.split('.')[-1]}.{cls.__name__}"
                for cls in (type(self.config), type(self), ImageCaptioningPipeline)
            )
            auto = "AutoModelForImageTextToText"
            self.config.auto_map = {"AutoConfig": config, "AutoModel": model, auto: model}
            self.config.custom_pipelines = {TASK: {"impl": pipeline, "pt": [auto]}}
        super().save_pretrained(save_directory, is_main_process=is_main_process, **kwargs)
        card = Path(save_directory, "README.md")
        if is_main_process and not card.exists():
            model_card(self.config, card.absolute().parent.name).save(card)

    def push_to_hub(self, repo_id: str, **kwargs) -> str:
        """As in transformers, with our card in place of its empty form where the repository has none."""
        token = kwargs.get("token")
        repo_id = create_repo(repo_id, private=kwargs.get("private"), token=token, exist_ok=True).repo_id
        if not kwargs.get("create_pr") and not file_exists(repo_id, "README.md", token=token):
            card = str(model_card(self.config, repo_id)).encode()
            upload_file(
                path_or_fileobj=card,
                path_in_repo="README.md",
                repo_id=repo_id,
                token=token,
                commit_message="Upload card",
            )
        return super().push_to_hub(repo_id, **kwargs)

    def prepare_decoder_input_ids_from_labels(self, labels: torch.LongTensor) -> torch.LongTensor:
        """
        The start token in front of the labels, the last label left out, padding in place of -100.

        Args:
            labels: (N, T) or (B, k, T).

        Returns:
            decoder_input_ids of the same shape.
        """
        shifted = labels.roll(1, dims=-1)
        shifted[..., 0] = self.config.decoder_start_token_id
        return shifted.masked_fill(shifted == -100, self.config.pad_token_id)

    def _expand_inputs_for_generation(
        self, expand_size=1, is_encoder_decoder=False, input_ids=None, encoder_outputs=None, **model_kwargs
    ):
        # Beams and samples are rows of their image; nothing on the image's side is repeated for them.
        input_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size=expand_size, is_encoder_decoder=False, input_ids=input_ids, **model_kwargs
        )
        model_kwargs["encoder_outputs"] = encoder_outputs
        return input_ids, model_kwargs

    def _validate_model_kwargs(self, model_kwargs):
        # Forward hands on what the family's base model takes beside its own arguments.
        known = inspect.signature(self.model.forward).parameters
        super()._validate_model_kwargs({name: value for name, value in model_kwargs.items() if name not in known})

    def _prefill(self, input_ids, generation_config, model_kwargs, *args, **kwargs):
        # Beams and samples of an image begin alike: the prompt is read once per image, and what it gave is repeated.
        encoder_outputs, cache = model_kwargs["encoder_outputs"], model_kwargs.get("past_key_values")
        copies = rows_per_image(len(input_ids), len(encoder_outputs[0]))
        draws = model_kwargs.get("sample_regions")  # each row its own
        takes_rows_later = cache is None or not (getattr(cache, "is_compileable", False) or cache.get_seq_length())
        if copies == 1 or self.training or draws or not (takes_rows_later and _are_copies(input_ids, copies)):
            return super()._prefill(input_ids, generation_config, model_kwargs, *args, **kwargs)
        mask = model_kwargs.get("decoder_attention_mask")
        if mask is not None:
            model_kwargs = {**model_kwargs, "decoder_attention_mask": mask[::copies]}
        outputs = super()._prefill(input_ids[::copies], generation_config, model_kwargs, *args, **kwargs)
        if outputs.past_key_values is not None:
            outputs.past_key_values.batch_repeat_interleave(copies)
        outputs.logits = outputs.logits.repeat_interleave(copies, dim=0)
        for name in ("decoder_hidden_states", "decoder_attentions", "cross_attentions"):
            if getattr(outputs, name) is not None:
                outputs[name] = tuple(tensor.repeat_interleave(copies, dim=0) for tensor in outputs[name])
        return outputs

    @property
    def loss_reads_attentions(self) -> bool:
        """Whether `attention_losses` needs the weights over regions."""
        return False

    def attention_losses(
        self, outputs, token_losses: torch.Tensor, labels: torch.LongTensor
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """
        Terms that the family adds to the loss.

        Args:
            outputs: of the base model.
            token_losses: (N, T), of the words, zero where there is none.
            labels: (N, T), -100 where there is none.

        Returns:
            named terms, each a sum over captions, and named averages to be logged beside them.
        """
        return {}, {}

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        decoder_input_ids: torch.LongTensor | None = None,
        labels: torch.LongTensor | None = None,
        image_features: torch.FloatTensor | None = None,
        encoder_outputs=None,
        past_key_values=None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        num_items_in_batch: torch.Tensor | int | None = None,
        row_weights: torch.FloatTensor | None = None,
        **kwargs,
    ) -> "CaptionerOutput":
        r"""
        Args:
            pixel_values: images (B, C, H, W).
            decoder_input_ids: (N, T), start token first; N = B * k rows, the k rows of an image adjacent. Made from
                `labels` if absent.
            labels: (B, k, T) or (B * k, T): tokens and EOS, -100 where there is nothing to predict. An image with
                fewer captions than others has rows of -100.
            image_features: (B, L, D), the vision model's raw regions, in place of `pixel_values`.
            encoder_outputs: what `get_encoder()` returned, in place of both.
            past_key_values: the cache that an earlier call returned; `decoder_input_ids` are then the new tokens.
            use_cache: whether to return a cache. Defaults to the configuration's, but not when there are labels.
            output_attentions: whether to return the weights over regions, one (N, heads, T, L) per layer.
            output_hidden_states: whether to return the decoder's hidden states.
            logits_to_keep: number of last positions (0: all) to compute logits for, or their indices.
            num_items_in_batch: number of real tokens in the whole (accumulated) batch, by which the loss is divided.
                Defaults to the number in this one.
            row_weights: (N,) or (B, k). The loss is then the sum of these times their rows' negative log-likelihood,
                divided as above, and nothing else: no label smoothing, nothing for the attention.
            **kwargs: what the family's base model takes beside these.

        Returns:
            [`CaptionerOutput`] with `loss` (a scalar, if there are labels) and `logits` (N, T, vocab_size). In
            training mode the logits where the label is -100 are not computed, but zero.

        Raises:
            ValueError: if the rows are not a multiple of the images, or there is no image or no text.
        """
        if labels is not None:
            if decoder_input_ids is None:
                decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
            labels = labels.flatten(0, -2)
            use_cache = False if use_cache is None else use_cache
        if decoder_input_ids is None:
            raise ValueError("`decoder_input_ids` or `labels` must be given, got neither")
        reads_attentions = labels is not None and row_weights is None and self.loss_reads_attentions
        wants_attentions = self.config.output_attentions if output_attentions is None else output_attentions
        outputs = self.model(
            pixel_values=pixel_values,
            decoder_input_ids=decoder_input_ids.flatten(0, -2),
            image_features=image_features,
            encoder_outputs=encoder_outputs,
            past_key_values=past_key_values,
            use_cache=use_cache,
            output_attentions=wants_attentions or reads_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
            **kwargs,
        )
        hidden = outputs.last_hidden_state  # (N, T, H)
        loss, log = None, None
        if labels is None:
            keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.lm_head(hidden[:, keep])
        else:
            logits, token_losses = self._token_losses(hidden, labels, weighted=row_weights is not None)
            if row_weights is not None:
                token_losses = token_losses * row_weights.flatten()[:, None].to(token_losses.dtype)
            terms, statistics = {"words": token_losses.sum()}, {}
            if row_weights is None:
                more_terms, statistics = self.attention_losses(outputs, token_losses, labels)
                terms |= more_terms
            count = (labels != -100).sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
            loss = sum(terms.values()) / count
            if self.training:
                log = {f"loss_{name}": term.detach() / count for name, term in terms.items()} | statistics
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

    def _token_losses(self, hidden: torch.Tensor, labels: torch.Tensor, weighted: bool):
        """Logits (N, T, V) and what every word costs (N, T), from hidden states (N, T, H) and labels (N, T)."""
        if not (self.training or weighted):
            logits = self.lm_head(hidden)
            losses = F.cross_entropy(_at_least_single(logits).flatten(0, 1), labels.flatten(), reduction="none")
            return logits, losses.view(labels.shape)
        # Padding is often half of a batch of captions, and the output layer most of a step: only real tokens.
        real = labels != -100
        real_logits = self.lm_head(hidden[real])
        logits = real_logits.new_zeros(*labels.shape, self.config.vocab_size)
        logits[real] = real_logits.detach()
        smoothing = 0.0 if weighted else self.config.label_smoothing
        real_losses = F.cross_entropy(
            _at_least_single(real_logits), labels[real], reduction="none", label_smoothing=smoothing
        )
        losses = real_losses.new_zeros(labels.shape)
        losses[real] = real_losses
        return logits, losses

    def attention_maps(
        self, outputs, grid: tuple[int, int] | None = None, layer: int = -1, head: int | None = None
    ) -> torch.FloatTensor:
        """
        Where the model looked while it said each token.

        Args:
            outputs: what `generate(output_attentions=True, return_dict_in_generate=True)` returned.
            grid: (h, w), the rows and columns of regions. Defaults to a square.
            layer: decoder layer.
            head: attention head; the mean over heads if `None`.

        Returns:
            (N, tokens, h, w): weights over the grid for every generated token of every returned sequence, EOS
            included, zero after it.

        Raises:
            ValueError: if there are no attentions in `outputs`, or the grid does not have as many cells as regions.
        """
        cross_attentions = getattr(outputs, "cross_attentions", None)
        if cross_attentions is None or cross_attentions[0] is None:
            why = " and a model that attends" if getattr(self.config, "attention", None) == "none" else ""
            raise ValueError(
                "`outputs` must come from generate(output_attentions=True, return_dict_in_generate=True)"
                f"{why}, got no cross_attentions"
            )
        num_regions = cross_attentions[0][layer].shape[-1]
        if grid is None:
            grid = (round(num_regions**0.5),) * 2
        if grid[0] * grid[1] != num_regions:
            raise ValueError(f"`grid` must have {num_regions} cells, one per region, got {tuple(grid)}")

        steps = len(cross_attentions)
        generated = outputs.sequences[:, -steps:] if steps else outputs.sequences[:, :0]
        beam_indices = getattr(outputs, "beam_indices", None)
        if beam_indices is None:
            rows = torch.arange(len(generated), device=generated.device)[:, None].expand(-1, steps)
        else:
            # Beam search drops trailing steps that no returned sequence has.
            generated = outputs.sequences[:, outputs.sequences.shape[1] - beam_indices.shape[1] :]
            steps = min(steps, beam_indices.shape[1])
            rows = beam_indices[:, :steps].clamp(min=0)
        maps = []
        for step in range(steps):
            weights = cross_attentions[step][layer][rows[:, step], :, -1]  # (N, heads, L)
            maps.append(weights.mean(1) if head is None else weights[:, head])
        maps = torch.stack(maps, dim=1)  # (N, tokens, L)

        eos = torch.as_tensor(self.generation_config.eos_token_id or self.config.eos_token_id, device=maps.device)
        ended = torch.isin(generated[:, :steps].to(maps.device), eos).cumsum(1)
        after = torch.cat([torch.zeros_like(ended[:, :1]), ended[:, :-1]], dim=1) > 0
        return maps.masked_fill(after[..., None], 0).unflatten(-1, grid)
