"""Maps, each against its definition, written out slowly."""

import numpy as np
import pytest
import torch
from testing.tiny_models import SYSTEMS, random_images, randomise, tiny_model, tiny_vit
from transformers import AutoConfig, ConvNextConfig, Dinov2WithRegistersConfig, SwinConfig

from hf_captioner.errors import InputError
from hf_captioner.explain import METHODS, deletion_and_insertion, token_maps
from hf_captioner.explain.methods import covered, integrated_gradients, log_probabilities, roll_out, vision_rollout

TOKENS = torch.tensor([2, 7, 9, 5, 3])
SOFT = [name for name in SYSTEMS if not name.startswith("hard")]  # no gradient knows of jumps between regions


def start(system, **changes):
    return tiny_model(**{**SYSTEMS[system], **changes}), random_images(1)


def slow_log_probability(model, tokens, **images):
    """Of each token, from the logits behind those before it alone."""
    found = []
    for place in range(1, len(tokens)):
        logits = model(decoder_input_ids=tokens[None, :place], use_cache=False, **images).logits[0, -1]
        found.append(logits[tokens[place]] - logits.exp().sum().log())
    return torch.stack(found)


@torch.no_grad()
def ends_of_the_path(model, images):
    regions, grid = model.vision_encoder(images)
    blank = torch.stack([torch.full_like(channel, channel.mean()) for channel in images[0]])[None]
    return regions, model.vision_encoder(blank)[0], grid


@torch.no_grad()
@pytest.mark.parametrize("system", list(SYSTEMS))
def test_log_probabilities_of_several_versions_are_those_of_each(system, double):
    model, _ = start(system)
    images = random_images(3)
    together = log_probabilities(model, TOKENS, pixel_values=images)
    for image, row in zip(images, together, strict=True):
        torch.testing.assert_close(row, slow_log_probability(model, TOKENS, pixel_values=image[None]))


@pytest.mark.parametrize("system", SOFT)
def test_gradients_are_complete(system, double):
    """Sundararajan et al.: attributions sum to the difference between the ends of the path."""
    model, images = start(system)
    randomise(model, 0.15)  # smooth along the path, as trained weights are: a jump would take thousands of steps
    regions, blank, grid = ends_of_the_path(model, images)
    maps = integrated_gradients(model, images, TOKENS, steps=64)
    with torch.no_grad():
        before, after = log_probabilities(model, TOKENS, image_features=torch.cat([blank, regions]), grid=grid)
    assert maps.shape == (4, 4, 4)
    error = (maps.sum((1, 2)) - (after - before)).abs()
    assert error.max() < 0.005 * (after - before).abs().max()


