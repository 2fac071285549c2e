"""Allocation: how many components each group keeps under a budget, decided from the study's curves alone.

*Global*: components are removed where the expected squared error of the output grows least per unit of budget. The local
error ``e_l(k)`` of layer ``l`` reaches the output with gain ``K_l``, the root-mean-square gain of the chosen constants. The
consumers of one group all lose the same components, so their amplitudes are added, ``(Σ_l K_l √e_l)²``; errors of different
groups are taken as uncorrelated, so their squares are added. On the lower convex hull of each group's curve the greedy choice
is optimal. *Uniform*: every group keeps the same fraction. *Ranking*: the component with the lowest score of all groups is
removed next, whatever it saves, as in torch-pruning's global pruning. *Width*, for language models: every block keeps the
same number of neurons and of key-value heads, both expressible in the model's configuration; of all such pairs that meet the
budget, the one with the lowest expected squared error of the output is chosen.

Removing a component changes the cost of its neighbours (a channel is written by one layer and read by the next), so costs are
taken at the current widths. A layer that reads several groups is charged for each as if the others kept everything. Removal
stops as soon as the budget is met. See docs/theory.md, *Pruning and unlearning*.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Unpack

import numpy as np
from scipy.optimize import isotonic_regression

from ..components import Cost, Group
from ..errors import UserError
from ..plan import Settings
from ..specs import BUDGETS, AllocationRule, PruningFields, PruningSpec, TokenSpec
from ..study import Study
from ._latency import ALIGNED, LatencyLedger, LatencyTable
from ._ledger import CostLedger, Ledger
from ._predict import Prediction, predict_outcome

__all__ = ["Allocation", "allocate", "asked_for", "smallest_cost", "usual_allocation"]

# Far from the budget, one in this many of a group's components is removed per step.
_AT_ONCE = 32


@dataclass(frozen=True)
class Allocation:
    """Which components of each group are kept, and what the study predicts for that choice."""

    keep: dict[str, list[int]]
    counts: dict[str, int]
    fidelity: dict[str, float]
    """Predicted fidelity of each group, 1 − error / energy over its consumers; higher is better."""
    mean_fidelity: float
    """Predicted fidelity over all groups together; higher is better."""
    cost: Cost
    bound: float
    """Σ_l K_l √e_l, an estimate of the bound on the root-mean-square error of the logits (ModHiFi, Thm. 3.6); lower is
    better. K_l is the largest gain seen on the original network, by the chosen estimator (directional for ``none``). Where a
    layer reads several groups, the roots of their errors are added. NaN if the study has no constants."""
    settings: Settings
    """The settings of the decision, with every default filled in."""
    milliseconds: float | None = None
    """Predicted latency of one forward pass; None without a latency table."""
    amplitudes: dict[str, dict[str, float]] = field(default_factory=dict)
    """√e_l of every layer by group, for `predict_outcome`."""
    outcome: Prediction | None = None
    """Predicted relative error of the output and agreement; None if the study has no directional constants."""


def asked_for(spec: PruningSpec | None, fields: PruningFields) -> PruningSpec:
    """The `PruningSpec` of a call that takes either a spec or its fields as keywords. Raises TypeError if both are given."""
    if spec is not None and fields:
        raise TypeError(f"pass a PruningSpec or keywords, not both: {', '.join(fields)}")
    return PruningSpec.of(**fields) if spec is None else spec


def smallest_cost(study: Study, spec: PruningSpec, latencies: LatencyTable | None = None) -> float:
    """The smallest reachable fraction of the budget: every group without an override keeps as little as allowed, in all
    blocks alike for ``width`` allocation. ``spec.remain`` is ignored. Raises `UserError` if no width fits all blocks,
    ValueError without a budget, or for a latency budget without a latency table.
    """
    if spec.budget not in BUDGETS:
        raise ValueError(f"the smallest cost needs a flops, params or latency budget, not {spec.budget}")
    free = _free(study, spec)
    counts = {one.group.name: one.least for one in free} | dict(spec.overrides)
    if (spec.allocation or usual_allocation(study)) == "width":
        counts |= {name: one.sizes[0] for one in _tied(study, free) for name in one.names}
    if spec.budget == "latency":
        if latencies is None:
            raise ValueError("a latency budget needs a latency table")
        ledger = LatencyLedger(latencies, study.structure, counts, aligned=spec.multiple % ALIGNED == 0)
        return ledger.total / latencies.dense
    return float(getattr(study.cost(counts), spec.budget)) / float(getattr(study.dense, spec.budget))


def allocate(
    study: Study,
    spec: PruningSpec | None = None,
    *,
    latencies: LatencyTable | None = None,
    **fields: Unpack[PruningFields],
) -> Allocation:
    """Decides which components to keep, without running the network.

    Args:
        study: the study of the network.
        spec: the pruning settings. Their fields may be passed as keywords instead, with ``flops``, ``params`` or ``latency`` as
            the fraction of the budget to keep. Without a budget only the overrides are applied.
        latencies: layer timings, required for a latency budget; with them every allocation predicts its latency.

    The main fields (see `PruningSpec`): ``score`` ranks the components of a group by ``greedy`` (backward elimination),
    ``fidelity`` (singletons, ModHiFi, Def. 3.1), ``row-sum``, ``removal-cost`` (see `Study.scores`) or a score added by
    `Study.add_score`. ``allocation`` is ``global`` (the default), ``uniform``, ``ranking`` or ``width`` (the default for
    language models with identical blocks), see the module docstring. ``constants`` names the Lipschitz constants that weight
    local errors in global allocation (`Study.constant`); ``none`` weights all layers equally. ``compensate`` sets the
    compensation level whose errors are predicted (``sequential`` is predicted as ``full``). ``centred`` defaults to
    `Study.centred`.

    Raises:
        UserError: for a fraction outside (0, 1], two budgets, an override or floor that is out of range or names an unknown
            group, constants that the study does not have, or a budget that cannot be reached.
    """
    return decide(study, settled(study, asked_for(spec, fields)), latencies)


def settled(study: Study, spec: PruningSpec) -> Settings:
    """``spec`` with every default filled in for this study. Raises `UserError` as `allocate` does."""
    for counts in (spec.overrides, spec.floors):
        for name, kept in counts.items():
            size = study.group(name).size
            if not 1 <= kept <= size:
                raise UserError(f"group {name} keeps 1 to {size} components, not {kept}")
    language = isinstance(study.model.input, TokenSpec)
    allocation = spec.allocation or usual_allocation(study)
    if not language and allocation == "width":
        raise UserError("equal widths in all blocks are for language models; choose another allocation")
    if language and spec.budget == "latency":
        raise UserError("language models have no latency budget; use --params or --flops")
    centred = study.centred if spec.centred is None else spec.centred
    study.score(study.groups[0].name, spec.score, centred)  # raises for an unknown score
    fields = {name: getattr(spec, name) for name in PruningSpec.model_fields}
    return Settings(**fields | {"allocation": allocation, "centred": centred})


def decide(study: Study, settings: Settings, latencies: LatencyTable | None = None) -> Allocation:
    """`allocate` for `settled` settings."""
    counts = {group.name: settings.overrides.get(group.name, group.size) for group in study.groups}
    if settings.remain is not None and settings.budget in BUDGETS:
        _check_reachable(study, settings, settings.remain, latencies)
        ledger: Ledger
        if settings.budget == "latency":
            assert latencies is not None
            ledger = LatencyLedger(latencies, study.structure, counts, aligned=settings.multiple % ALIGNED == 0)
            limit = settings.remain * latencies.dense
        else:
            ledger = CostLedger(study.structure, settings.budget, counts)
            # Costs are integers, but their floating-point sums are not exact.
            limit = settings.remain * getattr(study.dense, settings.budget) + 0.5
        free = _free(study, settings)
        if settings.allocation == "width":
            counts |= _same_widths(study, settings, limit, counts, _tied(study, free))
        else:
            counts |= _spend(study, ledger, limit, free, settings)
    return _predict(study, counts, settings, latencies)


def _check_reachable(study: Study, settings: Settings, remain: float, latencies: LatencyTable | None) -> None:
    smallest = smallest_cost(study, settings, latencies)
    if remain < smallest:
        kept = " with these overrides" if settings.overrides else ""
        what = "the minimum allowed" if settings.floors or settings.multiple > 1 else "one component"
        raise UserError(
            f"{settings.budget} {remain:g} cannot be reached: {smallest:.4g} remains with {what} in each of the"
            f" {len(study.groups)} groups{kept}; keep at least {math.ceil(smallest * 1000) / 1000:g}"
        )


def usual_allocation(study: Study) -> AllocationRule:
    """The default allocation: ``width`` for a language model with identical blocks, otherwise ``global``."""
    sizes = {kind: {group.size for group in study.groups if group.kind == kind} for kind in ("heads", "neurons")}
    alike = isinstance(study.model.input, TokenSpec) and all(len(some) <= 1 for some in sizes.values())
    return "width" if alike else "global"


def _unit(group: Group, multiple: int) -> int:
    """The smallest number of components whose channels are a multiple of ``multiple``."""
    each = group.producers[0].width if group.producers else 1
    return multiple // math.gcd(multiple, each)


def _least(group: Group, unit: int, floor: int) -> int:
    """The fewest components to keep, at least ``floor``, if components are removed in whole units."""
    return min(group.size, max(1, -(-floor // unit)) * unit)


class _Free:
    """A group that may be pruned: the minimum it keeps (``least``), and how many components are removed together (``unit``)."""

    def __init__(self, group: Group, unit: int, floor: int) -> None:
        self.group, self.unit, self.least = group, unit, _least(group, unit, floor)

    def step(self, left: int) -> int:
        """How many of the ``left`` components are removed next, 0 if none may be."""
        step = (left - 1) % self.unit + 1
        return step if left - step >= self.least else 0


def _free(study: Study, spec: PruningSpec) -> list[_Free]:
    """The groups without an override, which the budget decides."""
    open_ = (group for group in study.groups if group.name not in spec.overrides)
    return [_Free(group, _unit(group, spec.multiple), spec.floors.get(group.name, 1)) for group in open_]


@dataclass(frozen=True)
class _Tied:
    """Groups that must keep the same number of components, one of ``sizes`` (ascending)."""

    names: list[str]
    sizes: list[int]


def _tied(study: Study, free: list[_Free]) -> list[_Tied]:
    """The ``free`` groups by kind (heads, neurons), one of each per block. Raises `UserError` if no size fits all of a kind."""
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
                f"the {kind} of all blocks cannot keep the same number, at least {least} and at most {most}; lower the"
                " floors or choose another allocation (global)"
            )
        found.append(_Tied([one.group.name for one in ones], sizes))
    return found


def _layer_errors(study: Study, group: str, settings: Settings) -> list[tuple[str, np.ndarray]]:
    consumers = study.structure.group(group).consumers
    return [
        (c.layer, study.errors(group, c.layer, settings.score, settings.level, settings.centred)) for c in consumers
    ]


def _hull_slopes(error: np.ndarray) -> np.ndarray:
    """(C,): how much the lower convex hull of ``error`` (C + 1,), given at sizes 0…C, grows from size ``k + 1`` to ``k``. The
    slopes of the greatest convex minorant are the isotonic regression of the differences.
    """
    return np.asarray(isotonic_regression(error[:-1] - error[1:], increasing=False).x)


def _spend(study: Study, ledger: Ledger, limit: float, free: list[_Free], settings: Settings) -> dict[str, int]:
    """Removes components until the cost is at most ``limit``. Returns the number kept of each of the ``free`` groups."""
    names = [one.group.name for one in free]
    index = np.array([ledger.index[name] for name in names], dtype=np.int64)
    size = np.array([one.group.size for one in free], dtype=np.int64)
    left = size.copy()
    prices = [_prices(study, name, settings) for name in names]
    price = np.array([values[-1] for values in prices])
    may = np.array([one.step(one.group.size) for one in free], dtype=np.int64)
    # `_check_reachable` guarantees that the limit is met before nothing is left to remove.
    while ledger.total > limit and may.any():
        saving = ledger.savings()[index]
        if settings.allocation == "uniform":
            priority = 1.0 - left / size
        else:
            priority = price / saving if settings.allocation == "global" else price
        chosen = int(np.where(may > 0, priority, np.inf).argmin())
        step = int(may[chosen])
        # Remove several at once while the limit is far: a step of 1/32 hardly changes the cost of the neighbours.
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
    study: Study, settings: Settings, limit: float, counts: Mapping[str, int], sets: list[_Tied]
) -> dict[str, int]:
    """The number kept of each group if all groups of a set keep the same number."""
    if not sets:
        return {}
    errors = [
        np.sum([_reached(study, name, settings)[: ones.sizes[-1] + 1] for name in ones.names], 0) for ones in sets
    ]  # (largest size + 1,) each

    def widths(chosen: tuple[int, ...]) -> dict[str, int]:
        return {name: size for ones, size in zip(sets, chosen, strict=True) for name in ones.names}

    def fits(chosen: tuple[int, ...]) -> bool:
        return float(getattr(study.cost({**counts, **widths(chosen)}), settings.budget)) <= limit

    best: tuple[float, tuple[int, ...]] | None = None
    # Try all sizes of all sets but the finest; for that one take the largest that fits: it has the lowest error.
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
    assert best is not None, "the smallest widths must fit"
    return widths(best[1])


def _reached(study: Study, group: str, settings: Settings) -> np.ndarray:
    """(C + 1,): the expected squared error of the output if the first 0…C components are kept."""
    curves = _layer_errors(study, group, settings)
    amplitudes = [study.constant(layer, settings.constants, typical=True) * np.sqrt(error) for layer, error in curves]
    return np.asarray(np.sum(amplitudes, 0) ** 2)


def _prices(study: Study, group: str, settings: Settings) -> np.ndarray:
    """(C,): the price of going from ``k + 1`` to ``k`` components: the growth of the expected squared error of the output
    (global), or the score of the removed component (ranking).
    """
    score, centred = settings.score, settings.centred
    if settings.allocation == "uniform":
        return np.zeros(study.group(group).size)
    if settings.allocation == "ranking":
        return np.asarray(study.score(group, score, centred)[study.order(group, score, centred)])
    return _hull_slopes(_reached(study, group, settings))


def _predict(study: Study, counts: dict[str, int], settings: Settings, latencies: LatencyTable | None) -> Allocation:
    keep, fidelity = {}, {}
    bounded_by = "directional" if settings.constants == "none" else settings.constants
    known = bounded_by in study.estimators
    by_layer: dict[str, float] = {}
    amplitudes: dict[str, dict[str, float]] = {}
    total_error = total_energy = 0.0
    for group in study.groups:
        kept = counts[group.name]
        order = study.order(group.name, settings.score, settings.centred)
        keep[group.name] = sorted(order[:kept].tolist())
        error = energy = 0.0
        for layer, errors in _layer_errors(study, group.name, settings):
            error += float(errors[kept])
            energy += study.energy(layer, settings.centred)
            amplitudes.setdefault(group.name, {})[layer] = math.sqrt(float(errors[kept]))
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
        amplitudes=amplitudes,
        outcome=predict_outcome(study, amplitudes, settings.compensate),
    )
