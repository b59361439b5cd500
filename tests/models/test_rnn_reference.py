"""The RNN captioner against slow, obvious versions of its equations."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from testing.reference import row_logits
from testing.tiny_models import ATTENTIONS, random_images, random_labels, tiny_model

from hf_captioner.models.attention import AdditiveAlignment

pytestmark = pytest.mark.usefixtures("double")

VARIANTS = [
    (attention, cell, layers, mlp)
    for attention in ATTENTIONS
    for cell in ("lstm", "gru")
    for layers, mlp in ((1, False), (2, False), (1, True))
    if not (attention == "none" and mlp)
]


@pytest.mark.parametrize("attention,cell,layers,mlp", VARIANTS)
def test_logits_and_weights_equal_the_equations(attention, cell, layers, mlp):
    model = tiny_model(attention=attention, cell=cell, num_layers=layers, context_mlp=mlp)
    images, tokens = random_images(), torch.randint(0, 40, (6, 5), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        outputs = model(pixel_values=images, decoder_input_ids=tokens, output_attentions=True)
        regions, grid = model.vision_encoder(images)
    assert grid == (4, 4)
    for row in range(6):
        logits, weights = row_logits(model, regions[row // 2], tokens[row].tolist())
        torch.testing.assert_close(outputs.logits[row], logits)
        if attention == "none":
            assert outputs.cross_attentions is None
        else:
            torch.testing.assert_close(outputs.cross_attentions[0][row], weights)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_the_context_is_normalised_over_the_images_of_a_batch(cell):
    model = tiny_model(attention="none", cell=cell, context_norm=True)
    features = model.vision_encoder(random_images(5))[0].detach()
    norm, contexts = model.get_encoder().context_norm, []
    norm.register_forward_pre_hook(lambda module, inputs: contexts.append(inputs[0]))
    with torch.no_grad():
        trained = model.train().get_encoder()(image_features=features).context
        (given,) = contexts
        deviation = ((given - given.mean(0)) ** 2).mean(0).add(1e-5).sqrt()
        torch.testing.assert_close(trained, (given - given.mean(0)) / deviation * norm.weight + norm.bias)
        assert (norm.running_mean - 0.1 * given.mean(0)).abs().max() < 1e-12
        # One image alone has no spread: it is read as it is after training, in training as well.
        alone = model.get_encoder()(image_features=features[:1]).context
        model.eval()
        torch.testing.assert_close(alone, model.get_encoder()(image_features=features[:1]).context)
        # And after training every image is read by itself, as the equations say.
        tokens = torch.randint(0, 40, (5, 4), generator=torch.Generator().manual_seed(3))
        logits = model(image_features=features, decoder_input_ids=tokens).logits
        for row in range(5):
            torch.testing.assert_close(logits[row], row_logits(model, features[row], tokens[row].tolist())[0])


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_loss_is_the_formula(attention, smoothing):
    model = tiny_model(attention=attention, doubly_stochastic_lambda=0.7, label_smoothing=smoothing)
    images, labels = random_images(), random_labels(rows=3)
    inputs = model.prepare_decoder_input_ids_from_labels(labels).flatten(0, 1)
    assert (inputs[:, 0] == 2).all()
    with torch.no_grad():
        plain = model(pixel_values=images, decoder_input_ids=inputs, output_attentions=True)
        in_evaluation = model(pixel_values=images, labels=labels)
        in_training = model.train()(pixel_values=images.clone(), labels=labels)
    # training mode changes the batch statistics of the CNN; take the regions as given to compare the loss alone
    model.eval()
    features = model.vision_encoder(images)[0].detach()
    in_training = model.train()(image_features=features, labels=labels)
    rows = labels.flatten(0, 1)
    plain = model.eval()(image_features=features, decoder_input_ids=inputs, output_attentions=True)

    def expected(epsilon):
        total, count = 0.0, 0
        for row in range(len(rows)):
            steps = [t for t in range(rows.shape[1]) if rows[row, t] != -100]
            for t in steps:
                logprobs = plain.logits[row, t].log_softmax(-1)
                total += -(1 - epsilon) * logprobs[rows[row, t]] - epsilon * logprobs.mean()
            count += len(steps)
            if steps and attention != "none":
                alpha = plain.cross_attentions[0][row].mean(0)  # (T, L)
                total += 0.7 * sum((1 - sum(alpha[t, i] for t in steps)) ** 2 for i in range(alpha.shape[1]))
        return total / count

    torch.testing.assert_close(in_training.loss, expected(smoothing))
    in_evaluation = model(image_features=features, labels=labels)
    torch.testing.assert_close(in_evaluation.loss, expected(0.0))
    halves = model(image_features=features, labels=labels, num_items_in_batch=torch.tensor(5))
    torch.testing.assert_close(halves.loss * 5, in_evaluation.loss * (labels != -100).sum())


def additive_alignment(dtype):
    """An alignment, and what it is given of three images with five rows each: states (15, 7), keys (3, 1, 11, 6)."""
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(5), dtype=dtype)
    alignment = AdditiveAlignment(SimpleNamespace(hidden_size=7, attention_size=6)).to(dtype)
    return alignment, draw(15, 7).requires_grad_(), draw(3, 1, 11, 6).requires_grad_(), draw(3, 1, 5, 11)


def gradients_of_additive_scores(make, alignment, state, keys, weights):
    inputs = state, keys, alignment.query.weight, alignment.score.weight
    return torch.autograd.grad((make(alignment, state, keys) * weights).sum(), inputs)


def plain_additive_scores(alignment, state, keys):
    query = alignment.query(state).view(3, 1, 5, 1, 6)
    return alignment.score(torch.tanh(keys[:, :, None] + query))[..., 0]


def test_additive_scores_in_training_have_the_formulas_gradients():
    given = additive_alignment(torch.float64)
    torch.testing.assert_close(given[0](*given[1:3]), plain_additive_scores(*given[:3]))
    found = gradients_of_additive_scores(AdditiveAlignment.forward, *given)
    for gradient, expected in zip(found, gradients_of_additive_scores(plain_additive_scores, *given), strict=True):
        assert gradient.abs().min() > 0
        torch.testing.assert_close(gradient, expected)


def test_additive_scores_under_autocast_are_nearer_than_bfloat16():
    given = additive_alignment(torch.float32)
    exact = plain_additive_scores(*given[:3])
    with torch.autocast("cpu", torch.bfloat16):
        found, coarse = given[0](*given[1:3]), plain_additive_scores(*given[:3])
        gradients = gradients_of_additive_scores(AdditiveAlignment.forward, *given)
    assert found.dtype == torch.float32 and (found - exact).abs().mean() < (coarse - exact).abs().mean()
    for gradient, expected in zip(gradients, gradients_of_additive_scores(plain_additive_scores, *given), strict=True):
        assert gradient.dtype == torch.float32 and (gradient - expected).norm() < 0.02 * expected.norm()


def test_logits_of_real_tokens_are_the_same_in_training():
    model = tiny_model()
    features, labels = torch.randn(3, 16, 12), random_labels()
    evaluated = model(image_features=features, labels=labels).logits
    trained = model.train()(image_features=features, labels=labels).logits
    real = labels.flatten(0, 1) != -100
    torch.testing.assert_close(trained[real], evaluated[real])
    assert (trained[~real] == 0).all() and not real.all()


def test_an_empty_batch_of_captions_has_a_finite_loss():
    model = tiny_model().train()
    labels = torch.full((3, 2, 4), -100)
    loss = model(image_features=torch.randn(3, 16, 12), labels=labels).loss
    assert torch.isfinite(loss) and loss == 0


def test_logits_to_keep():
    model = tiny_model()
    images, tokens = random_images(), torch.randint(4, 40, (3, 5))
    everything = model(pixel_values=images, decoder_input_ids=tokens).logits
    torch.testing.assert_close(
        model(pixel_values=images, decoder_input_ids=tokens, logits_to_keep=2).logits, everything[:, -2:]
    )


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("layers", [1, 2])
def test_cached_steps_equal_one_pass(attention, cell, layers):
    model = tiny_model(attention=attention, cell=cell, num_layers=layers)
    images, tokens = random_images(2), torch.randint(4, 40, (4, 7))
    with torch.no_grad():
        whole = model(pixel_values=images, decoder_input_ids=tokens).logits
        encoder_outputs, cache, parts = model.get_encoder()(images), None, []
        for part in tokens.split([3, 1, 2, 1], dim=1):
            outputs = model(
                encoder_outputs=encoder_outputs, decoder_input_ids=part, past_key_values=cache, use_cache=True
            )
            cache = outputs.past_key_values
            parts.append(outputs.logits)
    assert cache.get_seq_length() == 7
    torch.testing.assert_close(torch.cat(parts, dim=1), whole)


def test_hidden_states_and_tuples():
    model = tiny_model(num_layers=2)
    images, tokens = random_images(), torch.randint(4, 40, (3, 5))
    outputs = model(pixel_values=images, decoder_input_ids=tokens, output_hidden_states=True, use_cache=False)
    assert [tuple(state.shape) for state in outputs.decoder_hidden_states] == [(3, 5, 16)] * 2
    as_tuple = model(pixel_values=images, decoder_input_ids=tokens, use_cache=False, return_dict=False)
    torch.testing.assert_close(as_tuple[0], outputs.logits)


def test_attention_is_a_distribution_over_regions():
    model = tiny_model(attention="multi_head")
    outputs = model(pixel_values=random_images(), labels=random_labels(), output_attentions=True)
    (weights,) = outputs.cross_attentions
    assert weights.shape == (6, 2, 6, 16)
    torch.testing.assert_close(weights.sum(-1), torch.ones(6, 2, 6))
    assert F.l1_loss(weights[:, 0], weights[:, 1]) > 1e-3  # heads differ


@pytest.mark.parametrize(
    "inputs,message",
    [
        (dict(), "decoder_input_ids"),
        (dict(decoder_input_ids=torch.ones(3, 2, dtype=torch.long)), "pixel_values"),
        (
            dict(
                pixel_values=torch.zeros(2, 3, 32, 32, dtype=torch.float64),
                decoder_input_ids=torch.ones(3, 2, dtype=torch.long),
            ),
            "multiple",
        ),
        (
            dict(pixel_values=torch.zeros(2, 1, 32, 32), decoder_input_ids=torch.ones(2, 2, dtype=torch.long)),
            "3, height",
        ),
        (dict(image_features=torch.zeros(2, 5, 7), decoder_input_ids=torch.ones(2, 2, dtype=torch.long)), "12"),
    ],
)
def test_bad_input_is_named(inputs, message):
    with pytest.raises(ValueError, match=message):
        tiny_model()(**inputs)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_regions_of_another_width_equal_the_equations(attention):
    model = tiny_model(attention=attention, region_size=10, region_dropout=0.4)
    images, tokens = random_images(), torch.randint(0, 40, (6, 5), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        logits = model(pixel_values=images, decoder_input_ids=tokens).logits
        regions, _ = model.vision_encoder(images)
        for row in range(6):
            torch.testing.assert_close(logits[row], row_logits(model, regions[row // 2], tokens[row].tolist())[0])
    features = model.train().get_encoder()(image_features=regions)
    dropped = (features.last_hidden_state == 0).double().mean()
    kept = (model.eval().get_encoder()(image_features=regions).last_hidden_state == 0).double().mean()
    assert abs((dropped - kept) / (1 - kept) - 0.4) < 0.1
