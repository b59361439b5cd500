"""CNN-RNN captioners: one context vector per image, or attention over its regions at every word."""

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from transformers import GenerationMixin
from transformers import initialization as init
from transformers.modeling_outputs import (
    BaseModelOutput,
    BaseModelOutputWithPastAndCrossAttentions,
    Seq2SeqModelOutput,
)
from transformers.utils import ModelOutput

from .attention import hard_selection, rows_per_image, soft_selection, weighted_context
from .configuration_rnn_captioner import RnnCaptionerConfig
from .modeling_captioner import (
    CaptionerForConditionalGeneration,
    CaptionerModel,
    CaptionerPreTrainedModel,
    Dropout,
    check_row_lengths,
)
from .recurrent_cache import RecurrentCache
from .vision_encoder import VisionEncoder

_NUM_GATES = {"lstm": 4, "gru": 3}
_NUM_STATES = {"lstm": 2, "gru": 1}


@dataclass
class RnnCaptionerEncoderOutput(BaseModelOutput):
    """
    Everything that is computed from the image alone, once per image; it is not repeated for the image's rows.

    Args:
        last_hidden_state: the regions (B, L, D), brought to `region_size` channels if the configuration has one.
        grid: rows and columns (h, w) of the regions, L = P + h * w with P prefix tokens that are kept;
            `None` for features without a grid.
        projected_keys: (B, heads, L, A / heads); `None` without attention.
        projected_values: (B, heads, L, d); `None` without attention.
        initial_state: (B, num_layers, states, H); states is 2 for an LSTM, 1 for a GRU; `None` without attention.
        context: (B, H), without attention.
    """

    grid: tuple[int, int] | None = None
    projected_keys: torch.FloatTensor | None = None
    projected_values: torch.FloatTensor | None = None
    initial_state: torch.FloatTensor | None = None
    context: torch.FloatTensor | None = None


@dataclass
class RnnCaptionerDecoderOutput(BaseModelOutputWithPastAndCrossAttentions):
    """
    Args:
        attention_log_probs, expects_context: see [`RnnCaptionerModelOutput`].
    """

    attention_log_probs: torch.FloatTensor | None = None
    expects_context: torch.BoolTensor | None = None


@dataclass
class RnnCaptionerModelOutput(Seq2SeqModelOutput):
    """
    Args:
        attention_log_probs: for hard attention, (N, heads, T, L): log-probability of every region. `cross_attentions`
            then holds the one-hot weights of the chosen region or, for rows trained on the expected context, the
            probabilities.
        expects_context: (N,), for hard attention in training, true for rows trained on the expected context.
    """

    attention_log_probs: torch.FloatTensor | None = None
    expects_context: torch.BoolTensor | None = None


class RnnCaptionerPreTrainedModel(CaptionerPreTrainedModel):
    config: RnnCaptionerConfig
    config_class = RnnCaptionerConfig
    supports_gradient_checkpointing = True
    _is_stateful = True  # tells transformers that the state cannot be rewound, which assisted decoding would need
    _supports_sdpa = True  # refers to the vision model; the RNN's attention is always computed in the same way
    _supports_flash_attn = True
    _supports_attention_backend = True

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # forward makes the RecurrentCache

    @torch.no_grad()
    def _init_weights(self, module):
        if isinstance(module, nn.RNNBase):
            for name, parameter in module.named_parameters(recurse=False):
                if name.startswith("weight_hh"):
                    init.orthogonal_(parameter)
                elif name.startswith("weight_ih"):
                    init.xavier_uniform_(parameter)
                else:
                    init.zeros_(parameter)
        else:
            super()._init_weights(module)


class RnnCaptionerContextNorm(nn.BatchNorm1d):
    """
    Batch normalisation of context vectors (B, H). In training, too, a single image is normalised by the running
    statistics: it has no spread of its own.
    """

    def forward(self, context: torch.Tensor) -> torch.Tensor:
        if self.training and len(context) > 1:
            return super().forward(context)
        return nn.functional.batch_norm(
            context, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
        )


