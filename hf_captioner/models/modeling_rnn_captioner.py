"""CNN-RNN captioners: one context vector per image, or attention over its regions at every word."""

import math
from dataclasses import dataclass

import torch
from torch import nn
from transformers import GenerationMixin
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqModelOutput
from transformers.utils.generic import can_return_tuple

from .attention import (
    AdditiveAlignment,
    DotProductAlignment,
    RegionProjection,
    hard_selection,
    rows_per_image,
    soft_selection,
    weighted_context,
)
from .configuration_rnn_captioner import RnnCaptionerConfig
from .modeling_captioner import CaptionerForConditionalGeneration, CaptionerModel, CaptionerPreTrainedModel
from .recurrent_cache import RecurrentCache
from .vision_encoder import VisionEncoder

_NUM_GATES = {"lstm": 4, "gru": 3}
_NUM_STATES = {"lstm": 2, "gru": 1}


@dataclass
class RnnCaptionerEncoderOutput(BaseModelOutput):
    """
    All that depends on the image alone; nothing of it is repeated for an image's rows.

    Args:
        last_hidden_state: the vision model's regions (B, L, D).
        projected_keys: (B, heads, L, A / heads), with attention.
        projected_values: (B, heads, L, d), with attention.
        initial_state: (B, num_layers, states, H), with attention; states is 2 for an LSTM, 1 for a GRU.
        context: (B, H), without attention.
    """

    projected_keys: torch.FloatTensor | None = None
    projected_values: torch.FloatTensor | None = None
    initial_state: torch.FloatTensor | None = None
    context: torch.FloatTensor | None = None


@dataclass
class RnnCaptionerModelOutput(Seq2SeqModelOutput):
    """
    Args:
        attention_log_probs: of hard attention in training, (N, heads, T, L): log-probability of each region, of which
            `cross_attentions` shows the one that was drawn; rows that were shown the expected context have the
            probabilities themselves there.
        expects_context: which rows these are, (N,).
    """

    attention_log_probs: torch.FloatTensor | None = None
    expects_context: torch.BoolTensor | None = None


class RnnCaptionerPreTrainedModel(CaptionerPreTrainedModel):
    config: RnnCaptionerConfig
    config_class = RnnCaptionerConfig
    _is_stateful = True  # a state cannot be rewound, as assisted decoding would
    _supports_sdpa = True  # the vision model's attention; the RNN has its own
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


class RnnCaptionerEncoder(nn.Module):
    """The image's side: regions, their keys and values, the decoder's first state."""

    main_input_name = "pixel_values"

    def __init__(self, config: RnnCaptionerConfig):
        super().__init__()
        self.config = config
        self.vision_encoder = VisionEncoder(config.vision_config)
        width, hidden = self.vision_encoder.width, config.hidden_size
        if config.attention == "none":
            self.pooled_mlp = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden))
        else:
            multi_head = config.attention == "multi_head"
            self.region_projection = RegionProjection(
                width, config.attention_size, config.num_attention_heads if multi_head else 1, multi_head
            )
            self.initial_state = nn.Linear(width, config.num_layers * _NUM_STATES[config.cell] * hidden)

    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        image_features: torch.FloatTensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> RnnCaptionerEncoderOutput:
        """
        Args:
            pixel_values: (B, C, H, W).
            image_features: (B, L, D), the vision model's regions, in place of `pixel_values`.
            output_attentions, output_hidden_states: handed over by `generate()`; the regions are all there is.

        Raises:
            ValueError: if not exactly one of them is given, or the features have another width.
        """
        regions, _ = self.vision_encoder.regions(pixel_values, image_features)
        mean = regions.mean(dim=1)
        if self.config.attention == "none":
            output = RnnCaptionerEncoderOutput(last_hidden_state=regions, context=self.pooled_mlp(mean))
        else:
            keys, values = self.region_projection(regions)
            # Xu et al. 2015, section 3.1.2: an MLP of the mean region, bounded like a state.
            state = torch.tanh(self.initial_state(mean))
            output = RnnCaptionerEncoderOutput(
                last_hidden_state=regions,
                projected_keys=keys,
                projected_values=values,
                initial_state=state.unflatten(-1, (self.config.num_layers, -1, self.config.hidden_size)),
            )
        return output if return_dict or return_dict is None else output.to_tuple()


