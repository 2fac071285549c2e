"""What is derived from a group's moments, so that every later question is a look-up.

For each basis (raw or centred second moment): two orders of the components (greedy elimination, singleton fidelity), and for
each order and each level of compensation the error of every consumer at every size. `modhifi.analyze` derives what the
defaults ask for; the rest is derived when it is first asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from ..components import Group, Structure
from ..fidelity import eliminate, error_curve, inverse, output_energy, singleton_from_moments
from ._layer import LayerStats, Level, Order

__all__ = ["LEVELS", "ORDERS", "energy_key", "error_key", "order_key", "score_key", "tabulate", "tabulate_scalar"]

ORDERS: tuple[Order, ...] = ("greedy", "naive")
LEVELS: tuple[Level, ...] = ("none", "scalar", "full")


def order_key(group: str, order: Order, centred: bool) -> str:
    return f"order/{order}/{_basis(centred)}/{group}"


def error_key(group: str, layer: str, order: Order, compensate: Level, centred: bool) -> str:
    return f"error/{order}/{compensate}/{_basis(centred)}/{group}@{layer}"


def score_key(group: str, score: str, centred: bool) -> str:
    return f"score/{score}/{_basis(centred)}/{group}"


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
) -> Iterator[tuple[Group, dict[str, Tensor]]]:
    """The tables of each group (of those named, or all), without the scalar level, as soon as its last consumer was looked
    at. A layer's moment is factorised once, however many groups it reads.
    """
    # MPS has no float64.
    where = device if device is not None and device.type == "cuda" else torch.device("cpu")
    waiting: dict[str, dict[str, tuple[Tensor, Tensor, Tensor]]] = {}
    tables: dict[str, dict[str, Tensor]] = {}
    singles: dict[str, list[tuple[Tensor, float]]] = {}
    for name, readers in structure.readers.items():
        wanted = [group for group, _ in readers if groups is None or group.name in groups]
        if not wanted:
            continue
        stats = layers[name]
        second, weight = (value.to(where) for value in stats.operator(centred, ridge))
        second = second * stats.moments.positions  # one sample's error has so many positions: consumers' costs add up
        inverted = inverse(second)
        energy = output_energy(second, weight)
        for group in wanted:
            found = tables.setdefault(group.name, {})
            found[energy_key(name, centred)] = energy.sum().reshape(1).cpu()
            columns = stats.blocks(group.name).to(where)
            # Only the group's own part is needed from here on.
            own, part, weights = _own(columns, second, inverted, weight)
            waiting.setdefault(group.name, {})[name] = (part, weights, columns)
            fidelity = singleton_from_moments(second, weight, columns)
            singles.setdefault(group.name, []).append(((energy @ fidelity).cpu(), float(energy.sum())))
            found["second/" + name] = own
        del second, inverted
        for group in wanted:
            if len(waiting[group.name]) == len(group.consumers):
                parts = waiting.pop(group.name)
                yield group, _finish(group, parts, tables.pop(group.name), singles.pop(group.name), centred)


def _own(columns: Tensor, second: Tensor, inverted: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The rows and columns of a group's components, in their order."""
    flat = columns.reshape(-1)
    if torch.equal(flat, torch.arange(len(second), device=flat.device)):
        return second, inverted, weight
    return second[flat][:, flat], inverted[flat][:, flat], weight[:, flat]


def _finish(
    group: Group,
    parts: dict[str, tuple[Tensor, Tensor, Tensor]],
    tables: dict[str, Tensor],
    singles: list[tuple[Tensor, float]],
    centred: bool,
) -> dict[str, Tensor]:
    energy = sum(own for _, own in singles)
    total = torch.stack([value for value, _ in singles]).sum(0)
    fidelity = total / energy if energy > 0 else total
    blocks = {layer: columns.shape[1] for layer, (_, _, columns) in parts.items()}
    greedy, cost = eliminate([(inverted, weight, blocks[layer]) for layer, (inverted, weight, _) in parts.items()])
    naive = torch.argsort(fidelity, descending=True, stable=True)
    found = {name: value for name, value in tables.items() if not name.startswith("second/")}
    found[score_key(group.name, "fidelity", centred)] = fidelity
    found[score_key(group.name, "greedy", centred)] = cost.cpu() / energy if energy > 0 else torch.zeros_like(fidelity)
    orders: tuple[tuple[Order, Tensor], ...] = (("greedy", greedy), ("naive", naive))
    for order, index in orders:
        found[order_key(group.name, order, centred)] = index.cpu()
        for layer, (inverted, weight, _) in parts.items():
            for level in LEVELS:
                if level != "scalar":
                    second = tables["second/" + layer]
                    error = error_curve(second, weight, blocks[layer], index.to(weight.device), level, inverted)
                    found[error_key(group.name, layer, order, level, centred)] = error.cpu()
    return found


def tabulate_scalar(
    layer: str, stats: LayerStats, orders: Mapping[str, Mapping[Order, Tensor]], ridge: float, centred: bool
) -> dict[str, Tensor]:
    """The errors of one layer at the scalar level, for the groups in ``orders``: O(O·C³), hence only when asked for."""
    second, weight = stats.operator(centred, ridge)
    second = second * stats.moments.positions
    return {
        error_key(group, layer, order, "scalar", centred): error_curve(
            second, weight, stats.blocks(group), index, "scalar"
        )
        for group, known in orders.items()
        for order, index in known.items()
    }
