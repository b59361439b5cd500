"""CNN-Transformer and ViT-Transformer captioners: attention over regions, over words, and from words to regions."""

import math
from dataclasses import dataclass

import torch
from torch import nn
from transformers import Cache, DynamicCache, EncoderDecoderCache, GenerationMixin
from transformers.activations import ACT2FN
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutput,
    BaseModelOutputWithPastAndCrossAttentions,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .attention import RegionProjection, grid_positions, rows_per_image, sinusoidal_positions
from .compat import with_eager_masks
from .configuration_transformer_captioner import TransformerCaptionerConfig
from .modeling_captioner import (
    CaptionerForConditionalGeneration,
    CaptionerModel,
    CaptionerPreTrainedModel,
    Dropout,
    check_row_lengths,
)
from .vision_encoder import VisionEncoder


@dataclass
class TransformerCaptionerEncoderOutput(BaseModelOutput):
    """
    Everything that is computed from the image alone, once per image; it is not repeated for the image's rows.

    Args:
        last_hidden_state: what the decoder attends to (B, L, H); without encoder layers the regions (B, L, D).
        hidden_states: input and output of every encoder layer, each (B, L, H), if asked for.
        attentions: weights of every encoder layer, each (B, heads, L, L), if asked for.
        grid: rows and columns (h, w) of the regions, L = P + h * w with P prefix tokens that are kept;
            `None` for features without a grid.
        projected_keys: the keys of the regions for each decoder layer, each (B, heads, L, d).
        projected_values: the values for each decoder layer, each (B, heads, L, d).
    """

    grid: tuple[int, int] | None = None
    projected_keys: tuple[torch.FloatTensor, ...] | None = None
    projected_values: tuple[torch.FloatTensor, ...] | None = None


class TransformerCaptionerPreTrainedModel(CaptionerPreTrainedModel):
    config: TransformerCaptionerConfig
    config_class = TransformerCaptionerConfig
    supports_gradient_checkpointing = True
    _no_split_modules = ["TransformerCaptionerEncoderLayer", "TransformerCaptionerDecoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True


def eager_attention_forward(module, query, key, value, attention_mask, scaling, **kwargs):
    """
    softmax(scaling Q K^T + mask) V; Vaswani et al. 2017, equation 1.

    Args:
        query: (B, heads, Q, d).
        key, value: (B, heads, L, d).
        attention_mask: (B or 1, 1, Q, L) or `None`: boolean, true where a query may attend to a key, or numbers that
            are added to the scores.

    Returns:
        contexts (B, Q, heads, d) and weights (B, heads, Q, L).
    """
    scores = (scaling * query) @ key.transpose(-1, -2)
    if attention_mask is not None:
        if attention_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
        else:
            scores = scores + attention_mask
    # Half precision is too coarse for the sum over many regions.
    weights = scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(value.dtype)
    return (weights @ value).transpose(1, 2), weights


class TransformerCaptionerAttention(nn.Module):
    """
    Base of self-attention and of attention to regions: heads, and the projections of queries and of the output
    (Vaswani et al. 2017, section 3.2.2).

    Args:
        config: [`TransformerCaptionerConfig`].
        is_causal: whether a query sees only keys up to its own position.
    """

    def __init__(self, config: TransformerCaptionerConfig, is_causal: bool):
        super().__init__()
        self.config = config
        self.is_causal = is_causal  # transformers' attention functions read it, and take it as true if it is missing
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.output = nn.Linear(config.hidden_size, config.hidden_size)

    def split_heads(self, tensor: torch.Tensor) -> torch.Tensor:
        """(B, Q, H) -> (B, heads, Q, d)."""
        return tensor.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)

    def attend(self, query, key, value, attention_mask, output_attentions):
        """
        Context vectors (B, Q, H) and, if asked for, weights (B, heads, Q, L). Only the eager implementation returns
        weights, so it is used then.
        """
        implementation = "eager" if output_attentions else self.config._attn_implementation
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        context, weights = attention(self, query, key, value, attention_mask, scaling=self.head_dim**-0.5)
        return context.flatten(2), weights if output_attentions else None


