"""A GRU that looks at what a Transformer encoder made of the regions."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import GenerationMixin
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPastAndCrossAttentions

from hf_captioner.models.attention import grid_positions, rows_per_image, weighted_context
from hf_captioner.models.modeling_captioner import (
    CaptionerForConditionalGeneration,
    CaptionerModel,
    CaptionerPreTrainedModel,
)
from hf_captioner.models.recurrent_cache import RecurrentCache
from hf_captioner.models.vision_encoder import VisionEncoder

from .configuration_gru_transformer import GruTransformerConfig


@dataclass
class GruTransformerEncoderOutput(BaseModelOutput):
    """
    Args:
        last_hidden_state: (B, L, H).
        grid: rows and columns of the regions.
    """

    grid: tuple[int, int] | None = None


class GruTransformerPreTrainedModel(CaptionerPreTrainedModel):
    config: GruTransformerConfig
    config_class = GruTransformerConfig
    _is_stateful = True

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False


class GruTransformerEncoder(nn.Module):
    main_input_name = "pixel_values"

    def __init__(self, config: GruTransformerConfig):
        super().__init__()
        self.vision_encoder = VisionEncoder(
            config.vision_config, config.vision_feature_layer, config.keep_prefix_tokens
        )
        self.region_size = config.hidden_size
        self.projection = nn.Linear(self.vision_encoder.width, config.hidden_size)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                config.hidden_size, config.encoder_heads, 2 * config.hidden_size, config.dropout, batch_first=True
            )
            for _ in range(config.encoder_layers)
        )

    def forward(
        self, pixel_values=None, image_features=None, grid=None, output_attentions=None, output_hidden_states=None
    ):
        regions, grid = self.vision_encoder.regions(pixel_values, image_features, grid)
        hidden = self.projection(regions)
        hidden = hidden + grid_positions(grid, hidden.shape[-1], hidden.dtype, hidden.device)
        for layer in self.layers:
            hidden = layer(hidden)
        return GruTransformerEncoderOutput(last_hidden_state=hidden, grid=grid)


class GruTransformerDecoder(nn.Module):
    def __init__(self, config: GruTransformerConfig, region_size: int):
        super().__init__()
        hidden = config.hidden_size
        self.embed_tokens = nn.Embedding(config.vocab_size, hidden, padding_idx=config.pad_token_id)
        self.cell = nn.GRU(2 * hidden, hidden, batch_first=True)
        self.query = nn.Linear(hidden, hidden)

    def forward(
        self,
        decoder_input_ids,
        encoder_outputs,
        decoder_attention_mask=None,
        past_key_values=None,
        output_attentions=False,
        output_hidden_states=False,
    ):
        regions = encoder_outputs.last_hidden_state  # (B, L, H)
        rows = rows_per_image(len(decoder_input_ids), len(regions))
        if past_key_values is not None and past_key_values.get_seq_length():
            ((state,),) = [layer.state for layer in past_key_values.layers]
        else:
            state = regions.mean(1).repeat_interleave(rows, 0)
        outputs, weights = [], []
        for place, word in enumerate(self.embed_tokens(decoder_input_ids).unbind(1)):
            query = self.query(state).unflatten(0, (len(regions), rows))[:, None]  # (B, 1, k, H)
            step_weights = (query @ regions[:, None].transpose(-1, -2)).softmax(-1)
            context = weighted_context(step_weights, regions[:, None])
            _, new = self.cell(torch.cat([word, context], dim=-1)[:, None], state[None])
            if decoder_attention_mask is not None:
                first = decoder_attention_mask.shape[1] - decoder_input_ids.shape[1]
                new = torch.where(decoder_attention_mask[:, first + place, None].bool(), new, state)
            state = new[0]
            outputs.append(state)
            weights.append(step_weights.transpose(1, 2).flatten(0, 1))
        if past_key_values is not None:
            past_key_values.layers[0].update((state,), decoder_input_ids.shape[1])
        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=torch.stack(outputs, 1),
            cross_attentions=(torch.stack(weights, 2),) if output_attentions else None,
        )


class GruTransformerModel(CaptionerModel, GruTransformerPreTrainedModel):
    encoder_class = GruTransformerEncoder
    decoder_class = GruTransformerDecoder

    def make_cache(self):
        return RecurrentCache(1)


class GruTransformerForConditionalGeneration(
    CaptionerForConditionalGeneration, GruTransformerPreTrainedModel, GenerationMixin
):
    model_class = GruTransformerModel


GruTransformerForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")

__all__ = ["GruTransformerForConditionalGeneration", "GruTransformerModel"]
