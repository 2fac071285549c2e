"""Tables derived from the moments of a group, so that later queries are look-ups.

For each basis (raw or centred second moment) there are the scores of the components and the orders they imply, and for each
order and compensation level the error of every consumer at every size, on unseen samples (`modhifi.fidelity.crossfitted_curve`)
and, where asked for, on the same samples. `modhifi.analyze` derives the tables that the defaults need; the rest are derived on
first use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..components import Group, Structure
from ..fidelity import (
    Fold,
    crossfitted_curve,
    eliminate,
    error_curve,
    inverse,
    output_energy,
    own_part,
    removal_cost,
    row_sum,
    scalar_curve,
    singleton_from_moments,
)
from ._layer import LayerStats, Level

__all__ = [
    "LEVELS",
    "ORDERS",
    "SCORES",
    "VARIANCE",
    "check_tables",
    "energy_key",
    "error_key",
    "independent_key",
    "order_key",
    "ranked",
    "ridge_key",
    "score_key",
    "tabulate",
    "tabulate_order",
]

# Built-in scores: backward elimination, singleton fidelity (ModHiFi, Def. 3.1), E<Y, A_i> as in the published
# implementation (App. D.2), and the error added by removing one component alone.
SCORES = ("greedy", "fidelity", "row-sum", "removal-cost")
# Orders whose curves are derived together with the scores.
ORDERS = ("greedy", "fidelity")
# How much smaller, in the mean logarithm, errors on the other fold must be for another ridge to give the order.
_CLEARLY = 0.1
# The variance of the network's output.
VARIANCE = "answers/variance"
LEVELS: tuple[Level, ...] = ("none", "scalar", "full")


def order_key(group: str, order: str, centred: bool) -> str:
    return f"order/{order}/{_basis(centred)}/{group}"


def error_key(group: str, layer: str, order: str, compensate: Level, centred: bool, unseen: bool = True) -> str:
    # Without compensation nothing is fitted, and there is no difference.
    kind = "error" if unseen or compensate == "none" else "same"
    return f"{kind}/{order}/{compensate}/{_basis(centred)}/{group}@{layer}"


def score_key(group: str, score: str, centred: bool) -> str:
    return f"score/{score}/{_basis(centred)}/{group}"


def ridge_key(layer: str, centred: bool) -> str:
    return f"ridge/{_basis(centred)}/{layer}"


def independent_key(layer: str) -> str:
    return f"independent/{layer}"


def energy_key(layer: str, centred: bool) -> str:
    return f"energy/{_basis(centred)}/{layer}"


def _basis(centred: bool) -> str:
    return "centred" if centred else "raw"


def tabulate(
    structure: Structure,
    layers: Mapping[str, LayerStats],
    ridge: float,
    *,
    groups: frozenset[str] | None = None,
    centred: bool = True,
    device: torch.device | None = None,
    check: Callable[[], object] = lambda: None,
) -> Iterator[tuple[Group, dict[str, Tensor]]]:
    """Yields the tables of each group in ``groups`` (all by default), without the scalar level, as soon as its last consumer is
    done. Each layer's moment is factorised once, however many groups it reads. ``check`` is called between steps of at most
    seconds, and may raise.
    """
    # MPS has no float64.
    where = device if device is not None and device.type == "cuda" else torch.device("cpu")
    waiting: dict[str, dict[str, _Part]] = {}
    for name, readers in structure.readers.items():
        wanted = [group for group, _ in readers if groups is None or group.name in groups]
        if not wanted:
            continue
        stats = layers[name]
        second, weight = (value.to(where) for value in stats.moment_and_weight(centred, ridge))
        second = second * stats.moments.positions  # errors per sample, so that costs of consumers add up
        energy = output_energy(second, weight)
        # Without compensation nothing restores the mean.
        raw = stats.moment_and_weight(False, ridge)[0].to(where) * stats.moments.positions if centred else second
        chosen = stats.best_ridge(centred, ridge)
        check()
        inverted = inverse(second, check)
        fitted = None
        if chosen > ridge:
            fitted = inverse(stats.moment_and_weight(centred, chosen)[0].to(where) * stats.moments.positions, check)
        folds = _per_sample(stats, centred, chosen, where)
        plain = _per_sample(stats, centred, ridge, where) if chosen > ridge else []
        independent = stats.independent()
        for group in wanted:
            columns = stats.blocks(group.name).to(where)
            # Only the part of the matrices that belongs to the group is needed from here on.
            own_weight, own_raw, own_inverse = own_part(columns, weight, raw, inverted)
            part = _Part(
                weight=own_weight,
                raw=own_raw,
                inverted=own_inverse,
                fitted=own_inverse if fitted is None else own_part(columns, weight, fitted)[1],
                folds=[fold.own_part(columns) for fold in folds],
                plain=[fold.own_part(columns) for fold in plain],
                block=columns.shape[1],
                ridge=chosen,
                independent=independent,
                energy=float(energy.sum()),
                explained=(energy @ singleton_from_moments(second, weight, columns)).cpu(),
                row_sum=row_sum(second, weight, columns).cpu(),
            )
            waiting.setdefault(group.name, {})[name] = part
        del second, raw, inverted, fitted, folds, plain
        for group in wanted:
            if len(waiting[group.name]) == len(group.consumers):
                yield group, _finish(group.name, waiting.pop(group.name), centred, check)


def _per_sample(stats: LayerStats, centred: bool, ridge: float, where: torch.device) -> list[Fold]:
    """The folds of a layer, with moments of one sample instead of one position."""
    positions = stats.moments.positions
    return [
        Fold(fold.train.to(where) * positions, fold.judge.to(where) * positions, fold.share)
        for fold in stats.folds(centred, ridge)
    ]


@dataclass
class _Part:
    """A group as one of its consumers reads it: the ``weight``, the ``raw`` second moment of one sample, the inverse of the
    moment with the study's ridge, and as ``fitted``, with the layer's own ``ridge``, and the ``folds`` with the latter and as
    ``plain`` with the study's, if they differ, restricted to the group's components; how many ``independent`` samples
    the layer has seen; the ``energy`` of the whole output; how much of it each component alone explains, (C,); and the
    `row_sum` of each, (C,).
    """

    weight: Tensor
    raw: Tensor
    inverted: Tensor
    fitted: Tensor
    folds: list[Fold]
    plain: list[Fold]
    block: int
    ridge: float
    independent: float
    energy: float
    explained: Tensor
    row_sum: Tensor


def _finish(group: str, parts: Mapping[str, _Part], centred: bool, check: Callable[[], object]) -> dict[str, Tensor]:
    energy = sum(part.energy for part in parts.values())
    layers = [
        (inverted, part.weight, part.block)
        for inverted, part in zip(_inverses(parts, check), parts.values(), strict=True)
    ]
    greedy, lost = eliminate(layers, check)
    scores = {
        "greedy": lost.cpu(),
        "fidelity": torch.stack([part.explained for part in parts.values()]).sum(0),
        "row-sum": torch.stack([part.row_sum for part in parts.values()]).sum(0),
        "removal-cost": removal_cost(layers).cpu(),
    }
    found = {energy_key(layer, centred): lost.new_tensor([part.energy]).cpu() for layer, part in parts.items()}
    found |= {ridge_key(layer, centred): lost.new_tensor([part.ridge]).cpu() for layer, part in parts.items()}
    found |= {independent_key(layer): lost.new_tensor([part.independent]).cpu() for layer, part in parts.items()}
    for name, score in scores.items():
        found[score_key(group, name, centred)] = score / energy if energy > 0 else torch.zeros_like(score)
        order = greedy.cpu() if name == "greedy" else ranked(found[score_key(group, name, centred)])
        found[order_key(group, name, centred)] = order
    for order_name in ORDERS:
        index = found[order_key(group, order_name, centred)]
        for layer, part in parts.items():
            there = index.to(part.weight.device)
            check()
            none = error_curve(part.raw, part.weight, part.block, there, "none")
            full = crossfitted_curve(part.folds, part.weight, part.block, there, check)
            found[error_key(group, layer, order_name, "none", centred)] = none.cpu()
            found[error_key(group, layer, order_name, "full", centred)] = full.cpu()
    return found


def _inverses(parts: Mapping[str, _Part], check: Callable[[], object]) -> list[Tensor]:
    """The inverted moments to eliminate with: those with the study's ridge, or with that of each layer if its order is clearly
    better on unseen samples. A small ridge is fooled by few samples, a large one hides how components make up for one another.
    Orders found on one fold are judged on the other, by all sizes from half of the components on.
    """
    if not any(part.plain for part in parts.values()):
        return [part.inverted for part in parts.values()]

    def error(folds: Mapping[str, Sequence[Fold]]) -> float:
        total = torch.zeros(())
        for number in range(len(next(iter(folds.values())))):
            trains = [(inverse(folds[name][number].train), part.weight, part.block) for name, part in parts.items()]
            order, _ = eliminate(trains, check)
            for part in parts.values():
                total = total + crossfitted_curve([part.folds[number]], part.weight, part.block, order, check).cpu()
        return float(total[len(total) // 2 : -1].clamp(min=1e-300).log().mean())

    plain = error({name: part.plain or part.folds for name, part in parts.items()})
    better = plain <= error({name: part.folds for name, part in parts.items()}) + _CLEARLY
    return [part.inverted if better else part.fitted for part in parts.values()]


def ranked(score: Tensor) -> Tensor:
    """(C,) int64: the components by score, highest first; ties keep their order."""
    return torch.argsort(score, descending=True, stable=True)


def tabulate_order(
    layer: str,
    stats: LayerStats,
    orders: Mapping[str, Mapping[str, Tensor]],
    level: Level,
    ridge: float,
    centred: bool,
    unseen: bool,
    check: Callable[[], object],
) -> dict[str, Tensor]:
    """The error curves of one layer at one compensation level, on ``unseen`` or the same samples, for the orders given per
    group in ``orders[group][order]``, (C,) int64. The scalar level costs O(O·C³). ``ridge``: of the fit that is judged.
    """
    found = {}
    second, weight = stats.moment_and_weight(centred and level != "none", ridge)
    second = second * stats.moments.positions
    judged = unseen and level != "none"
    folds = _per_sample(stats, centred, ridge, torch.device("cpu")) if judged else []
    inverted = inverse(second, check) if level == "full" and not judged else None
    for group, known in orders.items():
        columns = stats.blocks(group)
        for name, index in known.items():
            if not judged:
                curve = error_curve(second, weight, columns, index, level, inverted, check)
            elif level == "scalar":
                curve = scalar_curve(folds, weight, columns, index, check)
            else:
                curve = crossfitted_curve(folds, weight, columns, index, check)
            found[error_key(group, layer, name, level, centred, unseen)] = curve
    return found


def check_tables(tables: Mapping[str, Tensor], structure: Structure) -> None:
    """Raises `ValueError` if a table that was read from a file does not fit the group it belongs to."""
    sizes = {group.name: group.size for group in structure.groups}
    classes = tables["classes"]
    if classes.ndim != 1 or classes.dtype != torch.int64:
        raise ValueError("the table classes is no list of classes")
    for name, size in sizes.items():
        if tables[f"class/{name}"].shape != (len(classes), size):
            raise ValueError(f"the table class/{name} does not fit its group")
    for key, table in tables.items():
        kind, _, rest = key.partition("/")
        if kind in (
            "score",
            "error",
            "same",
            "energy",
            "ridge",
            "independent",
            "answers",
            "class",
        ) and table.dtype not in (
            torch.float32,
            torch.float64,
        ):
            raise ValueError(f"the table {key} is of another type")
        if not bool(table.isfinite().all()):
            raise ValueError(f"the table {key} is not finite")
        if kind in ("energy", "ridge", "independent", "answers") and (table.numel() != 1 or float(table) < 0):
            raise ValueError(f"the table {key} is no single number")
        if kind not in ("order", "score", "error", "same"):
            continue
        curve = kind in ("error", "same")
        owner = rest.split("/", 3 if curve else 2)[-1]
        group = owner.rpartition("@")[0] if curve else owner
        if group not in sizes:
            continue  # it has been left whole since
        fits = table.shape == (sizes[group] + curve,)
        if kind == "order":
            fits = fits and table.dtype == torch.int64 and bool((table.sort().values == torch.arange(len(table))).all())
        if not fits:
            raise ValueError(f"the table {key} does not fit its group")
        if curve and bool((table < 0).any()):
            raise ValueError(f"the table {key} has a negative error")