class AttendingRnnLayer(nn.Module):
    """
    An LSTM or GRU layer that reads a word and, at every step, a context vector that it chose with its last state
    (Xu et al. 2015, equations 1 to 5 and section 4.2.1 for the gate beta).

    The gates of the words do not depend on the recurrence and are computed for all steps at once.
    """

    def __init__(self, config: RnnCaptionerConfig, region_size: int):
        super().__init__()
        self.cell = config.cell
        self.is_hard = config.attention_sampling == "hard"
        hidden = config.hidden_size
        multi_head = config.attention == "multi_head"
        if config.attention == "additive":
            self.alignment = AdditiveAlignment(hidden, config.attention_size)
        else:
            self.alignment = DotProductAlignment(
                hidden,
                config.attention_size,
                num_heads=config.num_attention_heads if multi_head else 1,
                scaled=config.attention != "dot",
            )
        # The output projection of multi-head attention would be followed by another linear map, so there is none.
        context_size = config.attention_size if multi_head else region_size
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
        """Scores (B, heads, k, L) -> weights of the same shape; `sample` and `expects_context` as in forward."""
        if not self.is_hard:
            return soft_selection(scores)
        weights = hard_selection(scores, sample)
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
        """Gates from the input (N, gates * H) and the last state -> the next state; the order of gates is torch's."""
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

    def forward(self, embeddings, state, keys, values, sample=False, expects_context=None):
        """
        Args:
            embeddings: (N, T, H).
            state: tuple of (N, H).
            keys, values: see [`RegionProjection`].
            sample: whether hard attention draws its region, or takes the most probable one.
            expects_context: (N,), rows that are shown the expected context nevertheless.

        Returns:
            outputs (N, T, H), contexts (N, T, context_size), weights (N, heads, T, L), scores of the same shape that
            hard attention needs for its loss, else `None`, last state.
        """
        outputs, contexts, weights, scores = [], [], [], []
        for input_gates in self.input_gates(embeddings).unbind(1):
            context, step_weights, step_scores = self.attend(state[0], keys, values, sample, expects_context)
            state = self.update(input_gates + self.context_gates(context), state)
            outputs.append(state[0])
            contexts.append(context)
            weights.append(step_weights)
            if self.is_hard and self.training:
                scores.append(step_scores)
        outputs, contexts, weights = torch.stack(outputs, dim=1), torch.stack(contexts, dim=1), torch.stack(weights, 2)
        return outputs, contexts, weights, torch.stack(scores, dim=2) if scores else None, state


