"""Competition strength against float64 loops, and the two ends of its scale."""

import numpy as np
import pytest
import torch
from torch import Tensor

from modhifi import UserError
from modhifi.multimodal import competition_strength
from modhifi.multimodal._competition import distance


def data(samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Features (n, 5), and outputs (n, 3) that hang together."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(samples, 5, generator=generator)
    mixed = torch.randn(samples, 3, generator=generator) @ torch.tensor([[2.0, 1, 0], [0, 1, 0.5], [0, 0, 0.1]])
    return features, mixed


def test_distance_by_hand() -> None:
    found, concept = data(7, 1)[1], data(7, 2)[1]
    c = concept.double().numpy()
    centred = c - c.mean(0)
    covariance = sum(np.outer(row, row) for row in centred) / 7
    inverse = np.linalg.inv(covariance)
    total = 0.0
    for ours, theirs in zip(found.double().numpy(), c, strict=True):
        total += (ours - theirs) @ inverse @ (ours - theirs)
    assert distance(found.double(), concept.double()) == pytest.approx(total / (7 * 3), rel=1e-9)


def test_the_mean_is_one_and_the_concept_itself_is_nothing() -> None:
    concept = data(50, 3)[1]
    assert distance(concept.mean(0).expand_as(concept), concept) == pytest.approx(1.0, rel=1e-6)
    assert distance(concept, concept) == 0.0
    scaled = concept * torch.tensor([1.0, 100.0, 1e-3]) + 5
    assert distance(scaled.mean(0).expand_as(scaled), scaled) == pytest.approx(1.0, rel=1e-4), "whatever the scale"


def test_outputs_that_are_linearly_dependent() -> None:
    """Then the mean gives rank/K, and nothing is infinite."""
    concept = data(50, 3)[1]
    concept = torch.cat([concept, concept[:, :1]], dim=1)
    assert distance(concept.mean(0).expand_as(concept), concept) == pytest.approx(3 / 4, rel=1e-6)
    # Up to rounding only, as probabilities are.
    for dtype in (torch.float64, torch.float32):
        logits = data(2000, 3)[1].to(dtype) @ torch.randn(3, 4, generator=torch.Generator().manual_seed(1)).to(dtype)
        chances = logits.softmax(1)
        flat = chances.double().mean(0).expand_as(chances)
        assert distance(flat, chances) == pytest.approx(3 / 4, rel=1e-6)
        held = competition_strength(chances[:1000], chances[:1000], chances[1000:], chances[1000:])
        assert held < 1e-6


def test_one_output() -> None:
    features, _ = data(400, 4)
    concept = features[:, :1]
    assert competition_strength(features[:200], concept[:200], features[200:], concept[200:]) < 1e-6


def test_what_features_hold_costs_nothing_and_noise_costs_everything() -> None:
    features, _ = data(400, 4)
    weight = torch.randn(5, 3, generator=torch.Generator().manual_seed(5))
    concept = features @ weight + 3
    held = competition_strength(features[:200], concept[:200], features[200:], concept[200:])
    assert held < 1e-6
    _, noise = data(400, 6)
    lost = competition_strength(features[:200], noise[:200], features[200:], noise[200:])
    assert 0.9 < lost < 1.1
    part = torch.cat([features[:, :2], torch.zeros(400, 3)], dim=1)
    between = competition_strength(part[:200], concept[:200], part[200:], concept[200:])
    assert 0.05 < between < 0.95


def test_rows_must_be_of_the_same_samples() -> None:
    features, concept = data(10, 0)
    with pytest.raises(UserError, match="same samples"):
        competition_strength(features, concept[:9], features, concept)


def test_a_feature_that_hardly_moved_in_the_fit_does_not_rule_the_test() -> None:
    """As of a hidden unit that is dead for all but a few samples."""
    features, concept = data(400, 7)
    concept = concept + features[:, :3]
    rare = torch.zeros(400, 1)
    rare[0], rare[300] = 1e-6, 1.0
    plain = competition_strength(features[:200], concept[:200], features[200:], concept[200:])
    both = torch.cat([features, rare], dim=1)
    assert competition_strength(both[:200], concept[:200], both[200:], concept[200:]) == pytest.approx(plain, rel=0.05)


def test_features_that_say_nothing() -> None:
    _, concept = data(400, 8)
    nothing = torch.ones(400, 2)
    found = competition_strength(nothing[:200], concept[:200], nothing[200:], concept[200:])
    assert found == pytest.approx(1.0, abs=0.1)