@pytest.mark.parametrize("system", ["none", "additive", "vit_transformer"])
def test_gradients_are_those_of_finite_differences(system, double):
    """The path's integral by Gauss and Legendre, its gradients from differences along every channel of a region."""
    model, images = start(system)
    regions, blank, grid = ends_of_the_path(model, images)
    maps = integrated_gradients(model, images, TOKENS, steps=6)
    points, weights = np.polynomial.legendre.leggauss(6)  # of the interval from -1 to 1
    nudge = 1e-5
    with torch.no_grad():
        for cell in (1, 11):
            expected = torch.zeros(4)
            for point, weight in zip(points, weights, strict=True):
                here = blank + (point + 1) / 2 * (regions - blank)
                versions = here.repeat(2 * here.shape[-1], 1, 1)
                for channel in range(here.shape[-1]):
                    versions[2 * channel, cell, channel] += nudge
                    versions[2 * channel + 1, cell, channel] -= nudge
                said = log_probabilities(model, TOKENS, image_features=versions, grid=grid)
                slopes = (said[::2] - said[1::2]) / (2 * nudge)  # (D, T)
                expected += weight / 2 * (regions - blank)[0, cell] @ slopes
            torch.testing.assert_close(maps[:, cell // 4, cell % 4], expected, rtol=1e-4, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("system", list(SYSTEMS))
def test_occlusion_covers_one_cell_at_a_time(system, double):
    model, images = start(system)
    maps = token_maps(model, images, TOKENS, "occlusion")
    whole = slow_log_probability(model, TOKENS, pixel_values=images)
    for row, column in ((0, 0), (2, 1), (3, 3)):
        hidden = images.clone()
        for channel in range(3):
            hidden[0, channel, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = images[0, channel].mean()
        fall = whole - slow_log_probability(model, TOKENS, pixel_values=hidden)
        torch.testing.assert_close(maps[:, row, column], fall)


@pytest.mark.parametrize("system", list(SYSTEMS)[1:])
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"do_sample": True}], ids=["greedy", "beam", "sampled"])
def test_attention_of_a_given_caption_is_that_of_its_generation(system, options):
    model, images = start(system)
    torch.manual_seed(0)
    outputs = model.generate(images, max_new_tokens=5, output_attentions=True, return_dict_in_generate=True, **options)
    maps = token_maps(model, images, outputs.sequences[0])
    torch.testing.assert_close(maps, model.attention_maps(outputs)[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(maps.sum((1, 2)), torch.ones(len(maps)))
    if system.startswith("hard"):
        heads = outputs.cross_attentions[0][0].shape[1]
        assert torch.equal(maps * heads, (maps * heads).round())  # every head chose one region


def test_rollout_follows_every_path():
    layers = tuple(torch.rand(1, 2, 3, 3).softmax(-1) for _ in range(3))
    first, second, third = ((layer[0].mean(0) + torch.eye(3)) / 2 for layer in layers)
    slow = torch.zeros(3, 3)
    for i in range(3):
        for j in range(3):
            slow[i, j] = sum(third[i, k] * second[k, m] * first[m, j] for k in range(3) for m in range(3))
    torch.testing.assert_close(roll_out(layers), slow)


@torch.no_grad()
@pytest.mark.parametrize("layer, below", [(None, (3,)), (2, (2,)), (0, (0,)), ([1, -1], (1, 3))])
def test_rollout_goes_up_to_the_layer_that_is_read(layer, below):
    vision = tiny_vit()
    vision.num_hidden_layers = 3
    model, images = start("vit_transformer", vision_config=vision, vision_feature_layer=layer)
    model.vision_encoder.model.set_attn_implementation("eager")
    attentions = model.vision_encoder.model(pixel_values=images, output_attentions=True).attentions
    expected = torch.zeros(16, 16)
    for count in below:
        joint = torch.eye(17)  # a class token, then 4 x 4 patches
        for weights in attentions[:count]:
            joint = (weights[0].mean(0) + torch.eye(17)) / 2 @ joint
        expected += joint[1:, 1:] / joint[1:, 1:].sum(1, keepdim=True) / len(below)
    torch.testing.assert_close(vision_rollout(model, images), expected)


@torch.no_grad()
def test_rollout_goes_through_encoder_layers_and_the_vision_model():
    images = random_images(1)
    for system, changes in (
        ("vit_transformer", {}),
        ("cnn_transformer", {}),
        ("vit_transformer", {"encoder_layers": 2}),
        ("additive", {"vision_config": tiny_vit()}),
    ):
        model, _ = start(system, **changes)
        expected = token_maps(model, images, TOKENS).flatten(1)
        layers = model.get_encoder()(pixel_values=images, output_attentions=True).attentions or ()
        for weights in reversed(layers):
            expected = (expected @ weights[0].mean(0) + expected) / 2
        flow = vision_rollout(model, images)
        assert (flow is None) is (system == "cnn_transformer")
        if flow is not None:
            expected = expected @ flow
        maps = token_maps(model, images, TOKENS, "rollout")
        torch.testing.assert_close(maps.flatten(1), expected)
        torch.testing.assert_close(maps.sum((1, 2)), torch.ones(4))
        assert not torch.allclose(maps, token_maps(model, images, TOKENS))


def test_rollout_leaves_the_vision_model_as_it_was():
    model, images = start("vit_transformer")
    model.set_attn_implementation("sdpa")
    before = model.vision_encoder.model.config._attn_implementation
    token_maps(model, images, TOKENS, "rollout")
    assert model.vision_encoder.model.config._attn_implementation == before == "sdpa"


@pytest.mark.parametrize(
    "config, works", [(Dinov2WithRegistersConfig, True), (SwinConfig, False), (ConvNextConfig, False)]
)
def test_rollout_of_other_vision_models(config, works):
    sizes = {
        Dinov2WithRegistersConfig: dict(
            hidden_size=12, num_hidden_layers=2, num_attention_heads=2, patch_size=8, num_register_tokens=3
        ),
        SwinConfig: dict(embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=2, patch_size=4),
        ConvNextConfig: dict(hidden_sizes=[8, 12], depths=[1, 1], num_stages=2),
    }
    vision = config(image_size=32, **sizes[config])
    assert AutoConfig.for_model(vision.model_type)
    model, images = start("additive", vision_config=vision)
    if works:
        maps = token_maps(model, images, TOKENS, "rollout")
        assert maps.shape == (4, 4, 4)
        torch.testing.assert_close(maps.sum((1, 2)), torch.ones(4))
    else:
        with pytest.raises(InputError, match="attends from every region to every other, got"):
            token_maps(model, images, TOKENS, "rollout")


def test_what_cannot_be_explained_is_said(monkeypatch):
    model, images = start("none")
    for method in ("attention", "rollout"):
        with pytest.raises(InputError, match="without attention"):
            token_maps(model, images, TOKENS, method)
    with pytest.raises(InputError, match=f"one of {', '.join(METHODS)}, got 'saliency'"):
        token_maps(model, images, TOKENS, "saliency")
    monkeypatch.setitem(__import__("sys").modules, "captum.attr", None)
    with pytest.raises(InputError, match=r"captum: pip install 'hf_captioner\[explain\]'"):
        token_maps(model, images, TOKENS, "gradient")
    with pytest.raises(InputError, match="evaluation mode"):
        token_maps(model.train(), images, TOKENS, "occlusion")


def test_cells_are_covered_in_the_mean_colour():
    images = random_images(1)
    hidden = torch.zeros(2, 2, 4, dtype=torch.bool)
    hidden[0, 1, 2] = True
    one, none = covered(images, hidden)
    assert torch.equal(none, images[0])
    expected = images[0].clone()
    expected[:, 16:, 16:24] = images[0].mean((1, 2))[:, None, None]
    torch.testing.assert_close(one, expected)


@torch.no_grad()
@pytest.mark.parametrize("steps", [5, 20])
def test_deletion_and_insertion_are_curves_drawn_by_hand(steps, double):
    model, images = start("additive")
    weights = torch.rand(4, 4)
    order = sorted(range(16), key=lambda cell: -weights.flatten()[cell])
    points = [(step * 16 // steps) for step in range(steps + 1)]
    mean = images.mean((2, 3), keepdim=True)
    curves = []
    for deletes in (True, False):
        curve = []
        for count in points:
            version = images.clone() if deletes else mean.expand_as(images).clone()
            for cell in order[:count]:
                place = (..., slice(cell // 4 * 8, cell // 4 * 8 + 8), slice(cell % 4 * 8, cell % 4 * 8 + 8))
                version[place] = mean.expand_as(images)[place] if deletes else images[place]
            curve.append(slow_log_probability(model, TOKENS, pixel_values=version)[2].exp())
        areas = [(b - a) / 16 * (p + q) / 2 for a, b, p, q in zip(points, points[1:], curve, curve[1:], strict=False)]
        curves.append(float(sum(areas)))
    found = deletion_and_insertion(model, images, TOKENS, 2, weights, steps)
    assert found == pytest.approx(curves) and found[0] != pytest.approx(found[1])


def test_prefix_tokens_that_are_kept_have_no_place_in_a_map(double):
    """The class token is one of the regions, and of no cell."""
    model, images = start("vit_transformer", keep_prefix_tokens=True)
    assert model.vision_encoder(images)[0].shape[1] == 17
    with torch.no_grad():
        outputs = model(pixel_values=images, decoder_input_ids=TOKENS[None, :-1], output_attentions=True)
    weights = outputs.cross_attentions[-1][0].mean(0)
    torch.testing.assert_close(METHODS["attention"](model, images, TOKENS), weights[:, 1:].unflatten(-1, (4, 4)))
    flow = vision_rollout(model, images)
    expected = torch.zeros(4, 16)
    for region in range(17):
        expected += weights[:, region, None] * flow[region]
    torch.testing.assert_close(METHODS["rollout"](model, images, TOKENS), expected.unflatten(-1, (4, 4)))
    for method in ("gradient", "occlusion"):
        assert METHODS[method](model, images, TOKENS).shape == (4, 4, 4)
