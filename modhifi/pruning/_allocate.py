"""How much of each group stays: a budget spent over the groups, from the study's curves alone.

*Global*: components leave one at a time, always where the expected squared error of the output grows least per unit of
budget. A layer's local error ``e_l(k)`` reaches the output with gain ``K_l``; ``Σ K_l² e_l`` (K the root-mean-square gain) is
that growth if the layers' errors are uncorrelated. On the lower convex hull of each group's curve the greedy choice is
optimal. *Uniform*: every group keeps the same fraction.

Removing a component changes what its neighbours cost (a channel is written by one layer and read by the next), so costs are
taken at the current widths. A layer that reads several groups is charged for each of them as if the others stayed whole. The
budget is met from above: the last removal is the one that reaches it.
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
from ..plan import Compensation
from ..study import Level, Study

__all__ = ["Allocation", "allocate", "smallest_cost"]

Spread = Literal["global", "uniform"]
Score = Literal["greedy", "fidelity"]
Budget = Literal["flops", "params"]

# Which of the study's orders a score stands for.
ORDER_OF: dict[str, Literal["greedy", "naive"]] = {"greedy": "greedy", "fidelity": "naive"}
# While the budget is far, one in so many of a group's components leaves in one step.
_AT_ONCE = 32


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
    the largest seen on the samples (theory, section 5). Where a layer reads several groups, their errors' roots are added."""


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
    compensate: Compensation = "full",
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
        compensate: how the rest will make up for it: the level whose errors are predicted (``sequential``: those of ``full``).
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
    level: Level = "full" if compensate == "sequential" else compensate
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
        counts = _spend(study, counts, set(fixed), budget, limit, score, allocation, level, centred)
    return _predict(study, counts, score, level, centred)


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
    study: Study, group: str, score: str, compensate: Level, centred: bool
) -> list[tuple[str, np.ndarray]]:
    consumers = study.structure.group(group).consumers
    return [(c.layer, study.errors(group, c.layer, ORDER_OF[score], compensate, centred)) for c in consumers]


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
    ledger = _Ledger(study.structure, budget, counts)
    names = [group.name for group in free]
    index = np.array([ledger.index[name] for name in names], dtype=np.int64)
    growth = [] if allocation == "uniform" else [_growth(study, name, score, compensate, centred) for name in names]
    left = np.array([counts[name] for name in names], dtype=np.int64)
    size = np.array([group.size for group in free], dtype=np.int64)
    slope = np.array([values[-1] for values in growth]) if growth else np.zeros(len(names))
    # The smallest cost is known to be below the limit: the loop ends before nothing is left to choose from.
    while ledger.total > limit + 0.5:  # costs are whole numbers; the sums of them are not exact
        saving = ledger.savings()[index]
        priority = 1.0 - left / size if not growth else slope / saving
        chosen = int(np.where(left > 1, priority, np.inf).argmin())
        if left[chosen] <= 1:
            break
        # Several at once while the limit is far: a step of a 32nd changes what the neighbours cost by little.
        step = max(1, int(left[chosen]) // _AT_ONCE)
        if step > 1 and ledger.total - step * saving[chosen] <= limit + 0.02 * ledger.total:
            step = 1
        ledger.remove(int(index[chosen]), step)
        left[chosen] -= step
        if growth and left[chosen] > 0:
            slope[chosen] = growth[chosen][left[chosen] - 1]
    return counts | dict(zip(names, left.tolist(), strict=True))


def _growth(study: Study, group: str, score: str, compensate: Level, centred: bool) -> np.ndarray:
    """(C,): what the output's expected squared error grows by when ``k + 1`` components become ``k``."""
    curves = _layer_errors(study, group, score, compensate, centred)
    return _hull_slopes(np.sum([study.gains[layer].rms ** 2 * error for layer, error in curves], 0))


class _Ledger:
    """The running cost. With ``k`` the components that stay of each group it is ``c + aᵀk + kᵀQk / 2``: bilinear in what
    a layer's two sides have, and quadratic where both belong to one group.
    """

    def __init__(self, structure: Structure, budget: Budget, counts: Mapping[str, int]) -> None:
        self.index = {name: position for position, name in enumerate(counts)}
        self.counts = np.array([counts[name] for name in counts], dtype=np.float64)
        self.linear = np.zeros(len(counts))
        self.pairs = np.zeros((len(counts), len(counts)))
        constant = float(structure.other.flops if budget == "flops" else structure.other.params)
        for layer in structure.layers:
            each = layer.macs if budget == "flops" else layer.params
            once = 0.0 if budget == "flops" else layer.per_output
            constant += each * layer.inputs * layer.outputs + once * layer.outputs
            for out in layer.out_shares:
                self.linear[self.index[out.group]] += (each * layer.inputs + once) * out.width
            for read in layer.in_shares:
                self.linear[self.index[read.group]] += each * layer.outputs * read.width
                for out in layer.out_shares:
                    cross = each * read.width * out.width
                    self.pairs[self.index[read.group], self.index[out.group]] += cross
                    self.pairs[self.index[out.group], self.index[read.group]] += cross
        self.slope = self.linear + self.pairs @ self.counts  # what the cost grows by in each direction
        self.total = float(constant + self.linear @ self.counts + self.counts @ self.pairs @ self.counts / 2)

    def savings(self) -> np.ndarray:
        """(G,): what one component less of each group saves."""
        return self.slope - self.pairs.diagonal() / 2

    def remove(self, group: int, count: int) -> None:
        self.total -= count * self.slope[group] - count * count * self.pairs[group, group] / 2
        self.slope -= count * self.pairs[group]
        self.counts[group] -= count


def _predict(study: Study, counts: dict[str, int], score: str, compensate: Level, centred: bool) -> Allocation:
    keep, fidelity = {}, {}
    by_layer: dict[str, float] = {}
    total_error = total_energy = 0.0
    for group in study.groups:
        kept = counts[group.name]
        order = study.order(group.name, ORDER_OF[score], centred)
        keep[group.name] = sorted(order[:kept].tolist())
        error = energy = 0.0
        for layer, errors in _layer_errors(study, group.name, score, compensate, centred):
            error += float(errors[kept])
            energy += study.energy(layer, centred)
            by_layer[layer] = by_layer.get(layer, 0.0) + math.sqrt(float(errors[kept]))
        fidelity[group.name] = 1.0 - error / energy if energy > 0 else 1.0
        total_error, total_energy = total_error + error, total_energy + energy
    return Allocation(
        keep=keep,
        counts=dict(counts),
        fidelity=fidelity,
        mean_fidelity=1.0 - total_error / total_energy if total_energy > 0 else 1.0,
        cost=study.cost(counts),
        bound=sum(study.gains[layer].maximum * error for layer, error in by_layer.items()),
    )