class RnnCaptionerEncoder(nn.Module):
    """Computed once per image: the regions, their keys and values, and the decoder's initial state."""

    main_input_name = "pixel_values"

    def __init__(self, config: RnnCaptionerConfig):
        super().__init__()
        self.config = config
        self.vision_encoder = VisionEncoder(
            config.vision_config, config.vision_feature_layer, config.keep_prefix_tokens
        )
        width, hidden = self.vision_encoder.width, config.hidden_size
        self.region_mlp = None
        if config.region_size is not None:
            self.region_mlp = nn.Sequential(
                nn.LayerNorm(width),
                nn.Linear(width, config.region_size),
                nn.ReLU(),
                Dropout(config.region_dropout),
            )
            width = config.region_size
        self.region_size = width
        if config.attends:
            self.region_projection = config.alignment.region_projection(config, width)
            self.initial_state = nn.Linear(width, config.num_layers * _NUM_STATES[config.cell] * hidden)
        else:
            self.pooled_mlp = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden))
            self.context_norm = RnnCaptionerContextNorm(hidden) if config.context_norm else None

    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        image_features: torch.FloatTensor | None = None,
        grid: tuple[int, int] | torch.LongTensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> RnnCaptionerEncoderOutput:
        """
        Args:
            pixel_values: (B, C, H, W).
            image_features: (B, L, D), the vision model's regions, in place of `pixel_values`.
            grid: of `image_features`, (h, w) or (B, 2), if it is known.
            output_attentions, output_hidden_states: accepted because all encoders are; this one has neither.

        Raises:
            ValueError: if not exactly one of `pixel_values` and `image_features` is given, the features have the wrong
                width, or the grid does not fit them.
        """
        regions, grid = self.vision_encoder.regions(pixel_values, image_features, grid)
        if self.region_mlp is not None:
            regions = self.region_mlp(regions)
        mean = regions.mean(dim=1)
        output = RnnCaptionerEncoderOutput(last_hidden_state=regions, grid=grid)
        if self.config.attends:
            output.projected_keys, output.projected_values = self.region_projection(regions)
            # Xu et al. 2015, section 3.1.2: the initial state is an MLP of the mean region; tanh bounds it as the cell
            # bounds its state.
            state = torch.tanh(self.initial_state(mean))
            output.initial_state = state.unflatten(-1, (self.config.num_layers, -1, self.config.hidden_size))
        else:
            context = self.pooled_mlp(mean)
            output.context = context if self.context_norm is None else self.context_norm(context)
        return output if return_dict or return_dict is None else output.to_tuple()


