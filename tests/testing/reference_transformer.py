"""The Transformer captioner, slow and obvious: one image, one row, one head, one query at a time."""

import math

import torch


def sinusoid(position: int, width: int) -> list[float]:
    """Vaswani et al. 2017, section 3.5, channel by channel."""
    channels = []
    for i in range(width // 2):
        angle = position / 10000 ** (2 * i / width)
        channels += [math.sin(angle), math.cos(angle)]
    return channels


def softmax_attention(queries, keys, values, causal: bool = False):
    """softmax(Q K^T / sqrt(d)) V of one head: (Q, d), (L, d), (L, d) -> (Q, d) and weights (Q, L)."""
    scores = queries @ keys.T / math.sqrt(queries.shape[-1])
    if causal:
        scores = torch.stack(
            [torch.where(torch.arange(len(row)) <= t, row, -torch.inf) for t, row in enumerate(scores)]
        )
    weights = torch.exp(scores - scores.max(-1, keepdim=True).values)
    weights = weights / weights.sum(-1, keepdim=True)
    return weights @ values, weights


def linear(module, inputs):
    return inputs @ module.weight.T + (0 if module.bias is None else module.bias)


def layer_norm(module, inputs):
    centred = inputs - inputs.mean(-1, keepdim=True)
    return centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + module.eps) * module.weight + module.bias


def multi_head(query, key, value, output, heads, inputs, memory, causal=False):
    """Heads one after the other; weights (heads, Q, L)."""
    parts = (linear(m, x).chunk(heads, dim=-1) for m, x in ((query, inputs), (key, memory), (value, memory)))
    found = [softmax_attention(q, k, v, causal) for q, k, v in zip(*parts, strict=True)]
    return linear(output, torch.cat([context for context, _ in found], dim=-1)), torch.stack([w for _, w in found])


def sublayer(config, residual, inputs, function):
    if config.norm == "pre":
        return inputs + function(layer_norm(residual.norm, inputs))
    return layer_norm(residual.norm, inputs + function(inputs))


def feed_forward(module, inputs):
    first, _, second = module
    return linear(second, torch.relu(linear(first, inputs)))


@torch.no_grad()
def encode(model, regions: torch.Tensor) -> torch.Tensor:
    """Regions of one image (L, D) -> what the decoder attends to (L, H)."""
    config, encoder = model.config, model.model.encoder
    hidden = layer_norm(encoder.region_norm, regions) if config.region_norm else regions
    if config.encoder_layers:
        hidden = linear(encoder.region_projection, hidden)
        side, half = math.isqrt(len(regions)), config.hidden_size // 2
        hidden = hidden + torch.tensor([sinusoid(i // side, half) + sinusoid(i % side, half) for i in range(side**2)])
    for layer in encoder.layers:
        attention = layer.self_attention

        def attend(x, attention=attention):
            maps = attention.query, attention.key, attention.value, attention.output
            return multi_head(*maps, config.num_attention_heads, x, x)[0]

        hidden = sublayer(config, layer.self_attention_residual, hidden, attend)
        hidden = sublayer(
            config, layer.feed_forward_residual, hidden, lambda x, layer=layer: feed_forward(layer.feed_forward, x)
        )
    if config.encoder_layers and config.norm == "pre":
        hidden = layer_norm(encoder.norm, hidden)
    return hidden


@torch.no_grad()
def transformer_row_logits(model, regions: torch.Tensor, tokens: list[int]):
    """
    Args:
        regions: of one image (L, D).
        tokens: of one row, start token first.

    Returns:
        logits (T, vocab) and the last layer's weights over regions (heads, T, L).
    """
    config, encoder, decoder = model.config, model.model.encoder, model.model.decoder
    heads = config.num_attention_heads
    memory = encode(model, regions)
    hidden = decoder.embed_tokens.weight[torch.tensor(tokens)] * math.sqrt(config.hidden_size)
    if config.position_embedding_type == "learned":
        hidden = hidden + decoder.embed_positions.weight[: len(tokens)]
    else:
        hidden = hidden + torch.tensor([sinusoid(t, config.hidden_size) for t in range(len(tokens))])
    weights = None
    for layer, projection in zip(decoder.layers, encoder.key_value_projections, strict=True):
        own, across = layer.self_attention, layer.region_attention

        def attend_to_words(x, own=own):
            return multi_head(own.query, own.key, own.value, own.output, heads, x, x, causal=True)[0]

        def attend_to_regions(x, across=across, projection=projection):
            nonlocal weights
            maps = across.query, projection.key, projection.value, across.output
            context, weights = multi_head(*maps, heads, x, memory)
            return context

        hidden = sublayer(config, layer.self_attention_residual, hidden, attend_to_words)
        hidden = sublayer(config, layer.region_attention_residual, hidden, attend_to_regions)
        hidden = sublayer(
            config, layer.feed_forward_residual, hidden, lambda x, layer=layer: feed_forward(layer.feed_forward, x)
        )
    if config.norm == "pre":
        hidden = layer_norm(decoder.norm, hidden)
    return hidden @ model.lm_head.weight.T, weights
