"""Errors on unseen samples against explicit refits on explicit folds in float64, and on Gaussians of known covariance."""

import numpy as np
import pytest
import torch

from modhifi.fidelity import (
    Fold,
    best_ridge,
    crossfitted_curve,
    crossfitted_error,
    error_curve,
    inverse,
    ridged,
    scalar_curve,
)


def folds_of(x: np.ndarray, ridge: float) -> list[Fold]:
    """Two centred folds, even and odd rows."""
    parts = [x[0::2], x[1::2]]
    found = []
    for one, other in (parts, parts[::-1]):
        mean = other.mean(0)
        train, judge = ((rows - mean).T @ (rows - mean) / len(rows) for rows in (other, one))
        found.append(Fold(ridged(torch.from_numpy(train), ridge), torch.from_numpy(judge), len(one) / len(x)))
    return found


def refitted(x: np.ndarray, w: np.ndarray, kept: list[int], ridge: float) -> float:
    """The error on each half of the rows of weights fitted to the other half, by least squares with a penalty on W' − W."""
    parts, total = [x[0::2], x[1::2]], 0.0
    for one, other in (parts, parts[::-1]):
        mean = other.mean(0)
        seen = other - mean
        pull = ridge * np.square(seen).sum() / len(seen) / x.shape[1]
        rows = np.vstack([seen[:, kept] / np.sqrt(len(seen)), np.sqrt(pull) * np.eye(len(kept))])
        target = np.vstack([seen @ w.T / np.sqrt(len(seen)), np.sqrt(pull) * w[:, kept].T])
        new = np.linalg.lstsq(rows, target, rcond=None)[0]
        lost = (one - mean) @ w.T - (one - mean)[:, kept] @ new
        total += np.square(lost).sum() / len(x)
    return total


@pytest.mark.parametrize("ridge", [1e-5, 1e-2, 1.0])
@pytest.mark.parametrize("samples", [9, 61])
def test_every_size_is_a_refit_on_each_half(samples: int, ridge: float) -> None:
    """Blocks of two columns, and two columns that belong to no component."""
    rng = np.random.default_rng(samples)
    x = rng.normal(size=(samples, 12)) @ rng.normal(size=(12, 12)) + rng.normal(size=12)
    w = rng.normal(size=(4, 12))
    blocks = torch.tensor([[0, 1], [4, 5], [2, 7], [8, 9], [10, 11]])
    order = torch.tensor([3, 0, 4, 1, 2])
    folds = folds_of(x, ridge)
    curve = crossfitted_curve(folds, torch.from_numpy(w), blocks, order)
    for size in range(6):
        stays = sorted({3, 6, *blocks[order[:size]].reshape(-1).tolist()})
        expected = refitted(x, w, stays, ridge)
        assert float(curve[size]) == pytest.approx(expected, rel=1e-6, abs=1e-9)
        assert crossfitted_error(folds, torch.from_numpy(w), blocks, order[:size]) == pytest.approx(
            expected, rel=1e-6, abs=1e-9
        )


