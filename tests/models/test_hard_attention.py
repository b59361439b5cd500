"""Hard attention: one region at a time, and gradients that have the exact ones' mean (Xu et al. 2015, section 4.1)."""

import itertools
import math

import pytest
import torch
from testing.tiny_models import ATTENTIONS, random_images, random_labels, tiny_config, tiny_model

from hf_captioner import RnnCaptionerForConditionalGeneration
from hf_captioner.models import modeling_rnn_captioner

ALIGNMENTS = ATTENTIONS[1:]
pytestmark = pytest.mark.usefixtures("double")


def hard_model(attention="additive", **changes):
    settings = dict(attention_sampling="hard", doubly_stochastic_lambda=0.0, entropy_lambda=0.0, baseline_decay=1.0)
    model = tiny_model(attention=attention, **{**settings, "expected_context_probability": 0.0, **changes})
    with torch.no_grad():
        model.attention_baseline.copy_(-2.5 - 0.05 * torch.arange(len(model.attention_baseline)))
    return model


def few_regions(count=3):
    return torch.randn(1, count, 12, generator=torch.Generator().manual_seed(5)) * 0.7


def learned(model):
    return [p for name, p in model.named_parameters() if p.requires_grad and "vision_encoder" not in name]


def forced(monkeypatch, choices):
    """Hard attention takes these regions, one list (N, heads) of indices for each step, instead of drawing them."""
    steps = iter(choices)

    def select(scores, sample):
        chosen = torch.as_tensor(next(steps)).view(scores.shape[0], -1, scores.shape[1]).transpose(1, 2)
        return torch.zeros_like(scores).scatter(-1, chosen[..., None], 1)

    monkeypatch.setattr(modeling_rnn_captioner, "hard_selection", select)


def every_choice(model, features, tokens, monkeypatch):
    """
    All sequences of regions for one caption, as rows of one call: log p(s), entropy of the attention and log p(y | s),
    each (rows, T).
    """
    heads = model.config.num_attention_heads if model.config.attention == "multi_head" else 1
    length = tokens.shape[-1]
    per_step = list(itertools.product(range(features.shape[1]), repeat=heads))
    sequences = torch.tensor(list(itertools.product(per_step, repeat=length)))  # (rows, T, heads)
    with monkeypatch.context() as patch:
        forced(patch, sequences.unbind(1))
        inputs = model.prepare_decoder_input_ids_from_labels(tokens).expand(len(sequences), -1)
        outputs = model.model(
            image_features=features, decoder_input_ids=inputs, output_attentions=True, use_cache=False
        )
    log_probs = outputs.attention_log_probs  # (rows, heads, T, L)
    chosen = log_probs.gather(-1, sequences.permute(0, 2, 1)[..., None])[..., 0].sum(1)
    entropy = -(log_probs.exp() * log_probs).sum(-1).mean(1)
    words = model.lm_head(outputs.last_hidden_state).log_softmax(-1)
    return chosen, entropy, words.gather(-1, tokens.expand(len(sequences), -1)[..., None])[..., 0]


def sampled_gradients(model, features, tokens, batches=150, rows=60, **settings):
    """Gradients (batches, parameters), each the mean over many draws."""
    found = []
    for _ in range(batches):
        model.zero_grad()
        labels = tokens.expand(1, rows, -1)
        (model(image_features=features, labels=labels, num_items_in_batch=rows, **settings).loss).backward()
        found.append(torch.cat([p.grad.flatten() for p in learned(model)]))
    return torch.stack(found)


def deviations(gradients, exact):
    """By how many standard errors the mean gradient misses the exact one, (parameters,), where it varies at all."""
    error = gradients.std(0) / math.sqrt(len(gradients))
    varies = error > 1e-9
    torch.testing.assert_close(gradients.mean(0)[~varies], exact[~varies], atol=1e-7, rtol=1e-6)
    return ((gradients.mean(0) - exact)[varies] / error[varies]).abs()