class RnnCaptionerDecoder(nn.Module):
    """The rows' side: word embeddings, the recurrent layers, the deep output layer."""

    def __init__(self, config: RnnCaptionerConfig, region_size: int):
        super().__init__()
        self.config = config
        hidden = config.hidden_size
        self.embed_tokens = nn.Embedding(config.vocab_size, hidden, padding_idx=config.pad_token_id)
        self.dropout = nn.Dropout(config.dropout)
        attends = config.attention != "none"
        self.attention_layer = AttendingRnnLayer(config, region_size) if attends else None
        num_plain = config.num_layers - attends
        rnn_class = nn.LSTM if config.cell == "lstm" else nn.GRU
        self.layers = None
        if num_plain:
            dropout = config.dropout if num_plain > 1 else 0.0
            self.layers = rnn_class(hidden, hidden, num_plain, dropout=dropout, batch_first=True)
        if attends:
            self.output_hidden = nn.Linear(hidden, hidden)
            self.output_context = nn.Linear(self.attention_layer.context_size, hidden, bias=False)

    def _run_layers(self, inputs, states):
        """Layers that nothing on the image's side reaches, over all steps at once; `states` is a tuple per layer."""
        if self.layers is None:
            return inputs, []
        stacked = tuple(torch.stack(tensors) for tensors in zip(*states, strict=True)) if states else None
        if stacked is not None and self.config.cell == "gru":
            (stacked,) = stacked
        outputs, stacked = self.layers(inputs, stacked)
        stacked = (stacked,) if self.config.cell == "gru" else stacked
        return outputs, list(zip(*(tensor.unbind(0) for tensor in stacked), strict=True))

    def start(self, encoder_outputs, rows: int) -> list[tuple[torch.Tensor, ...]]:
        """The state of every layer before the first word, one row per caption: a list of tuples of (N, H)."""
        if self.attention_layer is not None:
            initial = encoder_outputs.initial_state  # (B, layers, states, H)
            states = [layer.unbind(1) for layer in initial.unbind(1)]
        else:  # Vinyals et al. 2015, equation 10: the image is what the RNN reads first
            _, states = self._run_layers(encoder_outputs.context[:, None], None)
        return [tuple(tensor.repeat_interleave(rows, dim=0) for tensor in state) for state in states]

    def forward(self, decoder_input_ids, encoder_outputs, states=None, sample=False, expects_context=None):
        """
        Args:
            decoder_input_ids: (N, T).
            encoder_outputs: [`RnnCaptionerEncoderOutput`] of B images.
            states: list of one tuple of (N, H) per layer; from the image if `None`.
            sample, expects_context: see [`AttendingRnnLayer.forward`].

        Returns:
            hidden states for the output layer (N, T, H), weights (N, heads, T, L) or `None`, scores of hard attention
            in training or `None`, the last states, the embeddings and the last layer's outputs.
        """
        rows = rows_per_image(decoder_input_ids.shape[0], encoder_outputs.last_hidden_state.shape[0])
        if states is None:
            states = self.start(encoder_outputs, rows)
        embeddings = self.embed_tokens(decoder_input_ids)
        inputs = self.dropout(embeddings)
        if self.attention_layer is None:
            outputs, states = self._run_layers(inputs, states)
            return self.dropout(outputs), None, None, states, (embeddings, outputs)
        outputs, contexts, weights, scores, first_state = self.attention_layer(
            inputs,
            states[0],
            encoder_outputs.projected_keys,
            encoder_outputs.projected_values,
            sample,
            expects_context,
        )
        if self.layers is not None:
            outputs, states = self._run_layers(self.dropout(outputs), states[1:])
        else:
            states = []
        # Xu et al. 2015, equation 7: the word is read from L_h h + L_z z + E y.
        hidden = self.output_hidden(self.dropout(outputs)) + self.output_context(contexts) + inputs
        return self.dropout(hidden), weights, scores, [first_state, *states], (embeddings, outputs)


