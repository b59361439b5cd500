"""Slow and obvious versions: one image, one row, one step at a time, straight from the papers' equations."""

import torch
from torch import nn

from testing.reference_transformer import transformer_row_logits


def _alignment(layer, config, state, regions, projection):
    """One row: state (H,), regions (L, D) -> a list over heads of (scores (L,), values (L, d))."""
    kind = config.attention
    key, value = projection.key, projection.value
    heads = config.num_attention_heads if kind == "multi_head" else 1
    width = (config.hidden_size if kind == "general" else config.attention_size) // heads
    found = []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        scores = []
        for region in regions:
            k = key.weight[part] @ region
            if kind == "general":  # h · W a
                scores.append(state @ k)
                continue
            k = k + key.bias[part]
            if kind == "additive":
                score = layer.alignment.score.weight[0] @ torch.tanh(k + layer.alignment.query.weight @ state)
            else:
                q = layer.alignment.query.weight[part] @ state + layer.alignment.query.bias[part]
                score = q @ k
                if kind != "dot":
                    score = score / width**0.5
            scores.append(score)
        values = regions if value is None else regions @ value.weight[part].T + value.bias[part]
        found.append((torch.stack(scores), values))
    return found


def _torch_cell(layer, config, context_size):
    """torch's own cell with the layer's weights; its input is the word and the context side by side."""
    cell_class = nn.LSTMCell if config.cell == "lstm" else nn.GRUCell
    cell = cell_class(config.hidden_size + context_size, config.hidden_size)
    with torch.no_grad():
        cell.weight_ih.copy_(torch.cat([layer.input_gates.weight, layer.context_gates.weight], dim=1))
        cell.bias_ih.copy_(layer.input_gates.bias)
        cell.weight_hh.copy_(layer.state_gates.weight)
        cell.bias_hh.copy_(layer.state_gates.bias)
    return cell


def _upper_cells(rnn, config, count):
    cell_class = nn.LSTMCell if config.cell == "lstm" else nn.GRUCell
    cells = []
    for index in range(count):
        cell = cell_class(config.hidden_size, config.hidden_size)
        with torch.no_grad():
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                getattr(cell, name).copy_(getattr(rnn, f"{name}_l{index}"))
        cells.append(cell)
    return cells


def _step(cell, config, inputs, state):
    if config.cell == "lstm":
        hidden, memory = cell(inputs[None], tuple(tensor[None] for tensor in state))
        return hidden[0], memory[0]
    return (cell(inputs[None], state[0][None])[0],)


@torch.no_grad()
def row_logits(model, regions: torch.Tensor, tokens: list[int]):
    """
    Args:
        regions: of one image (L, D).
        tokens: of one row, start token first.

    Returns:
        logits (T, vocab) and the last layer's weights over regions (heads, T, L) or `None`.
    """
    family = {"rnn_captioner": rnn_row_logits, "transformer_captioner": transformer_row_logits}
    return family[model.config.model_type](model, regions, tokens)


@torch.random.fork_rng()  # making torch's cells draws weights, which must not disturb a test's seed
def rnn_row_logits(model, regions: torch.Tensor, tokens: list[int]):
    """As [`row_logits`]."""
    config, encoder, decoder = model.config, model.model.encoder, model.model.decoder
    states_per_layer = 2 if config.cell == "lstm" else 1
    if config.region_size is not None:
        norm, linear, *_ = encoder.region_mlp
        centred = regions - regions.mean(1, keepdim=True)
        scaled = centred / torch.sqrt((centred**2).mean(1, keepdim=True) + norm.eps)
        regions = torch.relu((scaled * norm.weight + norm.bias) @ linear.weight.T + linear.bias)
    mean = regions.mean(0)
    embed = decoder.embed_tokens.weight
    zeros = [tuple(torch.zeros(config.hidden_size) for _ in range(states_per_layer)) for _ in range(config.num_layers)]
    if config.attention == "none":
        cells = _upper_cells(decoder.layers, config, config.num_layers)
        states, logits = zeros, []
        for step, token in enumerate([None, *tokens]):
            inputs = _context(encoder, mean) if token is None else embed[token]
            for index, cell in enumerate(cells):
                states[index] = _step(cell, config, inputs, states[index])
                inputs = states[index][0]
            if step:
                logits.append(model.lm_head.weight @ inputs)
        return torch.stack(logits), None

    layer = decoder.attention_layer
    flat = torch.tanh(encoder.initial_state.weight @ mean + encoder.initial_state.bias)
    parts = flat.split(config.hidden_size)
    states = [
        tuple(parts[index * states_per_layer + number] for number in range(states_per_layer))
        for index in range(config.num_layers)
    ]
    cell = _torch_cell(layer, config, layer.context_size)
    upper = _upper_cells(decoder.layers, config, config.num_layers - 1) if config.num_layers > 1 else []
    logits, weights = [], []
    for token in tokens:
        previous = states[0][0]
        contexts, alphas = [], []
        for scores, values in _alignment(layer, config, previous, regions, encoder.region_projection):
            alpha = torch.exp(scores - scores.max())
            alpha = alpha / alpha.sum()
            if config.attention_sampling == "hard":
                alpha = torch.tensor([float(i == int(alpha.argmax())) for i in range(len(alpha))])
            contexts.append(sum(a * v for a, v in zip(alpha, values, strict=True)))
            alphas.append(alpha)
        beta = 1 / (1 + torch.exp(-(layer.context_gate.weight[0] @ previous + layer.context_gate.bias[0])))
        context = beta * torch.cat(contexts)
        if config.context_mlp:
            first, _, second = layer.context_mlp
            context = second.weight @ torch.relu(first.weight @ context + first.bias) + second.bias
        states[0] = _step(cell, config, torch.cat([embed[token], context]), states[0])
        hidden = states[0][0]
        for index, upper_cell in enumerate(upper, start=1):
            states[index] = _step(upper_cell, config, hidden, states[index])
            hidden = states[index][0]
        deep = decoder.output_hidden.weight @ hidden + decoder.output_hidden.bias
        deep = deep + decoder.output_context.weight @ context + embed[token]
        logits.append(model.lm_head.weight @ deep)
        weights.append(torch.stack(alphas))
    return torch.stack(logits), torch.stack(weights, dim=1)


