"""Subset Fidelity against brute force written here, in float64, from its definition (theory, section 2)."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modhifi.fidelity import (
    compensation,
    fidelity_curve,
    greedy_subset,
    singleton_fidelity,
    subset_fidelity,
)


def random_contributions(seed: int, outputs: int, components: int, rank: int | None = None) -> np.ndarray:
    """(O, N, C) samples of each contribution, from which everything can be fitted directly."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(outputs, rank or components, components))
    return np.einsum("onr,orc->onc", rng.normal(size=(outputs, 40, rank or components)), mix)


def gram_of(a: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.einsum("oni,onj->oij", a, a) / a.shape[1])


def fitted(a: np.ndarray, subset: list[int]) -> np.ndarray:
    """1 − min_δ ‖Y − Σ δ_i A_i‖² / ‖Y‖² by least squares on the samples themselves."""
    result = []
    for contributions in a:
        y = contributions.sum(1)
        rest = y
        if subset:
            delta, *_ = np.linalg.lstsq(contributions[:, subset], y, rcond=None)
            rest = y - contributions[:, subset] @ delta
        result.append(1 - rest @ rest / (y @ y))
    return np.array(result)


@pytest.mark.parametrize(("seed", "components", "rank"), [(0, 1, None), (1, 4, None), (2, 8, None), (3, 6, 3)])
def test_all_subsets_against_least_squares(seed: int, components: int, rank: int | None) -> None:
    a = random_contributions(seed, 3, components, rank)
    gram = gram_of(a)
    for size in range(components + 1):
        for subset in itertools.combinations(range(components), size):
            np.testing.assert_allclose(subset_fidelity(gram, list(subset)), fitted(a, list(subset)), atol=1e-9)


def test_compensation_is_the_least_squares_solution() -> None:
    a = random_contributions(5, 4, 6)
    delta = compensation(gram_of(a), [1, 3, 4])
    for o in range(4):
        expected, *_ = np.linalg.lstsq(a[o][:, [1, 3, 4]], a[o].sum(1), rcond=None)
        np.testing.assert_allclose(delta[o], expected, rtol=1e-9)


def test_compensation_restores_what_was_removed() -> None:
    """Prop. 3.8: δ* = 1 + G_SS⁺ G_{S,S̄} 1."""
    gram = gram_of(random_contributions(6, 2, 5))
    keep, gone = [0, 2, 4], [1, 3]
    for o in range(2):
        g = gram[o].numpy()
        expected = 1 + np.linalg.solve(g[np.ix_(keep, keep)], g[np.ix_(keep, gone)].sum(1))
        np.testing.assert_allclose(compensation(gram, keep)[o], expected, rtol=1e-9)


matrices = st.builds(
    lambda seed, outputs, components, rank: gram_of(
        random_contributions(seed, outputs, components, min(rank, components))
    ),
    st.integers(0, 10_000),
    st.integers(1, 3),
    st.integers(1, 7),
    st.integers(1, 7),
)


@settings(deadline=None, max_examples=60)
@given(matrices, st.randoms(use_true_random=False))
def test_empty_full_and_monotone(gram: torch.Tensor, random) -> None:
    order = list(range(gram.shape[1]))
    random.shuffle(order)
    values = torch.stack([subset_fidelity(gram, order[:k]) for k in range(len(order) + 1)], 1)
    assert torch.equal(values[:, 0], torch.zeros_like(values[:, 0]))
    torch.testing.assert_close(values[:, -1], torch.ones_like(values[:, -1]))
    assert bool((values.diff(dim=1) >= -1e-8).all())
    torch.testing.assert_close(fidelity_curve(gram, order), values, atol=1e-6, rtol=0)


@settings(deadline=None, max_examples=60)
@given(matrices, st.integers(0, 1000), st.randoms(use_true_random=False))
def test_what_a_contribution_can_explain_does_not_depend_on_its_scale(gram: torch.Tensor, seed: int, random) -> None:
    """With Y held fixed, rescaling A_i changes δ_i and nothing else: G_SS → D G_SS D, b_S → D b_S."""
    subset = random.sample(range(gram.shape[1]), random.randint(1, gram.shape[1]))
    b = gram.sum(2).numpy()
    scale = np.exp(np.random.default_rng(seed).normal(size=len(subset)))
    for o in range(len(gram)):
        scaled = gram[o].numpy()[np.ix_(subset, subset)] * np.outer(scale, scale)
        target = b[o][subset] * scale
        explained = target @ np.linalg.pinv(scaled, rcond=1e-10, hermitian=True) @ target
        assert explained / gram[o].sum() == pytest.approx(float(subset_fidelity(gram, subset)[o]), abs=1e-6)


@settings(deadline=None, max_examples=40)
@given(matrices, st.floats(1e-3, 1e3))
def test_invariant_to_a_common_scale(gram: torch.Tensor, scale: float) -> None:
    subset = list(range(0, gram.shape[1], 2))
    torch.testing.assert_close(subset_fidelity(gram * scale, subset), subset_fidelity(gram, subset), atol=1e-7, rtol=0)


