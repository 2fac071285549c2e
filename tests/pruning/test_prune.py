"""Budgets are met from above to within one component; allocations, refusals, and what the default keeps."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import modhifi
from modhifi import Data, Model, Study, UserError
from modhifi.pruning import allocate, smallest_cost
from modhifi.pruning._allocate import _hull_slopes
from modhifi.pruning._ledger import CostLedger
from modhifi.specs import PruningSpec


@pytest.mark.parametrize("budget", ["flops", "params"])
@pytest.mark.parametrize("allocation", ["global", "uniform"])
@pytest.mark.parametrize("ratio", [1.0, 0.9, 0.5, 0.2])
def test_budget_met_from_above_within_one_component(
    digits_study: Study, budget: str, allocation: str, ratio: float
) -> None:
    found = allocate(digits_study, **{budget: ratio}, allocation=allocation)
    limit = ratio * getattr(digits_study.dense, budget)
    assert getattr(found.cost, budget) <= limit + 0.5
    if ratio == 1.0:
        assert found.cost == digits_study.dense
        return
    # With one component more in some group the budget is exceeded: that one was the last to go.
    assert any(
        getattr(digits_study.cost(found.counts | {g.name: found.counts[g.name] + 1}), budget) > limit
        for g in digits_study.groups
        if found.counts[g.name] < g.size
    )


@settings(deadline=None, max_examples=30)
@given(st.floats(0.12, 1.0), st.sampled_from(["greedy", "fidelity"]), st.sampled_from(["none", "scalar", "full"]))
def test_no_group_is_emptied_and_what_stays_is_the_best_of_the_order(
    digits_study: Study, ratio: float, score: str, compensate: str
) -> None:
    found = allocate(digits_study, flops=ratio, score=score, compensate=compensate)
    for group in digits_study.groups:
        kept = found.keep[group.name]
        assert 1 <= len(kept) == found.counts[group.name] <= group.size
        assert kept == sorted(digits_study.order(group.name, score, True)[: len(kept)].tolist())


def test_less_budget_never_predicts_more_fidelity(digits_study: Study) -> None:
    found = [allocate(digits_study, flops=ratio / 100) for ratio in range(20, 101, 5)]
    assert all(a.bound >= b.bound - 1e-9 for a, b in itertools.pairwise(found))
    assert all(a.mean_fidelity <= b.mean_fidelity + 1e-12 for a, b in itertools.pairwise(found))
    assert found[-1].bound == 0.0
    assert found[-1].mean_fidelity == 1.0


def test_global_allocation_minimises_the_expected_error(digits_study: Study) -> None:
    """Its objective, Σ over groups of (Σ over readers of K √e)², is lower than the uniform one's at the same budget."""

    def objective(counts: dict[str, int]) -> float:
        return sum(
            sum(
                digits_study.constant(c.layer, typical=True)
                * math.sqrt(digits_study.errors(g.name, c.layer, "greedy", "full", True)[counts[g.name]])
                for c in g.consumers
            )
            ** 2
            for g in digits_study.groups
        )

    for ratio in (0.75, 0.5, 0.3):
        together = allocate(digits_study, flops=ratio)
        apart = allocate(digits_study, flops=ratio, allocation="uniform")
        assert objective(together.counts) < objective(apart.counts)


def test_constants_can_be_exchanged(digits_study: Study) -> None:
    """Global allocation is the one that minimises the objective of the constants it was given, not of others."""

    def objective(counts: dict[str, int], constants: str) -> float:
        return sum(
            sum(
                digits_study.constant(c.layer, constants, typical=True)
                * math.sqrt(digits_study.errors(g.name, c.layer, "greedy", "full", True)[counts[g.name]])
                for c in g.consumers
            )
            ** 2
            for g in digits_study.groups
        )

    kinds = ("directional", "jacobian", "none")
    found = {name: allocate(digits_study, flops=0.4, constants=name) for name in kinds}
    assert len({tuple(one.counts.items()) for one in found.values()}) == 3
    for name, one in found.items():
        assert one.settings.constants == name
        for other in kinds:
            # Removal in steps of several is within a few percent of the best.
            assert objective(one.counts, name) <= objective(found[other].counts, name) * 1.05
    assert allocate(digits_study, flops=0.4, constants="none", allocation="uniform").counts == (
        allocate(digits_study, flops=0.4, allocation="uniform").counts
    )
    with pytest.raises(UserError, match="no certified constants"):
        allocate(digits_study, flops=0.4, constants="certified")


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_the_running_cost_is_the_structure_s_own(digits_study: Study, data: st.DataObject) -> None:
    """The bilinear form against adding up layer by layer, streams that a layer both reads and writes included."""
    structure = digits_study.structure
    counts = {group.name: group.size for group in structure.groups}
    budget = data.draw(st.sampled_from(["flops", "params"]))
    ledger = CostLedger(structure, budget, counts)
    for _ in range(4):
        group = data.draw(st.sampled_from(structure.groups))
        step = data.draw(st.integers(0, counts[group.name] - 1))
        one_less = counts | {group.name: counts[group.name] - 1}
        saving = getattr(structure.cost(counts), budget) - getattr(structure.cost(one_less), budget)
        assert ledger.savings()[ledger.index[group.name]] == pytest.approx(saving, abs=1)
        ledger.remove(ledger.index[group.name], step)
        counts[group.name] -= step
        assert ledger.total == pytest.approx(getattr(structure.cost(counts), budget), abs=1)


