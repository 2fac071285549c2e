"""What is derived once from a group's moments, so that every later question is a look-up.

For the raw and the centred second moment: two orders of the components (greedy elimination, singleton fidelity), and for
each order and each level of compensation the error at every size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..components import Group
from ..fidelity import eliminate, error_curve, output_energy, singleton_from_moments
from ._types import LayerStats, Level, Order

__all__ = ["LEVELS", "ORDERS", "tabulate"]

ORDERS: tuple[Order, ...] = ("greedy", "naive")
LEVELS: tuple[Level, ...] = ("none", "scalar", "full")


def tabulate(group: Group, layers: dict[str, LayerStats], ridge: float) -> dict[str, Tensor]:
    """The tables of one group; names as `Study` looks them up."""
    tables: dict[str, Tensor] = {}
    for basis in ("raw", "centred"):
        seconds = {c.layer: layers[c.layer].second(basis == "centred", ridge) for c in group.consumers}
        fidelity, energy = _singletons(group, layers, seconds)
        scaled = [
            # One sample's error has ``positions`` positions; scaling H makes the consumers' costs add up in that unit.
            (seconds[c.layer] * layers[c.layer].moments.positions, layers[c.layer].weight, c.block)
            for c in group.consumers
        ]
        greedy, cost = eliminate(scaled)
        naive = torch.argsort(fidelity, descending=True, stable=True)
        orders: dict[Order, Tensor] = {"greedy": greedy, "naive": naive}
        if basis == "raw":
            tables[f"score/fidelity/{group.name}"] = fidelity
            tables[f"score/greedy/{group.name}"] = cost / energy if energy > 0 else torch.zeros_like(cost)
        for name, order in orders.items():
            tables[f"order/{name}/{basis}/{group.name}"] = order
            for consumer, (second, weight, block) in zip(group.consumers, scaled, strict=True):
                for level in LEVELS:
                    key = f"error/{name}/{level}/{basis}/{consumer.layer}"
                    tables[key] = error_curve(second, weight, block, order, level)
    return tables


def _singletons(group: Group, layers: dict[str, LayerStats], seconds: dict[str, Tensor]) -> tuple[Tensor, float]:
    """Singleton fidelity (C,), energy-weighted over the outputs of all consumers, and that energy per sample."""
    total = torch.zeros(group.size, dtype=torch.float64)
    energy = 0.0
    for consumer in group.consumers:
        stats = layers[consumer.layer]
        own = output_energy(seconds[consumer.layer], stats.weight) * stats.moments.positions
        total += own @ singleton_from_moments(seconds[consumer.layer], stats.weight, consumer.block)
        energy += float(own.sum())
    return (total / energy if energy > 0 else total), energy
