"""Which ridge the greedy order is found with."""

import numpy as np
import torch

from modhifi.fidelity import Fold, eliminate, inverse
from modhifi.study._tables import _CLEARLY, _inverses, _Part

COMPONENTS, OUTPUTS = 10, 3


def part(seed: int, samples: int) -> tuple[_Part, list[np.ndarray], np.ndarray, tuple[float, float]]:
    """A layer that has seen few samples; also the moments of both folds, the weights and the two ridges."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((COMPONENTS, COMPONENTS)) * np.logspace(0, -0.5, COMPONENTS)
    rows = rng.standard_normal((samples, COMPONENTS)) @ mixing
    moments = [rows[fold::2].T @ rows[fold::2] / len(rows[fold::2]) for fold in range(2)]
    weight = rng.standard_normal((OUTPUTS, COMPONENTS))
    mean = float(np.trace(sum(moments)) / 2 / COMPONENTS)
    ridges = 1e-6 * mean, 0.1 * mean

    def folds(ridge: float) -> list[Fold]:
        regular = [torch.from_numpy(moment + ridge * np.eye(COMPONENTS)) for moment in moments]
        return [Fold(regular[1 - fold], torch.from_numpy(moments[fold]), 0.5) for fold in range(2)]

    both = torch.from_numpy(sum(moments) / 2)
    small, large = (inverse(both + ridge * torch.eye(COMPONENTS)) for ridge in ridges)
    made = _Part(
        weight=torch.from_numpy(weight),
        raw=both,
        inverted=small,
        fitted=large,
        folds=folds(ridges[1]),
        plain=folds(ridges[0]),
        block=1,
        ridge=0.1,
        independent=1.0,
        energy=1.0,
        explained=torch.zeros(COMPONENTS),
        row_sum=torch.zeros(COMPONENTS),
    )
    return made, moments, weight, ridges


def test_the_order_is_the_one_that_is_better_on_the_other_fold() -> None:
    chosen = []
    for seed in range(12):
        one, moments, weight, ridges = part(seed, 8 if seed % 2 else 400)
        scores = []
        for ridge in ridges:
            errors = np.zeros(COMPONENTS + 1)
            for fold in range(2):
                trained = moments[1 - fold] + ridge * np.eye(COMPONENTS)
                order, _ = eliminate([(inverse(torch.from_numpy(trained)), one.weight, 1)])
                fitted = moments[1 - fold] + ridges[1] * np.eye(COMPONENTS)
                for size in range(COMPONENTS + 1):
                    kept = order[:size].numpy()
                    new = np.zeros_like(weight)
                    new[:, kept] = np.linalg.solve(fitted[np.ix_(kept, kept)], (weight @ fitted[:, kept]).T).T
                    errors[size] += 0.5 * np.trace((weight - new) @ moments[fold] @ (weight - new).T)
            scores.append(np.log(errors[len(errors) // 2 : -1]).mean())
        best = one.inverted if scores[0] <= scores[1] + _CLEARLY else one.fitted
        (found,) = _inverses({"layer": one}, lambda: None)
        assert found is best
        chosen.append(bool(scores[0] <= scores[1] + _CLEARLY))
    assert {*chosen} == {True, False}
