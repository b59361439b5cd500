"""The Transformer captioner against the paper's equations, torch's own layers, and itself by other ways."""

import copy
import math
import warnings

import pytest
import torch
from testing.reference import row_logits
from testing.reference_transformer import encode, sinusoid, softmax_attention
from testing.tiny_models import TRANSFORMERS, VOCAB, random_images, random_labels, tiny_config, tiny_model, tiny_vit
from torch import nn
from transformers import CompileConfig, DynamicCache, StaticCache

from hf_captioner import TransformerCaptionerForConditionalGeneration
from hf_captioner.models.attention import grid_positions, sinusoidal_positions
from hf_captioner.models.modeling_transformer_captioner import eager_attention_forward

pytestmark = pytest.mark.usefixtures("double")


def tiny_transformer(**changes):
    return tiny_model(**{"model_type": "transformer_captioner", "tie_word_embeddings": False, **changes})


def random_tokens(rows=6, length=5, seed=3):
    return torch.randint(4, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


def random_features(images=3, regions=16, seed=4):
    return torch.randn(images, regions, 12, generator=torch.Generator().manual_seed(seed))


def copy_weights(pairs):
    """
    Each a module of torch's and the modules whose weights it takes, one above the other; where ours has no bias theirs
    gets any.
    """
    with torch.no_grad():
        for theirs, ours in pairs:
            weight, bias = ("in_proj_weight", "in_proj_bias") if len(ours) > 1 else ("weight", "bias")
            getattr(theirs, weight).copy_(torch.cat([module.weight for module in ours]))
            biases = [torch.randn(len(module.weight)) if module.bias is None else module.bias for module in ours]
            getattr(theirs, bias).copy_(torch.cat(biases))


def torch_layer(layer_class, config):
    """torch's layer of the configuration's sizes, its dropout off."""
    return layer_class(
        config.hidden_size,
        config.num_attention_heads,
        config.intermediate_size,
        dropout=0.0,
        activation=config.activation,
        batch_first=True,
        norm_first=config.norm == "pre",
    ).eval()


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_an_encoder_layer_is_torchs(norm, activation):
    model = tiny_transformer(norm=norm, activation=activation)
    ours = model.model.encoder.layers[1]
    theirs = torch_layer(nn.TransformerEncoderLayer, model.config)
    attention = ours.self_attention
    copy_weights(
        [
            (theirs.self_attn, (attention.query, attention.key, attention.value)),
            (theirs.self_attn.out_proj, (attention.output,)),
            (theirs.linear1, (ours.feed_forward[0],)),
            (theirs.linear2, (ours.feed_forward[2],)),
            (theirs.norm1, (ours.self_attention_residual.norm,)),
            (theirs.norm2, (ours.feed_forward_residual.norm,)),
        ]
    )
    inputs = torch.randn(3, 9, 16)
    with torch.no_grad():
        torch.testing.assert_close(ours(inputs)[0], theirs(inputs))


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("rows", [1, 3])
def test_a_decoder_layer_is_torchs(norm, rows):
    model = tiny_transformer(norm=norm)
    ours, projection = model.model.decoder.layers[1], model.model.encoder.key_value_projections[1]
    theirs = torch_layer(nn.TransformerDecoderLayer, model.config)
    own, across = ours.self_attention, ours.region_attention
    copy_weights(
        [
            (theirs.self_attn, (own.query, own.key, own.value)),
            (theirs.self_attn.out_proj, (own.output,)),
            (theirs.multihead_attn, (across.query, projection.key, projection.value)),
            (theirs.multihead_attn.out_proj, (across.output,)),
            (theirs.linear1, (ours.feed_forward[0],)),
            (theirs.linear2, (ours.feed_forward[2],)),
            (theirs.norm1, (ours.self_attention_residual.norm,)),
            (theirs.norm2, (ours.region_attention_residual.norm,)),
            (theirs.norm3, (ours.feed_forward_residual.norm,)),
        ]
    )
    # A bias of the keys changes nothing, and one of the values is a part of the output's.
    theirs_across = theirs.multihead_attn
    with torch.no_grad():
        theirs_across.out_proj.bias -= theirs_across.out_proj.weight @ theirs_across.in_proj_bias[-16:]
    inputs, memory = torch.randn(2 * rows, 5, 16), torch.randn(2, 9, 16)
    mask = nn.Transformer.generate_square_subsequent_mask(5, dtype=torch.float64)
    with torch.no_grad():
        expected = theirs(inputs, memory.repeat_interleave(rows, 0), tgt_mask=mask, tgt_is_causal=True)
        torch.testing.assert_close(ours(inputs, *projection(memory), attention_mask=mask)[0], expected)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_four_lines(masked):
    query, key, value = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 7, 4), torch.randn(2, 3, 7, 4)
    if masked:
        key, value = key[:, :, :5], value[:, :, :5]
    mask = torch.ones(5, 5, dtype=torch.bool).tril()[None, None] if masked else None
    context, weights = eager_attention_forward(nn.Identity(), query, key, value, mask, scaling=0.5)
    for image in range(2):
        for head in range(3):
            expected = softmax_attention(query[image, head], key[image, head], value[image, head], masked)
            torch.testing.assert_close((context[image, :, head], weights[image, head]), expected)


