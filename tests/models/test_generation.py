"""generate() against plain loops, for every kind of captioner."""

import pytest
import torch
from testing.reference import beam_search, greedy, row_logits, sample_batch
from testing.tiny_models import ATTENTIONS, SYSTEMS, TRANSFORMERS, random_images, tiny_model

pytestmark = pytest.mark.usefixtures("double")

KINDS = {
    **{
        f"{attention}-{cell}-{layers}": dict(attention=attention, cell=cell, num_layers=layers)
        for attention in ATTENTIONS
        for cell in ("lstm", "gru")
        for layers in (1, 2)
    },
    **TRANSFORMERS,
}


def padded(sequences):
    longest = max(map(len, sequences))
    return torch.tensor([list(sequence) + [1] * (longest - len(sequence)) for sequence in sequences])


def model_and_regions(seed=0, eos=1.0, **changes):
    """`eos` makes the end more or less likely."""
    model = tiny_model(seed=seed, **changes)
    images = random_images()
    with torch.no_grad():
        model.lm_head.weight[3] *= eos
        regions = model.vision_encoder(images)[0]
    return model, images, regions


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy(kind, use_cache):
    model, images, regions = model_and_regions(**KINDS[kind])
    expected = padded([greedy(model, image, 8) for image in regions])
    assert torch.equal(model.generate(images, max_new_tokens=8, do_sample=False, use_cache=use_cache), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_sampling(kind):
    model, images, regions = model_and_regions(**KINDS[kind], eos=1.5)
    torch.manual_seed(5)
    found = model.generate(images, max_new_tokens=6, do_sample=True, top_k=0, num_return_sequences=3)
    torch.manual_seed(5)
    assert torch.equal(found, padded(sample_batch(model, regions, 6, rows=3)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("use_cache", [True, False])
def test_beam(kind, use_cache):
    model, images, regions = model_and_regions(**KINDS[kind], eos=1.5)
    found = model.generate(images, num_beams=3, max_new_tokens=6, use_cache=use_cache)
    assert torch.equal(found, padded([beam_search(model, image, 3, 6)[0][1] for image in regions]))


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("early_stopping", [False, True])
@pytest.mark.parametrize("eos", [0.5, 2.0])
def test_beam_settings(length_penalty, early_stopping, eos):
    model, images, regions = model_and_regions(seed=4, eos=eos)
    settings = dict(length_penalty=length_penalty, early_stopping=early_stopping, num_return_sequences=3)
    outputs = model.generate(
        images, num_beams=4, max_new_tokens=7, return_dict_in_generate=True, output_scores=True, **settings
    )
    expected = [found for image in regions for found in beam_search(model, image, 4, 7, **settings)]
    assert torch.equal(outputs.sequences, padded([tokens for _, tokens in expected]))
    torch.testing.assert_close(
        outputs.sequences_scores,
        torch.tensor([score for score, _ in expected]),
        atol=1e-4,
        rtol=1e-4,
        check_dtype=False,  # versions of transformers differ
    )
    steps = model.compute_transition_scores(outputs.sequences, outputs.scores, outputs.beam_indices)
    lengths = (outputs.beam_indices >= 0).sum(1)
    torch.testing.assert_close(
        steps.sum(1) / lengths**length_penalty, outputs.sequences_scores, atol=1e-4, rtol=1e-4, check_dtype=False
    )


def test_no_repeated_ngrams():
    model, images, regions = model_and_regions(seed=7, eos=0.0)
    settings = dict(no_repeat_ngram_size=2)
    found = model.generate(images, num_beams=3, max_new_tokens=9, **settings)
    assert torch.equal(found, padded([beam_search(model, image, 3, 9, **settings)[0][1] for image in regions]))
    for row in found.tolist():
        pairs = list(zip(row[1:], row[2:], strict=False))
        assert len(set(pairs)) == len(pairs)
    assert not torch.equal(found, model.generate(images, num_beams=3, max_new_tokens=9))


@pytest.mark.parametrize("num_beams", [1, 5])
def test_something_comes_back_without_an_end(num_beams):
    model, images, _ = model_and_regions(eos=0.0)
    with torch.no_grad():
        model.lm_head.weight[3] = 0
        model.lm_head.weight[4] += 1
    found = model.generate(images, num_beams=num_beams, max_new_tokens=5, suppress_tokens=[3])
    assert found.shape == (3, 6) and not (found == 3).any()


def test_a_prompt_is_continued():
    model, images, regions = model_and_regions()
    prompt = torch.tensor([[2, 7, 9], [2, 5, 30], [2, 11, 4]])
    found = model.generate(images, decoder_input_ids=prompt, max_new_tokens=3, do_sample=False)
    assert torch.equal(found[:, :3], prompt)
    for row in range(3):
        next_token = int(row_logits(model, regions[row], prompt[row].tolist())[0][-1].argmax())
        assert int(found[row, 3]) == next_token


@pytest.mark.parametrize("system", list(SYSTEMS)[1:])
@pytest.mark.parametrize("num_beams,returned", [(1, 1), (4, 3)])
def test_attention_maps_are_those_of_the_returned_caption(system, num_beams, returned):
    model = tiny_model(**SYSTEMS[system], seed=2)
    regions = 2 * torch.randn(8, 16, 12, generator=torch.Generator().manual_seed(7 if system == "general" else 6))
    asked = dict(
        encoder_outputs=model.get_encoder()(image_features=regions),
        num_beams=num_beams,
        num_return_sequences=returned,
        max_new_tokens=7,
        output_attentions=True,
        return_dict_in_generate=True,
    )
    # a second end that makes some captions shorter than others
    for end in model.generate(**asked).sequences.unique().clamp(min=4).tolist():
        model.generation_config.eos_token_id = [3, end]
        outputs = model.generate(**asked)
        if 0 < (outputs.sequences[:, -1] == 1).sum() < len(outputs.sequences):  # padding
            break
    maps = model.attention_maps(outputs, grid=(2, 8))
    heads = outputs.cross_attentions[0][-1].shape[1]
    last_head = model.attention_maps(outputs, grid=(2, 8), head=heads - 1)
    assert maps.shape[0] == 8 * returned and maps.shape[2:] == (2, 8)
    ended_early = 0
    for row, tokens in enumerate(outputs.sequences.tolist()):
        length = next((i for i, token in enumerate(tokens) if token in (3, end)), len(tokens) - 1)
        _, weights = row_logits(model, regions[row // returned], tokens[:length])
        torch.testing.assert_close(maps[row, :length].flatten(1), weights.mean(0))
        torch.testing.assert_close(last_head[row, :length].flatten(1), weights[-1])
        assert (maps[row, length:] == 0).all()
        ended_early += length < maps.shape[1]
    assert ended_early


def test_attention_maps_refuse_what_they_cannot_show():
    images = random_images()
    asked = dict(max_new_tokens=3, output_attentions=True, return_dict_in_generate=True)
    pooled = tiny_model(attention="none")
    outputs = pooled.generate(images, **asked)
    assert outputs.cross_attentions is None
    with pytest.raises(ValueError, match="cross_attentions"):
        pooled.attention_maps(outputs)
    model = tiny_model()
    with pytest.raises(ValueError, match="16 cells"):
        model.attention_maps(model.generate(images, **asked), grid=(3, 5))
    with pytest.raises(ValueError, match="output_attentions"):
        model.attention_maps(model.generate(images, max_new_tokens=3, return_dict_in_generate=True))


def test_from_image_features():
    model, images, regions = model_and_regions()
    encoder_outputs = model.get_encoder()(image_features=regions)
    assert torch.equal(
        model.generate(encoder_outputs=encoder_outputs, num_beams=3, max_new_tokens=6),
        model.generate(images, num_beams=3, max_new_tokens=6),
    )
