"""Searches against generate(), lists, loops and enumeration."""

import itertools
import math

import pytest
import torch
from testing.outside.configuration_gru_transformer import GruTransformerConfig
from testing.outside.modeling_gru_transformer import GruTransformerForConditionalGeneration
from testing.reference import row_logits
from testing.tiny_models import SYSTEMS, random_images, randomise, tiny_model, tiny_vision

from hf_captioner.decoding import (
    constrained_beam_search,
    diverse_beam_search,
    ensemble,
    minimum_bayes_risk,
    stochastic_beam_search,
)
from hf_captioner.errors import InputError

FULL = dict(return_dict_in_generate=True, output_scores=True, output_attentions=True, max_new_tokens=7)
SAME = {"diverse": diverse_beam_search, "constrained": constrained_beam_search, "ensemble": ensemble}


def make(system: str):
    if system != "outside":
        return tiny_model(**SYSTEMS[system])
    config = GruTransformerConfig(vision_config=tiny_vision(), vocab_size=40, hidden_size=16, dropout=0.0)
    return randomise(GruTransformerForConditionalGeneration(config))


@pytest.mark.parametrize("system", [*SYSTEMS, "outside"])
@pytest.mark.parametrize("name", SAME)
def test_what_extends_nothing_is_beam_search(name, system):
    model, images = make(system), random_images()
    prompt = torch.tensor([[1, 2, 5], [2, 6, 7], [1, 1, 2]])  # padded on the left
    prompts = [{}, dict(decoder_input_ids=prompt, decoder_attention_mask=(prompt != 1).long())]
    for more in ({}, dict(early_stopping=True, length_penalty=0.5, no_repeat_ngram_size=2), dict(use_cache=False)):
        for given in prompts:
            options = dict(FULL, num_beams=4, num_return_sequences=3, **more, **given)
            expected = model.generate(images, **options)
            found = model.generate(images, custom_generate=SAME[name], **options)
            assert found.sequences.tolist() == expected.sequences.tolist()
            torch.testing.assert_close(found.sequences_scores, expected.sequences_scores)
            assert found.beam_indices.tolist() == expected.beam_indices.tolist()
            if model.config.attends:
                torch.testing.assert_close(model.attention_maps(found), model.attention_maps(expected))
    assert torch.equal(
        model.generate(images, custom_generate=SAME[name], num_beams=4, max_new_tokens=7),
        model.generate(images, num_beams=4, max_new_tokens=7),
    )


def slow_diverse(model, regions, groups, beams, penalty, steps):
    """Lists of (score, tokens) for each group, all beams of a group that run until `steps`."""
    running = [[(0.0, [model.config.decoder_start_token_id])] for _ in range(groups)]
    finished = [[] for _ in range(groups)]
    over = [False] * groups
    for step in range(steps):
        said = [0] * model.config.vocab_size
        for group in range(groups):
            candidates = []
            for score, tokens in running[group]:
                words = row_logits(model, regions, tokens)[0][-1].float().log_softmax(-1)
                candidates += [
                    (score + float(word) - penalty * said[token], [*tokens, token]) for token, word in enumerate(words)
                ]
            candidates.sort(key=lambda each: -each[0])
            running[group] = []
            for rank, (score, tokens) in enumerate(candidates[: 2 * beams]):
                if tokens[-1] == model.config.eos_token_id or step == steps - 1:
                    if rank < beams and not over[group]:
                        finished[group].append((score / (len(tokens) - 1), tokens))
                elif len(running[group]) < beams:
                    running[group].append((score, tokens))
            going_on = [tokens[-1] for _, tokens in candidates if tokens[-1] != model.config.eos_token_id]
            for token in going_on[:beams]:  # at the last step, too
                said[token] += 1
            finished[group] = sorted(finished[group], key=lambda each: -each[0])[:beams]
            if len(finished[group]) == beams and running[group]:
                over[group] |= running[group][0][0] / (step + 1) <= finished[group][-1][0]
        if all(over):
            break
    ranks = [sorted(each, key=lambda found: -found[0]) for each in zip(*finished, strict=True)]
    return [found for rank in ranks for found in rank]


@pytest.mark.parametrize("system", ["additive", "none", "vit_transformer"])
def test_diverse_beam_search_is_that_of_lists(system):
    model, images = make(system), random_images()
    found = model.generate(
        images,
        custom_generate=diverse_beam_search,
        num_beams=6,
        num_beam_groups=3,
        diversity_penalty=0.7,
        num_return_sequences=6,
        **FULL,
    )
    regions, _ = model.get_encoder().vision_encoder.regions(images, None, None)
    for image in range(len(images)):
        expected = slow_diverse(model, regions[image], 3, 2, 0.7, 7)
        rows = found.sequences[6 * image : 6 * image + 6, :]
        ends = model.ends_before(rows[:, 1:])
        got = [[2, *row[1:][~gone].tolist()] for row, gone in zip(rows, ends, strict=True)]
        assert got == [tokens for _, tokens in expected]
        scores = found.sequences_scores[6 * image : 6 * image + 6]
        torch.testing.assert_close(scores, torch.tensor([score for score, _ in expected]), atol=1e-4, rtol=1e-4)


