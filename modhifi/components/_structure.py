"""Coupled groups and their costs, as plain values that a study can store."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Literal, Self

import numpy as np
from pydantic import Field, model_validator

from ..specs import Value

__all__ = ["Consumer", "Cost", "Group", "Kind", "LayerCost", "Share", "Skipped", "Slice", "Structure"]

# No layer has as many channels; products of two such numbers still fit into 64 bits.
_MOST = 1 << 31

Kind = Literal["channels", "stream", "neurons", "heads"]


class Slice(Value):
    """Where the components of a group are on one side of a layer. Component ``i`` owns ``width`` channels, beginning with
    ``start + i·width``; or, if they are not contiguous, ``index[i·width : (i + 1)·width]``.
    """

    layer: str
    width: int = Field(default=1, gt=0, le=_MOST)
    start: int = Field(default=0, ge=0, le=_MOST)
    index: tuple[int, ...] | None = None

    def channels(self, size: int) -> np.ndarray:
        """(size, width) int64: the channels of each of the group's ``size`` components."""
        if self.index is not None:
            return np.asarray(self.index, dtype=np.int64).reshape(size, self.width)
        return self.start + np.arange(size * self.width, dtype=np.int64).reshape(size, self.width)


class Consumer(Slice):
    """A convolution or linear layer that reads a group. The slice is of its input channels, each of which is read through
    ``pixels`` columns of the weight flattened to (outputs, inputs · pixels).
    """

    pixels: int = Field(default=1, gt=0, le=_MOST)
    outputs: int = Field(gt=0, le=_MOST)
    shift: str | None
    """What absorbs a constant change of the layer's output: the name of its ``….bias``, or of the ``….running_mean`` of the
    BatchNorm that follows it; None if a bias must be added."""

    @property
    def block(self) -> int:
        """Columns of the flat weight per component."""
        return self.width * self.pixels

    def columns(self, size: int) -> np.ndarray:
        """(size, block) int64: the columns of each component."""
        channels = self.channels(size)[:, :, None] * self.pixels + np.arange(self.pixels)
        return channels.reshape(size, self.block)


class Group(Value):
    """A coupled group: all slices that can only be removed together. A component is one index into it.

    Component ``i`` is written by the output channels ``producers[·].channels(size)[i]``, passed on channel by channel by the
    layers in ``through`` (normalisation, grouped and depthwise convolution, position tables), and read by the corresponding
    input channels of each consumer.

    ``kind``: ``channels`` inside a block, channels of a residual ``stream`` (to which several layers add), hidden ``neurons``
    of an MLP, or attention ``heads``.
    """

    name: str
    kind: Kind
    size: int = Field(gt=0, le=_MOST)
    producers: tuple[Slice, ...]
    through: tuple[Slice, ...]
    consumers: tuple[Consumer, ...] = Field(min_length=1)


class Skipped(Value):
    """Output channels that are not pruned, and why."""

    name: str
    reason: str


class Share(Value):
    """How many channels on one side of a layer belong to each component of a group."""

    group: str
    width: int = Field(default=1, ge=1)


class LayerCost(Value):
    """The cost of one layer: ``macs`` and ``params`` per (input, output) pair, and ``per_output`` parameters (bias,
    normalisation) per output. ``inputs`` and ``outputs`` count the channels that no group owns; each remaining component of a
    group adds ``width`` channels.
    """

    name: str
    inputs: int = Field(default=1, ge=0)
    outputs: int = Field(default=1, ge=0)
    in_shares: tuple[Share, ...] = ()
    out_shares: tuple[Share, ...] = ()
    macs: float = Field(default=0.0, ge=0)
    params: float = Field(default=0.0, ge=0)
    per_output: float = Field(default=0.0, ge=0)


class Cost(Value):
    """Parameters, and multiply-accumulates per sample (each counted once)."""

    params: int = Field(ge=0)
    flops: int = Field(ge=0)


class Structure(Value):
    """A network's groups in forward order, what is not pruned, and the cost of any choice of widths in closed form."""

    groups: tuple[Group, ...]
    skipped: tuple[Skipped, ...]
    layers: tuple[LayerCost, ...]
    """The layers whose cost depends on a group, in forward order."""
    other: Cost
    """The cost of everything else, which no group changes."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = {group.name for group in self.groups}
        if len(names) < len(self.groups):
            raise ValueError("two groups have the same name")
        for layer in self.layers:
            for share in (*layer.in_shares, *layer.out_shares):
                if share.group not in names:
                    raise ValueError(
                        f"the cost of {layer.name} depends on the group {share.group!r:.40}, which is missing"
                    )
        return self

    @cached_property
    def _by_name(self) -> dict[str, Group]:
        return {group.name: group for group in self.groups}

    def group(self, name: str) -> Group:
        """Raises KeyError for an unknown name."""
        return self._by_name[name]

    @cached_property
    def readers(self) -> dict[str, tuple[tuple[Group, Consumer], ...]]:
        """For each layer that reads components, in forward order: the groups that it reads, and through which slices."""
        found: dict[str, list[tuple[Group, Consumer]]] = {}
        for group in self.groups:
            for consumer in group.consumers:
                found.setdefault(consumer.layer, []).append((group, consumer))
        order = {layer.name: position for position, layer in enumerate(self.layers)}
        return {name: tuple(found[name]) for name in sorted(found, key=order.__getitem__)}

    @property
    def skipped_by_reason(self) -> dict[str, list[str]]:
        """Reason -> the names of the layers that are not pruned because of it."""
        found: dict[str, list[str]] = {}
        for skip in self.skipped:
            found.setdefault(skip.reason, []).append(skip.name)
        return found

    def cost(self, counts: Mapping[str, int] | None = None) -> Cost:
        """The cost if each group keeps ``counts[group]`` components (all of them if it is not named)."""
        left = {group.name: group.size for group in self.groups} | dict(counts or {})
        params, flops = float(self.other.params), float(self.other.flops)
        for layer in self.layers:
            inputs = layer.inputs + sum(left[share.group] * share.width for share in layer.in_shares)
            outputs = layer.outputs + sum(left[share.group] * share.width for share in layer.out_shares)
            params += layer.params * inputs * outputs + layer.per_output * outputs
            flops += layer.macs * inputs * outputs
        return Cost(params=round(params), flops=round(flops))

    def without(self, reasons: Mapping[str, str]) -> Structure:
        """The same network with the named groups not pruned, for the reasons given. Costs remain exact."""
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