@pytest.mark.slow
@pytest.mark.parametrize(
    "attention,length", [(name, 2 if name in ("general", "multi_head") else 3) for name in ALIGNMENTS]
)
def test_the_gradient_is_unbiased_and_the_baseline_lowers_its_variance(attention, length, monkeypatch):
    model = hard_model(attention).train()
    features, tokens = few_regions(), torch.tensor([[7, 21, 3]])[:, -length:]
    chosen, _, words = every_choice(model, features, tokens, monkeypatch)
    assert chosen.sum(1).exp().sum().item() == pytest.approx(1)
    bound = (chosen.sum(1).exp() * words.sum(1)).sum()
    parts = torch.autograd.grad(-bound, learned(model), allow_unused=True)
    exact = torch.cat(
        [torch.zeros(p.numel()) if g is None else g.flatten() for p, g in zip(learned(model), parts, strict=True)]
    )

    variances = {}
    means = (chosen.sum(1).exp() @ words).detach()
    for baseline, values in (("none", torch.zeros(length)), ("same", means.mean().expand(length)), ("own", means)):
        torch.manual_seed(1)
        model.attention_baseline[tokens[0]] = values
        gradients = sampled_gradients(model, features, tokens)
        missed = deviations(gradients, exact)
        assert missed.max() < 6 and missed.square().mean().sqrt() < 1.5, (baseline, missed.max())
        variances[baseline] = gradients.var(0).sum()
        distance = (gradients.mean(0) - exact).norm()
    assert variances["own"] < variances["same"] < 0.8 * variances["none"]

    # the same comparison sees it when the score function's term is missing
    model.config.reinforce_lambda = 0.0
    assert (sampled_gradients(model, features, tokens).mean(0) - exact).norm() > 5 * distance


@pytest.mark.parametrize("attention", ALIGNMENTS)
def test_straight_through_the_choice_the_gradient_is_that_of_the_expectation(attention):
    """Forward the sampled region; backward, for what makes the scores, as if the context were the expected one."""
    model = hard_model(attention, hard_gradient="straight_through").train()
    layer = model.model.decoder.attention_layer
    features, states = torch.randn(2, 5, 12), torch.randn(6, 16)
    keys, values = (tensor.detach().requires_grad_() for tensor in model.get_encoder().region_projection(features))
    torch.manual_seed(0)
    context, weights, scores = layer.attend(states, keys, values, sample=True, expects_context=None)
    assert ((weights == 0) | (weights == 1)).all() and (weights.sum(-1) == 1).all()
    chosen = weights.argmax(-1)  # (N, heads)
    assert len(set(chosen.flatten().tolist())) > 1
    gate = torch.sigmoid(layer.context_gate(states))
    drawn, expected = [], []
    for row in range(6):
        image, parts = row // 3, ([], [])
        for head in range(scores.shape[1]):
            regions = values[image, head]
            parts[0].append(regions[chosen[row, head]])
            probabilities = scores[row, head].exp() / scores[row, head].exp().sum()
            parts[1].append(sum(p * region for p, region in zip(probabilities, regions, strict=True)))
        drawn.append(gate[row] * torch.cat(parts[0]))
        expected.append(gate[row] * torch.cat(parts[1]))
    drawn, expected = torch.stack(drawn), torch.stack(expected)
    torch.testing.assert_close(context, drawn)
    direction = torch.randn_like(context)
    for parameter, as_if in ((keys, expected), (values, drawn)):
        (found,) = torch.autograd.grad((context * direction).sum(), parameter, retain_graph=True)
        (right,) = torch.autograd.grad((as_if * direction).sum(), parameter, retain_graph=True)
        assert right.abs().max() > 0
        torch.testing.assert_close(found, right)


def test_straight_through_the_choice_nothing_is_left_of_reinforce():
    constants = dict(doubly_stochastic_lambda=0.3, entropy_lambda=0.2, baseline_decay=0.5)
    model = hard_model(hard_gradient="straight_through", **constants).train()
    before = model.attention_baseline.clone()
    outputs = model(image_features=torch.randn(2, 5, 12), labels=random_labels(batch=2, rows=3))
    assert {"loss_words", "loss_doubly_stochastic", "loss_entropy"} < set(outputs.log)
    assert not {"loss_reinforce", "attention_baseline"} & set(outputs.log)
    assert torch.equal(before, model.attention_baseline)


