"""The closed forms against numerical minimisers and brute force, in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression

from modhifi.unlearning import erasure, forgetting_ridge, retained_rows, specific_projection


def _samples(seed: int = 0, n: int = 5, outputs: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    retained = rng.normal(size=(60, n)) @ rng.normal(size=(n, n))
    forget = rng.normal(size=(40, n)) @ rng.normal(size=(n, n)) + rng.normal(size=n)
    return retained, forget, rng.normal(size=(outputs, n)), rng.normal(size=outputs)


def _second(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(x.T @ x / len(x))


@pytest.mark.parametrize("strength", [0.01, 1.0, 30.0])
def test_the_ridge_against_a_numerical_minimiser(strength: float) -> None:
    retained, forget, weight, target = _samples()

    def loss(flat: np.ndarray) -> float:
        new = flat.reshape(weight.shape)
        kept = ((retained @ weight.T - retained @ new.T) ** 2).sum(1).mean()
        forgot = ((forget @ new.T - target) ** 2).sum(1).mean()
        return float(kept + strength * forgot)

    found = minimize(loss, weight.ravel(), method="BFGS", options={"gtol": 1e-9}).x.reshape(weight.shape)
    ours = forgetting_ridge(
        torch.from_numpy(weight),
        _second(retained),
        _second(forget),
        torch.from_numpy(forget.mean(0)),
        torch.from_numpy(target),
        strength,
    )
    np.testing.assert_allclose(ours.numpy(), found, atol=2e-3)
    assert loss(ours.numpy().ravel()) <= loss(found.ravel()) * (1 + 1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000))
def test_without_strength_the_weights_are_the_old_ones(seed: int) -> None:
    retained, forget, weight, target = _samples(seed)
    arguments = (_second(retained), _second(forget), torch.from_numpy(forget.mean(0)), torch.from_numpy(target))
    old = torch.from_numpy(weight)
    assert torch.equal(forgetting_ridge(old, *arguments, 0.0), old)
    small = forgetting_ridge(old, *arguments, 1e-9)
    # In what the layer answers: a direction that samples hardly have says nothing.
    moved = torch.from_numpy(retained) @ (small - old).T
    assert float(moved.abs().max()) < 1e-3


def test_a_direction_that_no_sample_has_keeps_its_weights() -> None:
    retained, forget, weight, target = _samples()
    retained[:, 4] = forget[:, 4] = 0
    new = forgetting_ridge(
        torch.from_numpy(weight),
        _second(retained),
        _second(forget),
        torch.from_numpy(forget.mean(0)),
        torch.from_numpy(target),
        5.0,
    )
    np.testing.assert_allclose(new[:, 4].numpy(), weight[:, 4], rtol=1e-9)


def test_after_erasure_no_linear_classifier_finds_the_class() -> None:
    rng = np.random.default_rng(1)
    label = np.repeat([0, 1, 2, 3], 400)
    x = rng.normal(size=(1600, 6)) @ rng.normal(size=(6, 6)) + (rng.normal(size=(4, 6)) * 3)[label]
    concept = (label == 2)[:, None]
    projection = erasure(torch.from_numpy(x), torch.from_numpy(concept)).numpy()
    erased = (x - x.mean(0)) @ projection.T
    # The definition: no covariance between what is left and the concept.
    covariance = erased.T @ (concept - concept.mean(0)) / len(x)
    assert np.abs(covariance).max() < 1e-9
    probe = LogisticRegression(class_weight="balanced").fit(erased, concept.ravel())
    assert (
        abs(probe.score(erased[label == 2], np.ones(400)) + probe.score(erased[label != 2], np.zeros(1200)) - 1) < 0.1
    )
    assert LogisticRegression(max_iter=1000).fit(x, concept.ravel()).score(x, concept.ravel()) > 0.9
    # Directions that the concept has no part in stay: the map differs from the identity by rank one.
    assert np.linalg.matrix_rank(np.eye(6) - projection, tol=1e-8) == 1


def test_erasure_changes_least_in_the_metric_of_the_features() -> None:
    """Against a search over every map that removes the same covariance: P + t·(rank-one maps that keep P's property)."""
    rng = np.random.default_rng(2)
    x = torch.from_numpy(rng.normal(size=(4000, 4)) @ rng.normal(size=(4, 4)))
    z = (x[:, :1] + 0.5 * torch.from_numpy(rng.normal(size=(4000, 1))) > 0).double()
    ours = erasure(x, z)
    centred = x - x.mean(0)
    sigma = centred.T @ centred / len(x)
    cross = centred.T @ (z - z.mean(0)) / len(x)

    def change(p: torch.Tensor) -> float:
        # LEACE is least in E‖M (x − P x)‖² for every M; Σ^-1/2 is one of them.
        moved = centred - centred @ p.T
        return float((moved * torch.linalg.solve(sigma, moved.T).T).sum(1).mean())

    best = change(ours)
    for _ in range(30):
        direction = torch.from_numpy(rng.normal(size=(4, 4)))
        direction = direction - direction @ cross @ torch.linalg.pinv(cross)  # direction · cross = 0
        assert change(ours + 0.1 * direction) > best - 1e-3 * best


def test_several_classes_and_none() -> None:
    rng = np.random.default_rng(3)
    x = torch.from_numpy(rng.normal(size=(300, 5)))
    two = torch.from_numpy(np.eye(3)[np.arange(300) % 3][:, :2])
    erased = (x - x.mean(0)) @ erasure(x, two).T
    assert float((erased.T @ (two - two.mean(0))).abs().max() / 300) < 1e-9
    assert torch.equal(erasure(x, torch.ones(300, 1)), torch.eye(5, dtype=torch.float64))


@settings(max_examples=25, deadline=None)
@given(hnp.arrays(np.float64, (4, 6), elements=st.floats(-3, 3, width=32)))
def test_what_the_other_classes_need_keeps_all_differences_of_their_logits(rows: np.ndarray) -> None:
    basis = retained_rows(torch.from_numpy(rows)).numpy()
    assert basis.shape[0] <= 3
    np.testing.assert_allclose(basis @ basis.T, np.eye(len(basis)), atol=1e-9)
    x = np.random.default_rng(0).normal(size=(10, 6))
    before, after = x @ rows.T, x @ basis.T @ basis @ rows.T
    np.testing.assert_allclose(after - after[:, :1], before - before[:, :1], atol=1e-4)


def test_the_subspaces_of_kodge_et_al() -> None:
    """Against the definition with singular vectors of the activations themselves."""
    retained, forget, _, _ = _samples(4)

    def space(x: np.ndarray, alpha: float) -> np.ndarray:
        u, s, _ = np.linalg.svd(x.T, full_matrices=False)
        share = s**2 / (s**2).sum()
        return u @ np.diag(alpha * share / ((alpha - 1) * share + 1)) @ u.T

    expected = np.eye(5) - space(forget, 3.0) @ (np.eye(5) - space(retained, 100.0))
    found = specific_projection(_second(retained), _second(forget), 100.0, 3.0)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-10)
