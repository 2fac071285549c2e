"""Floors, multiples, measured latency, and what one group alone would cost."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import modhifi
from modhifi import Model, Study, UserError
from modhifi.components import structure_of
from modhifi.evaluation import Timing, ratio
from modhifi.pruning import (
    LatencyKey,
    LatencyTable,
    allocate,
    latency_table,
    measure_table,
    sensitivity,
    smallest_cost,
)
from modhifi.pruning._latency import LatencyLedger
from modhifi.pruning._timing import _counts_at
from modhifi.specs import PruningSpec


@settings(deadline=None, max_examples=25)
@given(st.floats(0.2, 0.95), st.sampled_from([1, 2, 4, 8]), st.sampled_from(["global", "uniform"]))
def test_what_loses_something_keeps_a_multiple(digits_study: Study, share: float, multiple: int, spread: str) -> None:
    if share < smallest_cost(digits_study, PruningSpec(budget="flops", multiple=multiple)):
        with pytest.raises(UserError, match="cannot be reached"):
            allocate(digits_study, flops=share, multiple=multiple, allocation=spread)
        return
    found = allocate(digits_study, flops=share, multiple=multiple, allocation=spread)
    for group in digits_study.groups:
        kept = found.counts[group.name]
        assert kept == group.size or kept % multiple == 0
    assert found.cost.flops <= share * digits_study.dense.flops + 0.5


def test_floors_hold_and_the_rest_pays(digits_study: Study) -> None:
    free = allocate(digits_study, flops=0.4)
    name = min(free.counts, key=lambda n: free.counts[n] / digits_study.group(n).size)
    floor = free.counts[name] + 3
    found = allocate(digits_study, flops=0.4, floors={name: floor})
    assert found.counts[name] >= floor
    assert found.cost.flops <= 0.4 * digits_study.dense.flops
    assert allocate(digits_study, flops=0.4, floors={name: floor}, multiple=8).counts[name] >= floor
    with pytest.raises(UserError, match="the minimum allowed"):
        allocate(digits_study, flops=0.4, floors={group.name: group.size for group in digits_study.groups})
    with pytest.raises(UserError, match="keeps 1 to"):
        allocate(digits_study, flops=0.4, floors={name: 1000})
    with pytest.raises(UserError, match="multiple"):
        allocate(digits_study, flops=0.4, multiple=0)


def made_up(study: Study, model: Model, machine: str = "made up", threads: int = 1) -> LatencyTable:
    """Every layer takes as long as it has multiply-accumulates, odd widths a fifth longer; 0.1 ms are always there."""
    structure, shares = study.structure, (0.1, 0.25, 0.5, 0.75, 1.0)
    counts = {
        kind: [_counts_at(structure, share, aligned=kind == "aligned") for share in shares]
        for kind in ("aligned", "odd")
    }
    times = {}
    for kind, slower in (("aligned", 1.0), ("odd", 1.2)):
        times[kind] = {"": [0.1] * len(shares)}
        for layer in structure.layers:
            times[kind][layer.name] = [slower * macs(layer, c) for c in counts[kind]]
    return LatencyTable(
        key=LatencyKey(machine=machine, device="cpu", threads=threads, batch=1, fingerprint=model.fingerprint),
        counts=counts,
        times=times,
    )


def macs(layer, counts: dict[str, int]) -> float:
    inputs = layer.inputs + sum(counts[s.group] * s.width for s in layer.in_shares)
    outputs = layer.outputs + sum(counts[s.group] * s.width for s in layer.out_shares)
    return 1e-6 * layer.macs * inputs * outputs


@pytest.mark.parametrize("multiple", [1, 8])
def test_a_budget_of_latency_is_met_by_the_table(digits_study: Study, digits_model: Model, multiple: int) -> None:
    table = made_up(digits_study, digits_model)
    whole = {group.name: group.size for group in digits_study.groups}
    assert table.milliseconds(digits_study.structure, whole) == pytest.approx(table.dense)
    for share in (0.8, 0.5, 0.3):
        found = allocate(digits_study, latency=share, multiple=multiple, latencies=table)
        ledger = LatencyLedger(table, digits_study.structure, found.counts, aligned=multiple == 8)
        assert ledger.total <= share * table.dense
        assert found.milliseconds == pytest.approx(ledger.total, rel=0.25)
        # One step less in every group that lost something: the last of them was needed.
        back = found.counts | {n: min(c + multiple, whole[n]) for n, c in found.counts.items() if c < whole[n]}
        assert LatencyLedger(table, digits_study.structure, back, aligned=multiple == 8).total > share * table.dense
    with pytest.raises(UserError, match=r"latency 0\.01 cannot be reached"):
        allocate(digits_study, latency=0.01, latencies=table)


@settings(deadline=None, max_examples=20)
@given(st.data())
def test_the_running_time_is_that_of_the_counts(digits_study: Study, digits_model: Model, data: st.DataObject) -> None:
    table, structure = made_up(digits_study, digits_model), digits_study.structure
    counts = {group.name: group.size for group in structure.groups}
    ledger = LatencyLedger(table, structure, counts, aligned=False)
    for _ in range(3):
        group = data.draw(st.sampled_from(structure.groups))
        step = data.draw(st.integers(0, counts[group.name] - 1))
        ledger.remove(ledger.index[group.name], step)
        counts[group.name] -= step
    fresh = LatencyLedger(table, structure, counts, aligned=False)
    assert ledger.total == pytest.approx(fresh.total)
    np.testing.assert_allclose(ledger.savings(), fresh.savings())
    assert (ledger.savings() > 0).all()


def test_a_table_of_this_machine(chain: Model, tmp_path) -> None:
    structure = structure_of(chain)
    table = measure_table(chain, structure)
    assert table.key == LatencyKey.here(chain.fingerprint, "cpu")
    assert table.dense > 0
    for times in table.times.values():
        assert times.keys() == {"", *(layer.name for layer in structure.layers)}
        assert all(value >= 0 for series in times.values() for value in series)
    table.save(tmp_path / "latency.json")
    assert LatencyTable.load(tmp_path / "latency.json") == table
    (tmp_path / "latency.json").write_text('{"machine": 3}')
    with pytest.raises(UserError, match="damaged or not a latency table"):
        LatencyTable.load(tmp_path / "latency.json")


class Clock:
    """A machine whose forward pass takes ``milliseconds(net)``, more or less by the factors of ``noise`` from round to round."""

    def __init__(self, milliseconds: Callable[[nn.Module], float], noise: Sequence[float] = (1.0,)) -> None:
        self.milliseconds, self.noise = milliseconds, noise

    def __call__(self, nets: Sequence[nn.Module], example: torch.Tensor) -> list[Timing]:
        first, *others = (self.milliseconds(net) for net in nets)
        return [
            Timing(tuple(first * factor for factor in self.noise)),
            *(Timing((one,) * len(self.noise)) for one in others),
        ]


def size(net: nn.Module) -> float:
    return float(sum(p.numel() for p in net.parameters()))


def made_up_here(study: Study, model: Model) -> LatencyTable:
    return made_up(study, model, LatencyKey.here("", "cpu").machine, torch.get_num_threads())


@pytest.mark.parametrize("wrong", [0.8, 1.0, 1.3])
def test_what_is_measured_corrects_what_the_table_says(digits_study: Study, digits_model: Model, wrong: float) -> None:
    """A machine whose times are another power of the number of parameters than the table thinks."""
    clock = Clock(lambda net: size(net) ** wrong)
    plan = modhifi.prune(
        digits_study,
        latency=0.5,
        compensate="none",
        allocation="uniform",
        latencies=made_up_here(digits_study, digits_model),
        clock=clock,
        model=digits_model,
    )
    share = plan.predicted["latency_ms"] / plan.predicted["latency_ms_before"]
    assert share == pytest.approx(0.5, rel=0.1)
    assert (plan.settings.budget, plan.settings.remain) == ("latency", 0.5)
    small = modhifi.apply(plan, digits_model)
    assert (size(small.module) / size(digits_model.module)) ** wrong == pytest.approx(share)


def test_a_latency_that_the_machine_does_not_reach(digits_study: Study, digits_model: Model) -> None:
    """The table promises half; the pruned network takes 0.9 of the time whatever is removed."""
    dense = size(digits_model.module)
    clock = Clock(lambda net: 1.0 if size(net) == dense else 0.9)
    table = made_up_here(digits_study, digits_model)
    with pytest.raises(UserError, match=r"takes 0\.900 of the original's time; set at least 0\.9"):
        modhifi.prune(digits_study, latency=0.5, compensate="none", latencies=table, clock=clock, model=digits_model)


def test_a_machine_that_is_too_busy_says_so(digits_study: Study, digits_model: Model) -> None:
    """The same, but from one round to the next the ratio varies by more than what is missing."""
    dense = size(digits_model.module)
    clock = Clock(lambda net: 1.0 if size(net) == dense else 0.9, noise=(0.4, 0.7, 1.0, 1.3, 1.6))
    table = made_up_here(digits_study, digits_model)
    with pytest.raises(UserError, match=r"too busy to judge a latency budget of 0\.5: .* 0\.90 ± 0\.27 of"):
        modhifi.prune(digits_study, latency=0.5, compensate="none", latencies=table, clock=clock, model=digits_model)


def test_the_ratio_of_two_networks_measured_in_turns() -> None:
    """A machine that slows down from round to round slows both: the ratio does not move."""
    slower = (1.0, 1.5, 2.0, 4.0)
    now, before = Timing(tuple(3 * f for f in slower)), Timing(tuple(4 * f for f in slower))
    assert ratio(now, before) == pytest.approx((0.75, 0.0))
    assert (now.median, now.spread) == pytest.approx((5.25, 3.375))


def test_a_table_of_another_key_is_refused_and_measured_again(
    digits_study: Study, digits_model: Model, chain: Model, tmp_path: Path
) -> None:
    table = made_up_here(digits_study, digits_model)
    key, path = LatencyKey.here(chain.fingerprint, "cpu"), tmp_path / "latency.json"
    found = measure_table(chain, structure_of(chain))
    for other in ({"machine": "made up"}, {"threads": 63}, {"batch": 2}, {"device": "cuda:7"}):
        elsewhere = table.model_copy(update={"key": table.key.model_copy(update=other)})
        with pytest.raises(UserError, match="measure it again here"):
            modhifi.prune(digits_study, latency=0.5, latencies=elsewhere, model=digits_model)
        found.model_copy(update={"key": key.model_copy(update=other)}).save(path)
        assert LatencyTable.kept(path, key, structure_of(chain)) is None
    again = latency_table(path, chain, structure_of(chain))
    assert again.key == key
    assert LatencyTable.kept(path, key, structure_of(chain)) == again
    assert latency_table(path, chain, structure_of(chain)) == again, "kept, not measured a third time"


def test_sensitivity_is_the_bound_of_a_plan_that_cuts_this_group_only(digits_study: Study) -> None:
    shares = (0.75, 0.5, 0.1)
    found = sensitivity(digits_study, shares)
    for name in ("layer2.1.conv1", digits_study.groups[0].name):
        size = digits_study.group(name).size
        for value, share in zip(found[name], shares, strict=True):
            kept = max(1, math.ceil(share * size))
            alone = allocate(digits_study, overrides={name: kept}, compensate="full")
            assert value == pytest.approx(alone.bound)
        assert (np.diff(found[name]) >= 0).all()
