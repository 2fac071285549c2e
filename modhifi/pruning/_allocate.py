"""How much of each group stays: a budget spent over the groups, from the study's curves alone.

*Global*: components leave one at a time, always where the expected squared error of the output grows least per unit of
budget. A layer's local error ``e_l(k)`` reaches the output with gain ``K_l`` (of the constants chosen the root-mean-square
one). The readers of one group all miss the same components, so their errors add up as they are, ``(Σ_l K_l √e_l)²``; those
of different groups are taken for uncorrelated, and their squares are added. On the lower convex hull of each group's curve
the greedy choice is optimal. *Uniform*: every group keeps the same fraction. *Ranking*: the component with the lowest score
of all groups leaves next, whatever it saves, as torch-pruning's global pruning does. *Width*, for language models: every
block keeps the same number of neurons and of key-value heads, one that its configuration can express, so that it alone
describes the result; of all such pairs that meet the budget the one with the least expected squared error of the output.

Removing a component changes what its neighbours cost (a channel is written by one layer and read by the next), so costs are
taken at the current widths. A layer that reads several groups is charged for each of them as if the others stayed whole. The
budget is met from above: the last removal is the one that reaches it.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, TypedDict

import numpy as np

from ..components import Cost, Group, Structure
from ..errors import UserError
from ..models import TokenSpec
from ..plan import Budget, Compensation, Constants, Settings, Spread
from ..study import Level, Study
from ._latency import ALIGNED, LatencyLedger, LatencyTable

__all__ = ["Allocation", "Wish", "allocate", "smallest_cost", "usual_allocation"]

# While the budget is far, one in so many of a group's components leaves in one step.
_AT_ONCE = 32


class Wish(TypedDict, total=False):
    """What `allocate` and `prune` can be asked for; see `allocate`."""

    flops: float | None
    params: float | None
    latency: float | None
    overrides: Mapping[str, int] | None
    floors: Mapping[str, int] | None
    multiple: int
    score: str
    allocation: Spread | None
    constants: Constants
    compensate: Compensation
    centred: bool | None


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
    """Σ_l K_l √e_l, an estimate of the root-mean-square error of the logits: the constants K_l are those of the unmodified
    network, the largest seen on the samples (theory, section 5), directional ones if none are chosen. Where a layer reads several
    groups, their errors' roots are added. Not a number where the study has no constants."""
    settings: Settings
    """How it was decided."""
    milliseconds: float | None = None
    """Of one forward pass, from the table of latencies if there is one."""


def smallest_cost(
    study: Study,
    budget: Budget,
    overrides: Mapping[str, int] | None = None,
    floors: Mapping[str, int] | None = None,
    multiple: int = 1,
    latencies: LatencyTable | None = None,
    allocation: Spread | None = None,
) -> float:
    """The fraction of the budget that remains when every group that is not in ``overrides`` keeps as little as it may, in all
    blocks alike if ``allocation`` is (by default, see `allocate`) ``width``. Raises `UserError` where it may not keep anything.
    """
    free = _free(study, overrides or {}, floors or {}, multiple)
    counts = {one.group.name: one.least for one in free} | dict(overrides or {})
    if (allocation or usual_allocation(study)) == "width":
        counts |= {name: one.sizes[0] for one in _tied(study, free) for name in one.names}
    if budget == "latency":
        if latencies is None:
            raise ValueError("a budget of latency needs a table of latencies")
        ledger = LatencyLedger(latencies, study.structure, counts, aligned=multiple % ALIGNED == 0)
        return ledger.total / latencies.dense
    return float(getattr(study.cost(counts), budget)) / float(getattr(study.dense, budget))


