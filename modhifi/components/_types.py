"""Coupled groups and what they cost, as plain values that a study can store."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Consumer", "Cost", "Group", "Kind", "LayerCost", "Share", "Skipped", "Slice", "Structure"]

Kind = Literal["channels", "stream", "neurons", "heads"]


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Slice(_Value):
    """Where the components of a group lie along one side of a layer. Component ``i`` owns ``width`` channels: those from
    ``start + i·width`` on, or, where they are not one after the other, ``index[i·width : (i + 1)·width]``.
    """

    layer: str
    width: int = Field(default=1, gt=0)
    start: int = Field(default=0, ge=0)
    index: tuple[int, ...] | None = None

    def channels(self, size: int) -> np.ndarray:
        """(size, width) int64: the channels of each of the group's ``size`` components."""
        if self.index is not None:
            return np.asarray(self.index, dtype=np.int64).reshape(size, self.width)
        return self.start + np.arange(size * self.width, dtype=np.int64).reshape(size, self.width)


class Consumer(Slice):
    """A convolution or linear layer that reads a group; the slice is one of its input channels, each of which is read through
    ``pixels`` columns of the weight flattened to (outputs, inputs · pixels).
    """

    pixels: int = Field(default=1, gt=0)
    outputs: int = Field(gt=0)
    shift: str | None
    """What takes up a constant change of the layer's output: the name of its ``….bias``, of the ``….running_mean`` of the
    BatchNorm that follows it, or None where a bias must be added."""

    @property
    def block(self) -> int:
        """Columns of the flat weight that belong to one component."""
        return self.width * self.pixels

    def columns(self, size: int) -> np.ndarray:
        """(size, block) int64: the columns of each component."""
        channels = self.channels(size)[:, :, None] * self.pixels + np.arange(self.pixels)
        return channels.reshape(size, self.block)


class Group(_Value):
    """Components that can only go together.

    Component ``i`` is written by the output channels ``producers[·].channels(size)[i]``, passed on channel by channel by the
    layers of ``through`` (normalisation, grouped and depthwise convolution, position tables), and read by the input
    channels of each consumer.

    ``kind``: ``channels`` inside a block, of a residual ``stream`` (several layers add to them), hidden ``neurons`` of an MLP or
    attention ``heads``.
    """

    name: str
    kind: Kind
    size: int = Field(gt=0)
    producers: tuple[Slice, ...]
    through: tuple[Slice, ...]
    consumers: tuple[Consumer, ...]


class Skipped(_Value):
    """Output channels that are left whole, and why."""

    name: str
    reason: str


class Share(_Value):
    """So many channels of one side of a layer belong to each component of a group."""

    group: str
    width: int = 1


class LayerCost(_Value):
    """What one layer costs: ``macs`` and ``params`` for each (input, output) pair, ``per_output`` parameters (bias,
    normalisation) for each output. ``inputs`` and ``outputs`` count the channels that no group owns; those that groups own
    come on top, ``width`` for each component that stays.
    """

    name: str
    inputs: int = 1
    outputs: int = 1
    in_shares: tuple[Share, ...] = ()
    out_shares: tuple[Share, ...] = ()
    macs: float = 0.0
    params: float = 0.0
    per_output: float = 0.0


class Cost(_Value):
    """Parameters, and multiply-accumulates of one sample (counted ×1)."""

    params: int
    flops: int


class Structure(_Value):
    """A network's groups in forward order, what is left whole, and the cost of any choice of widths in closed form."""

    groups: tuple[Group, ...]
    skipped: tuple[Skipped, ...]
    layers: tuple[LayerCost, ...]
    """The layers whose cost depends on a group, in forward order."""
    other: Cost
    """All the rest, which no group changes."""

    @cached_property
    def _by_name(self) -> dict[str, Group]:
        return {group.name: group for group in self.groups}

    def group(self, name: str) -> Group:
        """Raises KeyError for an unknown name."""
        return self._by_name[name]

    @cached_property
    def readers(self) -> dict[str, tuple[tuple[Group, Consumer], ...]]:
        """For each layer that reads components, in forward order: the groups that it reads, and how."""
        found: dict[str, list[tuple[Group, Consumer]]] = {}
        for group in self.groups:
            for consumer in group.consumers:
                found.setdefault(consumer.layer, []).append((group, consumer))
        order = {layer.name: position for position, layer in enumerate(self.layers)}
        return {name: tuple(found[name]) for name in sorted(found, key=order.__getitem__)}

    def cost(self, counts: Mapping[str, int] | None = None) -> Cost:
        """The cost when ``counts[group]`` components stay (all where a group is not named)."""
        left = {group.name: group.size for group in self.groups} | dict(counts or {})
        params, flops = float(self.other.params), float(self.other.flops)
        for layer in self.layers:
            inputs = layer.inputs + sum(left[share.group] * share.width for share in layer.in_shares)
            outputs = layer.outputs + sum(left[share.group] * share.width for share in layer.out_shares)
            params += layer.params * inputs * outputs + layer.per_output * outputs
            flops += layer.macs * inputs * outputs
        return Cost(params=round(params), flops=round(flops))

    def without(self, reasons: Mapping[str, str]) -> Structure:
        """The same network with the named groups left whole, for the reason given. Costs stay exact."""
        gone = set(reasons)
        size = {group.name: group.size for group in self.groups}

        def fixed(shares: tuple[Share, ...]) -> int:
            return sum(size[share.group] * share.width for share in shares if share.group in gone)

        layers = [
            layer.model_copy(
                update={
                    "inputs": layer.inputs + fixed(layer.in_shares),
                    "outputs": layer.outputs + fixed(layer.out_shares),
                    "in_shares": tuple(share for share in layer.in_shares if share.group not in gone),
                    "out_shares": tuple(share for share in layer.out_shares if share.group not in gone),
                }
            )
            for layer in self.layers
        ]
        return Structure(
            groups=tuple(group for group in self.groups if group.name not in gone),
            skipped=(*self.skipped, *(Skipped(name=name, reason=reason) for name, reason in reasons.items())),
            layers=tuple(layers),
            other=self.other,
        )