def test_the_default_penalty_is_a_half():
    model, images = make("additive"), random_images()
    options = dict(custom_generate=diverse_beam_search, num_beams=5, num_beam_groups=5, num_return_sequences=5, **FULL)
    found = model.generate(images, **options)
    half = model.generate(images, diversity_penalty=0.5, **options)
    assert found.sequences.tolist() == half.sequences.tolist()
    torch.testing.assert_close(found.sequences_scores, half.sequences_scores)
    none = model.generate(images, diversity_penalty=0.0, **options)
    assert (found.sequences_scores < none.sequences_scores - 0.01).any()


def enumerate_captions(model, regions, steps):
    """All captions of a tiny vocabulary: tokens -> log probability."""
    found, open_ = {}, {(): 0.0}
    for step in range(steps):
        following = {}
        for tokens, score in open_.items():
            words = row_logits(model, regions, [2, *tokens])[0][-1].float().log_softmax(-1)
            for token, word in enumerate(words.tolist()):
                ended = token == 3 or step == steps - 1
                (found if ended else following)[(*tokens, token)] = score + word
        open_ = following
    return found


@pytest.mark.parametrize("forced", [[[5]], [[5, 4]], [[5], [4, 6]], [[[5, 5], [6]]], [[4], [4, 5]]])
def test_a_forced_word_is_said_at_the_best_score_there_is(forced):
    model, images = tiny_model(vocab_size=7), random_images(2)
    regions, _ = model.get_encoder().vision_encoder.regions(images, None, None)
    found = model.generate(
        images,
        custom_generate=constrained_beam_search,
        force_words_ids=forced,
        num_beams=400,
        **{**FULL, "max_new_tokens": 4},
    )

    def says(tokens, phrase):
        return any(list(tokens[i : i + len(phrase)]) == phrase for i in range(len(tokens)))

    groups = [entry if isinstance(entry[0], list) else [entry] for entry in forced]
    for image in range(2):
        every = enumerate_captions(model, regions[image], 4)
        allowed = {t: s / len(t) for t, s in every.items() if all(any(says(t, p) for p in g) for g in groups)}
        best = max(allowed, key=allowed.get)
        assert found.sequences[image, 1 : 1 + len(best)].tolist() == list(best)
        assert found.sequences_scores[image].item() == pytest.approx(allowed[best], abs=1e-4)


@pytest.mark.parametrize("system", ["additive", "none", "hard_additive", "cnn_transformer", "outside"])
def test_forced_and_forbidden_words(system):
    model = make(system)
    for word in range(4, 40, 3):
        other = [word, (word + 7) % 36 + 4]
        tokens = model.generate(
            random_images(4, seed=word),
            custom_generate=constrained_beam_search,
            force_words_ids=[[word], other],
            bad_words_ids=[[(word + 5) % 36 + 4]] if (word + 5) % 36 + 4 not in other else None,
            num_beams=3,
            max_new_tokens=5,
        )
        for row in tokens.tolist():
            assert any(row[i : i + 2] == other for i in range(len(row)))
    with pytest.raises(InputError, match="must fit into the 2 tokens"):
        model.generate(
            random_images(1), custom_generate=constrained_beam_search, force_words_ids=[[5, 6, 7]], max_new_tokens=2
        )
    with pytest.raises(InputError, match="some of them forbidden"):
        model.generate(
            random_images(1),
            custom_generate=constrained_beam_search,
            force_words_ids=[[5]],
            bad_words_ids=[[5]],
            num_beams=2,
            max_new_tokens=3,
        )