# Not "...Attention...": by that word transformers tells modules whose attention implementation it could choose.
class RnnCaptionerAttendingLayer(nn.Module):
    """
    An LSTM or GRU layer with attention: at every step its input is the word and a context vector, computed by
    attention with the previous state as query (Xu et al. 2015, equations 1 to 5 and section 4.2.1 for the gate beta).

    The words' contribution to the gates does not depend on the state, so it is computed for all steps in one matrix
    product.
    """

    gradient_checkpointing = False

    def __init__(self, config: RnnCaptionerConfig, region_size: int):
        super().__init__()
        self.cell = config.cell
        self.is_hard = config.attention_sampling == "hard"
        self.passes_through = config.hard_gradient == "straight_through"
        hidden = config.hidden_size
        self.alignment = config.alignment(config)
        context_size = config.alignment.context_size(config, region_size)
        self.context_gate = nn.Linear(hidden, 1)
        self.context_mlp = None
        if config.context_mlp:
            self.context_mlp = nn.Sequential(nn.Linear(context_size, hidden), nn.ReLU(), nn.Linear(hidden, hidden))
        self.context_size = hidden if config.context_mlp else context_size
        gates = _NUM_GATES[config.cell] * hidden
        self.input_gates = nn.Linear(hidden, gates)
        self.context_gates = nn.Linear(self.context_size, gates, bias=False)
        self.state_gates = nn.Linear(hidden, gates)

    def select(self, scores, sample, expects_context) -> torch.Tensor:
        """Attention weights from scores, both (B, heads, k, L); `sample` and `expects_context` as in forward."""
        if not self.is_hard:
            return soft_selection(scores)
        weights = hard_selection(scores, sample)
        if self.training and self.passes_through:
            expected = soft_selection(scores)
            weights = weights + (expected - expected.detach())  # adds 0, and the gradient
        if expects_context is not None:
            expects_context = expects_context.view(scores.shape[0], 1, -1, 1)
            weights = torch.where(expects_context, soft_selection(scores), weights)
        return weights

    def attend(self, state, keys, values, sample, expects_context) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(N, H) -> context (N, context_size), weights (N, heads, L), scores (N, heads, L)."""
        scores = self.alignment(state, keys)  # (B, heads, k, L)
        weights = self.select(scores, sample, expects_context)
        context = torch.sigmoid(self.context_gate(state)) * weighted_context(weights, values)
        if self.context_mlp is not None:
            context = self.context_mlp(context)
        return context, *(tensor.transpose(1, 2).flatten(0, 1) for tensor in (weights, scores))

    def update(self, input_gates, state) -> tuple[torch.Tensor, ...]:
        """
        One recurrent step: the input's contribution to the gates (N, gates * H) and the previous state give the next
        state. Gates are ordered as in torch.
        """
        if self.cell == "lstm":
            hidden, memory = state
            i, f, g, o = (input_gates + self.state_gates(hidden)).chunk(4, dim=-1)
            memory = torch.sigmoid(f) * memory + torch.sigmoid(i) * torch.tanh(g)
            return torch.sigmoid(o) * torch.tanh(memory), memory
        (hidden,) = state
        r, z, n = input_gates.chunk(3, dim=-1)
        hidden_r, hidden_z, hidden_n = self.state_gates(hidden).chunk(3, dim=-1)
        z = torch.sigmoid(z + hidden_z)
        n = torch.tanh(n + torch.sigmoid(r + hidden_r) * hidden_n)
        return (n + z * (hidden - n),)

    def step(self, input_gates, is_real, keys, values, sample, expects_context, *state) -> tuple[torch.Tensor, ...]:
        """
        Attention and recurrence of one word: context, weights, scores and the next state's tensors. Rows where
        `is_real` (N,) is false keep their state.
        """
        context, weights, scores = self.attend(state[0], keys, values, sample, expects_context)
        new_state = self.update(input_gates + self.context_gates(context), state)
        if is_real is not None:
            new_state = _keep_where_padded(is_real, new_state, state)
        return context, weights, scores, *new_state

    def forward(self, embeddings, state, keys, values, sample=False, expects_context=None, mask=None, steps=None):
        """
        Args:
            embeddings: (N, T, H); with `steps` those that its cells read, (P, H).
            state: tuple of (N, H).
            keys, values: see [`Alignment.region_projection`].
            sample: whether hard attention samples its region; otherwise it takes the most probable one.
            expects_context: (N,), rows that use the expected (soft) context even so.
            mask: (N, T), false at padding, which leaves the state as it is.
            steps: [`_ShrinkingSteps`], whose order state, keys, values and `expects_context` then have.

        Returns:
            outputs (N, T, H), contexts (N, T, context_size), weights and scores (N, T, heads, L), or all of them
            (P, ...) with `steps`; scores are `None` for soft attention. Then the final state, which with `steps` is
            that of the rows of the last one.
        """
        step = self.step
        if self.gradient_checkpointing and self.training:

            def step(*inputs):
                return self._gradient_checkpointing_func(self.step, *inputs)

        gates = self.input_gates(embeddings)
        outputs, contexts, weights, scores = [], [], [], []
        for place, input_gates in enumerate(gates.unbind(1) if steps is None else steps.split(gates)):
            is_real = None if mask is None else mask[:, place]
            if steps is not None:
                state, keys, values, expects_context = steps.narrow(place, state, keys, values, expects_context)
            context, step_weights, step_scores, *state = step(
                input_gates, is_real, keys, values, sample, expects_context, *state
            )
            outputs.append(state[0])
            contexts.append(context)
            weights.append(step_weights)
            scores.append(step_scores)
        join = partial(torch.stack, dim=1) if steps is None else torch.cat
        return join(outputs), join(contexts), join(weights), join(scores) if self.is_hard else None, tuple(state)


class _ShrinkingSteps:
    """
    Captions differ in length, and half of a padded batch can be padding. With an image's captions, and the images
    themselves, in order of length, longest first, a step has to read only the first of each image's rows and the first
    of the images: a view of the batch, which gets smaller from step to step, and in which rows of one image share its
    keys as before.

    Args:
        lengths: how many tokens of each row count, (N,).
        num_images: B.
        length: T, of the batch.

    Attributes:
        images: (B,), the images' order.
        rows: (N,), the rows' order.
        cells: (P,), the places in the batch's flattened rows (N * T) that are read, step by step.
    """

    def __init__(self, lengths: torch.LongTensor, num_images: int, length: int):
        lengths = lengths.view(num_images, -1).clamp(min=1)  # of a batch without a token, too, something is read
        longest_first = lengths.argsort(dim=1, descending=True, stable=True)
        self.images = lengths.amax(dim=1).argsort(descending=True, stable=True)
        per_image = lengths.shape[1]
        self.rows = (self.images[:, None] * per_image + longest_first[self.images]).flatten()
        lengths = lengths.flatten()[self.rows].view_as(lengths)
        places = torch.arange(length, device=lengths.device)
        sizes = torch.stack([(lengths[:, 0, None] > places).sum(0), (lengths.amax(0)[:, None] > places).sum(0)], dim=1)
        is_read = torch.ones_like(lengths).cumsum(0)[..., None] <= sizes[:, 0]
        is_read &= torch.ones_like(lengths).cumsum(1)[..., None] <= sizes[:, 1]
        self.sizes = [(images, rows) for images, rows in sizes[: lengths.max()].tolist()]
        step, row = is_read.flatten(0, 1).T.nonzero(as_tuple=True)
        self.cells = self.rows[row] * length + step
        self.length = length

    def reorder(self, state, keys, values, expects_context) -> tuple:
        """What the first step takes, with rows and images longest first."""
        state = tuple(tensor[self.rows] for tensor in state)
        expects_context = None if expects_context is None else expects_context[self.rows]
        return state, keys[self.images], values[self.images], expects_context

    def split(self, packed: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(P, ...) -> what each step reads, (images * rows, ...)."""
        return packed.split([images * rows for images, rows in self.sizes])

    def narrow(self, place: int, state, keys, values, expects_context) -> tuple:
        """What the step before `place` had, without the images and rows that have ended by `place`."""
        images, rows = self.sizes[place]
        old_images, old_rows = (
            self.sizes[place - 1] if place else (len(self.images), len(self.rows) // len(self.images))
        )
        if images < old_images:
            keys, values = keys[:images], values[:images]
        if (images, rows) != (old_images, old_rows):

            def keep(tensor):
                return tensor.unflatten(0, (old_images, old_rows))[:images, :rows].flatten(0, 1)

            state = tuple(keep(tensor) for tensor in state)
            expects_context = None if expects_context is None else keep(expects_context)
        return state, keys, values, expects_context

    def unpack(self, packed: torch.Tensor) -> torch.Tensor:
        """(P, ...) -> (N, T, ...), zero where nothing was read."""
        flat = packed.new_zeros(len(self.rows) * self.length, *packed.shape[1:])
        return flat.index_copy(0, self.cells, packed).unflatten(0, (-1, self.length))


def _keep_where_padded(is_real: torch.Tensor, new: tuple, old: tuple) -> tuple[torch.Tensor, ...]:
    """The new state (N, H), or (layers, N, H), of rows that are real, (N,), and the old one of the others."""
    return tuple(torch.where(is_real[:, None], *pair) for pair in zip(new, old, strict=True))


class RnnCaptionerDecoder(nn.Module):
    """Computed per row (caption): word embeddings, recurrent layers and the deep output layer."""

    gradient_checkpointing = False

    def __init__(self, config: RnnCaptionerConfig, region_size: int):
        super().__init__()
        self.config = config
        hidden = config.hidden_size
        self.embed_tokens = nn.Embedding(config.vocab_size, hidden, padding_idx=config.pad_token_id)
        self.dropout = Dropout(config.dropout)
        self.attention_layer = RnnCaptionerAttendingLayer(config, region_size) if config.attends else None
        num_plain = config.num_layers - config.attends
        rnn_class = nn.LSTM if config.cell == "lstm" else nn.GRU
        self.layers = None
        if num_plain:
            dropout = config.dropout if num_plain > 1 else 0.0
            self.layers = rnn_class(hidden, hidden, num_plain, dropout=dropout, batch_first=True)
        if config.attends:
            self.output_hidden = nn.Linear(hidden, hidden)
            self.output_context = nn.Linear(self.attention_layer.context_size, hidden, bias=False)

    def _run_stacked(self, inputs, *stacked):
        """As torch's RNNs, with the state's tensors (layers, N, H) side by side; zeros if there are none."""
        state = None if not stacked else stacked[0] if self.config.cell == "gru" else stacked
        outputs, state = self.layers(inputs, state)
        return outputs, *((state,) if self.config.cell == "gru" else state)

    def _run_layers(self, inputs, states, mask=None):
        """
        Runs the layers without attention over all steps in one call, or step by step where a mask (N, T) has padding.

        Args:
            inputs: (N, T, H).
            states: one tuple of (N, H) per layer, or `None` for zeros.

        Returns:
            the last layer's outputs (N, T, H) and the final states.
        """
        if self.layers is None:
            return inputs, []
        stacked = [torch.stack(tensors) for tensors in zip(*states, strict=True)] if states else []
        run = self._run_stacked
        if self.gradient_checkpointing and self.training:

            def run(*inputs):
                return self._gradient_checkpointing_func(self._run_stacked, *inputs)

        if mask is None:
            outputs, *stacked = run(inputs, *stacked)
        else:
            steps = []
            for place, is_real in enumerate(mask.unbind(1)):
                output, *new = run(inputs[:, place : place + 1], *stacked)
                stacked = _keep_where_padded(is_real, new, stacked)
                steps.append(output)
            outputs = torch.cat(steps, dim=1)
        return outputs, list(zip(*(tensor.unbind(0) for tensor in stacked), strict=True))

    def initial_states(self, encoder_outputs, rows: int) -> list[tuple[torch.Tensor, ...]]:
        """The state of every layer before the first word: a list of tuples of (N, H), `rows` per image."""
        if self.attention_layer is not None:
            initial = encoder_outputs.initial_state  # (B, layers, states, H)
            states = [layer.unbind(1) for layer in initial.unbind(1)]
        else:  # Vinyals et al. 2015, equation 10: the image is the RNN's first input
            _, states = self._run_layers(encoder_outputs.context[:, None], None)
        return [tuple(tensor.repeat_interleave(rows, dim=0) for tensor in state) for state in states]

    def _padding(self, attention_mask, length: int) -> torch.BoolTensor | None:
        """The mask (N, T) of the new tokens, true for real ones, or `None` if all are."""
        if attention_mask is None:
            return None
        if attention_mask.ndim != 2 or attention_mask.shape[1] < length:
            raise ValueError(
                f"`decoder_attention_mask` must be (rows, at least {length} tokens), got {tuple(attention_mask.shape)}"
            )
        mask = attention_mask[:, attention_mask.shape[1] - length :].bool()
        return None if bool(mask.all()) else mask

    def forward(
        self,
        decoder_input_ids: torch.LongTensor,
        encoder_outputs: RnnCaptionerEncoderOutput,
        decoder_attention_mask: torch.Tensor | None = None,
        past_key_values: RecurrentCache | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        sample_regions: bool | None = None,
        row_lengths: torch.LongTensor | None = None,
    ) -> RnnCaptionerDecoderOutput:
        """
        Args:
            decoder_input_ids: (N, T).
            encoder_outputs: of B images.
            decoder_attention_mask: (N, S), 0 at padding, which leaves a row's state as it is; the last T of S are
                those of `decoder_input_ids`.
            past_key_values: the states so far, from the image if it is absent or empty; it is brought up to date.
            sample_regions, row_lengths: see [`RnnCaptionerModel`].

        Raises:
            ValueError: if the rows are not a multiple of the images, the mask is not (N, S), or `row_lengths` comes
                with a mask or a cache.
        """
        if row_lengths is not None:
            check_row_lengths(decoder_attention_mask, past_key_values)
        config, length = self.config, decoder_input_ids.shape[1]
        mask = self._padding(decoder_attention_mask, length)
        if past_key_values is not None and past_key_values.get_seq_length() > 0:
            states = [layer.state for layer in past_key_values.layers]
        else:
            rows = rows_per_image(len(decoder_input_ids), len(encoder_outputs.last_hidden_state))
            states = self.initial_states(encoder_outputs, rows)
        steps = None
        if row_lengths is not None and self.attention_layer is not None:
            num_images = len(encoder_outputs.last_hidden_state)
            steps = _ShrinkingSteps(row_lengths, num_images, length)
            decoder_input_ids = decoder_input_ids.flatten()[steps.cells]
        embeddings = self.embed_tokens(decoder_input_ids)
        inputs = self.dropout(embeddings)
        weights = log_probs = expects_context = None
        if self.attention_layer is None:
            outputs, states = self._run_layers(inputs, states, mask)
            hidden = outputs
        else:
            if self.training and config.attention_sampling == "hard":
                draws = torch.rand(len(states[0][0]), device=inputs.device)
                expects_context = draws < config.expected_context_probability
            state, keys, values = states[0], encoder_outputs.projected_keys, encoder_outputs.projected_values
            are_expected = expects_context
            if steps is not None:
                state, keys, values, are_expected = steps.reorder(state, keys, values, expects_context)
            sample = self.training if sample_regions is None else sample_regions
            outputs, contexts, weights, scores, first_state = self.attention_layer(
                inputs, state, keys, values, sample, are_expected, mask, steps
            )
            states = states[1:]
            if self.layers is not None:
                between = self.dropout(outputs)
                outputs, states = self._run_layers(between if steps is None else steps.unpack(between), states, mask)
                if steps is not None:
                    outputs = outputs.flatten(0, 1)[steps.cells]
            states = [first_state, *states]
            # Xu et al. 2015, equation 7: the output layer reads L_h h + L_z z + E y.
            hidden = self.output_hidden(self.dropout(outputs)) + self.output_context(contexts) + inputs
            log_probs = None if scores is None else scores.log_softmax(dim=-1)
        hidden = self.dropout(hidden)
        if steps is not None:
            hidden, weights, embeddings, outputs = map(steps.unpack, (hidden, weights, embeddings, outputs))
            log_probs = None if log_probs is None else steps.unpack(log_probs)
        if weights is not None:
            weights = weights.transpose(1, 2)
            log_probs = None if log_probs is None else log_probs.transpose(1, 2)
        if past_key_values is not None:
            for layer, state in zip(past_key_values.layers, states, strict=True):
                layer.update(state, length)
        return RnnCaptionerDecoderOutput(
            last_hidden_state=hidden,
            hidden_states=(embeddings, outputs) if output_hidden_states else None,
            cross_attentions=(weights,) if output_attentions and weights is not None else None,
            attention_log_probs=log_probs,
            expects_context=expects_context,
        )


class RnnCaptionerModel(CaptionerModel, RnnCaptionerPreTrainedModel):
    """
    The CNN-RNN captioner without a language model head; see [`CaptionerModel.forward`]. Options of its own are

    - `sample_regions`, which `generate()` takes, too: whether hard attention samples its regions. It defaults to
      `True` in training mode and to `False` otherwise.
    - `row_lengths` (N,): how many tokens of each row count. With attention, what comes after them is not computed
      (zeros stand for it), which halves the time of a batch of captions of any length.

    Args:
        config: [`RnnCaptionerConfig`].
    """

    encoder_class = RnnCaptionerEncoder
    decoder_class = RnnCaptionerDecoder
    model_output_class = RnnCaptionerModelOutput
    decoder_options = ("sample_regions", "row_lengths")

    def make_cache(self) -> RecurrentCache:
        return RecurrentCache(self.config.num_layers)


class RnnCaptionerForConditionalGeneration(
    CaptionerForConditionalGeneration, RnnCaptionerPreTrainedModel, GenerationMixin
):
    """
    The CNN-RNN captioner with its language model head; see [`CaptionerForConditionalGeneration.forward`].

    Args:
        config: [`RnnCaptionerConfig`].
    """

    model_class = RnnCaptionerModel

    def __init__(self, config: RnnCaptionerConfig):
        super().__init__(config)
        if config.attention_sampling == "hard":
            # Moving average of each word's log-likelihood, initialised with that of a uniform distribution.
            self.register_buffer("attention_baseline", torch.full((config.vocab_size,), -math.log(config.vocab_size)))

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if hasattr(module, "attention_baseline"):
            init.constant_(module.attention_baseline, -math.log(self.config.vocab_size))

    def resize_token_embeddings(self, *args, **kwargs) -> nn.Module:
        """As in transformers; new tokens also get a REINFORCE baseline."""
        embeddings = super().resize_token_embeddings(*args, **kwargs)
        if self.config.attention_sampling == "hard":
            size, old = self.config.vocab_size, self.attention_baseline
            self.attention_baseline = torch.cat([old, old.new_full((size,), -math.log(size))])[:size]
        return embeddings

    @property
    def loss_reads_attentions(self) -> bool:
        return self.config.attends

    def attention_losses(
        self, outputs: ModelOutput, token_losses: torch.Tensor, labels: torch.LongTensor
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """
        `doubly_stochastic`: lambda times the sum over captions and regions of (1 - sum over real steps of alpha)^2,
        alpha the mean over heads of the attention distribution (Xu et al. 2015, equation 14). Rows that are padding
        (all labels -100) do not count.

        Hard attention adds two terms in training (section 4.1): `reinforce`, a surrogate whose gradient is the
        REINFORCE estimate for the sampled regions (unless `hard_gradient` is another), and `entropy`. The reward of a
        region is the log-likelihood of the word it was chosen for and of all later words, minus these words'
        baselines; earlier words do not depend on it. The paper uses the log-likelihood of the whole caption minus a
        single baseline: the expected gradient is the same, its variance is higher.
        """
        terms, statistics = {}, {}
        if not self.loss_reads_attentions:
            return terms, statistics
        real = labels != -100
        config, (weights,), log_probs = self.config, outputs.cross_attentions, outputs.attention_log_probs
        if config.doubly_stochastic_lambda:
            alpha = (weights if log_probs is None else log_probs.exp()).mean(dim=1) * real[..., None]  # (N, T, L)
            per_region = (1 - alpha.sum(dim=1)) ** 2 * real.any(dim=-1, keepdim=True)
            terms["doubly_stochastic"] = config.doubly_stochastic_lambda * per_region.sum()
        if outputs.expects_context is not None and config.hard_gradient == "reinforce":
            drawn = real & ~outputs.expects_context[:, None]  # (N, T)
            words = labels.clamp(min=0)
            baseline = self.attention_baseline[words] * drawn
            log_likelihood = -token_losses.detach() * drawn
            advantage = _reward_to_go(log_likelihood - baseline) * drawn
            score = (log_probs * weights.detach()).sum(dim=(1, 3))  # of the sampled region, summed over heads
            terms["reinforce"] = -config.reinforce_lambda * (advantage * score).sum()
            statistics["attention_baseline"] = baseline.sum() / drawn.sum().clamp(min=1)
            self._move_baseline(words[drawn], log_likelihood[drawn])
        if outputs.expects_context is not None:
            entropy = -(log_probs.exp() * log_probs).sum(dim=-1).mean(dim=1) * real
            terms["entropy"] = -config.entropy_lambda * entropy.sum()
            statistics["attention_entropy"] = entropy.detach().sum() / real.sum().clamp(min=1)
        return terms, statistics

    def _move_baseline(self, words: torch.Tensor, log_likelihood: torch.Tensor) -> None:
        """
        Moves the baselines of the words in this batch towards their mean log-likelihoods. Both arguments have one
        entry per word that was predicted from a sampled region.
        """
        sums, counts = torch.zeros_like(self.attention_baseline), torch.zeros_like(self.attention_baseline)
        sums.index_add_(0, words, log_likelihood.to(sums.dtype))
        counts.index_add_(0, words, torch.ones_like(log_likelihood, dtype=sums.dtype))
        if self.training and torch.distributed.is_available() and torch.distributed.is_initialized():
            # Every process has the same baselines, those of the whole batch.
            torch.distributed.all_reduce(sums)
            torch.distributed.all_reduce(counts)
        moved = self.attention_baseline.lerp(sums / counts, 1 - self.config.baseline_decay)
        self.attention_baseline.copy_(torch.where(counts > 0, moved, self.attention_baseline))


def _reward_to_go(steps: torch.Tensor) -> torch.Tensor:
    """(N, T): for each step, the sum over it and all later steps."""
    return steps.flip(-1).cumsum(dim=-1).flip(-1)


RnnCaptionerForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")

__all__ = ["RnnCaptionerForConditionalGeneration", "RnnCaptionerModel", "RnnCaptionerPreTrainedModel"]
