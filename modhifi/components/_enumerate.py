"""From a network to its coupled groups.

Every channel of every layer is a node, and `Labels` shows which nodes meet in a forward pass; the connected classes of that
relation are the components. Components that are coupled to the same sides of the same layers form one group. A class that meets
something that cannot be cut here, or that mixes components, is not pruned and is listed with the reason.
"""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn

from ..layers import LAYERS, copied, width_of
from ..models import CausalLM, Model, every_answer
from ._follow import Followed
from ._language import language_structure
from ._structure import Consumer, Cost, Group, Kind, LayerCost, Share, Skipped, Slice, Structure
from ._trace import Trace, trace

__all__ = ["enumerate_components", "structure_of"]

_RETURNED = "part of the network's output"

Side = tuple[str, str]  # a layer's or parameter's name, and "in" or "out"


@torch.inference_mode()
def enumerate_components(module: nn.Module, example: Tensor) -> Structure:
    """All coupled groups of ``module`` for inputs like ``example``: (1, 3, H, W), or (1, T) for a language model. The module is
    not changed.

    Components are those of docs/theory.md, *Components and contributions*; costs are exact for any choice of widths. The result
    is what the trace shows; `modhifi.surgery.verified` tests it on the network.
    """
    if isinstance(module, CausalLM):
        return language_structure(module, example.shape[1])
    # Which channels belong together does not depend on the dtype; the CPU lacks some operations in half precision. Tensors made
    # in inference mode keep the labels that they are given.
    net = copy.deepcopy(copied(module).cpu().eval().float())
    example = example.detach().cpu().float().clone()
    seen = trace(net, example)
    labels = Followed(net)
    # Also what is not the answer must still run in the pruned network.
    return _Enumeration(net, labels, labels.run(lambda: every_answer(net, example)), seen).structure()


def structure_of(model: Model) -> Structure:
    """`enumerate_components` of a loaded network, computed once."""
    key = ("structure", model.input.shape)
    if key not in model.derived:
        model.derived[key] = enumerate_components(model.module, model.example())
    structure: Structure = model.derived[key]
    return structure