@pytest.mark.parametrize("attention", ALIGNMENTS)
def test_the_terms_of_the_loss_are_the_papers(attention):
    """Slow sums over rows and steps, some rows with the expected context."""
    torch.manual_seed(3)
    constants = dict(doubly_stochastic_lambda=0.7, reinforce_lambda=0.9, entropy_lambda=0.3, baseline_decay=0.6)
    model = hard_model(attention, expected_context_probability=0.5, **constants).train()
    features, labels = torch.randn(3, 5, 12), random_labels(rows=3)
    seen = {}
    model.model.register_forward_hook(lambda module, args, output: seen.update(output=output))
    baseline = model.attention_baseline.clone()
    outputs = model(image_features=features, labels=labels, num_items_in_batch=7)
    weights, log_probs = seen["output"].cross_attentions[0], seen["output"].attention_log_probs
    expects = seen["output"].expects_context
    assert expects.any() and not expects.all()
    logits = model.lm_head(seen["output"].last_hidden_state)
    expected = dict.fromkeys(("words", "doubly_stochastic", "reinforce", "entropy"), 0.0)
    entropies, drawn_words = [], {}
    for row, caption in enumerate(labels.flatten(0, 1)):
        length = int((caption != -100).sum())
        words = [logits[row, t].log_softmax(-1)[caption[t]] for t in range(length)]
        alpha = log_probs[row].exp()
        for t in range(length):
            expected["words"] -= words[t]
            entropies.append(float(-(alpha[:, t].detach() * log_probs[row, :, t].detach()).sum(-1).mean()))
            expected["entropy"] -= 0.3 * entropies[-1]
            if expects[row]:
                torch.testing.assert_close(weights[row, :, t], alpha[:, t])
            else:
                assert sorted(weights[row, 0, t].tolist()) == [0, 0, 0, 0, 1]
                score = sum(log_probs[row, h, t, weights[row, h, t].argmax()] for h in range(len(alpha)))
                reward = float(sum(words[u] - baseline[caption[u]] for u in range(t, length)))
                expected["reinforce"] -= 0.9 * reward * score
                drawn_words.setdefault(int(caption[t]), []).append(float(words[t]))
        if length:
            expected["doubly_stochastic"] += 0.7 * ((1 - alpha.mean(0)[:length].sum(0)) ** 2).sum()
    for name, value in expected.items():
        torch.testing.assert_close(outputs.log[f"loss_{name}"], torch.as_tensor(value).detach() / 7, msg=name)
    torch.testing.assert_close(outputs.loss, sum(expected.values()) / 7)
    assert outputs.log["attention_entropy"].item() == pytest.approx(sum(entropies) / len(entropies))
    counts = {word: len(found) for word, found in drawn_words.items()}
    mean = sum(float(baseline[word]) * count for word, count in counts.items()) / sum(counts.values())
    assert outputs.log["attention_baseline"].item() == pytest.approx(mean)
    for word, found in drawn_words.items():
        baseline[word] = 0.6 * baseline[word] + 0.4 * sum(found) / len(found)
    torch.testing.assert_close(model.attention_baseline, baseline)


@pytest.mark.parametrize("attention", ALIGNMENTS)
def test_the_expected_context_alone_is_soft_attention(attention):
    hard = hard_model(attention, expected_context_probability=1.0, doubly_stochastic_lambda=0.4).train()
    soft = tiny_model(attention=attention, doubly_stochastic_lambda=0.4).train()
    features, labels = torch.randn(3, 5, 12), random_labels()
    losses = [model(image_features=features, labels=labels).loss for model in (hard, soft)]
    torch.testing.assert_close(*losses)
    for loss in losses:
        loss.backward()
    for mine, theirs in zip(learned(hard), learned(soft), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)
    assert torch.equal(hard.attention_baseline, hard_model(attention).attention_baseline)  # nothing was drawn


@pytest.mark.parametrize("attention", ALIGNMENTS)
def test_regions_that_are_not_chosen_contribute_nothing(attention):
    model, tokens = hard_model(attention), torch.tensor([[2, 9, 17, 30]])
    features = torch.randn(1, 6, 12)
    asked = dict(decoder_input_ids=tokens, output_attentions=True, use_cache=False)
    with torch.no_grad():
        encoder_outputs = model.get_encoder()(image_features=features)
        outputs = model(encoder_outputs=encoder_outputs, **asked)
        chosen = outputs.cross_attentions[0].amax((0, 1, 2)).bool()
        assert chosen.any() and not chosen.all()
        encoder_outputs.projected_values = encoder_outputs.projected_values.clone()
        encoder_outputs.projected_values[:, :, ~chosen] = 1e6
        torch.testing.assert_close(model(encoder_outputs=encoder_outputs, **asked).logits, outputs.logits)


