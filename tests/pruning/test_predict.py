"""Predicted relative error and agreement: the closed form by hand, its intervals, and what measurements do to them."""

import math
from statistics import NormalDist

import numpy as np
import pytest
import torch

import modhifi
from modhifi import Model, Study
from modhifi.lipschitz import Gains
from modhifi.lipschitz._finite import flipping
from modhifi.pruning import Ratio, allocate, predict_outcome


def test_the_multiple_at_which_an_answer_flips_by_brute_force() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, difference = (torch.randn(40, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    found = flipping(logits, difference)
    for sign, row in zip((1.0, -1.0), found, strict=True):
        for x, d, multiple in zip(logits, difference * sign, row, strict=True):
            top = int(x.argmax())
            if multiple < 1e29:
                assert int((x + 0.999 * multiple * d).argmax()) == top
                assert int((x + 1.001 * multiple * d).argmax()) != top
            else:
                assert int((x + 1e6 * d).argmax()) == top
    assert float(flipping(logits[:1], torch.zeros(1, 6, dtype=torch.float64)).min()) == 1e30


def test_the_closed_form_by_hand(digits_study: Study) -> None:
    decided = allocate(digits_study, flops=0.6, compensate="full")
    total, parts = 0.0, {}
    for group in digits_study.groups:
        kept = decided.counts[group.name]
        reached = {}
        for consumer in group.consumers:
            error = digits_study.errors(group.name, consumer.layer, "greedy", "full", True)[kept]
            gains = digits_study.gains["directional"][consumer.layer]
            seen = gains.local > 0
            gain = math.sqrt(float(gains.reached[seen].sum()) / float(gains.local[seen].sum()))
            reached[consumer.layer] = gain * math.sqrt(error)
        together = sum(reached.values())
        total += together**2
        for layer, one in reached.items():
            parts[layer] = parts.get(layer, 0.0) + one * together
    found = decided.outcome
    assert found is not None
    assert digits_study.variance is not None
    assert found.closed_form == pytest.approx(math.sqrt(total / digits_study.variance), rel=1e-6)
    sigma, stays = found.relative_error * math.sqrt(digits_study.variance), 0.0
    for layer, part in parts.items():
        gains = digits_study.gains["directional"][layer]
        assert gains.flips is not None
        size = gains.reached.double().mean().sqrt()
        stays += part / total * float((gains.flips * size > sigma).double().mean())
    assert found.agreement == pytest.approx(stays, rel=1e-9)


def test_the_spread_of_the_output(digits_study: Study, digits_model: Model) -> None:
    images = torch.cat([x for x, _ in modhifi.load_data("digits").take(64, 0).batches(digits_model.input)])
    with torch.no_grad():
        logits = digits_model.module(images).double().numpy()
    assert digits_study.variance == pytest.approx(float(logits.var(0).sum()), rel=0.35)


def test_nothing_removed_is_predicted_to_change_nothing(digits_study: Study) -> None:
    found = allocate(digits_study).outcome
    assert found is not None
    assert found.relative_error == found.relative_error_high == 0.0
    assert found.agreement == found.agreement_high == 1.0
    assert found.agreement_low is not None
    assert 0.9 < found.agreement_low < 1.0, "64 samples cannot show more"


def test_less_is_kept_and_more_is_lost(digits_study: Study) -> None:
    found = [allocate(digits_study, flops=each, compensate="full").outcome for each in (0.9, 0.7, 0.5, 0.3)]
    errors = [one.relative_error for one in found if one is not None]
    assert errors == sorted(errors)
    for one in found:
        assert one is not None
        assert one.relative_error_low < one.relative_error < one.relative_error_high
        assert one.agreement_low is not None
        assert one.agreement is not None
        assert one.agreement_high is not None
        assert one.agreement_low <= one.agreement <= one.agreement_high


def test_measured_plans_settle_what_is_known_of_the_network(digits_study: Study) -> None:
    decided = allocate(digits_study, flops=0.6, compensate="full")
    ratio = Ratio(0.0, 0.5, 0.1)
    known = [(0.1, 0.05), (0.2, 0.11)]
    plain, informed = (predict_outcome(digits_study, decided.amplitudes, "full", some, ratio) for some in ([], known))
    assert plain is not None
    assert informed is not None
    # Two draws with the spread 0.1 around a mean that was drawn with the spread 0.5 around 0.
    logs = np.log([after / before for before, after in known])
    prior, noise = np.full((3, 3), 0.25), 0.01 * np.eye(3)
    joint = prior + noise
    gain = joint[2, :2] @ np.linalg.inv(joint[:2, :2])
    mean, variance = gain @ logs, joint[2, 2] - gain @ joint[:2, 2]
    assert informed.relative_error == pytest.approx(plain.closed_form * math.exp(mean), rel=1e-6)
    width = math.log(informed.relative_error_high / informed.relative_error_low)
    assert width == pytest.approx(2 * NormalDist().inv_cdf(0.95) * math.sqrt(variance), rel=1e-3)
    assert width < math.log(plain.relative_error_high / plain.relative_error_low)


def test_the_interval_is_wide_where_few_samples_were_seen(digits_study: Study) -> None:
    """Its ends solve |share − p| = z √(p (1 − p) / n) (Wilson)."""
    decided = allocate(digits_study, flops=0.3, compensate="none")
    found = predict_outcome(digits_study, decided.amplitudes, "none", [], Ratio(0.0, 1e-9, 1e-9))
    assert found is not None
    assert found.agreement is not None
    samples = max(one.samples for one in digits_study.gains["directional"].values())
    for end in (found.agreement_low, found.agreement_high):
        assert end is not None
        distance = 1.645 * math.sqrt(end * (1 - end) / samples)
        assert abs(found.agreement - end) == pytest.approx(distance, rel=1e-4)


def test_without_constants_nothing_is_predicted(digits_model: Model) -> None:
    study = modhifi.analyze(digits_model, modhifi.load_data("digits"), samples=32, constants=("none",))
    decided = allocate(study, flops=0.5, constants="none")
    assert decided.outcome is None
    assert math.isnan(decided.bound)


def test_gains_keep_what_flips_them() -> None:
    gains = Gains(
        torch.tensor([1.0, 0.0, 4.0]), torch.tensor([4.0, 0.0, 16.0]), torch.tensor([[1.0, 9, 3], [2, 9, 1e30]])
    )
    again = Gains.of(gains.stacked())
    assert again.flips is not None
    size = math.sqrt((4 + 16) / 2)
    np.testing.assert_allclose(again.critical, [size, 2 * size, 3 * size, 1e30 * size])
    assert Gains.of(Gains(gains.local, gains.reached).stacked()).critical is None
