"""ModHiFi-P as published: who goes, by an independent reading of Alg. 1, and what the comparison says."""

import numpy as np
import pytest

import modhifi
from modhifi import Data, Model, Study, UserError
from modhifi.fidelity import singleton_from_moments
from modhifi.pruning import PUBLISHED, compare, pruning_methods, published, smallest_cost
from modhifi.specs import PruningSpec


def test_only_what_is_in_no_hifi_set_goes(digits_study: Study, digits_model: Model) -> None:
    """One small step: the first k at which somebody is in no set, and among those the ones that are furthest from any."""
    plan = published(digits_study, flops=0.985, step=0.1, model=digits_model)
    best = {}
    for group in digits_study.groups:
        ranks = np.full(group.size, group.size)
        for consumer in group.consumers:
            stats = digits_study.layers[consumer.layer]
            score = singleton_from_moments(
                *stats.moment_and_weight(True, digits_study.ridge), stats.blocks(group.name)
            ).numpy()
            for row in score:
                order = np.argsort(-row, kind="stable")
                ranks[order] = np.minimum(ranks[order], np.arange(group.size))
        best[group.name] = ranks / group.size
    gone = [best[name][i] for name, group in plan.groups.items() for i in range(group.total) if i not in group.keep]
    stays = [best[name][i] for name, group in plan.groups.items() for i in group.keep]
    assert gone
    assert min(gone) >= max(stays) - 1e-12 or len([s for s in stays if s > min(gone)]) <= len(digits_study.groups)
    assert plan.predicted["flops"] <= 0.985 * plan.predicted["flops_before"]
    assert plan.settings.method == PUBLISHED
    assert (plan.settings.compensate, plan.settings.recalibrate_bn) == ("scalar", True)


def test_the_budget_is_met_and_the_plan_can_be_carried_out(
    digits_study: Study, digits_model: Model, digits_test: Data
) -> None:
    plan = published(digits_study, flops=0.8, step=0.4, model=digits_model)
    smaller = modhifi.apply(plan, digits_model)
    found = modhifi.evaluate(smaller, digits_test, latency=False)
    assert found.flops == plan.predicted["flops"] <= 0.8 * digits_study.dense.flops
    counts = {name: len(group.keep) for name, group in plan.groups.items()}
    assert any(
        digits_study.cost(counts | {name: count + 1}).flops > 0.8 * digits_study.dense.flops
        for name, count in counts.items()
        if count < digits_study.group(name).size
    )
    assert found.accuracy >= 0.9


def test_a_budget_below_what_the_published_rule_removes_is_met_too(chain: Model) -> None:
    """Its groups are so small that every component left is soon the best one for some output."""
    study = modhifi.analyze(chain, modhifi.load_data("noise"), samples=64)
    ratio = 1.1 * smallest_cost(study, PruningSpec(budget="flops"))
    plan = published(study, flops=ratio, model=chain)
    assert plan.predicted["flops"] <= ratio * study.dense.flops + 0.5
    assert modhifi.apply(plan, chain).plan is plan


def test_refusals(digits_study: Study, digits_model: Model) -> None:
    for wrong in ({}, {"flops": 0.5, "params": 0.5}, {"flops": 1.5}):
        with pytest.raises(UserError, match="one budget"):
            published(digits_study, **wrong, model=digits_model)
    with pytest.raises(UserError, match="cannot be reached"):
        published(digits_study, flops=1e-4, model=digits_model)
    with pytest.raises(UserError, match="step"):
        published(digits_study, flops=0.5, step=0.0, model=digits_model)


def test_methods_side_by_side(digits_study: Study, digits_model: Model, digits_test: Data) -> None:
    data = digits_test.take(120)
    found = compare(digits_study, data, flops=[0.9, 0.6], methods=["one-shot", "l2", "l2+full"], model=digits_model)
    assert [(row.method.name, row.remain) for row in found.rows] == [
        (name, remain) for remain in (0.9, 0.6) for name in ("one-shot", "l2", "l2+full")
    ]
    assert found.dense.accuracy >= 0.97
    for row in found.rows:
        e = row.evaluation
        assert e.flops <= row.remain * found.dense.flops == row.remain * e.flops_before
        assert e.latency_ms > 0
        assert e.latency_ms_before == found.dense.latency_ms
        assert e.accuracy_before == found.dense.accuracy
        assert row.plan.measured[-1]["accuracy"] == e.accuracy
        again = modhifi.evaluate(modhifi.apply(row.plan, digits_model), data, latency=False)
        assert again.accuracy == e.accuracy
    by = {(row.method.name, row.remain): row.plan for row in found.rows}
    assert by["l2", 0.6].groups == by["l2+full", 0.6].groups
    assert by["l2", 0.6].settings.allocation == "uniform"
    with pytest.raises(UserError, match="unknown method 'magic'"):
        compare(digits_study, data, flops=0.5, methods=["magic"])
    with pytest.raises(UserError, match="one budget"):
        compare(digits_study, data, methods=["l2"])


def test_what_uses_labels_says_so() -> None:
    assert {name for name, method in pruning_methods().items() if method.needs_labels} == {
        f"{score}{more}" for score in ("taylor", "hessian") for more in ("", "+bn", "+full")
    }
    assert all("labels" in method.title for method in pruning_methods().values() if method.needs_labels)