def allocate(
    study: Study,
    *,
    flops: float | None = None,
    params: float | None = None,
    latency: float | None = None,
    overrides: Mapping[str, int] | None = None,
    floors: Mapping[str, int] | None = None,
    multiple: int = 1,
    score: str = "greedy",
    allocation: Spread | None = None,
    constants: Constants = "directional",
    compensate: Compensation = "sequential",
    centred: bool | None = None,
    latencies: LatencyTable | None = None,
) -> Allocation:
    """Decides what stays, without running the network.

    Args:
        study: what was observed.
        flops: the fraction of FLOPs that remains, in (0, 1]; or
        params: the fraction of parameters; or
        latency: the fraction of the time of one forward pass, as ``latencies`` says. With none of the three, only ``overrides``
            are removed.
        overrides: components kept, for groups that are set by hand.
        floors: components that a group keeps at least.
        multiple: groups that lose something keep a multiple of so many channels; 1 for any number.
        score: what says which components of a group stay: ``greedy`` (backward elimination), ``fidelity`` (singletons, Def. 3.1),
            ``row-sum``, ``removal-cost`` (see `Study.scores`), or one that was `Study.scored`.
        allocation: ``global`` (the default), ``uniform``, ``ranking`` or ``width`` (the default of language models whose blocks
            are alike), see the module's text.
        constants: which of the study's Lipschitz constants global allocation weighs local errors by, see `Study.constant`;
            ``none`` takes every layer's for 1.
        compensate: how the rest will make up for it: the level whose errors are predicted (``sequential``: those of ``full``).
        centred: whether a lost mean is put back; see `Study.centred` for the default.
        latencies: how long the layers take here.

    Raises:
        UserError: for a ratio outside (0, 1], two budgets, an override or floor that is out of range or of no group, constants
            that the study does not have, or a budget that cannot be reached.
    """
    fixed = _checked(study, overrides or {})
    least = _checked(study, floors or {})
    if multiple < 1:
        raise UserError(f"multiple is a number of channels, at least 1, not {multiple}")
    tokens = study.model.input if isinstance(study.model.input, TokenSpec) else None
    allocation = allocation or usual_allocation(study)
    if allocation not in ("global", "uniform", "ranking", "width"):
        raise UserError(f"unknown allocation {allocation!r}; it is global, uniform, ranking or width")
    if tokens is None and allocation == "width":
        raise UserError("equal widths in all blocks are for language models; choose another allocation")
    if tokens is not None and latency is not None:
        raise UserError("a language model has no budget of latency here; give --params or --flops")
    centred = study.centred if centred is None else centred
    study.score(study.groups[0].name, score, centred)
    level: Level = "full" if compensate == "sequential" else compensate
    budget, ratio = _budget(flops, params, latency)
    settings = Settings(
        budget=budget or "manual",
        remain=ratio if budget else None,
        score=score,
        allocation=allocation,
        constants=constants,
        compensate=compensate,
        centred=centred,
        multiple=multiple,
        overrides=fixed,
        floors=least,
    )
    counts = {group.name: fixed.get(group.name, group.size) for group in study.groups}
    if budget is not None:
        smallest = smallest_cost(study, budget, fixed, least, multiple, latencies, allocation)
        if ratio < smallest:
            kept = " with these overrides" if fixed else ""
            what = "the least that may stay" if least or multiple > 1 else "one component"
            raise UserError(
                f"{budget} {ratio:g} cannot be reached: {smallest:.4g} remain with {what} in each of the"
                f" {len(study.groups)} groups{kept}; ask for at least {math.ceil(smallest * 1000) / 1000:g}"
            )
        ledger: _Budgeted
        if budget == "latency":
            assert latencies is not None
            ledger = LatencyLedger(latencies, study.structure, counts, aligned=multiple % ALIGNED == 0)
            limit = ratio * latencies.dense
        else:
            ledger = _Ledger(study.structure, budget, counts)
            # Costs are whole numbers; the sums of them are not exact.
            limit = ratio * getattr(study.dense, budget) + 0.5
        free = _free(study, fixed, least, multiple)
        if allocation == "width":
            counts |= _same_widths(study, budget, limit, counts, _tied(study, free), settings, level)
        else:
            counts |= _spend(study, ledger, limit, free, settings, level)
    return _predict(study, counts, settings, level, latencies)


def usual_allocation(study: Study) -> Spread:
    """``width`` for a language model all of whose blocks are alike, otherwise ``global``."""
    sizes = {kind: {group.size for group in study.groups if group.kind == kind} for kind in ("heads", "neurons")}
    alike = isinstance(study.model.input, TokenSpec) and all(len(some) <= 1 for some in sizes.values())
    return "width" if alike else "global"


def _checked(study: Study, counts: Mapping[str, int]) -> dict[str, int]:
    for name, kept in counts.items():
        size = study.group(name).size
        if not 1 <= kept <= size:
            raise UserError(f"group {name} keeps 1 to {size} components, not {kept}")
    return dict(counts)


def _budget(flops: float | None, params: float | None, latency: float | None) -> tuple[Budget | None, float]:
    given: dict[Budget, float | None] = {"flops": flops, "params": params, "latency": latency}
    named = [(name, ratio) for name, ratio in given.items() if ratio is not None]
    if len(named) > 1:
        raise UserError(f"give one budget, not {len(named)}: {' and '.join(name for name, _ in named)}")
    if not named:
        return None, 1.0
    name, ratio = named[0]
    if not (math.isfinite(ratio) and 0 < ratio <= 1):
        raise UserError(f"{name} is the fraction that remains, above 0 and at most 1, not {ratio}")
    return name, float(ratio)


