"""Calibration and abstaining, against slow, obvious versions."""

import itertools

import numpy as np
import pytest
import torch

from hf_captioner.errors import InputError
from hf_captioner.explain import (
    auroc,
    expected_calibration_error,
    fit_familiarity,
    fit_temperature,
    reliability,
    risk_coverage,
    save_calibration_picture,
)
from hf_captioner.explain.calibration import RANK, TEMPERATURES


@pytest.mark.parametrize("true", [0.5, 1.0, 1.7])
def test_the_temperature_by_which_words_were_drawn_is_found(true):
    """A word is drawn from softmax(logits / true): then it is right as often as that softmax says."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(20000, 7, generator=generator, dtype=torch.float64)
    said = logits.argmax(-1)
    drawn = torch.multinomial((logits / true).softmax(-1), 1, generator=generator)[:, 0]
    table = torch.stack([(logits / one).softmax(-1)[range(20000), said] for one in TEMPERATURES], 1)
    found = fit_temperature(table.numpy(), (said == drawn).tolist())
    assert found == pytest.approx(true, rel=0.07)
    right = (said == drawn).tolist()
    errors = [expected_calibration_error(table[:, (np.abs(TEMPERATURES - at)).argmin()], right) for at in (found, 3.9)]
    assert errors[0] < 0.02 < errors[1]


def test_reliability_and_error_are_those_of_a_loop():
    random = np.random.default_rng(1)
    probabilities = [*random.random(200) ** 2, 0.0, 1.0]
    right = [bool(random.random() < 0.3 + one / 2) for one in probabilities]
    error, seen = 0.0, 0
    for part in reliability(probabilities, right, bins=4):
        inside = [
            (one, ok)
            for one, ok in zip(probabilities, right, strict=True)
            if part["from"] <= one < part["to"] or one == part["to"] == 1
        ]
        assert part["count"] == len(inside)
        assert part["probability"] == pytest.approx(sum(one for one, _ in inside) / len(inside))
        assert part["right"] == pytest.approx(sum(ok for _, ok in inside) / len(inside))
        error += len(inside) / 202 * abs(part["probability"] - part["right"])
        seen += len(inside)
    assert seen == 202 and expected_calibration_error(probabilities, right, bins=4) == pytest.approx(error)
    assert [part["from"] for part in reliability([0.05, 0.95], [True, False])] == [0.0, 0.9]  # empty parts left out


def test_risk_and_coverage_with_equal_scores_are_the_mean_over_orders():
    scores, risks = [0.9, 0.5, 0.5, 0.5, 0.1], [0.1, 0.9, 0.2, 0.4, 0.6]
    curve = risk_coverage(scores, risks)
    assert curve["coverage"] == pytest.approx([0.2, 0.8, 1.0])
    assert curve["risk"] == pytest.approx([0.1, 1.6 / 4, 2.2 / 5])
    areas = []
    for middle in itertools.permutations([0.9, 0.2, 0.4]):
        order = [0.1, *middle, 0.6]
        areas.append(np.mean([np.mean(order[: n + 1]) for n in range(5)]))
    assert curve["area"] == pytest.approx(np.mean(areas))
    assert curve["area_random"] == pytest.approx(0.44) and curve["area_best"] < curve["area"]
    best = risk_coverage([-risk for risk in risks], risks)
    assert best["area"] == pytest.approx(best["area_best"]) == pytest.approx(curve["area_best"])


def test_auroc_is_the_share_of_pairs():
    random = np.random.default_rng(2)
    higher, lower = random.integers(0, 9, 30) + 1, random.integers(0, 9, 50)
    pairs = [(a > b) + 0.5 * (a == b) for a in higher for b in lower]
    assert auroc(higher, lower) == pytest.approx(np.mean(pairs))
    assert auroc([1, 2], [0]) == 1 and auroc([1], [1]) == 0.5


def test_the_distance_is_mahalanobis_with_the_covariance_written_out():
    generator = torch.Generator().manual_seed(3)
    size = RANK + 9
    mixing = torch.randn(size, size, generator=generator)
    known = torch.randn(300, size, generator=generator) @ mixing + torch.arange(size)
    others = torch.randn(200, size, generator=generator) @ mixing + torch.arange(size)
    found = fit_familiarity(known[:, :], others, coverage=0.9)
    values, vectors = torch.linalg.eigh(torch.cov(known.double().T))
    values = torch.cat([values[:-RANK].mean().expand(size - RANK), values[-RANK:]])
    covariance = vectors @ torch.diag(values) @ vectors.T
    regions = torch.randn(5, 6, size, generator=generator)  # (B, L, D)
    for row, distance in zip(regions.double(), found.distance(regions), strict=True):
        difference = row.mean(0) - known.double().mean(0)
        expected = (difference @ torch.linalg.solve(covariance, difference)).sqrt()
        assert distance.item() == pytest.approx(expected.item(), rel=1e-3)
    # as many of the others as asked for are wholly familiar; one standard deviation beyond it is 1/e
    familiar = found(others[:, None])
    assert (familiar == 1).float().mean().item() == pytest.approx(0.9, abs=0.01)
    direction = found.directions[0] * found.deviations[0]
    beyond = found.mean + direction * (found.limit + 1)
    assert found(beyond[None, None]).item() == pytest.approx(np.exp(-1), rel=1e-3)


def test_few_images_and_narrow_models_have_fewer_directions():
    assert len(fit_familiarity(torch.randn(5, 40), torch.randn(5, 40)).directions) == 3
    assert len(fit_familiarity(torch.randn(50, 4), torch.randn(5, 4)).directions) == 3
    with pytest.raises(InputError, match="`regions` must be at least 3 images"):
        fit_familiarity(torch.randn(2, 40), torch.randn(5, 40))


def test_what_is_no_probability_is_refused():
    with pytest.raises(InputError, match=r"`probabilities` must be numbers in \[0, 1\]"):
        expected_calibration_error([0.5, 1.5], [True, False])
    with pytest.raises(InputError, match="at least one"):
        reliability([], [])
    with pytest.raises(InputError, match=r"must be \(3 words, 65 temperatures\)"):
        fit_temperature(np.full((2, 65), 0.5), [True, False, True])
    with pytest.raises(InputError, match="`scores` must be one for each of 2 risks"):
        risk_coverage([0.5], [0.1, 0.2])


def test_the_picture(tmp_path):
    words = {"ece_before": 0.2, "ece": 0.1}
    words |= {name: reliability([0.2, 0.7], [False, True]) for name in ("reliability_before", "reliability")}
    report = {"temperature": 0.8, "words": words, "risk_coverage": risk_coverage([0.9, 0.1], [0.2, 0.8])}
    save_calibration_picture(tmp_path / "picture.png", report)
    assert (tmp_path / "picture.png").stat().st_size > 5000