class TransformerCaptionerSelfAttention(TransformerCaptionerAttention):
    """
    Attention of a sequence to itself.

    Args:
        config: [`TransformerCaptionerConfig`].
        is_causal: whether a position sees only those up to itself.
        layer_idx: place of its keys and values in the cache.
    """

    def __init__(self, config: TransformerCaptionerConfig, is_causal: bool, layer_idx: int):
        super().__init__(config, is_causal)
        self.layer_idx = layer_idx
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states, attention_mask=None, past_key_values=None, output_attentions=False):
        """(N, T, H) -> (N, T, H) and weights (N, heads, T, S) or `None`; S includes the cached positions."""
        key, value = self.split_heads(self.key(hidden_states)), self.split_heads(self.value(hidden_states))
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        query = self.split_heads(self.query(hidden_states))
        context, weights = self.attend(query, key, value, attention_mask, output_attentions)
        return self.output(context), weights


class TransformerCaptionerRegionAttention(TransformerCaptionerAttention):
    """
    Cross-attention from words to the regions of their image. Keys and values come from the encoder, once per image:
    the k rows of an image are viewed as one sequence of k * T queries, so they need no repeated keys and values.
    """

    def __init__(self, config: TransformerCaptionerConfig):
        super().__init__(config, is_causal=False)

    def forward(self, hidden_states, key, value, output_attentions=False):
        """
        Args:
            hidden_states: (B * k, T, H).
            key, value: (B, heads, L, d).

        Returns:
            (B * k, T, H) and weights (B * k, heads, T, L) or `None`.
        """
        rows, length, _ = hidden_states.shape
        query = self.query(hidden_states).view(key.shape[0], -1, hidden_states.shape[-1])  # (B, k * T, H)
        context, weights = self.attend(self.split_heads(query), key, value, None, output_attentions)
        if weights is not None:
            weights = weights.unflatten(2, (-1, length)).transpose(1, 2).flatten(0, 1)
        return self.output(context.reshape(rows, length, -1)), weights


class TransformerCaptionerFeedForward(nn.Sequential):
    """W_2 f(W_1 x + b_1) + b_2: Vaswani et al. 2017, equation 2."""

    def __init__(self, config: TransformerCaptionerConfig):
        super().__init__(
            nn.Linear(config.hidden_size, config.intermediate_size),
            ACT2FN[config.activation],
            nn.Linear(config.intermediate_size, config.hidden_size),
        )


class TransformerCaptionerResidual(nn.Module):
    """
    Residual connection and layer normalisation around a sublayer f: norm(x + f(x)) (Vaswani et al. 2017, section
    3.1), or x + f(norm(x)) (Xiong et al. 2020) if `norm` is `"pre"`. `enter(x)` is the input of f, and
    `leave(x, f(enter(x)))` the result.
    """

    def __init__(self, config: TransformerCaptionerConfig):
        super().__init__()
        self.is_pre = config.norm == "pre"
        self.norm = nn.LayerNorm(config.hidden_size)
        self.dropout = Dropout(config.dropout)

    def enter(self, hidden_states):
        return self.norm(hidden_states) if self.is_pre else hidden_states

    def leave(self, hidden_states, update):
        hidden_states = hidden_states + self.dropout(update)
        return hidden_states if self.is_pre else self.norm(hidden_states)


class TransformerCaptionerEncoderLayer(GradientCheckpointingLayer):
    """Self-attention over the regions, and a feed-forward network."""

    def __init__(self, config: TransformerCaptionerConfig, layer_idx: int):
        super().__init__()
        self.self_attention = TransformerCaptionerSelfAttention(config, is_causal=False, layer_idx=layer_idx)
        self.self_attention_residual = TransformerCaptionerResidual(config)
        self.feed_forward = TransformerCaptionerFeedForward(config)
        self.feed_forward_residual = TransformerCaptionerResidual(config)

    def forward(self, hidden_states, output_attentions=False):
        """(B, L, H) -> (B, L, H) and weights (B, heads, L, L) or `None`."""
        residual = self.self_attention_residual
        update, weights = self.self_attention(residual.enter(hidden_states), output_attentions=output_attentions)
        hidden_states = residual.leave(hidden_states, update)
        residual = self.feed_forward_residual
        return residual.leave(hidden_states, self.feed_forward(residual.enter(hidden_states))), weights