def _unit(group: Group, multiple: int) -> int:
    """Components whose channels make up ``multiple`` ones."""
    each = group.producers[0].width if group.producers else 1
    return multiple // math.gcd(multiple, each)


def _least(group: Group, unit: int, floor: int) -> int:
    """The fewest components that may stay where whole units of them leave."""
    return min(group.size, max(1, -(-floor // unit)) * unit)


class _Free:
    """A group that components may leave: what it keeps at least, and how many leave together."""

    def __init__(self, group: Group, unit: int, floor: int) -> None:
        self.group, self.unit, self.least = group, unit, _least(group, unit, floor)

    def step(self, left: int) -> int:
        """How many leave next, 0 if none may."""
        step = (left - 1) % self.unit + 1
        return step if left - step >= self.least else 0


def _free(study: Study, fixed: Mapping[str, int], floors: Mapping[str, int], multiple: int) -> list[_Free]:
    """The groups that are not set by hand."""
    open_ = (group for group in study.groups if group.name not in fixed)
    return [_Free(group, _unit(group, multiple), floors.get(group.name, 1)) for group in open_]


@dataclass(frozen=True)
class _Tied:
    """Groups that keep the same number, which is one of ``sizes``, ascending."""

    names: list[str]
    sizes: list[int]


def _tied(study: Study, free: list[_Free]) -> list[_Tied]:
    """The ``free`` groups of each kind, heads and neurons, one of each a block. Raises `UserError` where no number suits all."""
    tokens = study.model.input
    found = []
    for kind in dict.fromkeys(one.group.kind for one in free):
        ones = [one for one in free if one.group.kind == kind]
        most, least = min(one.group.size for one in ones), max(one.least for one in ones)
        sizes = [size for size in range(least, most) if all(size % one.unit == 0 for one in ones)]
        sizes += [most] if least <= most else []
        if kind == "heads" and isinstance(tokens, TokenSpec):
            sizes = [size for size in sizes if size in tokens.head_counts]
        if not sizes:
            raise UserError(
                f"the {kind} of all blocks cannot keep the same number, at least {least} and at most {most}: lower the floors,"
                " or choose another allocation (global)"
            )
        found.append(_Tied([one.group.name for one in ones], sizes))
    return found


def _layer_errors(
    study: Study, group: str, score: str, compensate: Level, centred: bool
) -> list[tuple[str, np.ndarray]]:
    consumers = study.structure.group(group).consumers
    return [(c.layer, study.errors(group, c.layer, score, compensate, centred)) for c in consumers]


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


class _Budgeted(Protocol):
    """What a budget is counted with while components leave."""

    index: dict[str, int]

    @property
    def total(self) -> float: ...

    def savings(self) -> np.ndarray: ...

    def remove(self, group: int, count: int) -> None: ...


def _spend(
    study: Study, ledger: _Budgeted, limit: float, free: list[_Free], settings: Settings, level: Level
) -> dict[str, int]:
    """Removes components until the cost is at most ``limit``; what stays of the ``free`` groups."""
    names = [one.group.name for one in free]
    index = np.array([ledger.index[name] for name in names], dtype=np.int64)
    size = np.array([one.group.size for one in free], dtype=np.int64)
    left = size.copy()
    prices = [_prices(study, name, settings, level) for name in names]
    price = np.array([values[-1] for values in prices])
    may = np.array([one.step(one.group.size) for one in free], dtype=np.int64)
    # The smallest cost is known to be below the limit: the loop ends before nothing is left to choose from.
    while ledger.total > limit and may.any():
        saving = ledger.savings()[index]
        if settings.allocation == "uniform":
            priority = 1.0 - left / size
        else:
            priority = price / saving if settings.allocation == "global" else price
        chosen = int(np.where(may > 0, priority, np.inf).argmin())
        step = int(may[chosen])
        # Several at once while the limit is far: a step of a 32nd changes what the neighbours cost by little.
        more = int(left[chosen]) // _AT_ONCE // step * step
        if more > step == free[chosen].unit and left[chosen] - more >= free[chosen].least:
            far = ledger.total - more * saving[chosen] > limit + 0.02 * ledger.total
            step = more if far else step
        ledger.remove(int(index[chosen]), step)
        left[chosen] -= step
        may[chosen] = free[chosen].step(int(left[chosen]))
        if may[chosen]:
            price[chosen] = prices[chosen][left[chosen] - may[chosen] : left[chosen]].mean()
    return dict(zip(names, left.tolist(), strict=True))


def _same_widths(
    study: Study,
    budget: Budget,
    limit: float,
    counts: Mapping[str, int],
    sets: list[_Tied],
    settings: Settings,
    level: Level,
) -> dict[str, int]:
    """What stays of the groups when those of a set keep the same number."""
    if not sets:
        return {}
    errors = [
        np.sum([_reached(study, name, settings, level)[: ones.sizes[-1] + 1] for name in ones.names], 0)
        for ones in sets
    ]  # (largest size + 1,) each

    def widths(chosen: tuple[int, ...]) -> dict[str, int]:
        return {name: size for ones, size in zip(sets, chosen, strict=True) for name in ones.names}

    def fits(chosen: tuple[int, ...]) -> bool:
        return float(getattr(study.cost({**counts, **widths(chosen)}), budget)) <= limit

    best: tuple[float, tuple[int, ...]] | None = None
    # All sizes of all sets but the finest; of that one the largest that fits, for errors fall with it.
    finest = max(range(len(sets)), key=lambda index: len(sets[index].sizes))
    others = [ones.sizes if index != finest else ones.sizes[:1] for index, ones in enumerate(sets)]
    for some in itertools.product(*others):

        def at(size: int, some: tuple[int, ...] = some) -> tuple[int, ...]:
            return (*some[:finest], size, *some[finest + 1 :])

        fitting = bisect.bisect_left(sets[finest].sizes, True, key=lambda size: not fits(at(size)))
        if fitting:
            chosen = at(sets[finest].sizes[fitting - 1])
            error = float(sum(each[size] for each, size in zip(errors, chosen, strict=True)))
            best = min(best or (error, chosen), (error, chosen))
    assert best is not None, "the smallest widths of all were to fit"
    return widths(best[1])


def _reached(study: Study, group: str, settings: Settings, level: Level) -> np.ndarray:
    """(C + 1,): the output's expected squared error when the first 0…C components stay."""
    curves = _layer_errors(study, group, settings.score, level, settings.centred)
    amplitudes = [study.constant(layer, settings.constants, typical=True) * np.sqrt(error) for layer, error in curves]
    return np.asarray(np.sum(amplitudes, 0) ** 2)


def _prices(study: Study, group: str, settings: Settings, level: Level) -> np.ndarray:
    """(C,): what it costs when ``k + 1`` components become ``k``: the growth of the output's expected squared error (global), or
    the score of the component that leaves (ranking).
    """
    score, centred = settings.score, settings.centred
    if settings.allocation == "uniform":
        return np.zeros(study.group(group).size)
    if settings.allocation == "ranking":
        return np.asarray(study.score(group, score, centred)[study.order(group, score, centred)])
    return _hull_slopes(_reached(study, group, settings, level))


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


def _predict(
    study: Study, counts: dict[str, int], settings: Settings, level: Level, latencies: LatencyTable | None
) -> Allocation:
    keep, fidelity = {}, {}
    bounded_by = "directional" if settings.constants == "none" else settings.constants
    known = bounded_by in study.estimators
    by_layer: dict[str, float] = {}
    total_error = total_energy = 0.0
    for group in study.groups:
        kept = counts[group.name]
        order = study.order(group.name, settings.score, settings.centred)
        keep[group.name] = sorted(order[:kept].tolist())
        error = energy = 0.0
        for layer, errors in _layer_errors(study, group.name, settings.score, level, settings.centred):
            error += float(errors[kept])
            energy += study.energy(layer, settings.centred)
            by_layer[layer] = by_layer.get(layer, 0.0) + math.sqrt(float(errors[kept]))
        fidelity[group.name] = 1.0 - error / energy if energy > 0 else 1.0
        total_error, total_energy = total_error + error, total_energy + energy
    return Allocation(
        keep=keep,
        counts=dict(counts),
        fidelity=fidelity,
        mean_fidelity=1.0 - total_error / total_energy if total_energy > 0 else 1.0,
        cost=study.cost(counts),
        bound=sum(study.constant(layer, bounded_by) * error for layer, error in by_layer.items())
        if known
        else math.nan,
        settings=settings,
        milliseconds=None if latencies is None else latencies.milliseconds(study.structure, counts),
    )
