"""Predicted latency of a network at any widths, read off a table of layer timings (`measure_table`).

A layer whose inputs and outputs are pruned differently is read off at the geometric mean of the two.
"""

from __future__ import annotations

import bisect
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from ..components import LayerCost, Structure
from ..errors import UserError
from ..files import read_json, write_json
from ..specs import Value

__all__ = ["ALIGNED", "OTHER", "LatencyKey", "LatencyLedger", "LatencyTable"]

# Hardware processes channels in multiples of 8.
ALIGNED = 8
OTHER = ""
"""The table entry for everything that is not a layer."""


class LatencyKey(Value):
    """Everything that layer timings depend on: a table is valid for one key only."""

    machine: str
    device: str
    threads: int
    batch: int
    fingerprint: str
    """The fingerprint of the network's weights."""

    @classmethod
    def here(cls, fingerprint: str, device: torch.device | str, batch: int = 1) -> LatencyKey:
        """The key of timings measured now, in this process."""
        return cls(
            machine=platform.node() or "this machine",
            device=str(device),
            threads=torch.get_num_threads(),
            batch=batch,
            fingerprint=fingerprint,
        )


class LatencyTable(BaseModel):
    """Milliseconds by layer and width. ``counts``: the components kept per group at each measured width, narrowest first.
    ``times``: the time of each layer of the structure (``""``: everything else) at these widths. Both exist for ``aligned``
    widths, multiples of 8 channels, and for ``odd`` ones.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    key: LatencyKey
    counts: dict[str, list[dict[str, int]]]
    times: dict[str, dict[str, list[float]]]

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if not {"aligned", "odd"} <= set(self.times) or set(self.counts) != set(self.times):
            raise ValueError("it needs aligned and odd widths")
        for kind, times in self.times.items():
            widths = len(self.counts[kind])
            if (
                OTHER not in times
                or not widths
                or any(len(found) != widths or min(found) < 0 for found in times.values())
            ):
                raise ValueError(f"its times do not fit its {kind} widths")
        return self

    def covers(self, structure: Structure) -> bool:
        """Whether the table has times for every layer and counts for every group of this structure."""
        layers, groups = (
            {OTHER, *(layer.name for layer in structure.layers)},
            {group.name for group in structure.groups},
        )
        return all(layers == set(times) for times in self.times.values()) and all(
            groups == set(counts) for kind in self.counts.values() for counts in kind
        )

    @property
    def dense(self) -> float:
        """Milliseconds of one forward pass of the original network."""
        return sum(times[-1] for times in self.times["aligned"].values())

    def milliseconds(self, structure: Structure, counts: Mapping[str, int]) -> float:
        """Milliseconds of one forward pass if each group keeps ``counts[group]`` components."""
        sizes = _sizes(structure)
        curves = {kind: self.curves(structure, kind) for kind in self.times}
        total = curves["aligned"][OTHER].at(sum(counts.values()) / sum(sizes.values()))
        for layer in structure.layers:
            odd = any(
                now % ALIGNED and now != before
                for now, before in zip(_sides(layer, counts), _sides(layer, sizes), strict=True)
            )
            total += curves["odd" if odd else "aligned"][layer.name].at(_share(layer, counts, sizes))
        return total

    def curves(self, structure: Structure, kind: str) -> dict[str, Curve]:
        """Milliseconds of each layer against the share of it that is kept, and of everything else against the share of all
        components that is kept.
        """
        sizes, counts, times = _sizes(structure), self.counts[kind], self.times[kind]
        everything = sum(sizes.values())
        other = Curve([sum(c.values()) / everything for c in counts], times[OTHER])
        return {OTHER: other} | {
            layer.name: Curve([_share(layer, c, sizes) for c in counts], times[layer.name])
            for layer in structure.layers
        }

    def save(self, path: Path) -> None:
        write_json(path, self.model_dump(mode="json"))

    @classmethod
    def load(cls, path: Path) -> LatencyTable:
        """Reads a table. Raises `UserError` if it is missing or damaged."""
        try:
            return cls.model_validate(read_json(path, "a latency table"))
        except ValidationError as error:
            raise UserError(f"{path} is damaged or not a latency table; delete it and measure again") from error

    @classmethod
    def kept(cls, path: Path, key: LatencyKey, structure: Structure) -> LatencyTable | None:
        """The table in this file, or None if it must be measured again: the file is missing or damaged, or the table belongs to
        another key or structure.
        """
        try:
            table = cls.load(path)
        except UserError:
            return None
        return table if table.key == key and table.covers(structure) else None


class Curve:
    """Linear interpolation of a non-decreasing curve. `numpy.interp` takes five times as long for a single value, and a plan
    needs thousands.
    """

    def __init__(self, x: Sequence[float], y: Sequence[float]) -> None:
        order = np.argsort(x, kind="stable")
        self.x = np.asarray(x, dtype=np.float64)[order].tolist()
        self.y = np.maximum.accumulate(np.asarray(y, dtype=np.float64)[order]).tolist()

    def at(self, x: float) -> float:
        place = bisect.bisect_right(self.x, x)
        if place == 0:
            return float(self.y[0])
        if place == len(self.x):
            return float(self.y[-1])
        low, high = self.x[place - 1], self.x[place]
        part = (x - low) / (high - low)
        return float(self.y[place - 1] + part * (self.y[place] - self.y[place - 1]))


class LatencyLedger:
    """`Ledger` of predicted latency in milliseconds. ``aligned``: whether widths stay multiples of 8 channels."""

    def __init__(self, table: LatencyTable, structure: Structure, counts: Mapping[str, int], *, aligned: bool) -> None:
        self.index = {name: position for position, name in enumerate(counts)}
        self._names, self._counts, self._sizes = list(counts), dict(counts), _sizes(structure)
        self._everything = sum(self._sizes.values())
        self._left = sum(counts.values())
        self._curves = table.curves(structure, "aligned" if aligned else "odd")
        self._layers: dict[str, list[LayerCost]] = {name: [] for name in counts}
        for layer in structure.layers:
            for group in _groups(layer):
                self._layers[group].append(layer)
        self._near = {name: {name}.union(*map(_groups, layers)) for name, layers in self._layers.items()}
        self._times = {layer.name: self._time(layer, self._counts) for layer in structure.layers}
        self._savings = np.array([self._saving(name) for name in self._names])

    @property
    def total(self) -> float:
        """Milliseconds of one forward pass at the current widths."""
        return self._rest(self._left) + sum(self._times.values())

    def savings(self) -> np.ndarray:
        """(G,): milliseconds saved by removing one component of each group."""
        return self._savings

    def remove(self, group: int, count: int) -> None:
        name = self._names[group]
        self._counts[name] -= count
        self._left -= count
        for layer in self._layers[name]:
            self._times[layer.name] = self._time(layer, self._counts)
        for other in self._near[name]:
            self._savings[self.index[other]] = self._saving(other)

    def _rest(self, left: int) -> float:
        return self._curves[OTHER].at(left / self._everything)

    def _time(self, layer: LayerCost, counts: Mapping[str, int]) -> float:
        return self._curves[layer.name].at(_share(layer, counts, self._sizes))

    def _saving(self, name: str) -> float:
        # Averaged over the next eighth of the group, because the curves have corners and flat parts.
        step = max(1, min(self._counts[name] - 1, self._sizes[name] // 8))
        fewer = self._counts | {name: self._counts[name] - step}
        saved = sum(self._times[layer.name] - self._time(layer, fewer) for layer in self._layers[name])
        return max((saved + self._rest(self._left) - self._rest(self._left - step)) / step, 1e-12)


def _sizes(structure: Structure) -> dict[str, int]:
    return {group.name: group.size for group in structure.groups}


def _groups(layer: LayerCost) -> set[str]:
    return {share.group for share in (*layer.in_shares, *layer.out_shares)}


def _sides(layer: LayerCost, counts: Mapping[str, int]) -> tuple[int, int]:
    """Numbers of channels read and written."""
    return (
        layer.inputs + sum(counts[share.group] * share.width for share in layer.in_shares),
        layer.outputs + sum(counts[share.group] * share.width for share in layer.out_shares),
    )


def _share(layer: LayerCost, counts: Mapping[str, int], sizes: Mapping[str, int]) -> float:
    """The geometric mean of the shares of inputs and outputs that are kept."""
    (inputs, outputs), (all_inputs, all_outputs) = _sides(layer, counts), _sides(layer, sizes)
    return float(np.sqrt(inputs * outputs / (all_inputs * all_outputs)))