@pytest.mark.parametrize("block", [1, 3])
def test_scalars_are_fitted_on_one_half_and_judged_on_the_other(block: int) -> None:
    rng = np.random.default_rng(block)
    x = rng.normal(size=(80, 4 * block + 2)) @ rng.normal(size=(4 * block + 2, 4 * block + 2))
    w = rng.normal(size=(3, x.shape[1]))
    columns = torch.arange(1, 4 * block + 1).reshape(4, block)  # the first and last column belong to no component
    order = torch.tensor([2, 0, 3, 1])
    folds = folds_of(x, 1e-10)
    curve = scalar_curve(folds, torch.from_numpy(w), columns, order)
    parts, own = [x[0::2], x[1::2]], columns.reshape(-1).numpy()
    for size in range(5):
        total = 0.0
        for one, other in (parts, parts[::-1]):
            seen, judged = other - other.mean(0), one - other.mean(0)
            for out in w:
                each = [np.stack([rows[:, c] @ out[c] for c in columns.numpy()], 1) for rows in (seen, judged)]
                kept = order[:size].tolist()
                scale = np.linalg.lstsq(each[0][:, kept], seen[:, own] @ out[own], rcond=None)[0]
                total += np.square(judged[:, own] @ out[own] - each[1][:, kept] @ scale).sum() / len(x)
        assert float(curve[size]) == pytest.approx(total, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("times", [0.5, 1.0, 2.0, 8.0])
def test_unbiased_where_the_error_on_the_same_samples_is_not(times: float) -> None:
    """Gaussians with known covariance: the mean of ẽ over draws is the true error of such a fit, on new samples."""
    inputs, kept = 24, 12
    rng = np.random.default_rng(0)
    root = rng.normal(size=(inputs, inputs)) / np.sqrt(inputs)
    covariance = root @ root.T + 0.1 * np.eye(inputs)
    factor, w = np.linalg.cholesky(covariance), rng.normal(size=(5, inputs))
    order, ridge = torch.arange(inputs), 1e-3
    samples = 2 * round(times * inputs / 2)
    estimated, true, same = [], [], []
    for _ in range(300):
        x = rng.normal(size=(samples, inputs)) @ factor.T
        halves = [x[0::2].T @ x[0::2] / (samples // 2), x[1::2].T @ x[1::2] / (samples // 2)]
        weight = torch.from_numpy(w)
        folds = [
            Fold(ridged(torch.from_numpy(halves[1 - one]), ridge), torch.from_numpy(halves[one]), 0.5) for one in (0, 1)
        ]
        estimated.append(crossfitted_error(folds, weight, 1, order[:kept]))
        actual = [Fold(fold.train, torch.from_numpy(covariance), 0.5) for fold in folds]
        true.append(crossfitted_error(actual, weight, 1, order[:kept]))
        whole = ridged(torch.from_numpy((halves[0] + halves[1]) / 2), ridge)
        same.append(float(error_curve(whole, weight, 1, order, "full")[kept]))
    noise = np.std(np.subtract(estimated, true)) / np.sqrt(len(true))
    assert abs(np.mean(estimated) - np.mean(true)) < 4 * noise
    if times <= 1:
        assert np.mean(same) < 0.75 * np.mean(true), "the same samples flatter a fit to them"
    if times == 8:
        assert np.mean(same) == pytest.approx(np.mean(true), rel=0.25)


def test_equal_to_the_error_on_the_same_samples_as_they_grow() -> None:
    rng = np.random.default_rng(1)
    mix, w = rng.normal(size=(8, 8)), torch.from_numpy(rng.normal(size=(3, 8)))
    x = rng.normal(size=(200_000, 8)) @ mix
    order = torch.arange(8)
    unseen = crossfitted_curve(folds_of(x, 1e-9), w, 1, order)
    second = ridged(torch.from_numpy(np.cov(x.T, bias=True)), 1e-9)
    torch.testing.assert_close(unseen, error_curve(second, w, 1, order, "full", inverse(second)), rtol=0.01, atol=1e-6)


def test_the_ridge_is_large_where_samples_are_few() -> None:
    rng = np.random.default_rng(2)
    w = torch.from_numpy(rng.normal(size=(6, 40)))
    keep, ridges, found = torch.arange(20), (1e-6, 1e-3, 1e-1, 1.0), []
    for samples in (30, 40_000):
        x = rng.normal(size=(samples, 12)) @ rng.normal(size=(12, 40)) + 0.3 * rng.normal(size=(samples, 40))
        parts = [x[0::2], x[1::2]]
        seconds = [torch.from_numpy(part.T @ part / len(part)) for part in parts]
        moments = [(seconds[1], seconds[0], 0.5), (seconds[0], seconds[1], 0.5)]
        found.append(best_ridge(moments, w, keep, ridges))
        errors = [
            crossfitted_error([Fold(ridged(a, ridge), b, share) for a, b, share in moments], w, 1, keep)
            for ridge in ridges
        ]
        assert found[-1] == ridges[int(np.argmin(errors))]
    assert found[0] > found[1]