class RnnCaptionerModel(CaptionerModel, RnnCaptionerPreTrainedModel):
    """
    Vision model, attention and RNN without a language model head.

    Args:
        config: [`RnnCaptionerConfig`].
    """

    def __init__(self, config: RnnCaptionerConfig):
        super().__init__(config)
        self.encoder = RnnCaptionerEncoder(config)
        self.decoder = RnnCaptionerDecoder(config, self.encoder.vision_encoder.width)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        decoder_input_ids: torch.LongTensor | None = None,
        image_features: torch.FloatTensor | None = None,
        encoder_outputs: RnnCaptionerEncoderOutput | None = None,
        past_key_values: RecurrentCache | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        sample_regions: bool | None = None,
        **kwargs,
    ) -> RnnCaptionerModelOutput:
        """
        Arguments as in [`RnnCaptionerForConditionalGeneration`]; `last_hidden_state` is (N, T, H).

        Args:
            sample_regions: whether hard attention draws its region, as in training, or takes the most probable one,
                as it does otherwise; `generate()` takes it as well.
        """
        config = self.config
        sample_regions = self.training if sample_regions is None else sample_regions
        use_cache = config.use_cache if use_cache is None else use_cache
        output_attentions = config.output_attentions if output_attentions is None else output_attentions
        output_hidden_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        if encoder_outputs is None:
            encoder_outputs = self.encoder(pixel_values=pixel_values, image_features=image_features)
        if use_cache and past_key_values is None:
            past_key_values = RecurrentCache(config.num_layers)
        states = None
        if past_key_values is not None and past_key_values.get_seq_length() > 0:
            states = [layer.state for layer in past_key_values.layers]
        expects_context = None
        if self.training and config.attention_sampling == "hard":
            draws = torch.rand(len(decoder_input_ids), device=decoder_input_ids.device)
            expects_context = draws < config.expected_context_probability
        hidden, weights, scores, states, layer_outputs = self.decoder(
            decoder_input_ids, encoder_outputs, states, sample_regions, expects_context
        )
        if use_cache:
            for layer, state in zip(past_key_values.layers, states, strict=True):
                layer.update(state, decoder_input_ids.shape[1])
        return RnnCaptionerModelOutput(
            last_hidden_state=hidden,
            past_key_values=past_key_values if use_cache else None,
            decoder_hidden_states=layer_outputs if output_hidden_states else None,
            cross_attentions=(weights,) if output_attentions and weights is not None else None,
            encoder_last_hidden_state=encoder_outputs.last_hidden_state,
            attention_log_probs=None if scores is None else scores.log_softmax(dim=-1),
            expects_context=expects_context,
        )


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
            # Moving average of each word's log-likelihood; at first as if all were equally probable.
            self.register_buffer("attention_baseline", torch.full((config.vocab_size,), -math.log(config.vocab_size)))

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if hasattr(module, "attention_baseline"):
            init.constant_(module.attention_baseline, -math.log(self.config.vocab_size))

    def resize_token_embeddings(self, *args, **kwargs):
        """As in transformers; new words get a baseline as well."""
        embeddings = super().resize_token_embeddings(*args, **kwargs)
        if self.config.attention_sampling == "hard":
            size, old = self.config.vocab_size, self.attention_baseline
            self.attention_baseline = torch.cat([old, old.new_full((size,), -math.log(size))])[:size]
        return embeddings

    @property
    def loss_reads_attentions(self) -> bool:
        return self.config.attention != "none"

    def generate(self, *args, **kwargs):
        """As in transformers; without attention, `cross_attentions` is `None` rather than a tuple of `None`."""
        outputs = super().generate(*args, **kwargs)
        if self.config.attention == "none" and getattr(outputs, "cross_attentions", None) is not None:
            outputs.cross_attentions = None
        return outputs

    def attention_losses(self, outputs, token_losses, labels) -> tuple[dict, dict]:
        """
        `doubly_stochastic`: lambda times the sum over captions and regions of (1 - sum over real steps of alpha)^2,
        alpha the mean over heads (Xu et al. 2015, equation 14). Rows without a caption do not count.

        Hard attention adds two in training (section 4.1): `reinforce`, whose gradient is that of the expected
        log-likelihood through the choice of regions, and `entropy`. A region is rewarded by the log-likelihood of the
        words from its own on, for it cannot change the earlier ones, less the baselines of these words. The paper
        rewards it by the whole caption's, less one baseline for all: the expectation is the same, the variance is not.
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
        if log_probs is not None:
            drawn = real & ~outputs.expects_context[:, None]  # (N, T)
            words = labels.clamp(min=0)
            baseline = self.attention_baseline[words] * drawn
            log_likelihood = -token_losses.detach() * drawn
            advantage = _sum_from_here_on(log_likelihood - baseline) * drawn
            score = (log_probs * weights.detach()).sum(dim=(1, 3))  # of one region in each head
            terms["reinforce"] = -config.reinforce_lambda * (advantage * score).sum()
            entropy = -(log_probs.exp() * log_probs).sum(dim=-1).mean(dim=1) * real
            terms["entropy"] = -config.entropy_lambda * entropy.sum()
            statistics["attention_entropy"] = entropy.detach().sum() / real.sum().clamp(min=1)
            statistics["attention_baseline"] = baseline.sum() / drawn.sum().clamp(min=1)
            self._move_baseline(words[drawn], log_likelihood[drawn])
        return terms, statistics

    def _move_baseline(self, words: torch.Tensor, log_likelihood: torch.Tensor) -> None:
        """Towards the means of the words that there are; both (drawn words,)."""
        sums, counts = torch.zeros_like(self.attention_baseline), torch.zeros_like(self.attention_baseline)
        sums.index_add_(0, words, log_likelihood.to(sums.dtype))
        counts.index_add_(0, words, torch.ones_like(log_likelihood, dtype=sums.dtype))
        moved = self.attention_baseline.lerp(sums / counts, 1 - self.config.baseline_decay)
        self.attention_baseline.copy_(torch.where(counts > 0, moved, self.attention_baseline))


def _sum_from_here_on(steps: torch.Tensor) -> torch.Tensor:
    """(N, T) -> at every step the sum of it and all later ones."""
    return steps.flip(-1).cumsum(dim=-1).flip(-1)


RnnCaptionerForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")

__all__ = ["RnnCaptionerForConditionalGeneration", "RnnCaptionerModel", "RnnCaptionerPreTrainedModel"]
