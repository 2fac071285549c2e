"""Coupled groups and what they cost, as plain values that a study can store."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Consumer", "Cost", "Group", "LayerCost", "Skipped", "Structure"]


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Consumer(_Value):
    """A layer that reads a group. Component ``i`` is read through the columns ``i·block … (i+1)·block`` of its weight,
    flattened to (outputs, inputs): ``block`` is the number of kernel pixels, times the positions flattened into features.
    """

    layer: str
    block: int = Field(gt=0)
    outputs: int = Field(gt=0)
    shift: str | None
    """What takes up a constant change of the layer's output: the name of its ``….bias``, of the ``….running_mean`` of the
    BatchNorm that follows it, or None where a bias must be added."""


class Group(_Value):
    """Components that can only go together: output channel ``i`` of every producer and its normalisation, and the input
    columns of every consumer that read it.
    """

    name: str
    size: int = Field(gt=0)
    producers: tuple[str, ...]
    norms: tuple[str, ...]
    consumers: tuple[Consumer, ...]


class Skipped(_Value):
    """Output channels that are left whole, and why."""

    name: str
    reason: str


class LayerCost(_Value):
    """One convolution or linear layer: ``macs`` and ``params`` for each (input, output) pair, ``per_output`` parameters
    (bias, normalisation) for each output. An input or output side that belongs to a group shrinks with it; ``in_block`` inputs
    per component (positions flattened into features).
    """

    name: str
    inputs: int
    outputs: int
    in_group: str | None = None
    in_block: int = 1
    out_group: str | None = None
    macs: float
    params: float
    per_output: int


class Cost(_Value):
    """Parameters, and multiply-accumulates of one sample (counted ×1)."""

    params: int
    flops: int


class Structure(_Value):
    """A network's groups in forward order, what is left whole, and the cost of any choice of widths in closed form."""

    groups: tuple[Group, ...]
    skipped: tuple[Skipped, ...]
    layers: tuple[LayerCost, ...]
    """The layers whose cost depends on a group."""
    other: Cost
    """All the rest, which no group changes."""

    def group(self, name: str) -> Group:
        """Raises KeyError for an unknown name."""
        for group in self.groups:
            if group.name == name:
                return group
        raise KeyError(name)

    def cost(self, counts: Mapping[str, int] | None = None) -> Cost:
        """The cost when ``counts[group]`` components stay (all where a group is not named)."""
        counts = counts or {}
        params, flops = float(self.other.params), float(self.other.flops)
        for layer in self.layers:
            inputs, outputs = layer.inputs, layer.outputs
            if layer.in_group is not None and layer.in_group in counts:
                inputs = counts[layer.in_group] * layer.in_block
            if layer.out_group is not None and layer.out_group in counts:
                outputs = counts[layer.out_group]
            params += layer.params * inputs * outputs + layer.per_output * outputs
            flops += layer.macs * inputs * outputs
        return Cost(params=round(params), flops=round(flops))
