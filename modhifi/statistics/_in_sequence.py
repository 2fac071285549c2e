"""Fitting layers one after the other to the inputs that the layers before them, already modified, produce.

Two passes over the same inputs in one batch. `observe` runs the original network and notes, at some positions of every layer's
output, what the layer computes, what its output is added to, and which ReLU cuts it off. `fit_in_sequence` runs the
network again and lets the caller fit each layer the moment it runs, so that the pass itself brings the next layer its input.
Sequential compensation and erasure differ only in what they fit to.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..layers import (
    Operator,
    Route,
    bias_of,
    flat_weight,
    followed,
    get_operator,
    outputs_at,
    position_count,
    rows_at,
)
from ._positions import draw

__all__ = ["Affine", "Observed", "Site", "able", "at_most", "fit_in_sequence", "observe"]

# Rows that a layer is fitted on, for each of its inputs.
_ROWS_PER_INPUT = 64
# At most so many entries in the matrix of rows, 512 MiB.
_ENTRIES = 1 << 27
# All samples run in one batch; more pixels than this would need too much memory.
_PIXELS = 1 << 24
# A scale smaller than this, relative to the largest, would magnify noise: such outputs are not moved.
_SMALLEST_SCALE = 1e-3

Affine = tuple[Tensor, Tensor]
"""Scale and constant (O,): what happens to each output channel on its way."""


def at_most(inputs: Tensor) -> int:
    """How many of the inputs (N, 3, H, W) run in one batch."""
    return max(1, _PIXELS // (inputs.shape[2] * inputs.shape[3]))


def able(scale: Tensor) -> Tensor:
    """(O,) bool: the output channels whose scale is large enough to be inverted."""
    return scale.abs() > _SMALLEST_SCALE * scale.abs().max()


@dataclass
class Observed:
    """What the original network computed: for each layer, the ``positions`` (N, p) looked at in each sample, and
    ``outputs`` (r, O), the layer's output there without its bias.
    """

    positions: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)

    def affine(self, net: nn.Module, route: Route, value: Tensor) -> Affine | None:
        """How ``value`` follows from the output of the layer that ``route`` starts at; None if something on the way is not
        an affine map of each channel by itself (an activation in place), or the layer was not observed.
        """
        if route.layer not in self.positions:
            return None
        scale, constant = route.affine(value)
        expected = (self.outputs[route.layer] + bias_of(get_operator(net, route.layer))) * scale + constant
        rows = rows_at(value, self.positions[route.layer])
        return (scale, constant) if torch.allclose(rows, expected, rtol=1e-3, atol=1e-4) else None


def observe(
    net: nn.Module,
    layers: Sequence[str],
    inputs: Tensor,
    *,
    only: Collection[str] | None = None,
    output: Callable[[str, Operator, Tensor], None] | None = None,
    added: Callable[[Route, Tensor, Tensor, Affine], None] | None = None,
    rectified: Callable[[Route, Tensor, Affine | None], None] | None = None,
    observed: Observed | None = None,
) -> tuple[Observed, Tensor]:
    """Runs the original network ``net`` once and returns what was observed, and the network's output.

    Args:
        net: may write in place; pass a copy.
        layers: whose outputs are followed.
        inputs: all samples, one batch.
        only: those of ``layers`` that are observed; all by default.
        output: told of each observed layer and its output, after its rows were noted.
        added: told where such an output, ``own``, is added to ``other``, if the way there is affine.
        rectified: told where such an output, or such a sum, goes into a ReLU; the affine map is None for a sum.
        observed: where to note, so that the callbacks can look at it.
    """
    found = Observed() if observed is None else observed
    count, numbers = len(inputs), torch.arange(len(inputs))

    def see(name: str, layer: Operator, x: Tensor, y: Tensor) -> Tensor:
        if only is not None and name not in only:
            return y
        total, width = position_count(layer, x, count), flat_weight(layer).shape[1]
        rows = min(_ROWS_PER_INPUT * width, _ENTRIES // width)
        size = min(total, max(1, -(-rows // count)))
        at = draw(total, size, name, numbers, 0) if size < total else torch.arange(total).expand(count, -1)
        found.positions[name] = at.to(x.device)
        found.outputs[name] = outputs_at(layer, y, found.positions[name])
        if output is not None:
            output(name, layer, y)
        return y

    def see_addition(route: Route, own: Tensor, other: Tensor) -> Tensor | None:
        affine = found.affine(net, route, own)
        if affine is None:
            return None
        assert added is not None
        added(route, own, other, affine)
        return own  # of two layers that are added to one another, the second is fitted as it runs

    def see_rectifier(route: Route, x: Tensor) -> None:
        assert rectified is not None
        if route.added:
            rectified(route, x, None)
            return
        affine = found.affine(net, route, x)
        if affine is not None:
            rectified(route, x, affine)

    with followed(net, layers, see, see_addition if added else None, see_rectifier if rectified else None):
        answer: Tensor = net(inputs)
    return found, answer


@dataclass(frozen=True)
class Site:
    """A layer of the modified network at the moment it is fitted: its input ``x``, and, where its output is added to a
    stream, the rows (r, O) of that ``stream`` at the layer's positions and the ``constant`` (O,) added on the way there.
    """

    name: str
    layer: Operator
    x: Tensor
    stream: Tensor | None = None
    constant: Tensor | None = None


def fit_in_sequence(
    net: nn.Module,
    layers: Sequence[str],
    inputs: Tensor,
    observed: Observed,
    fit: Callable[[Site], Tensor],
    *,
    only: Collection[str] | None = None,
    streams: Collection[str] = (),
) -> Tensor:
    """Runs ``net`` once more; each layer's output becomes ``fit(site)``, its output with the weights fitted there. Layers in
    ``streams`` are fitted where their output is added, when what it is added to is known. Returns the network's output.

    ``layers`` and ``only`` as in `observe`; ``net`` may write in place, pass a copy.
    """
    waiting: dict[str, Tensor] = {}

    def see(name: str, layer: Operator, x: Tensor, y: Tensor) -> Tensor:
        if only is not None and name not in only:
            return y
        if name in streams:
            waiting[name] = x
            return y
        return fit(Site(name, layer, x))

    def added(route: Route, own: Tensor, other: Tensor) -> Tensor | None:
        x = waiting.pop(route.layer, None)
        if x is None:
            return None
        _, constant = route.affine(own)
        stream = rows_at(other, observed.positions[route.layer])
        answer = fit(Site(route.layer, get_operator(net, route.layer), x, stream, constant))
        return route.run(answer).reshape(own.shape)

    with followed(net, layers, see, added, None):
        answer: Tensor = net(inputs)
    assert not waiting, "an addition that was seen in the original network did not come"
    return answer
