"""Running cost of a network while components are removed: the mechanism behind the policies of `allocate`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from ..components import Structure

__all__ = ["CostLedger", "Ledger"]


class Ledger(Protocol):
    """Keeps the running cost of a network in one unit: FLOPs, parameters or milliseconds."""

    index: dict[str, int]
    """Position of each group in `savings`."""

    @property
    def total(self) -> float:
        """The cost at the current widths."""

    def savings(self) -> np.ndarray:
        """(G,): what removing one component of each group saves at the current widths."""

    def remove(self, group: int, count: int) -> None:
        """Removes ``count`` components of the group at this position."""


class CostLedger:
    """FLOPs or parameters. With ``k`` the numbers of components kept per group, the cost is ``c + aᵀk + kᵀQk / 2``: bilinear
    in the numbers of inputs and outputs of a layer, and quadratic where both belong to one group.
    """

    def __init__(self, structure: Structure, budget: str, counts: Mapping[str, int]) -> None:
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
        self.slope = self.linear + self.pairs @ self.counts  # the gradient of the cost
        self.total = float(constant + self.linear @ self.counts + self.counts @ self.pairs @ self.counts / 2)

    def savings(self) -> np.ndarray:
        return self.slope - self.pairs.diagonal() / 2

    def remove(self, group: int, count: int) -> None:
        self.total -= count * self.slope[group] - count * count * self.pairs[group, group] / 2
        self.slope -= count * self.pairs[group]
        self.counts[group] -= count