class _Enumeration:
    def __init__(self, net: nn.Module, labels: Followed, output: Any, seen: Trace) -> None:
        self.trace, self.labels = seen, labels
        self.order = {name: position for position, name in enumerate(seen.order)}
        self.modules: dict[str, Any] = dict(net.named_modules())
        self.parameters = labels.parameters
        labels.returned(output, _RETURNED)
        for name in seen.order:
            self._inside(name)
        for first, second in labels.shared:
            for name in (first, second):
                labels.block_layer(name, f"{first} shares a weight with {second}")
        for name, reason in labels.opaque.items():
            labels.block_layer(name, f"{name}: {reason}")
        pairs = np.concatenate([*labels.edges, np.zeros((2, 0), dtype=np.int64)], 1)
        count = labels.count
        links = coo_array((np.ones(pairs.shape[1], dtype=np.int8), (pairs[0], pairs[1])), shape=(count, count))
        self.label: np.ndarray
        _, self.label = connected_components(links, directed=False)

    def _inside(self, name: str) -> None:
        """Adds what a layer couples within itself, and the reasons not to prune it."""
        layer = self.modules[name]
        outputs = self.labels.nodes(name, "out", width_of(layer))
        inputs = self.labels.nodes(name, "in", _inputs(layer))
        everything = np.concatenate([outputs, inputs])
        split = _split(layer)
        if split > 1:
            # A convolution group can only be removed as a whole: its first input stands for it.
            heads = inputs[:: len(inputs) // split]
            for nodes in (inputs, outputs):
                self.labels.edges.append(np.stack([nodes, np.repeat(heads, len(nodes) // split)]))
        if name in self.trace.odd:
            self.labels.blocked.append((everything, f"{name} is a {type(layer).__name__} with a custom forward pass"))
        if name in self.trace.mixed:
            self.labels.blocked.append((everything, f"{name} does not read its input sample by sample"))

    def _reasons(self) -> tuple[dict[int, str], dict[int, str]]:
        """By class: why it cannot be removed, and what joined its components."""
        reasons: dict[int, str] = {}
        for nodes, reason in self.labels.blocked:
            for one in np.unique(self.label[nodes]).tolist():
                reasons.setdefault(one, reason)
        for array, axes, reason in self.labels.within:
            nodes = array.long().numpy()
            classes = np.where(nodes > 0, self.label[np.maximum(nodes, 1) - 1], -1)
            if any(bool((classes != classes.take([0], axis)).any()) for axis in axes):
                for one in np.unique(classes[classes >= 0]).tolist():
                    reasons.setdefault(one, reason)
        mixed: dict[int, str] = {}
        for nodes, reason in self.labels.mixed:
            for one in np.unique(self.label[nodes]).tolist():
                mixed.setdefault(one, reason)
        return reasons, mixed

    # The groups ---------------------------------------------------------------------------------------------------------

    def structure(self) -> Structure:
        reasons, mixed = self._reasons()
        streams = set(np.unique(self.label[_flat(self.labels.added)]).tolist())
        self.heads = set(np.unique(self.label[_flat([nodes for nodes, _, _ in self.labels.work])]).tolist())

        members: dict[int, dict[Side, list[int]]] = defaultdict(dict)
        for side, start in self.labels.starts.items():
            for channel, one in enumerate(self.label[start : start + self.labels.sizes[side]].tolist()):
                members[one].setdefault(side, []).append(channel)
        alike: dict[tuple[Any, ...], list[int]] = defaultdict(list)
        for one, where in members.items():
            key = tuple((side, len(channels)) for side, channels in where.items())
            alike[(key, reasons.get(one), one in streams, one in self.heads)].append(one)
        groups: list[Group] = []
        skipped: dict[str, str] = {}
        for (key, reason, stream, heads), ones in alike.items():
            alone = mixed.get(ones[0], "a single component") if len(ones) < 2 else None
            found = self._group([members[one] for one in ones], [side for side, _ in key], reason, alone, stream, heads)
            if isinstance(found, Group):
                groups.append(found)
            elif found is not None:
                skipped.setdefault(found.name, found.reason)
        groups = self._named(sorted(groups, key=lambda group: self.order[group.name]))
        for name, reason in self.labels.opaque.items():
            skipped.setdefault(name, reason)
        for name, module in self.modules.items():
            if isinstance(module, LAYERS) and name not in self.order and name.rpartition(".")[0] not in skipped:
                skipped.setdefault(name, "not run as a separate layer")
        layers = self._costs(groups)
        total = sum(value.numel() for value in self.modules[""].parameters())
        tied = Structure(groups=tuple(groups), skipped=(), layers=layers, other=Cost(params=0, flops=0)).cost()
        return Structure(
            groups=tuple(groups),
            skipped=tuple(Skipped(name=name, reason=reason) for name, reason in skipped.items()),
            layers=layers,
            other=Cost(params=total - tied.params, flops=self.trace.macs[""] - tied.flops),
        )

    def _group(
        self,
        ones: list[dict[Side, list[int]]],
        sides: list[Side],
        reason: str | None,
        alone: str | None,
        stream: bool,
        heads: bool,
    ) -> Group | Skipped | None:
        """The group of components that are all coupled to ``sides``, or why they form none; None for the outputs of the network
        and for components that no layer writes.
        """
        writers = sorted(
            (name for name, side in sides if side == "out" and self._writes(name)), key=self.order.__getitem__
        )
        readers = sorted(
            (name for name, side in sides if side == "in" and self._reads(name)), key=self.order.__getitem__
        )
        if not writers:
            return None  # the network's input
        if not readers:
            known = reason is not None and reason != _RETURNED
            return Skipped(name=writers[0], reason=reason) if known and reason is not None else None
        reason = reason or alone
        if reason is not None:
            return Skipped(name=writers[0], reason=reason)
        ones = sorted(ones, key=lambda where: where[writers[0], "out"][0])

        def part(side: Side) -> dict[str, Any]:
            channels = np.array([where[side] for where in ones], dtype=np.int64)
            start = int(channels[0, 0])
            regular = np.array_equal(channels.reshape(-1), start + np.arange(channels.size))
            return {
                "layer": side[0],
                "width": channels.shape[1],
                "start": start if regular else 0,
                "index": None if regular else tuple(channels.reshape(-1).tolist()),
            }

        kind: Kind = "stream" if stream and len(writers) > 1 else "channels"
        if heads:
            kind = "heads"
        elif all(isinstance(self.modules[name], nn.Linear) for name in (*writers, *readers)):
            kind = "neurons" if kind == "channels" else kind
        return Group(
            name=writers[0],
            kind=kind,
            size=len(ones),
            producers=tuple(Slice(**part((name, "out"))) for name in writers),
            through=tuple(Slice(**part(side)) for side in sides if side[1] == "out" and not self._writes(side[0])),
            consumers=tuple(
                Consumer(
                    **part((name, "in")),
                    pixels=_pixels(self.modules[name]),
                    outputs=width_of(self.modules[name]),
                    shift=self._shift(name),
                )
                for name in readers
            ),
        )

    def _writes(self, name: str) -> bool:
        """Whether the layer's outputs mix its inputs: a grouped convolution only passes on what it reads, group by group."""
        module = self.modules.get(name)
        return name in self.order and isinstance(module, LAYERS) and _split(module) == 1

    _reads = _writes

    def _named(self, groups: list[Group]) -> list[Group]:
        """Names each group after the first layer that writes it; the second group of a layer is ``layer/2``."""
        times: dict[str, int] = defaultdict(int)
        named = []
        for group in groups:
            times[group.name] += 1
            number = times[group.name]
            named.append(group if number == 1 else group.model_copy(update={"name": f"{group.name}/{number}"}))
        return named

    def _shift(self, name: str) -> str | None:
        layer = self.modules[name]
        if layer.bias is not None:
            return f"{name}.bias"
        norm = self.labels.behind.get(name)
        return None if norm is None or self.labels.uses.get(name) != 1 else f"{norm}.running_mean"

    # The cost -----------------------------------------------------------------------------------------------------------

    def _costs(self, groups: list[Group]) -> tuple[LayerCost, ...]:
        reads: dict[str, list[Share]] = defaultdict(list)
        writes: dict[str, list[Share]] = defaultdict(list)
        owned: dict[Side, int] = defaultdict(int)
        for group in groups:
            for kind, shares, slices in (
                ("in", reads, group.consumers),
                ("out", writes, (*group.producers, *group.through)),
            ):
                for part in slices:
                    shares[part.layer].append(Share(group=group.name, width=part.width))
                    owned[part.layer, kind] += group.size * part.width
        rows = []
        for name in self._affected(set(reads) | set(writes)):
            module = self.modules.get(name)
            free = {side: self._size(name, side) - owned[name, side] for side in ("in", "out")}
            if isinstance(module, LAYERS):
                split = _split(module)
                pixels = _pixels(module)
                row = LayerCost(
                    name=name,
                    # Each output of a grouped convolution reads its own group and can only be removed together with it.
                    inputs=free["in"] if split == 1 else self._size(name, "in") // split,
                    outputs=free["out"],
                    in_shares=tuple(reads[name]) if split == 1 else (),
                    out_shares=tuple(writes[name]),
                    macs=pixels * self.trace.positions[name],
                    params=pixels,
                    per_output=float(module.bias is not None),
                )
            else:
                value = self.parameters.get(name)
                entries = [value] if isinstance(value, nn.Parameter) else list(module.parameters()) if module else []
                row = LayerCost(
                    name=name,
                    outputs=free["out"],
                    out_shares=tuple(writes[name]),
                    per_output=sum(entry.numel() for entry in entries) / self._size(name, "out"),
                )
            rows.append(row)
        rows += self._attention_costs(groups)
        return tuple(rows)

    def _attention_costs(self, groups: list[Group]) -> Iterator[LayerCost]:
        """Products between heads, which are shared equally by them."""
        owner: dict[int, str] = {}
        for group in groups:
            for part in group.producers:
                start = self.labels.starts[part.layer, "out"]
                owner |= dict.fromkeys(self.label[start + part.channels(group.size).reshape(-1)].tolist(), group.name)
        sums: dict[tuple[str, str], int] = defaultdict(int)
        for nodes, core, macs in self.labels.work:
            names = {owner.get(one) for one in self.label[nodes].tolist()}
            name = names.pop() if len(names) == 1 else None
            if name is not None:
                sums[core, name] += macs
        sizes = {group.name: group.size for group in groups}
        for (core, name), macs in sums.items():
            yield LayerCost(name=core, outputs=0, out_shares=(Share(group=name),), macs=macs / sizes[name])

    def _size(self, name: str, side: str) -> int:
        return self.labels.sizes.get((name, side), 0)

    def _affected(self, names: set[str]) -> Iterator[str]:
        yield from (name for name in self.trace.order if name in names)
        yield from (name for name in (*self.modules, *self.parameters) if name in names and name not in self.order)


def _pixels(layer: nn.Module) -> int:
    """Kernel pixels of a convolution; 1 for a linear layer."""
    return 1 if isinstance(layer, nn.Linear) else math.prod(layer.kernel_size)  # type: ignore[arg-type]


def _inputs(layer: nn.Module) -> int:
    return int(layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels)  # type: ignore[arg-type]


def _split(layer: nn.Module) -> int:
    """Groups of a convolution; 1 for a linear layer."""
    return 1 if isinstance(layer, nn.Linear) else int(layer.groups)  # type: ignore[arg-type]


def _flat(nodes: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([*nodes, np.zeros(0, dtype=np.int64)])