def test_regions_are_drawn_as_often_as_they_are_probable():
    model, soft = hard_model(), tiny_model(attention="additive")
    features, settings = few_regions(4), dict(max_new_tokens=1, output_attentions=True, return_dict_in_generate=True)
    expected = soft.generate(encoder_outputs=soft.get_encoder()(image_features=features), **settings)
    probabilities = expected.cross_attentions[0][0].flatten()
    torch.manual_seed(0)
    model.train()  # rows are then not copies of one that is read once
    drawn = model.generate(
        encoder_outputs=model.get_encoder()(image_features=features),
        num_return_sequences=4000,
        do_sample=True,
        **settings,
    ).cross_attentions[0][0]
    assert (drawn.sum(-1) == 1).all() and (drawn.amax(-1) == 1).all()
    torch.testing.assert_close(drawn.mean((0, 1, 2)), probabilities, atol=0.03, rtol=0)
    assert probabilities.max() < 0.9


def test_sampling_regions_on_request():
    model = hard_model()
    settings = dict(max_new_tokens=5, output_attentions=True, return_dict_in_generate=True)

    def regions(**more):
        steps = model.generate(random_images(), **settings, **more).cross_attentions
        return torch.stack([step[0][:, 0, -1].argmax(-1) for step in steps])

    assert torch.equal(regions()[0], regions()[0])
    torch.manual_seed(0)
    first = regions(sample_regions=True)
    assert any(not torch.equal(first[0], regions(sample_regions=True)[0]) for _ in range(5))
    model.train()
    assert torch.equal(regions(sample_regions=False)[0], regions(sample_regions=False)[0])


def test_samples_of_one_image_choose_their_own_regions():
    """The prompt is read once per image only where that cannot be told from reading it for every row."""
    model = hard_model()
    torch.manual_seed(0)
    outputs = model.generate(
        random_images(1),
        num_return_sequences=12,
        do_sample=True,
        sample_regions=True,
        max_new_tokens=3,
        output_attentions=True,
        return_dict_in_generate=True,
    )
    assert len(outputs.cross_attentions[0][0][:, 0, -1].argmax(-1).unique()) > 1


def test_the_baseline_is_saved(tmp_path):
    model = hard_model()
    model.save_pretrained(tmp_path / "hard")
    loaded = RnnCaptionerForConditionalGeneration.from_pretrained(tmp_path / "hard")
    torch.testing.assert_close(loaded.attention_baseline.double(), model.attention_baseline)


def test_a_soft_captioner_goes_on_with_hard_attention(tmp_path):
    tiny_model(attention="additive").save_pretrained(tmp_path)
    model = RnnCaptionerForConditionalGeneration.from_pretrained(tmp_path, attention_sampling="hard")
    torch.testing.assert_close(model.attention_baseline, torch.full((40,), -math.log(40)).to(model.dtype))


@pytest.mark.parametrize("size", [60, 30])
def test_words_that_are_added_or_dropped(size):
    model = hard_model().train()
    before = model.attention_baseline[:30].clone()
    model.resize_token_embeddings(size)
    assert len(model.attention_baseline) == size and torch.equal(model.attention_baseline[:30], before)
    model(image_features=few_regions(), labels=torch.tensor([[[size - 1, 3]]])).loss.backward()
    assert model.attention_baseline.isfinite().all()


@pytest.mark.parametrize(
    "changes,message",
    [
        (dict(attention="none"), '`attention_sampling` must be "soft" with `attention="none"`'),
        (dict(attention_sampling="both"), "`attention_sampling` must be one of soft, hard, got 'both'"),
        (dict(expected_context_probability=1.5), "`expected_context_probability` must be between 0 and 1, got 1.5"),
        (dict(baseline_decay=-0.1), "`baseline_decay` must be between 0 and 1, got -0.1"),
        (dict(hard_gradient="exact"), "`hard_gradient` must be one of reinforce, straight_through, got 'exact'"),
        (dict(attention_sampling="soft", hard_gradient="straight_through"), "`hard_gradient` must be left out.*soft"),
        (dict(reinforce_lambda=-1), "`reinforce_lambda` must be at least 0, got -1"),
        (dict(entropy_lambda=-1), "`entropy_lambda` must be at least 0, got -1"),
    ],
)
def test_bad_settings_are_named(changes, message):
    with pytest.raises(Exception, match=message):
        tiny_config(**{"attention_sampling": "hard", **changes})
