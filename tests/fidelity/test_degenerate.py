"""Inputs that are zero, constant or smaller than single precision can square: everything stays finite, and prunes."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

import modhifi
from modhifi import Data, Model
from modhifi.fidelity import (
    Averages,
    aggregate_gram,
    eliminate,
    error_curve,
    fit_moments,
    fit_rows,
    full_compensation,
    inverse,
    removal_cost,
    ridged,
    row_sum,
    scalar_compensation,
    singleton_from_moments,
)
from modhifi.models import fingerprint

SCALES = (0.0, 1e-45, 1e-30, 1e-20, 1e-10, 1.0, 1e10)


def moment(scale: float, kind: str) -> Tensor:
    """The second moment (6, 6), as single precision accumulates it, centred with a mean that is exact."""
    rows = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    if kind == "constant":
        rows = rows[:1].expand(40, 6)
    elif kind == "dead":
        rows[:, :4] = 0
    rows = (rows.double() * scale).float()
    second = (rows.T @ rows / 40).double()
    return second - torch.outer(rows.double().mean(0), rows.double().mean(0))


@pytest.mark.parametrize("kind", ["dense", "constant", "dead"])
@pytest.mark.parametrize("scale", SCALES)
def test_everything_is_finite_for_every_subset(scale: float, kind: str) -> None:
    weight = torch.randn(3, 6, generator=torch.Generator().manual_seed(1)).double()
    raw = moment(scale, kind)
    second = ridged(raw, 1e-3, 4 * torch.finfo(torch.float32).eps * float(raw.norm()))
    inverted = inverse(second)
    found = [inverted, row_sum(second, weight, 2), aggregate_gram(second, weight, 2)]
    found += [singleton_from_moments(second, weight, 2), removal_cost([(inverted, weight, 2)])]
    order, costs = eliminate([(inverted, weight, 2)])
    assert sorted(order.tolist()) == [0, 1, 2]
    found.append(costs)
    for level, ranking in product(("none", "scalar", "full"), ([0, 1, 2], [2, 0, 1])):
        found.append(error_curve(second, weight, 2, torch.tensor(ranking), level))
    for keep in ([], [0], [1], [2], [0, 1], [0, 2], [1, 2], [0, 1, 2]):
        found += [f(second, weight, 2, torch.tensor(keep, dtype=torch.int64)) for f in _COMPENSATIONS]
    assert all(bool(value.isfinite().all()) for value in found)


_COMPENSATIONS = (scalar_compensation, full_compensation)


def test_an_input_that_is_zero_keeps_the_weights_that_remain() -> None:
    weight = torch.randn(3, 6, generator=torch.Generator().manual_seed(1)).double()
    new = full_compensation(ridged(torch.zeros(6, 6), 1e-3), weight, 2, [0, 2])
    assert torch.allclose(new[:, [0, 1, 4, 5]], weight[:, [0, 1, 4, 5]])
    assert not new[:, 2:4].any()
    rows, target = torch.zeros(9, 6), torch.zeros(9, 3)
    fitted, constant, _ = fit_rows(rows, target, weight.float(), 1e-4, centred=True)
    assert torch.allclose(fitted, weight.float().double())
    assert not constant.any()
    zero = [torch.zeros(shape, dtype=torch.float64) for shape in ((6, 6), (3, 6), (6,), (3,))]
    for folds in ([Averages(*zero, 9)], [Averages(*zero, 4), Averages(*zero, 5)]):
        assert torch.allclose(fit_moments(folds, weight, 1e-4, True)[0], weight)


def test_a_negative_eigenvalue_beyond_the_ridge_is_lifted() -> None:
    second = torch.diag(torch.tensor([1.0, 1.0, -1e-6])).double()
    found = inverse(second)
    assert torch.allclose(found[:2, :2], torch.eye(2).double(), rtol=1e-4)
    assert bool(found.isfinite().all())
    assert torch.linalg.eigvalsh(found)[0] > 0
    with pytest.raises(torch.linalg.LinAlgError, match="not finite"):
        inverse(second * torch.nan)


def test_a_matrix_that_has_an_inverse_is_not_changed() -> None:
    rows = torch.randn(40, 6, generator=torch.Generator().manual_seed(0)).double()
    second = rows.T @ rows
    assert torch.allclose(inverse(second), torch.linalg.inv(second), rtol=1e-9)


@pytest.mark.parametrize("part", ["a", "b", "c", "every"])
@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e-38])
def test_a_network_with_a_layer_that_does_nothing_is_pruned(
    chain: Model, pictures: Data, part: str, scale: float
) -> None:
    layers = ["a", "b", "c"] if part == "every" else [part]
    for name in layers:
        for value in chain.module.get_submodule(name).parameters():
            value.mul_(scale)
    model = replace(chain, fingerprint=fingerprint(chain.module))
    study = modhifi.analyze(model, pictures, samples=96)
    for level in ("none", "scalar", "full"):
        plan = modhifi.prune(study, params=0.6, compensate=level, model=model)
        small = modhifi.apply(plan, model)
        assert sum(p.numel() for p in small.module.parameters()) < sum(p.numel() for p in model.module.parameters())
        assert small.module(model.example(4)).isfinite().all()
        assert all(value.isfinite().all() for value in plan.tensors.values())
    for group in study.groups:
        found = study.scores(group.name)
        assert found
        assert all(np.isfinite(values).all() for values in found.values())
        assert sorted(study.order(group.name)) == list(range(group.size))