def test_positions_are_the_formula():
    found = sinusoidal_positions(torch.arange(40), 16, torch.float64)
    torch.testing.assert_close(found, torch.tensor([sinusoid(position, 16) for position in range(40)]))
    far = sinusoidal_positions(torch.tensor([[123_456]]), 16, torch.float64)
    torch.testing.assert_close(far, torch.tensor([[sinusoid(123_456, 16)]]))
    assert sinusoidal_positions(torch.arange(3), 16, torch.bfloat16).dtype == torch.bfloat16


def test_positions_of_a_grid_are_the_formula_of_rows_and_of_columns():
    found = grid_positions((3, 5), 16, torch.float64, torch.device("cpu")).unflatten(0, (3, 5))
    for row in range(3):
        for column in range(5):
            torch.testing.assert_close(found[row, column], torch.tensor(sinusoid(row, 8) + sinusoid(column, 8)))


@pytest.mark.parametrize("system", TRANSFORMERS)
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("region_norm", [False, True])
def test_logits_and_weights_equal_the_equations(system, implementation, region_norm):
    model = tiny_model(**TRANSFORMERS[system], region_norm=region_norm)
    model.set_attn_implementation(implementation)
    images, tokens = random_images(), random_tokens()
    with torch.no_grad():
        outputs = model(pixel_values=images, decoder_input_ids=tokens, output_attentions=True)
        without_weights = model(pixel_values=images, decoder_input_ids=tokens).logits
        regions, grid = model.vision_encoder(images)
    assert grid == (4, 4)
    for row in range(6):
        logits, weights = row_logits(model, regions[row // 2], tokens[row].tolist())
        torch.testing.assert_close(outputs.logits[row], logits)
        torch.testing.assert_close(without_weights[row], logits)
        torch.testing.assert_close(outputs.cross_attentions[-1][row], weights)
        torch.testing.assert_close(outputs.encoder_last_hidden_state[row // 2], encode(model, regions[row // 2]))


def test_a_grid_that_is_no_square_comes_from_the_image():
    model = tiny_transformer(norm="pre")
    images = random_images(2)[:, :, :16]  # 2 x 4 regions
    regions, grid = model.vision_encoder(images)
    assert grid == (2, 4)
    hidden = model.model.encoder.region_projection(regions)
    places = torch.tensor([sinusoid(row, 8) + sinusoid(column, 8) for row in range(2) for column in range(4)])
    found = model.get_encoder()(images, output_hidden_states=True).hidden_states[0]
    torch.testing.assert_close(found, hidden + places)
    with pytest.raises(ValueError, match="`image_features`.*square.*8 regions"):
        model.get_encoder()(image_features=regions)
    assert tiny_transformer(encoder_layers=0).get_encoder()(image_features=regions).last_hidden_state.shape[1] == 8


@pytest.mark.parametrize("system", TRANSFORMERS)
def test_no_logit_moves_when_later_tokens_change(system):
    model = tiny_model(**TRANSFORMERS[system])
    features, tokens = random_features(), random_tokens(length=7)
    changed = tokens.clone()
    changed[:, 4:] = random_tokens(length=3, seed=9)
    with torch.no_grad():
        first = model(image_features=features, decoder_input_ids=tokens).logits
        second = model(image_features=features, decoder_input_ids=changed).logits
    torch.testing.assert_close(first[:, :4], second[:, :4], rtol=0, atol=1e-12)
    assert not torch.allclose(first[:, 4:], second[:, 4:])


def test_regions_without_positions_have_no_order():
    features, tokens = random_features(), random_tokens()
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    for layers in (0, 2):
        model = tiny_transformer(encoder_layers=layers)
        with torch.no_grad():
            first = model(image_features=features, decoder_input_ids=tokens).logits
            second = model(image_features=features[:, order], decoder_input_ids=tokens).logits
        assert torch.allclose(first, second) is (layers == 0)


@pytest.mark.parametrize("system", TRANSFORMERS)
@pytest.mark.parametrize("make", [None, DynamicCache, "static"])
def test_cached_steps_equal_one_pass_of_each_row(system, make):
    model = tiny_model(**TRANSFORMERS[system])
    features, tokens = random_features(2), random_tokens(4, 7)
    cache = StaticCache(model.config, max_cache_len=9) if make == "static" else make and make()
    with torch.no_grad():
        encoder_outputs, parts = model.get_encoder()(image_features=features), []
        for part in tokens.split([3, 1, 2, 1], dim=1):
            outputs = model(
                encoder_outputs=encoder_outputs, decoder_input_ids=part, past_key_values=cache, use_cache=True
            )
            cache = outputs.past_key_values
            parts.append(outputs.logits)
        for row in range(4):
            alone = model(image_features=features[row // 2, None], decoder_input_ids=tokens[row, None]).logits
            torch.testing.assert_close(torch.cat(parts, dim=1)[row, None], alone)
    assert cache.get_seq_length() == 7


@pytest.mark.parametrize("system", TRANSFORMERS)
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("output_attentions", [False, True])
def test_padding_in_front_of_a_row_changes_nothing(system, implementation, output_attentions):
    model = tiny_model(**TRANSFORMERS[system])
    model.set_attn_implementation(implementation)
    features, tokens = random_features(2), random_tokens(2, 5)
    padded = torch.cat([torch.full((1, 2), 1), tokens[1:, :3]], dim=1)
    padded = torch.cat([tokens[:1], padded])
    mask = torch.ones(2, 5, dtype=torch.long)
    mask[1, :2] = 0
    settings = dict(image_features=features, output_attentions=output_attentions)
    with torch.no_grad():
        both = model(decoder_input_ids=padded, decoder_attention_mask=mask, **settings).logits
        first = model(decoder_input_ids=tokens, **settings).logits
        short = model(decoder_input_ids=tokens[:, :3], **settings).logits
    torch.testing.assert_close(both[0], first[0])
    torch.testing.assert_close(both[1, 2:], short[1])


@pytest.mark.parametrize("system", TRANSFORMERS)
def test_eager_equals_sdpa(system):
    model = tiny_model(**TRANSFORMERS[system])
    assert model.config._attn_implementation == "sdpa"
    other = copy.deepcopy(model)
    other.set_attn_implementation({"": "eager"})  # the vision model's own differs in precision
    images, labels = random_images(), random_labels(rows=3)
    losses = [one(pixel_values=images, labels=labels).loss for one in (model, other)]
    torch.testing.assert_close(*losses)
    for loss in losses:
        loss.backward()
    for (name, mine), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, msg=lambda m, n=name: f"{n}: {m}")
    for beams in (1, 3):
        settings = dict(num_beams=beams, max_new_tokens=6)
        assert torch.equal(model.generate(images, **settings), other.generate(images, **settings))


@pytest.mark.parametrize("system", TRANSFORMERS)
def test_attentions_whatever_was_chosen(system, caplog):
    model = tiny_model(**TRANSFORMERS[system])
    chosen = "sdpa", "eager" if model.config.vision_config.model_type == "resnet" else "sdpa"
    images, tokens = random_images(), random_tokens(length=4)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error")
        outputs = model(pixel_values=images, decoder_input_ids=tokens, output_attentions=True)
        generated = model.generate(
            images, num_beams=2, max_new_tokens=3, output_attentions=True, return_dict_in_generate=True
        )
    assert not caplog.records
    assert (model.config._attn_implementation, model.config.vision_config._attn_implementation) == chosen
    assert [tuple(w.shape) for w in outputs.cross_attentions] == [(6, 2, 4, 16)] * 2
    assert [tuple(w.shape) for w in outputs.decoder_attentions] == [(6, 2, 4, 4)] * 2
    for weights in (*outputs.cross_attentions, *outputs.decoder_attentions):
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    assert (outputs.decoder_attentions[0].triu(1) == 0).all()
    steps = [[tuple(layer.shape) for layer in step] for step in generated.cross_attentions]
    assert steps == [[(6, 2, 1, 16)] * 2] * 3
    if model.config.encoder_layers:
        assert [tuple(w.shape) for w in outputs.encoder_attentions] == [(3, 2, 16, 16)] * 2
        assert len(generated.encoder_attentions) == 2
    else:
        assert outputs.encoder_attentions is None and generated.encoder_attentions is None
    plain = model(pixel_values=images, decoder_input_ids=tokens)
    assert plain.cross_attentions is plain.decoder_attentions is plain.encoder_attentions is None


@pytest.mark.parametrize("system", TRANSFORMERS)
def test_hidden_states_and_tuples(system):
    model = tiny_model(**TRANSFORMERS[system])
    images, tokens = random_images(), random_tokens()
    settings = dict(pixel_values=images, decoder_input_ids=tokens, output_hidden_states=True, use_cache=False)
    outputs = model(**settings)
    assert [tuple(state.shape) for state in outputs.decoder_hidden_states] == [(6, 5, 16)] * 3
    torch.testing.assert_close(model.lm_head(outputs.decoder_hidden_states[-1]), outputs.logits)
    assert len(outputs.encoder_hidden_states) == 1 + model.config.encoder_layers
    assert outputs.encoder_hidden_states[-1] is outputs.encoder_last_hidden_state
    torch.testing.assert_close(model(**settings, return_dict=False)[0], outputs.logits)


@pytest.mark.parametrize("system", TRANSFORMERS)
def test_the_regions_keys_and_values_are_used_in_place(system):
    """What every layer's attention is given is the encoder's output, once per image, not a copy of it."""
    model = tiny_model(**TRANSFORMERS[system])
    encoder_outputs = model.get_encoder()(image_features=random_features(2))
    keys, values = encoder_outputs.projected_keys, encoder_outputs.projected_values
    seen = []
    for index, layer in enumerate(model.model.decoder.layers):
        layer.region_attention.register_forward_pre_hook(
            lambda module, args, index=index: seen.append((index, args[0].shape[0], args[1], args[2]))
        )
    outputs = model.generate(
        encoder_outputs=encoder_outputs, num_beams=5, max_new_tokens=4, return_dict_in_generate=True
    )
    # The first word is read once per image, for all beams begin with it.
    assert [rows for _, rows, _, _ in seen] == [2] * 2 + [10] * (len(seen) - 2) and len(seen) >= 4
    for index, _, key, value in seen:
        assert key.shape == value.shape == (2, 2, 16, 8) and key.is_contiguous() and value.is_contiguous()
        assert key.data_ptr() == keys[index].data_ptr() and value.data_ptr() == values[index].data_ptr()
    assert not any(layer.is_initialized for layer in outputs.past_key_values.cross_attention_cache.layers)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("system", TRANSFORMERS)
def test_a_static_cache_says_the_same(system, beams):
    model = tiny_model(**TRANSFORMERS[system])
    settings = dict(num_beams=beams, max_new_tokens=7)
    expected = model.generate(random_images(), **settings)
    assert torch.equal(model.generate(random_images(), **settings, cache_implementation="static"), expected)
    asked = dict(output_attentions=True, return_dict_in_generate=True)
    outputs = model.generate(random_images(), **settings, **asked, cache_implementation="static")
    assert torch.equal(outputs.sequences, expected)
    dynamic = model.generate(random_images(), **settings, **asked)
    torch.testing.assert_close(model.attention_maps(outputs), model.attention_maps(dynamic))


@pytest.mark.slow
@pytest.mark.parametrize("system", TRANSFORMERS)
def test_the_decoding_step_compiles_into_one_graph(system):
    model = tiny_model(**TRANSFORMERS[system])
    expected = model.generate(random_images(), max_new_tokens=7)
    settings = CompileConfig(fullgraph=True, backend="eager", mode=None)
    settings._compile_all_devices = True  # transformers compiles on accelerators only
    compiled = model.generate(
        random_images(), max_new_tokens=7, cache_implementation="static", compile_config=settings
    )
    assert torch.equal(compiled, expected)


def test_a_caption_longer_than_any_before():
    model = tiny_transformer()
    features, tokens = random_features(1), random_tokens(1, 200)
    with torch.no_grad():
        found = model(image_features=features, decoder_input_ids=tokens).logits
    torch.testing.assert_close(found[0], row_logits(model, features[0], tokens[0].tolist())[0])
    assert model.generate(random_images(), max_new_tokens=150, suppress_tokens=[3]).shape == (3, 151)


@pytest.mark.parametrize("cache", [dict(), dict(use_cache=False), dict(cache_implementation="static")])
def test_learned_positions_end(cache):
    model = tiny_transformer(position_embedding_type="learned", max_position_embeddings=6)
    images = random_images()
    assert model.generate(images, max_new_tokens=5, suppress_tokens=[3], **cache).shape == (3, 6)
    with pytest.raises(ValueError, match="`max_position_embeddings`.*got 6"):
        model.generate(images, max_new_tokens=9, suppress_tokens=[3], **cache)
    with pytest.raises(ValueError, match="`max_position_embeddings`.*7 tokens.*got 6"):
        model(pixel_values=images, labels=torch.full((3, 1, 7), 5))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("system", TRANSFORMERS)
def test_loss_is_the_formula(system, smoothing):
    model = tiny_model(**TRANSFORMERS[system], label_smoothing=smoothing)
    features, labels = random_features(), random_labels(rows=3)
    found = {mode: model.train(mode)(image_features=features, labels=labels).loss for mode in (True, False)}
    inputs = model.prepare_decoder_input_ids_from_labels(labels).flatten(0, 1)
    logprobs = model.eval()(image_features=features, decoder_input_ids=inputs).logits.log_softmax(-1)
    for mode, epsilon in ((True, smoothing), (False, 0.0)):
        terms = [
            -(1 - epsilon) * logprobs[row, step, token] - epsilon * logprobs[row, step].mean()
            for row, tokens in enumerate(labels.flatten(0, 1).tolist())
            for step, token in enumerate(tokens)
            if token != -100
        ]
        torch.testing.assert_close(found[mode], sum(terms) / len(terms))


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_gives_the_same_gradients(use_reentrant):
    model = tiny_transformer(norm="pre").train()
    other = copy.deepcopy(model)
    other.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
    checkpointed = [layer.gradient_checkpointing for layer in other.model.decoder.layers]
    assert all(checkpointed) and other.model.encoder.layers[0].gradient_checkpointing
    features, labels = random_features().requires_grad_(), random_labels()
    losses = [one(image_features=features, labels=labels).loss for one in (model, other)]
    torch.testing.assert_close(*losses)
    for loss in losses:
        loss.backward()
    for (name, mine), theirs in zip(model.named_parameters(), other.named_parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs[1].grad, msg=lambda m, n=name: f"{n}: {m}")


def test_dropout_acts_in_training_only():
    model = tiny_transformer(dropout=0.5)
    features, tokens = random_features(), random_tokens()
    assert torch.equal(*(model(image_features=features, decoder_input_ids=tokens).logits for _ in range(2)))
    model.train()
    assert not torch.equal(*(model(image_features=features, decoder_input_ids=tokens).logits for _ in range(2)))


def test_new_weights_are_of_moderate_size():
    """Words as large as their positions (Vaswani et al. 2017, section 3.4), regions as in the vision model."""
    torch.manual_seed(0)
    model = TransformerCaptionerForConditionalGeneration(
        tiny_config("transformer_captioner", hidden_size=64, vocab_size=500)
    ).eval()
    embeddings = model.get_input_embeddings().weight * math.sqrt(64)
    assert embeddings.std().item() == pytest.approx(1, rel=0.05)
    features = random_features()
    assert model.model.encoder.region_projection(features).std().item() == pytest.approx(1, rel=0.6)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    loss = model(image_features=features, labels=random_labels()).loss.item()
    assert loss == pytest.approx(math.log(500), rel=0.2)


@pytest.mark.parametrize(
    "changes,message",
    [
        (dict(), "decoder_input_ids"),
        (dict(decoder_input_ids=torch.ones(3, 2, dtype=torch.long)), "pixel_values"),
        (
            dict(pixel_values=torch.zeros(2, 3, 32, 32), decoder_input_ids=torch.ones(3, 2, dtype=torch.long)),
            "multiple",
        ),
        (dict(image_features=torch.zeros(2, 16, 7), decoder_input_ids=torch.ones(2, 2, dtype=torch.long)), "12"),
    ],
)
def test_bad_input_is_named(changes, message):
    inputs = {k: v.double() if v.is_floating_point() else v for k, v in changes.items()}
    with pytest.raises(ValueError, match=message):
        tiny_transformer()(**inputs)


@pytest.mark.parametrize("layers,vision", [(0, tiny_vit()), (2, None), (0, None), (2, tiny_vit())])
@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("frozen", [False, True])
def test_no_parameter_is_left_without_a_gradient(layers, vision, norm, frozen):
    changes = {} if vision is None else dict(vision_config=vision)
    model = tiny_transformer(encoder_layers=layers, norm=norm, tie_word_embeddings=True, **changes).train()
    if frozen:
        model.freeze_vision()
    model(pixel_values=random_images(), labels=random_labels()).loss.backward()
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    assert all(
        ("vision_encoder" not in name) or not frozen for name, p in model.named_parameters() if p.grad is not None
    )
