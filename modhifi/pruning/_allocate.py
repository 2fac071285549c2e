"""How much of each group stays: a budget spent over the groups, from the study's curves alone.

*Global*: components leave one at a time, always where the expected squared error of the output grows least per unit of
budget. A layer's local error ``e_l(k)`` reaches the output with gain ``K_l``; ``Σ K_l² e_l`` (K the root-mean-square gain) is
that growth if the layers' errors are uncorrelated. On the lower convex hull of each group's curve the greedy choice is
optimal. *Uniform*: every group keeps the same fraction.

Removing a component changes what its neighbours cost (a channel is written by one layer and read by the next), so costs are
taken at the current widths. The budget is met from above: the last removal is the one that reaches it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..components import Cost, Structure
from ..errors import UserError
from ..study import Study
from ..study._types import Level

__all__ = ["Allocation", "allocate", "smallest_cost"]

Spread = Literal["global", "uniform"]
Score = Literal["greedy", "fidelity"]
Budget = Literal["flops", "params"]

# Which of the study's orders a score stands for.
ORDER_OF: dict[str, Literal["greedy", "naive"]] = {"greedy": "greedy", "fidelity": "naive"}


@dataclass(frozen=True)
class Allocation:
    """What stays of each group, and what the study predicts of it."""

    keep: dict[str, list[int]]
    counts: dict[str, int]
    fidelity: dict[str, float]
    """1 − error / energy of each group, energy-weighted over its consumers."""
    mean_fidelity: float
    """The same over all groups together."""
    cost: Cost
    bound: float
    """Σ_l K_l √e_l, an estimate of the root-mean-square error of the logits: the gains K_l are those of the unmodified network,
    the largest seen on the samples (theory, section 5)."""


def smallest_cost(study: Study, budget: Budget, overrides: Mapping[str, int] | None = None) -> float:
    """The fraction of the budget that remains when every group not in ``overrides`` keeps a single component."""
    counts = {group.name: 1 for group in study.groups} | dict(overrides or {})
    return float(getattr(study.cost(counts), budget)) / float(getattr(study.dense, budget))


def allocate(
    study: Study,
    *,
    flops: float | None = None,
    params: float | None = None,
    overrides: Mapping[str, int] | None = None,
    score: Score = "greedy",
    allocation: Spread = "global",
    compensate: Level = "full",
    centred: bool = True,
) -> Allocation:
    """Decides what stays, without running the network.

    Args:
        study: what was observed.
        flops: the fraction of FLOPs that remains, in (0, 1]; or
        params: the fraction of parameters that remains. With neither, only ``overrides`` are removed.
        overrides: components kept, for groups that are set by hand.
        score: ``greedy`` (backward elimination) or ``fidelity`` (singletons, Def. 3.1).
        allocation: ``global`` or ``uniform``, see the module's text.
        compensate: the level whose errors are predicted.
        centred: whether a lost mean is put back.

    Raises:
        UserError: for a ratio outside (0, 1], two budgets, an override that is out of range or of no group, or a budget
            that cannot be reached.
    """
    fixed = _checked_overrides(study, overrides or {})
    if score not in ORDER_OF:
        raise UserError(f"unknown score {score!r}; a score is one of: {', '.join(ORDER_OF)}")
    if allocation not in ("global", "uniform"):
        raise UserError(f"unknown allocation {allocation!r}; it is global or uniform")
    budget, ratio = _budget(flops, params)
    counts = {group.name: fixed.get(group.name, group.size) for group in study.groups}
    if budget is not None:
        smallest = smallest_cost(study, budget, fixed)
        if ratio < smallest:
            kept = " with these overrides" if fixed else ""
            raise UserError(
                f"{budget} {ratio:g} cannot be reached: {smallest:.4g} remain with one component in each of the"
                f" {len(study.groups)} groups{kept}; ask for at least {math.ceil(smallest * 1000) / 1000:g}"
            )
        limit = ratio * getattr(study.dense, budget)
        counts = _spend(study, counts, set(fixed), budget, limit, score, allocation, compensate, centred)
    return _predict(study, counts, score, compensate, centred)


def _checked_overrides(study: Study, overrides: Mapping[str, int]) -> dict[str, int]:
    for name, kept in overrides.items():
        size = study.group(name).size
        if not 1 <= kept <= size:
            raise UserError(f"group {name} keeps 1 to {size} components, not {kept}")
    return dict(overrides)


def _budget(flops: float | None, params: float | None) -> tuple[Budget | None, float]:
    if flops is not None and params is not None:
        raise UserError("give one budget, flops or params, not both")
    name: Budget = "flops" if flops is not None else "params"
    ratio = flops if flops is not None else params
    if ratio is None:
        return None, 1.0
    if not (math.isfinite(ratio) and 0 < ratio <= 1):
        raise UserError(f"{name} is the fraction that remains, above 0 and at most 1, not {ratio}")
    return name, float(ratio)


def _layer_errors(
    study: Study, group_name: str, score: str, compensate: Level, centred: bool
) -> list[tuple[str, np.ndarray]]:
    consumers = study.structure.group(group_name).consumers
    return [(c.layer, study.errors(c.layer, ORDER_OF[score], compensate, centred)) for c in consumers]


def _hull_slopes(error: np.ndarray) -> np.ndarray:
    """``error``: (C + 1,), at size 0…C. (C,): what the lower convex hull grows by when size ``k + 1`` becomes ``k``."""
    hull = [len(error) - 1]
    for size in range(len(error) - 2, -1, -1):
        while len(hull) > 1:
            last, before = hull[-1], hull[-2]
            rise = (error[size] - error[last]) / (last - size)
            if rise > (error[last] - error[before]) / (before - last):
                break
            hull.pop()
        hull.append(size)
    slopes = np.empty(len(error) - 1)
    for high, low in itertools.pairwise(hull):
        slopes[low:high] = (error[low] - error[high]) / (high - low)
    return slopes


def _spend(
    study: Study,
    counts: dict[str, int],
    fixed: set[str],
    budget: Budget,
    limit: float,
    score: str,
    allocation: Spread,
    compensate: Level,
    centred: bool,
) -> dict[str, int]:
    """Removes components until the cost is at most ``limit``."""
    counts = dict(counts)
    free = [group for group in study.groups if group.name not in fixed]
    growth = {}
    for group in free:
        curves = _layer_errors(study, group.name, score, compensate, centred)
        growth[group.name] = _hull_slopes(np.sum([study.gains[layer].rms ** 2 * error for layer, error in curves], 0))
    ledger = _Ledger(study.structure, budget, counts)
    size = {group.name: group.size for group in free}

    def priority(name: str) -> float:
        left = counts[name]
        if left <= 1:
            return math.inf
        if allocation == "uniform":
            return 1.0 - left / size[name]
        return float(growth[name][left - 1]) / ledger.saving(name, counts)

    priorities = {name: priority(name) for name in size}
    total = ledger.total(counts)
    while total > limit + 0.5:  # costs are whole numbers; the sums of them are not exact
        chosen = min(priorities, key=priorities.__getitem__)
        if math.isinf(priorities[chosen]):
            break
        total -= ledger.saving(chosen, counts)
        counts[chosen] -= 1
        for name in (chosen, *ledger.neighbours[chosen]):
            if name in priorities:
                priorities[name] = priority(name)
    return counts


class _Ledger:
    """The running cost and what one component less of a group would save, from the layers that the group touches."""

    def __init__(self, structure: Structure, budget: Budget, counts: Mapping[str, int]) -> None:
        self._flops = budget == "flops"
        self._layers: dict[str, list[int]] = {name: [] for name in counts}
        self._rows = structure.layers
        self.neighbours: dict[str, set[str]] = {name: set() for name in counts}
        for index, layer in enumerate(structure.layers):
            sides = [name for name in (layer.in_group, layer.out_group) if name is not None]
            for name in sides:
                self._layers[name].append(index)
                self.neighbours[name].update(other for other in sides if other != name)
        self._other = float(structure.other.flops if self._flops else structure.other.params)

    def _cost(self, index: int, counts: Mapping[str, int], less: str | None = None) -> float:
        layer = self._rows[index]
        inputs, outputs = layer.inputs, layer.outputs
        if layer.in_group is not None:
            inputs = (counts[layer.in_group] - (less == layer.in_group)) * layer.in_block
        if layer.out_group is not None:
            outputs = counts[layer.out_group] - (less == layer.out_group)
        if self._flops:
            return layer.macs * inputs * outputs
        return layer.params * inputs * outputs + layer.per_output * outputs

    def saving(self, name: str, counts: Mapping[str, int]) -> float:
        return sum(self._cost(i, counts) - self._cost(i, counts, name) for i in self._layers[name])

    def total(self, counts: Mapping[str, int]) -> float:
        return self._other + sum(self._cost(i, counts) for i in range(len(self._rows)))


def _predict(study: Study, counts: dict[str, int], score: str, compensate: Level, centred: bool) -> Allocation:
    keep, fidelity = {}, {}
    total_error = total_energy = bound = 0.0
    for group in study.groups:
        kept = counts[group.name]
        order = study.order(group.name, ORDER_OF[score], centred)
        keep[group.name] = sorted(order[:kept].tolist())
        error = energy = 0.0
        for layer, errors in _layer_errors(study, group.name, score, compensate, centred):
            error += float(errors[kept])
            energy += study.energy(layer, centred)
            bound += study.gains[layer].maximum * math.sqrt(float(errors[kept]))
        fidelity[group.name] = 1.0 - error / energy if energy > 0 else 1.0
        total_error, total_energy = total_error + error, total_energy + energy
    return Allocation(
        keep=keep,
        counts=dict(counts),
        fidelity=fidelity,
        mean_fidelity=1.0 - total_error / total_energy if total_energy > 0 else 1.0,
        cost=study.cost(counts),
        bound=bound,
    )