class TransformerCaptionerDecoderLayer(GradientCheckpointingLayer):
    """Self-attention over the words so far, attention to the regions, and a feed-forward network."""

    def __init__(self, config: TransformerCaptionerConfig, layer_idx: int):
        super().__init__()
        self.self_attention = TransformerCaptionerSelfAttention(config, is_causal=True, layer_idx=layer_idx)
        self.self_attention_residual = TransformerCaptionerResidual(config)
        self.region_attention = TransformerCaptionerRegionAttention(config)
        self.region_attention_residual = TransformerCaptionerResidual(config)
        self.feed_forward = TransformerCaptionerFeedForward(config)
        self.feed_forward_residual = TransformerCaptionerResidual(config)

    def forward(self, hidden_states, key, value, attention_mask=None, past_key_values=None, output_attentions=False):
        """
        Args:
            hidden_states: (N, T, H), N = B * k.
            key, value: of the regions, (B, heads, L, d).
            attention_mask: of the self-attention, as [`create_causal_mask`] makes it.
            past_key_values: the self-attention's cache.
            output_attentions: whether to return weights.

        Returns:
            (N, T, H), weights over words (N, heads, T, S) and over regions (N, heads, T, L) or `None` for both.
        """
        residual = self.self_attention_residual
        update, self_weights = self.self_attention(
            residual.enter(hidden_states), attention_mask, past_key_values, output_attentions
        )
        hidden_states = residual.leave(hidden_states, update)
        residual = self.region_attention_residual
        update, region_weights = self.region_attention(residual.enter(hidden_states), key, value, output_attentions)
        hidden_states = residual.leave(hidden_states, update)
        residual = self.feed_forward_residual
        hidden_states = residual.leave(hidden_states, self.feed_forward(residual.enter(hidden_states)))
        return hidden_states, self_weights, region_weights


class TransformerCaptionerEncoder(nn.Module):
    """
    Computed once per image: the regions, the encoder layers over them, and the keys and values that each decoder layer
    attends to. The key and value projections of the decoder's cross-attention (Vaswani et al. 2017) are here because
    their results belong to the image, not to a row. Without encoder layers they are applied to the vision model's
    regions, whatever their width.

    These projections have no bias, which would be redundant: one of the keys adds the same number to all scores of a
    query, which softmax ignores; one of the values adds the same vector to every context, as the bias of the output
    projection does.
    """

    main_input_name = "pixel_values"

    def __init__(self, config: TransformerCaptionerConfig):
        super().__init__()
        self.config = config
        hidden = config.hidden_size
        self.vision_encoder = VisionEncoder(
            config.vision_config, config.vision_feature_layer, config.keep_prefix_tokens
        )
        self.region_size = width = hidden if config.encoder_layers else self.vision_encoder.width
        self.region_norm = nn.LayerNorm(self.vision_encoder.width) if config.region_norm else nn.Identity()
        self.region_projection = nn.Linear(self.vision_encoder.width, hidden) if config.encoder_layers else None
        self.dropout = Dropout(config.dropout)
        self.layers = nn.ModuleList(
            TransformerCaptionerEncoderLayer(config, layer_idx) for layer_idx in range(config.encoder_layers)
        )
        self.norm = nn.LayerNorm(hidden) if config.encoder_layers and config.norm == "pre" else nn.Identity()
        self.key_value_projections = nn.ModuleList(
            RegionProjection(width, hidden, config.num_attention_heads, project_values=True, bias=False)
            for _ in range(config.decoder_layers)
        )

    def _add_positions(self, hidden_states, grid):
        prefix, width = self.vision_encoder.num_prefix_regions, hidden_states.shape[2]
        length = hidden_states.shape[1] - prefix
        if grid is None:  # features alone stand for a square image, which the image processor makes by default
            grid = (math.isqrt(length),) * 2
            if grid[0] ** 2 != length:
                raise ValueError(
                    f"`image_features` without `grid` must fill a square, for encoder layers need their positions; "
                    f"got {length} regions"
                )
        positions = grid_positions(grid, width, hidden_states.dtype, hidden_states.device)
        # Prefix tokens have no place: the vision model has marked them as what they are.
        return hidden_states + nn.functional.pad(positions, (0, 0, prefix, 0))

    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        image_features: torch.FloatTensor | None = None,
        grid: tuple[int, int] | torch.LongTensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> TransformerCaptionerEncoderOutput:
        """
        Args:
            pixel_values: (B, C, H, W).
            image_features: (B, L, D), the vision model's regions, in place of `pixel_values`.
            grid: of `image_features`, (h, w) or (B, 2); a square by default.
            output_attentions: whether to return the encoder layers' weights.
            output_hidden_states: whether to return the encoder layers' inputs and outputs.

        Raises:
            ValueError: if not exactly one of `pixel_values` and `image_features` is given, the features have the wrong
                width, the grid does not fit them, or there is none and encoder layers need it.
        """
        regions, grid = self.vision_encoder.regions(pixel_values, image_features, grid)
        hidden_states = self.region_norm(regions)
        all_states, all_weights = (), ()
        if self.layers:
            hidden_states = self.dropout(self._add_positions(self.region_projection(hidden_states), grid))
            for layer in self.layers:
                all_states += (hidden_states,)
                hidden_states, weights = layer(hidden_states, output_attentions=bool(output_attentions))
                all_weights += (weights,)
            hidden_states = self.norm(hidden_states)
        # Stored contiguously per layer; otherwise every generation step would copy them before the matrix product.
        pairs = [
            [tensor.contiguous() for tensor in projection(hidden_states)] for projection in self.key_value_projections
        ]
        keys, values = zip(*pairs, strict=True)
        output = TransformerCaptionerEncoderOutput(
            last_hidden_state=hidden_states,
            hidden_states=(*all_states, hidden_states) if output_hidden_states else None,
            attentions=all_weights if output_attentions and self.layers else None,
            grid=grid,
            projected_keys=keys,
            projected_values=values,
        )
        return output if return_dict or return_dict is None else output.to_tuple()