@settings(deadline=None, max_examples=60)
@given(matrices)
def test_singletons_are_squared_cosines_and_subsets_of_one(gram: torch.Tensor) -> None:
    fidelity = singleton_fidelity(gram)
    for i in range(gram.shape[1]):
        torch.testing.assert_close(fidelity[:, i], subset_fidelity(gram, [i]), atol=1e-9, rtol=0)
        for o in range(len(gram)):
            cosine = float(gram[o, i].sum() / torch.sqrt(gram[o, i, i] * gram[o].sum()))
            assert float(fidelity[o, i]) == pytest.approx(cosine**2, abs=1e-9)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=8), st.integers(1, 8))
def test_uncorrelated_contributions_add_up_and_the_naive_choice_is_best(energies: list[float], k: int) -> None:
    """Thm. 3.9."""
    gram = torch.diag(torch.tensor(energies, dtype=torch.float64))[None]
    k = min(k, len(energies))
    singles = singleton_fidelity(gram)[0]
    naive = singles.topk(k).indices.tolist()
    torch.testing.assert_close(subset_fidelity(gram, naive)[0], singles[naive].sum())
    best = max(float(subset_fidelity(gram, list(s))[0]) for s in itertools.combinations(range(len(energies)), k))
    assert float(subset_fidelity(gram, naive)[0]) == pytest.approx(best)


def brute_greedy(gram: torch.Tensor, k: int, direction: str) -> list[int]:
    """Greedy search that evaluates every candidate by the definition."""
    energy = gram.sum((1, 2))

    def value(subset: list[int]) -> float:
        return float((subset_fidelity(gram, subset) * energy).sum())

    everything = list(range(gram.shape[1]))
    chosen = [] if direction == "forward" else everything
    while len(chosen) != k:
        if direction == "forward":
            chosen = max(([*chosen, i] for i in everything if i not in chosen), key=value)
        else:
            chosen = max(([j for j in chosen if j != i] for i in chosen), key=value)
    return sorted(chosen)


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("seed", range(6))
def test_greedy_against_evaluating_every_candidate(direction: str, seed: int) -> None:
    gram = gram_of(random_contributions(seed, 4, 8))
    for k in range(9):
        found = greedy_subset(gram, k, direction)
        assert sorted(found.tolist()) == brute_greedy(gram, k, direction)


def test_greedy_backward_is_the_default_and_ranks_the_most_important_first() -> None:
    gram = gram_of(random_contributions(9, 3, 6))
    order = greedy_subset(gram, 6)
    for k in range(7):
        assert sorted(order[:k].tolist()) == sorted(greedy_subset(gram, k, "backward").tolist())


def test_a_copy_of_a_component_goes_first() -> None:
    a = random_contributions(4, 2, 5)
    a = np.concatenate([a, a[:, :, :1]], 2)  # component 5 repeats component 0
    gram = gram_of(a)
    assert len({0, 5} & set(greedy_subset(gram, 5).tolist())) == 1
    np.testing.assert_allclose(subset_fidelity(gram, greedy_subset(gram, 5)), 1.0, atol=1e-9)


def test_a_dead_output_gives_zero_and_carries_no_weight() -> None:
    alive = gram_of(random_contributions(7, 2, 5))
    with_dead = torch.cat([alive, torch.zeros(1, 5, 5, dtype=torch.float64)])
    assert torch.equal(singleton_fidelity(with_dead)[2], torch.zeros(5, dtype=torch.float64))
    assert float(subset_fidelity(with_dead, [0, 1])[2]) == 0.0
    assert bool(torch.isfinite(compensation(with_dead, [0, 1])).all())
    assert bool(torch.isfinite(fidelity_curve(with_dead, list(range(5)))).all())
    for direction in ("forward", "backward"):
        assert greedy_subset(with_dead, 3, direction).tolist() == greedy_subset(alive, 3, direction).tolist()


def test_contributions_that_cancel_are_a_dead_output() -> None:
    gram = torch.tensor([[[1.0, -1.0], [-1.0, 1.0]]], dtype=torch.float64)
    assert float(subset_fidelity(gram, [0])) == 0.0
    assert not bool(singleton_fidelity(gram).isnan().any())


def test_dtype_and_shapes() -> None:
    gram = gram_of(random_contributions(8, 3, 4)).float()
    assert singleton_fidelity(gram).dtype == torch.float32
    assert singleton_fidelity(gram).shape == (3, 4)
    assert compensation(gram, torch.tensor([2, 0])).shape == (3, 2)
    assert compensation(gram, []).shape == (3, 0)
    assert fidelity_curve(gram, [3, 1, 0, 2]).shape == (3, 5)
    assert greedy_subset(gram, 0).shape == (0,)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g: singleton_fidelity(g[0]), "shape"),
        (lambda g: singleton_fidelity(g.long()), "floating"),
        (lambda g: singleton_fidelity(g * float("nan")), "finite"),
        (lambda g: subset_fidelity(g, [0, 0]), "twice"),
        (lambda g: subset_fidelity(g, [4]), "outside"),
        (lambda g: subset_fidelity(g, [-1]), "outside"),
        (lambda g: subset_fidelity(g, torch.tensor([0.5])), "indices"),
        (lambda g: fidelity_curve(g, [0, 1]), "permutation"),
        (lambda g: greedy_subset(g, 5), "k must"),
        (lambda g: greedy_subset(g, 2, "sideways"), "direction"),
    ],
)
def test_bad_arguments(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(gram_of(random_contributions(0, 2, 4)))