def test_stochastic_beam_search_draws_without_replacement():
    """First draws and ordered pairs have the probabilities p(a) and p(a) p(b) / (1 - p(a))."""
    model, image = tiny_model(vocab_size=6), random_images(1)
    with torch.no_grad():
        model.lm_head.weight *= 0.3  # captions that are likely enough to be counted
    regions, _ = model.get_encoder().vision_encoder.regions(image, None, None)
    probability = {t: torch.tensor(s).exp().item() for t, s in enumerate_captions(model, regions[0], 2).items()}
    torch.manual_seed(0)
    draws = 6000
    out = model.generate(
        image.expand(draws, -1, -1, -1),
        custom_generate=stochastic_beam_search,
        num_beams=2,
        num_return_sequences=2,
        **{**FULL, "max_new_tokens": 2},
    )
    rows = [tuple(row[: row.index(3) + 1]) if 3 in row else tuple(row) for row in out.sequences[:, 1:].tolist()]
    for row, value in zip(rows[:50], out.log_probs[:50].exp().tolist(), strict=True):
        assert value == pytest.approx(probability[row], abs=1e-5)
    pairs = list(zip(rows[::2], rows[1::2], strict=True))
    assert all(a != b for a, b in pairs)
    chi, cells = 0.0, 0
    for a, b in itertools.permutations(probability, 2):
        expected = draws * probability[a] * probability[b] / (1 - probability[a])
        if expected >= 5:
            chi, cells = chi + (pairs.count((a, b)) - expected) ** 2 / expected, cells + 1
    assert cells > 20
    assert abs(chi - cells) < 4 * (2 * cells) ** 0.5


def test_an_ensemble_is_the_mean_of_probabilities():
    first, second, images = tiny_model(), make("vit_transformer"), random_images()
    with torch.no_grad():
        second.lm_head.weight *= 3
    out = first.generate(
        images, custom_generate=ensemble, members=[second], member_pixel_values=images, num_beams=3, **FULL
    )
    rows = out.sequences
    logits = [model(pixel_values=images, decoder_input_ids=rows[:, :-1]).logits for model in (first, second)]
    words = torch.stack([each.softmax(-1) for each in logits]).mean(0).log().gather(2, rows[:, 1:, None])[..., 0]
    words = words.masked_fill(first.ends_before(rows[:, 1:]), 0)
    torch.testing.assert_close(out.log_probs, words.sum(1), atol=1e-4, rtol=1e-4)
    alone = first.generate(images, num_beams=3, **FULL)
    assert alone.sequences.tolist() != rows.tolist()
    same = first.generate(
        images, custom_generate=ensemble, members=[first], member_pixel_values=images, num_beams=3, **FULL
    )
    assert same.sequences.tolist() == alone.sequences.tolist()
    with pytest.raises(InputError, match="vocabulary"):
        first.generate(
            images, custom_generate=ensemble, members=[tiny_model(vocab_size=9)], member_pixel_values=images
        )


def overlap(captions, references):
    """And a little for the caption's own words, so that no two captions are as good."""
    pairs = zip(captions, references, strict=True)
    return [len(set(a) & set(b)) / len({*a, *b}) + sum(math.sin(token) for token in a) / 100 for a, b in pairs]


@pytest.mark.parametrize("system", [*SYSTEMS, "outside"])
def test_minimum_bayes_risk_is_a_double_loop_over_samples(system):
    model, images = make(system), random_images()
    for count in (1, 6):
        options = dict(FULL, do_sample=True, top_k=0, num_return_sequences=count)
        torch.manual_seed(3)
        samples = model.generate(images, **options)
        torch.manual_seed(3)
        found = model.generate(images, custom_generate=minimum_bayes_risk, utility=overlap, **options)
        ends = model.ends_before(samples.sequences[:, 1:])
        captions = [row[~gone].tolist() for row, gone in zip(samples.sequences[:, 1:], ends, strict=True)]
        rows = []
        for image in range(3):
            values = []
            for i in range(count):
                each = [overlap([captions[image * count + i]], [captions[image * count + j]])[0] for j in range(count)]
                values.append(sum(each) / count)
            rows.append(image * count + max(range(count), key=values.__getitem__))
            assert found.sequences_scores[image].item() == pytest.approx(max(values))
        assert found.sequences.tolist() == samples.sequences[rows].tolist()
        if model.config.attends:
            torch.testing.assert_close(model.attention_maps(found), model.attention_maps(samples)[rows])
    with pytest.raises(InputError, match="utility"):
        model.generate(images, custom_generate=minimum_bayes_risk, do_sample=True)


def test_minimum_bayes_risk_of_a_captioner_whose_own_settings_have_beams():
    model, images = make("additive"), random_images()
    options = dict(FULL, do_sample=True, top_k=0, num_return_sequences=6, custom_generate=minimum_bayes_risk)
    torch.manual_seed(3)
    expected = model.generate(images, utility=overlap, **options)
    model.generation_config.num_beams = 3
    torch.manual_seed(3)
    found = model.generate(images, utility=overlap, **options)
    assert found.sequences.tolist() == expected.sequences.tolist()
    assert model.generation_config.num_beams == 3
    options |= dict(utility=overlap, num_return_sequences=2)
    with pytest.raises(InputError, match="`num_beams` must be left out or 1 with minimum_bayes_risk.* got 2"):
        model.generate(images, **{**options, "num_beams": 2})
    with pytest.raises(InputError, match="must be given `do_sample=True`"):
        model.generate(images, **{**options, "do_sample": False, "num_return_sequences": 1})
