"""The shared template of `forward`: what it takes, what it refuses, padding on the left, continued generation."""

import copy

import pytest
import torch
from testing.tiny_models import ATTENTIONS, SYSTEMS, TRANSFORMERS, VOCAB, random_images, random_labels, tiny_model

from hf_captioner.models.attention import _AdditiveScores
from hf_captioner.models.modeling_captioner import Dropout

pytestmark = pytest.mark.usefixtures("double")


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("name,hint", [("row_weight", "row_weights"), ("nonsense", None)])
def test_unknown_keywords_are_refused(system, name, hint):
    """A misspelt option trained the plain loss without a word."""
    model, inputs = tiny_model(**SYSTEMS[system]), dict(pixel_values=random_images(), labels=random_labels())
    for module in (model, model.model):
        settings = inputs if module is model else dict(pixel_values=inputs["pixel_values"])
        with pytest.raises(TypeError, match=f"unexpected keyword argument `{name}`"):
            module(**settings, **{name: torch.ones(6)})
    if hint:
        with pytest.raises(TypeError, match=f"did you mean `{hint}`"):
            model(**inputs, **{name: torch.ones(6)})


def test_options_of_another_family_are_refused():
    inputs = dict(pixel_values=random_images(), decoder_input_ids=torch.full((3, 2), 2))
    with pytest.raises(TypeError, match="sample_regions"):
        tiny_model(**SYSTEMS["cnn_transformer"])(**inputs, sample_regions=True)
    tiny_model(**SYSTEMS["hard_additive"])(**inputs, sample_regions=True)


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("system", SYSTEMS)
def test_padding_on_the_left_changes_nothing(system, layers):
    """Rows of different lengths in one batch, padded on the left, have the logits that each has alone."""
    if layers > 1 and "transformer" in system:
        pytest.skip("layers of RNNs")
    model = tiny_model(**SYSTEMS[system], **({"num_layers": layers} if layers > 1 else {}))
    images, lengths = random_images(2), (5, 3, 1, 4)
    tokens = torch.randint(4, 40, (4, 5), generator=torch.Generator().manual_seed(5))
    mask = torch.zeros(4, 5, dtype=torch.long)
    for row, length in enumerate(lengths):
        mask[row, 5 - length :] = 1
    tokens = tokens.masked_fill(mask == 0, 1)
    with torch.no_grad():
        asked = dict(pixel_values=images, output_attentions=True, use_cache=True)
        found = model(**asked, decoder_input_ids=tokens, decoder_attention_mask=mask)
        # two more tokens from the cache, whose mask covers the earlier ones
        more = torch.randint(4, 40, (4, 2), generator=torch.Generator().manual_seed(6))
        longer = torch.cat([mask, torch.ones(4, 2, dtype=torch.long)], 1)
        settings = dict(past_key_values=found.past_key_values, decoder_attention_mask=longer)
        next_logits = model(pixel_values=images, decoder_input_ids=more, **settings).logits
        for row, length in enumerate(lengths):
            alone = model(
                pixel_values=images[row // 2, None],
                decoder_input_ids=tokens[[row], 5 - length :],
                output_attentions=True,
            )
            torch.testing.assert_close(found.logits[row, 5 - length :], alone.logits[0])
            if alone.cross_attentions is not None:
                weights = found.cross_attentions[-1][row, :, 5 - length :]
                torch.testing.assert_close(weights, alone.cross_attentions[-1][0])
            whole = torch.cat([tokens[[row], 5 - length :], more[[row]]], 1)
            whole = model(pixel_values=images[row // 2, None], decoder_input_ids=whole).logits
            torch.testing.assert_close(next_logits[row], whole[0, -2:])


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("num_beams", [1, 3])
def test_prompts_of_different_lengths_and_going_on(system, num_beams):
    model, images = tiny_model(**SYSTEMS[system]), random_images(2)
    prompts = [[2, 7, 9], [2]]
    tokens, mask = torch.tensor([[2, 7, 9], [1, 1, 2]]), torch.tensor([[1, 1, 1], [0, 0, 1]])
    settings = dict(num_beams=num_beams, do_sample=False, eos_token_id=None, pad_token_id=1)
    found = model.generate(images, decoder_input_ids=tokens, decoder_attention_mask=mask, max_new_tokens=5, **settings)
    for row, prompt in enumerate(prompts):
        alone = model.generate(images[[row]], decoder_input_ids=torch.tensor([prompt]), max_new_tokens=5, **settings)
        assert found[row, 3 - len(prompt) :].tolist() == alone[0].tolist()
    if num_beams == 1:  # the caption so far, with its cache, and four tokens more
        first = model.generate(
            images,
            decoder_input_ids=tokens[:1].repeat(2, 1),
            max_new_tokens=2,
            return_dict_in_generate=True,
            **settings,
        )
        whole = model.generate(images, decoder_input_ids=tokens[:1].repeat(2, 1), max_new_tokens=6, **settings)
        for cache in ({}, {"past_key_values": first.past_key_values}):
            on = model.generate(images, decoder_input_ids=first.sequences, max_new_tokens=4, **cache, **settings)
            assert torch.equal(on, whole)


def test_a_mask_of_the_wrong_shape_is_named():
    inputs = dict(pixel_values=random_images(), decoder_input_ids=torch.full((3, 4), 2))
    with pytest.raises(ValueError, match="`decoder_attention_mask` must be .*at least 4 tokens.*\\(3, 2\\)"):
        tiny_model()(**inputs, decoder_attention_mask=torch.ones(3, 2))


@pytest.mark.parametrize("system", SYSTEMS)
def test_training_logits_have_gradients_and_may_be_left_out(system):
    """A distillation loss reaches the parameters; without logits the loss is the same."""
    model = tiny_model(**SYSTEMS[system], **({"label_smoothing": 0.1})).train()
    features, labels = torch.randn(3, 16, 12), random_labels()
    settings = dict(image_features=features, labels=labels, **({"sample_regions": False} if "hard" in system else {}))
    other = copy.deepcopy(model)  # hard attention's baselines move with every call
    torch.manual_seed(0)
    outputs = model(**settings)
    real = labels.flatten(0, 1) != -100
    assert (outputs.logits[~real] == 0).all() and (outputs.logits[real] != 0).any()
    (weight,) = torch.autograd.grad(outputs.logits[real].pow(2).sum(), [model.lm_head.weight], retain_graph=True)
    assert weight.abs().sum() > 0
    torch.manual_seed(0)
    without = other(**settings, output_logits=False)
    assert without.logits is None
    torch.testing.assert_close(without.loss, outputs.loss)
    model.eval()
    torch.testing.assert_close(model(**settings, output_logits=False).loss, model(**settings).loss)


CHANGES = {
    **{
        (name, layers): dict(num_layers=layers, doubly_stochastic_lambda=0.7)
        for name in SYSTEMS
        for layers in (1, 2)
        if name not in ("none", *TRANSFORMERS)
    },
    **{(name, implementation): {} for name in TRANSFORMERS for implementation in ("eager", "sdpa")},
}


@pytest.mark.parametrize("system,kind", CHANGES)
def test_what_stands_behind_captions_is_left_out_and_changes_nothing(system, kind):
    """Captions of all lengths in no order, an image without one: as when every step reads all rows (with a mask)."""
    model = tiny_model(**SYSTEMS[system], **CHANGES[system, kind])
    if system in TRANSFORMERS:
        model.set_attn_implementation(kind)
    labels = torch.randint(4, VOCAB, (4, 3, 11))
    lengths = torch.tensor([[3, 11, 5], [2, 0, 1], [7, 7, 9], [0, 0, 0]])
    labels[torch.arange(11) >= lengths[..., None]] = -100
    settings = dict(image_features=torch.randn(4, 9, 12), labels=labels)
    settings |= {"sample_regions": False} if "hard" in system else {}
    other = copy.deepcopy(model)
    for each in (model.train(), other.train()):
        torch.manual_seed(0)
        mask = None if each is model else torch.ones(12, 11, dtype=torch.long)
        outputs = each(**settings, decoder_attention_mask=mask, output_attentions=system not in TRANSFORMERS)
        outputs.loss.backward()
        if each is model:
            shortened = outputs
    torch.testing.assert_close(shortened.loss, outputs.loss)
    torch.testing.assert_close(shortened.logits, outputs.logits)
    real = labels.flatten(0, 1) != -100
    for mine, theirs in zip(shortened.cross_attentions or (), outputs.cross_attentions or (), strict=True):
        torch.testing.assert_close(mine.transpose(1, 2)[real], theirs.transpose(1, 2)[real])
    for (name, mine), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, msg=lambda m, n=name: f"{n}: {m}")


def test_captions_of_an_image_stand_behind_each_other():
    model = tiny_model(**SYSTEMS["vit_transformer"])
    shapes = []
    model.model.decoder.layers[0].register_forward_pre_hook(lambda module, inputs: shapes.append(inputs[0].shape))
    lengths = torch.tensor([[1, 4], [0, 0], [6, 2]])
    labels = torch.randint(4, VOCAB, (3, 2, 6)).masked_fill(torch.arange(6) >= lengths[..., None], -100)
    features = torch.randn(3, 16, model.vision_encoder.width)
    model(image_features=features, labels=labels, output_logits=False)
    assert shapes == [(3, 8, 16)]  # the longest image has 8 tokens in both captions


def test_steps_read_no_more_than_the_longest_of_each_place():
    lengths = torch.tensor([[1, 4], [0, 0], [6, 2]])
    model = tiny_model()
    read = []
    model.model.decoder.attention_layer.alignment.register_forward_hook(
        lambda module, inputs, scores: read.append(tuple(scores.shape[::2]))
    )
    labels = torch.randint(4, VOCAB, (3, 2, 6)).masked_fill(torch.arange(6) >= lengths[..., None], -100)
    model(image_features=torch.randn(3, 9, 12), labels=labels, output_logits=False)
    # images and rows of each; the empty image reads one step, of which nothing is used
    assert read == [(3, 2), (2, 2), (2, 1), (2, 1), (1, 1), (1, 1)]
    with pytest.raises(ValueError, match="`row_lengths` must come without"):
        model(
            pixel_values=random_images(),
            labels=labels,
            row_lengths=lengths.flatten(),
            decoder_attention_mask=torch.ones(6, 6),
        )


@pytest.mark.parametrize("shape", [(7,), (160, 22, 33)])
def test_dropout_leaves_out_its_part_and_scales_the_rest(shape):
    dropout, inputs = Dropout(0.3), torch.randn(shape).requires_grad_()
    assert dropout.eval()(inputs) is inputs
    torch.manual_seed(0)
    outputs = dropout.train()(inputs)
    kept = outputs != 0
    torch.testing.assert_close(outputs[kept], inputs[kept] / 0.7)
    outputs.sum().backward()
    torch.testing.assert_close(inputs.grad, kept / 0.7)
    if inputs.numel() > 100:
        count = kept.sum().item()
        deviation = (inputs.numel() * 0.3 * 0.7) ** 0.5
        assert abs(count - 0.7 * inputs.numel()) < 5 * deviation
        # those that share a draw are independent
        flat = kept.flatten()[: inputs.numel() // 4 * 4].view(-1, 4).double()
        assert torch.corrcoef(flat.T).fill_diagonal_(0).abs().max() < 5 / len(flat) ** 0.5
        torch.manual_seed(0)
        assert torch.equal(dropout(inputs), outputs)
        assert not torch.equal(dropout(inputs), outputs)


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize(
    "settings",
    [dict(attention=attention, num_layers=layers) for attention in ATTENTIONS for layers in (1, 2)]
    + [dict(attention_sampling="hard")],
    ids=str,
)
def test_gradient_checkpointing_of_the_rnn_gives_the_same_gradients(settings, use_reentrant):
    model = tiny_model(**settings).train()
    model.freeze_vision()
    other = copy.deepcopy(model)
    other.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
    features, labels = torch.randn(3, 16, 12), random_labels()
    for one in (model, other):
        torch.manual_seed(0)
        one(image_features=features, labels=labels).loss.backward()
    for (name, mine), theirs in zip(model.named_parameters(), other.named_parameters(), strict=True):
        if mine.requires_grad:
            torch.testing.assert_close(theirs[1].grad, mine.grad, msg=lambda m, n=name: f"{n}: {m}")


def plain_additive_scores(keys, query, vector):
    return torch.tanh(keys[:, None] + query[:, :, None]) @ vector


def test_gradient_checkpointing_of_the_rnn_keeps_less(monkeypatch):
    """Of every step only what goes in is kept, not the (B, k, L, A) of additive scores where they are made at once."""
    monkeypatch.setattr(_AdditiveScores, "apply", plain_additive_scores)
    kept = []
    for enable in (False, True):
        model = tiny_model(attention_size=200).train()
        if enable:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        size = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, size=size: size.append(t.numel()) or t, lambda t: t):
            model(image_features=torch.randn(3, 16, 12), labels=random_labels(rows=4, length=9))
        kept.append(sum(size))
    assert kept[1] < kept[0] / 3


def test_additive_scores_of_all_rows_are_not_kept():
    """Without gradient checkpointing, too: nothing that training keeps on a processor is as large as (B, k, L, A)."""
    model, sizes = tiny_model(attention_size=200).train(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
        model(image_features=torch.randn(3, 16, 12), labels=random_labels(rows=4, length=9))
    assert max(sizes) < 3 * 4 * 16 * 200


@pytest.mark.parametrize("system", ["hard_additive", "hard_multi_head"])
def test_hard_attention_is_penalised_by_its_probabilities_in_evaluation_too(system):
    model, labels = tiny_model(**SYSTEMS[system], doubly_stochastic_lambda=0.7), random_labels()
    features = torch.randn(3, 16, 12)
    with torch.no_grad():
        found = model(image_features=features, labels=labels, num_items_in_batch=1)
        outputs = model.model(
            image_features=features,
            decoder_input_ids=model.prepare_decoder_input_ids_from_labels(labels).flatten(0, 1),
        )
    penalty = 0.0
    for row, real in enumerate(labels.flatten(0, 1) != -100):
        if real.any():
            alpha = outputs.attention_log_probs[row].exp().mean(0)[real]  # (words, L)
            penalty += float(((1 - alpha.sum(0)) ** 2).sum())
    words = torch.nn.functional.cross_entropy(
        found.logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum"
    )
    assert found.loss.item() == pytest.approx(words.item() + 0.7 * penalty, rel=1e-9)


@pytest.mark.parametrize("system", SYSTEMS)
def test_attentions_that_there_are_not_are_none(system):
    outputs = tiny_model(**SYSTEMS[system]).generate(
        random_images(), max_new_tokens=3, output_attentions=True, return_dict_in_generate=True
    )
    is_transformer = "transformer" in system
    assert (outputs.decoder_attentions is not None) == is_transformer
    assert (outputs.cross_attentions is not None) == (system != "none")


@pytest.mark.parametrize("system", ["additive", "cnn_transformer"])
@pytest.mark.parametrize("end", [None, [3, 5]])
def test_no_end_token_or_several(system, end):
    model = tiny_model(**SYSTEMS[system])
    model.config.eos_token_id = model.generation_config.eos_token_id = end
    asked = dict(max_new_tokens=6, output_attentions=True, return_dict_in_generate=True)
    outputs = model.generate(random_images(8), **asked)
    maps = model.attention_maps(outputs)
    assert model.eos_token_ids == (end or [])
    for row, tokens in enumerate(outputs.sequences[:, 1:].tolist()):
        length = next((place + 1 for place, token in enumerate(tokens) if token in (end or [])), len(tokens))
        assert ((maps[row].flatten(1).sum(1) > 0).tolist())[: len(tokens)] == [i < length for i in range(len(tokens))]
