"""The image's side exists once per image: k rows give what repeated images give, and nothing is stored per row."""

import copy

import pytest
import torch
from testing.tiny_models import SYSTEMS, random_images, random_labels, tiny_model
from transformers import Cache

pytestmark = pytest.mark.usefixtures("double")

ROWS = (1, 3, 5)


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("rows", ROWS)
def test_loss_and_gradients_equal_repetition(system, rows):
    shared = tiny_model(**SYSTEMS[system], **({"context_mlp": True} if system == "dot" else {}))
    repeated = copy.deepcopy(shared)
    images, labels = random_images(), random_labels(rows=rows)
    loss = shared(pixel_values=images, labels=labels).loss
    slow = repeated(pixel_values=images.repeat_interleave(rows, 0), labels=labels.flatten(0, 1)).loss
    torch.testing.assert_close(loss, slow)
    loss.backward()
    slow.backward()
    for (name, mine), theirs in zip(shared.named_parameters(), repeated.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, msg=lambda m, n=name: f"{n}: {m}")
    torch.testing.assert_close(shared(pixel_values=images, labels=labels.flatten(0, 1)).loss, loss)


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("rows", ROWS)
def test_beams_and_samples_equal_repetition(system, rows):
    model = tiny_model(**SYSTEMS[system])
    images = random_images()
    repeated = images.repeat_interleave(rows, 0)
    if rows > 1:
        # k returned beams of an image are the k best of the same search on each of its copies
        found = model.generate(images, num_beams=rows, num_return_sequences=rows, max_new_tokens=6)
        slow = model.generate(repeated, num_beams=rows, num_return_sequences=rows, max_new_tokens=6)
        slow = slow.unflatten(0, (3, rows, rows))[:, -1].flatten(0, 1)
        assert torch.equal(found, slow)
    torch.manual_seed(0)
    found = model.generate(images, do_sample=True, num_return_sequences=rows, max_new_tokens=6)
    torch.manual_seed(0)
    assert torch.equal(found, model.generate(repeated, do_sample=True, max_new_tokens=6))


class Spy:
    """Counts the vision model's images and keeps all that the decoder is given, its cache too."""

    def __init__(self, model):
        self.images, self.given = [], []
        model.vision_encoder.model.register_forward_pre_hook(self._see, with_kwargs=True)
        model.model.decoder.register_forward_pre_hook(self._keep, with_kwargs=True)

    def _see(self, module, args, kwargs):
        self.images.append(kwargs["pixel_values"].shape[0])

    def _keep(self, module, args, kwargs):
        self.given += _tensors((args, kwargs))


def _tensors(value):
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, Cache):
        caches = [cache for cache in vars(value).values() if isinstance(cache, Cache)]  # an EncoderDecoderCache's
        yield from _tensors([vars(layer) for cache in caches or [value] for layer in cache.layers])


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_encoder_runs_once_per_image(system):
    model = tiny_model(**SYSTEMS[system])
    spy = Spy(model)
    model(pixel_values=random_images(), labels=random_labels(rows=5))
    assert spy.images == [3]
    model.generate(random_images(2), num_beams=5, num_return_sequences=4, max_new_tokens=4)
    assert spy.images == [3, 2]


@pytest.mark.parametrize("system", SYSTEMS)
def test_nothing_with_regions_is_stored_per_row_during_beam_search(system):
    model = tiny_model(**SYSTEMS[system])
    spy = Spy(model)
    # a square number of regions that neither rows (10), beams, widths nor steps have
    features = torch.randn(2, 25, 12)
    encoder_outputs = model.get_encoder()(image_features=features)
    addresses = {tensor.data_ptr() for tensor in _tensors(dict(encoder_outputs)) if 25 in tensor.shape}
    outputs = model.generate(
        encoder_outputs=encoder_outputs, num_beams=5, max_new_tokens=5, return_dict_in_generate=True
    )
    with_regions = [tensor for tensor in spy.given if 25 in tensor.shape]
    assert with_regions and all(tensor.shape[0] == 2 for tensor in with_regions)
    assert {tensor.data_ptr() for tensor in with_regions} <= addresses  # used in place, not copied
    stored = list(_tensors(outputs.past_key_values))
    for per_row in (stored, [tensor for tensor in spy.given if tensor.shape[0] == 10]):
        assert per_row and not any(25 in tensor.shape for tensor in per_row)