@given(st.lists(st.floats(0, 10), min_size=1, max_size=12))
def test_hull_slopes_against_the_definition(steps: list[float]) -> None:
    error = np.concatenate([np.cumsum(steps)[::-1], [0.0]])
    slopes = _hull_slopes(error)
    sizes = np.arange(len(error))
    # The lower convex hull at each size: the lowest chord over it.
    hull = [
        min(
            error[k] if i == j else error[i] + (error[j] - error[i]) * (k - i) / (j - i)
            for i in sizes[: k + 1]
            for j in sizes[k:]
        )
        for k in sizes
    ]
    np.testing.assert_allclose(slopes, -np.diff(hull), atol=1e-9)
    assert (np.diff(slopes) <= 1e-9).all()


def test_overrides_are_kept_and_the_rest_pays(digits_study: Study) -> None:
    name = digits_study.groups[0].name
    found = allocate(digits_study, flops=0.5, overrides={name: 16})
    assert found.counts[name] == 16
    assert found.cost.flops <= 0.5 * digits_study.dense.flops
    only = allocate(digits_study, overrides={name: 3})
    assert only.counts == {g.name: 3 if g.name == name else g.size for g in digits_study.groups}


@pytest.mark.parametrize("ratio", [0.0, -0.1, 1.5, math.nan, math.inf])
def test_a_ratio_that_is_none(digits_study: Study, ratio: float) -> None:
    for budget in ("flops", "params"):
        with pytest.raises(UserError, match="above 0 and at most 1"):
            modhifi.prune(digits_study, **{budget: ratio})


def test_refusals_say_how_to_mend_it(digits_study: Study) -> None:
    smallest = smallest_cost(digits_study, PruningSpec(budget="flops"))
    with pytest.raises(UserError, match="cannot be reached") as caught:
        modhifi.prune(digits_study, flops=smallest * 0.9)
    mended = float(str(caught.value).rsplit(" ", 1)[1])
    modhifi.prune(digits_study, flops=mended, compensate="full")
    with pytest.raises(UserError, match="one budget"):
        modhifi.prune(digits_study, flops=0.5, params=0.5)
    with pytest.raises(UserError, match="keeps 1 to 16"):
        modhifi.prune(digits_study, overrides={"layer1.0.conv1": 0})
    with pytest.raises(UserError, match="no group"):
        modhifi.prune(digits_study, overrides={"layer9": 1})
    with pytest.raises(UserError, match="unknown score"):
        modhifi.prune(digits_study, flops=0.5, score="luck")
    with pytest.raises(UserError, match="unknown allocation"):
        modhifi.prune(digits_study, flops=0.5, allocation="fair")
    with pytest.raises(UserError, match="unknown compensation"):
        modhifi.prune(digits_study, flops=0.5, compensate="prayer")


def test_the_default_at_half_of_the_flops_keeps_97_percent(
    digits_study: Study, digits_model: Model, digits_test: Data
) -> None:
    smaller = modhifi.apply(modhifi.prune(digits_study, flops=0.5), digits_model)
    result = modhifi.evaluate(smaller, digits_test, baseline=digits_model, latency=False)
    assert result.flops <= 0.5 * result.flops_before
    assert result.accuracy >= 0.97
    assert result.accuracy_before >= 0.98


def test_a_chain_whose_costs_depend_on_each_other(chain: Model, pictures: Data) -> None:
    study = modhifi.analyze(chain, pictures)
    for ratio in (0.8, 0.5, 0.3):
        found = allocate(study, params=ratio)
        assert found.cost.params <= ratio * study.dense.params
        assert found.cost == study.cost(found.counts)