class _PackedRows:
    """
    Captions differ in length, and half of a padded batch can be padding. The captions of an image, one behind the
    other, are one sequence with little padding, in which a token sees the earlier ones of its own caption.

    Args:
        lengths: how many tokens of each row count, (N,).
        num_images: B.
        length: T, of the batch.

    Attributes:
        places: (B, Q), the place of each token in its row; 0 for padding.
        mask: (B, 1, Q, Q), which tokens each sees.
    """

    def __init__(self, lengths: torch.LongTensor, num_images: int, length: int):
        self.shape = len(lengths), length
        counts = torch.arange(length, device=lengths.device) < lengths[:, None]  # (N, T)
        counts[:, 0] = True  # of a batch without a token, too, something is read
        counts = counts.view(num_images, -1)  # (B, k * T)
        totals = counts.sum(dim=1)
        self._image, cell = counts.nonzero(as_tuple=True)
        # Tokens of an image stand behind each other, and those of earlier images before them.
        self._place = torch.arange(len(cell), device=cell.device) - (totals.cumsum(0) - totals)[self._image]
        self._cell = self._image * counts.shape[1] + cell  # in the flattened batch (N * T)
        cells = self._cell.new_full((num_images, int(totals.max())), -1)
        cells[self._image, self._place] = self._cell
        rows = cells.div(length, rounding_mode="floor")  # -1 for padding, which sees padding
        self.places = cells.remainder(length).masked_fill(cells < 0, 0)
        before = torch.ones(rows.shape[1], rows.shape[1], dtype=torch.bool, device=rows.device).tril()
        self.mask = ((rows[:, :, None] == rows[:, None]) & before)[:, None]

    def pack(self, tokens: torch.LongTensor) -> torch.LongTensor:
        """(N, T) -> (B, Q)."""
        packed = tokens.new_zeros(self.places.shape)
        packed[self._image, self._place] = tokens.flatten()[self._cell]
        return packed

    def unpack(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(B, Q, H) -> (N, T, H), zero where nothing was read."""
        rows, length = self.shape
        flat = hidden_states.new_zeros(rows * length, hidden_states.shape[-1])
        flat = flat.index_copy(0, self._cell, hidden_states[self._image, self._place])
        return flat.unflatten(0, (rows, length))


class TransformerCaptionerDecoder(nn.Module):
    """Computed per row (caption): word embeddings with positions, and the decoder layers."""

    def __init__(self, config: TransformerCaptionerConfig, region_size: int):
        super().__init__()
        self.config = config
        hidden = config.hidden_size
        self.embed_tokens = nn.Embedding(config.vocab_size, hidden, padding_idx=config.pad_token_id)
        self.embed_positions = None
        if config.position_embedding_type == "learned":
            self.embed_positions = nn.Embedding(config.max_position_embeddings, hidden)
        self.dropout = Dropout(config.dropout)
        self.layers = nn.ModuleList(
            TransformerCaptionerDecoderLayer(config, layer_idx) for layer_idx in range(config.decoder_layers)
        )
        self.norm = nn.LayerNorm(hidden) if config.norm == "pre" else nn.Identity()

    def _positions(self, length, past_length, attention_mask, device):
        """Position indices of the tokens: (T,), or (N, T) if a mask (N, S) marks padding on the left."""
        if attention_mask is not None and attention_mask.ndim == 2:
            return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -length:]
        return torch.arange(length, device=device) + past_length

    def _check_length(self, length, past_length, past_key_values):
        limit = self.config.max_position_embeddings
        if self.embed_positions is None:
            return
        # The length of a static cache is a tensor on its device, which would have to be waited for; its size is not.
        whole = past_length + length if isinstance(past_length, int) else past_key_values.get_max_length()
        if whole > limit:
            raise ValueError(
                f"`max_position_embeddings` must be at least the caption length, {whole} tokens with the start token, "
                f"got {limit}; sinusoidal positions have no limit"
            )

    def _causal_mask(self, embeddings, attention_mask, past_key_values, output_attentions):
        # Attention weights need the eager implementation, so the mask must have its format.
        config = with_eager_masks(self.config) if output_attentions else self.config
        return create_causal_mask(config, embeddings, attention_mask, past_key_values)

    def forward(
        self,
        decoder_input_ids: torch.LongTensor,
        encoder_outputs: TransformerCaptionerEncoderOutput,
        decoder_attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        row_lengths: torch.LongTensor | None = None,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """
        Args:
            decoder_input_ids: (N, T).
            encoder_outputs: [`TransformerCaptionerEncoderOutput`] of B images.
            row_lengths: see [`TransformerCaptionerModel`].
            decoder_attention_mask: (N, S), where S includes the cached tokens: 0 for padding on the left, 1 otherwise;
                or (N, 1, T, S), boolean, as `generate()` makes it for a static cache.
            past_key_values: cache of the self-attention. Of an `EncoderDecoderCache` only the self-attention half is
                used: the regions' keys and values are in `encoder_outputs`, once per image, because beam search
                reorders a cache row by row.

        Raises:
            ValueError: if the rows are not a multiple of the images, a caption is longer than
                `max_position_embeddings`, or `row_lengths` comes with a mask or a cache.
        """
        length = decoder_input_ids.shape[1]
        rows_per_image(decoder_input_ids.shape[0], encoder_outputs.last_hidden_state.shape[0])
        if isinstance(past_key_values, EncoderDecoderCache):
            past_key_values = past_key_values.self_attention_cache
        past_length = 0 if past_key_values is None else past_key_values.get_seq_length()
        self._check_length(length, past_length, past_key_values)
        positions = self._positions(length, past_length, decoder_attention_mask, decoder_input_ids.device)
        packed = None
        if row_lengths is not None:
            check_row_lengths(decoder_attention_mask, past_key_values)
            packs = self.config._attn_implementation in ("eager", "sdpa")  # others take no mask of this kind
            if packs and not (output_attentions or output_hidden_states):
                num_images = len(encoder_outputs.last_hidden_state)
                packed = _PackedRows(row_lengths, num_images, length)
                decoder_input_ids, positions = packed.pack(decoder_input_ids), packed.places
        embeddings = self.embed_tokens(decoder_input_ids) * self.config.hidden_size**0.5
        if self.embed_positions is None:
            embeddings = embeddings + sinusoidal_positions(positions, self.config.hidden_size, embeddings.dtype)
        else:
            embeddings = embeddings + self.embed_positions(positions)
        hidden_states = self.dropout(embeddings)  # (N, T, H)
        if packed is None:
            mask = self._causal_mask(hidden_states, decoder_attention_mask, past_key_values, output_attentions)
        else:
            mask = packed.mask

        all_states, all_self_weights, all_region_weights = (), (), ()
        keys, values = encoder_outputs.projected_keys, encoder_outputs.projected_values
        for layer, key, value in zip(self.layers, keys, values, strict=True):
            all_states += (hidden_states,)
            hidden_states, self_weights, region_weights = layer(
                hidden_states,
                key,
                value,
                attention_mask=mask,
                past_key_values=past_key_values,
                output_attentions=output_attentions,
            )
            all_self_weights += (self_weights,)
            all_region_weights += (region_weights,)
        hidden_states = self.norm(hidden_states)
        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=hidden_states if packed is None else packed.unpack(hidden_states),
            hidden_states=(*all_states, hidden_states) if output_hidden_states else None,
            attentions=all_self_weights if output_attentions else None,
            cross_attentions=all_region_weights if output_attentions else None,
        )


class TransformerCaptionerModel(CaptionerModel, TransformerCaptionerPreTrainedModel):
    """
    The Transformer captioner without a language model head; see [`CaptionerModel.forward`]. An option of its own is
    `row_lengths` (N,): how many tokens of each row count. What comes after them is not computed (zeros stand for it),
    unless attentions or hidden states are asked for.

    Args:
        config: [`TransformerCaptionerConfig`].

    Examples:
        >>> import torch
        >>> from transformers import ViTConfig
        >>> from hf_captioner import TransformerCaptionerConfig, TransformerCaptionerModel
        >>> vision = ViTConfig(hidden_size=12, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8)
        >>> sizes = dict(hidden_size=16, num_attention_heads=2, decoder_layers=2, vocab_size=40)
        >>> config = TransformerCaptionerConfig(vision_config=vision, encoder_layers=0, **sizes)
        >>> model = TransformerCaptionerModel(config).eval()
        >>> tokens = torch.tensor([[2, 7, 9], [2, 5, 4]])  # two rows of the one image
        >>> outputs = model(torch.randn(1, 3, 32, 32), decoder_input_ids=tokens, output_attentions=True)
        >>> outputs.last_hidden_state.shape
        torch.Size([2, 3, 16])
        >>> [weights.shape for weights in outputs.cross_attentions]  # of both layers, over 4 * 4 regions
        [torch.Size([2, 2, 3, 16]), torch.Size([2, 2, 3, 16])]
    """

    encoder_class = TransformerCaptionerEncoder
    decoder_class = TransformerCaptionerDecoder
    decoder_options = ("row_lengths",)

    def make_cache(self) -> EncoderDecoderCache:
        # Both halves, as transformers' encoder-decoder models have them; the regions' half stays empty.
        return EncoderDecoderCache(DynamicCache(), DynamicCache())


class TransformerCaptionerForConditionalGeneration(
    CaptionerForConditionalGeneration, TransformerCaptionerPreTrainedModel, GenerationMixin
):
    """
    The Transformer captioner with its language model head; see [`CaptionerForConditionalGeneration.forward`].

    Args:
        config: [`TransformerCaptionerConfig`].

    Examples:
        >>> import torch
        >>> from transformers import ResNetConfig
        >>> from hf_captioner import TransformerCaptionerConfig, TransformerCaptionerForConditionalGeneration
        >>> vision = ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic")
        >>> sizes = dict(hidden_size=16, num_attention_heads=2, encoder_layers=2, decoder_layers=2, vocab_size=40)
        >>> config = TransformerCaptionerConfig(vision_config=vision, **sizes)
        >>> model = TransformerCaptionerForConditionalGeneration(config).eval()
        >>> images = torch.randn(1, 3, 32, 32)
        >>> outputs = model(images, labels=torch.tensor([[[7, 9, 3], [5, 3, -100]]]))  # two captions of the one image
        >>> outputs.loss.ndim, outputs.logits.shape
        (0, torch.Size([2, 3, 40]))
        >>> model.generate(images, num_beams=3, min_new_tokens=5, max_new_tokens=5).shape  # the start and five tokens
        torch.Size([1, 6])
    """

    model_class = TransformerCaptionerModel


TransformerCaptionerForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")

__all__ = [
    "TransformerCaptionerForConditionalGeneration",
    "TransformerCaptionerModel",
    "TransformerCaptionerPreTrainedModel",
]