def _context(encoder, mean: torch.Tensor) -> torch.Tensor:
    """The one vector of an image (H,), from the mean of its regions (D,)."""
    first, _, second = encoder.pooled_mlp
    context = second.weight @ torch.relu(first.weight @ mean + first.bias) + second.bias
    norm = encoder.context_norm
    if norm is None:
        return context
    return (context - norm.running_mean) / torch.sqrt(norm.running_var + 1e-5) * norm.weight + norm.bias


@torch.no_grad()
def greedy(model, regions, max_new_tokens: int) -> list[int]:
    """Start token and what follows it, up to and with the end."""
    tokens = [model.config.decoder_start_token_id]
    for _ in range(max_new_tokens):
        tokens.append(int(row_logits(model, regions, tokens)[0][-1].argmax()))
        if tokens[-1] == model.config.eos_token_id:
            break
    return tokens


@torch.no_grad()
def sample_batch(model, regions, max_new_tokens: int, rows: int) -> list[list[int]]:
    """Draws for all rows of all images (B, L, D) in one call a step, as generate() does, so that seeds agree."""
    config = model.config
    sequences = [[config.decoder_start_token_id] for _ in range(len(regions) * rows)]
    ended = [False] * len(sequences)
    for _ in range(max_new_tokens):
        logits = torch.stack([row_logits(model, regions[i // rows], s)[0][-1] for i, s in enumerate(sequences)])
        drawn = torch.multinomial(logits.float().softmax(-1), 1)  # generate() scores in single precision
        drawn = drawn[:, 0].tolist()
        for index, token in enumerate(drawn):
            sequences[index].append(config.pad_token_id if ended[index] else token)
            ended[index] = ended[index] or token == config.eos_token_id
        if all(ended):
            break
    return sequences


@torch.no_grad()
def beam_search(
    model,
    regions,
    num_beams: int,
    max_new_tokens: int,
    length_penalty: float = 1.0,
    early_stopping: bool = False,
    no_repeat_ngram_size: int = 0,
    num_return_sequences: int = 1,
    suppressed: tuple[int, ...] = (),
) -> list[tuple[float, list[int]]]:
    """Beam search over Python lists; the best (score, tokens) first."""
    config = model.config
    running, finished = [(0.0, [config.decoder_start_token_id])], []
    for step in range(max_new_tokens):
        candidates = []
        for score, tokens in running:
            logprobs = row_logits(model, regions, tokens)[0][-1].float().log_softmax(-1)
            logprobs[list(suppressed)] = -torch.inf
            size = no_repeat_ngram_size
            if size:
                seen = [tokens[i : i + size] for i in range(len(tokens) - size + 1)]
                for ngram in seen:
                    if ngram[:-1] == tokens[len(tokens) - size + 1 :]:
                        logprobs[ngram[-1]] = -torch.inf
            candidates += [(score + float(lp), [*tokens, token]) for token, lp in enumerate(logprobs)]
        candidates.sort(key=lambda candidate: -candidate[0])
        running, last = [], step == max_new_tokens - 1
        for rank, (score, tokens) in enumerate(candidates[: 2 * num_beams]):
            if tokens[-1] == config.eos_token_id or last:
                if rank < num_beams:
                    finished.append((score / (len(tokens) - 1) ** length_penalty, tokens))
            elif len(running) < num_beams:
                running.append((score, tokens))
        finished = sorted(finished, key=lambda candidate: -candidate[0])[:num_beams]
        if not running:
            break
        if len(finished) == num_beams:
            if early_stopping:
                break
            if running[0][0] / (len(running[0][1]) - 1) ** length_penalty <= finished[-1][0]:
                break
    return finished[:num_return_sequences]