@pytest.mark.parametrize("system", SYSTEMS)
def test_encoder_outputs_of_the_caller_are_left_alone(system):
    model = tiny_model(**SYSTEMS[system])
    with torch.no_grad():
        encoder_outputs = model.get_encoder()(random_images())
    before = copy.deepcopy(dict(encoder_outputs))
    first = model.generate(encoder_outputs=encoder_outputs, num_beams=4, max_new_tokens=4)
    torch.testing.assert_close(dict(encoder_outputs), before, rtol=0, atol=0)
    assert torch.equal(model.generate(encoder_outputs=encoder_outputs, num_beams=4, max_new_tokens=4), first)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("system", SYSTEMS)
def test_a_prompt_is_read_once_per_image(system, padded):
    """Four beams of two images begin as 2 rows; what they give, attentions too, is as if every row had been read."""
    model = tiny_model(**SYSTEMS[system])
    encoder_outputs, tokens = model.get_encoder()(random_images(2)), torch.tensor([[2, 5, 6], [2, 7, 4]])
    asked = dict(output_attentions=True, output_hidden_states=True, output_scores=True, return_dict_in_generate=True)
    settings = dict(encoder_outputs=encoder_outputs, decoder_input_ids=tokens, num_beams=4, max_new_tokens=4, **asked)
    if padded:
        tokens[1] = torch.tensor([model.config.pad_token_id, 2, 7])
        settings["decoder_attention_mask"] = (tokens != model.config.pad_token_id).long()
    seen = []
    model.get_input_embeddings().register_forward_pre_hook(lambda module, args: seen.append(tuple(args[0].shape)))
    found = model.generate(**settings)
    assert seen[:2] == [(2, 3), (8, 1)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hf_captioner.models.compat._are_copies", lambda rows, copies: False)
        seen.clear()
        expected = model.generate(**settings)
        assert seen[:2] == [(8, 3), (8, 1)]
    assert torch.equal(found.sequences, expected.sequences)
    for name in ("scores", "cross_attentions", "decoder_hidden_states", "sequences_scores"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name))
    if padded:
        alone = model.generate(random_images(2)[1:], decoder_input_ids=tokens[1:, 1:], num_beams=4, max_new_tokens=4)
        assert torch.equal(found.sequences[1, 1:][: alone.shape[1]], alone[0])


def test_prompts_of_one_image_may_differ():
    model = tiny_model(attention="additive")
    encoder_outputs, tokens = model.get_encoder()(random_images(1)), torch.tensor([[2, 5], [2, 6], [2, 7], [2, 7]])
    found = model.generate(encoder_outputs=encoder_outputs, decoder_input_ids=tokens, max_new_tokens=4)
    for row in range(4):
        alone = model.generate(random_images(1), decoder_input_ids=tokens[[row]], max_new_tokens=4)
        assert torch.equal(found[row, : alone.shape[1]], alone[0])


def test_additive_scores_in_chunks_equal_all_at_once():
    model = tiny_model(attention="additive")
    alignment = model.model.decoder.attention_layer.alignment
    keys, state = torch.randn(3, 1, 16, 8), torch.randn(15, 16)
    whole = alignment(state, keys)
    with torch.no_grad():
        torch.testing.assert_close(alignment(state, keys), whole)


@pytest.mark.parametrize("system", SYSTEMS)
def test_gradients_reach_what_lies_behind_image_features(system):
    model = tiny_model(**SYSTEMS[system])
    model.train()  # hard attention learns to choose in training alone
    features = torch.randn(3, 16, 12, requires_grad=True)
    model(image_features=features, labels=random_labels()).loss.backward()
    assert features.grad.abs().sum() > 0
    for name, parameter in model.model.encoder.named_parameters():
        assert parameter.grad is not None or "vision_encoder" in name, name
