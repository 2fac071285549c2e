"""From a network to its coupled groups.

torch-pruning's dependency graph shows which channels of which layers can only be removed together. Here every channel of every
layer is a node, and the connected classes of that relation are the components; grouped convolutions and attention heads are
added to it. Components that are coupled to the same sides of the same layers form one group. A class that passes through
something that cannot be cut here, or that mixes components, is not pruned and is listed with the reason.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..models import CausalLM, Model, every_answer
from ._adapters import Extra, extras, standing_in
from ._language import language_structure
from ._structure import Consumer, Cost, Group, Kind, LayerCost, Share, Skipped, Slice, Structure
from ._trace import Trace, trace, width_of

__all__ = ["enumerate_components", "structure_of"]

_Layer = (nn.Conv2d, nn.Linear)
# Treat each channel separately, with one parameter entry per channel.
_Through = (_BatchNorm, nn.PReLU)

_RETURNED = "part of the network's output"

Side = tuple[str, str]  # a layer's or parameter's name, and "in" or "out"


def enumerate_components(module: nn.Module, example: Tensor) -> Structure:
    """All coupled groups of ``module`` for inputs like ``example``: (1, 3, H, W), or (1, T) for a language model. The module is
    not changed.

    Components are those of docs/theory.md, *Components and contributions*; costs are exact for any choice of widths. The result
    is what the trace shows; `modhifi.surgery.verified` tests it on the network.
    """
    if isinstance(module, CausalLM):
        return language_structure(module, example.shape[1])
    # Which channels belong together does not depend on the dtype; the CPU lacks some operations in half precision.
    net = copy.deepcopy(module).cpu().eval().float()
    example = example.detach().cpu().float()
    seen = trace(net, example)
    try:
        graph = _dependency_graph(net, example)
    except Exception as error:  # shuffled channels, for example, make it fail
        reason = f"the tracer fails on this network ({type(error).__name__}: {error})"
        params = sum(parameter.numel() for parameter in net.parameters())
        return Structure(
            groups=(),
            skipped=tuple(Skipped(name=name, reason=reason) for name in seen.order),
            layers=(),
            other=Cost(params=params, flops=seen.macs[""]),
        )
    return _Enumeration(net, graph, seen).structure()


def structure_of(model: Model) -> Structure:
    """`enumerate_components` of a loaded network, computed once."""
    key = ("structure", model.input.shape)
    if key not in model.derived:
        model.derived[key] = enumerate_components(model.module, model.example())
    structure: Structure = model.derived[key]
    return structure


@torch.inference_mode(False)
def _dependency_graph(module: nn.Module, example: Tensor) -> Any:
    """torch-pruning's graph of ``module`` as given. Tracing follows gradients, so they are switched on."""
    # torch-pruning takes seconds to import (with timm and torchvision); only code that cuts a network should wait for it.
    import torch_pruning as tp

    sides: list[Tensor] = []

    def answers(net: nn.Module, x: Tensor) -> list[Tensor]:
        # Also what is not the answer must still run in the pruned network.
        return [*(value for value in every_answer(net, x) if value.requires_grad), *sides]

    module.requires_grad_(True)
    with torch.enable_grad(), standing_in(module, sides):
        return tp.DependencyGraph().build_dependency(module, example_inputs=example, forward_fn=answers, verbose=False)


class _Enumeration:
    def __init__(self, net: nn.Module, graph: Any, seen: Trace) -> None:
        self.trace = seen
        self.order = {name: position for position, name in enumerate(seen.order)}
        self.extras: list[Extra] = extras(net)
        self.graph = graph
        self.modules: dict[str, Any] = dict(net.named_modules()) | dict(net.named_parameters())
        self.names = {id(module): name for name, module in self.modules.items()}
        self.starts: dict[Side, int] = {}
        self.sides: list[Side] = []
        self.count = 0
        self.edges: list[np.ndarray] = []
        self.blocked: list[tuple[np.ndarray, str]] = []
        self.added: list[np.ndarray] = []

    # The relation -------------------------------------------------------------------------------------------------------

    def _nodes(self, name: str, side: str, channels: Sequence[int] | np.ndarray) -> np.ndarray:
        """The nodes of these channels, one per channel."""
        key = (name, side)
        if key not in self.starts:
            self.starts[key] = self.count
            self.sides.append(key)
            self.count += self._size(name, side)
        return np.asarray(channels, dtype=np.int64) + self.starts[key]

    def _size(self, name: str, side: str) -> int:
        module = self.modules[name]
        if isinstance(module, nn.Conv2d):
            return module.out_channels if side == "out" else module.in_channels
        if isinstance(module, nn.Linear):
            return module.out_features if side == "out" else module.in_features
        if isinstance(module, nn.Parameter):
            return [size for size in module.shape if size > 1][-1] if module.numel() > 1 else 1
        return max(
            [int(parameter.numel()) for parameter in module.parameters()] + [int(getattr(module, "num_features", 1))]
        )

    def _join(self, first: np.ndarray, second: np.ndarray) -> None:
        self.edges.append(np.stack([first, second]))

    def _follow(self, name: str) -> None:
        """Adds everything that the outputs of the layer ``name`` are coupled to."""
        import torch_pruning as tp
        from torch_pruning import ops

        layer = self.modules[name]
        own = self._nodes(name, "out", range(width_of(layer)))
        prune = tp.prune_linear_out_channels if isinstance(layer, nn.Linear) else tp.prune_conv_out_channels
        try:
            items = list(self.graph.get_pruning_group(layer, prune, idxs=list(range(len(own)))))
        except Exception as error:  # the tracer fails in many ways on unknown operations; the other layers go on
            self.blocked.append((own, f"the tracer cannot follow it: {type(error).__name__}"))
            return
        plain = (ops._ElementWiseOp, ops._ReshapeOp, ops._ConcatOp, ops._SplitOp, ops._SliceOp)
        for item in items:
            target = item.dep.target.module
            roots = own[np.asarray(item.root_idxs, dtype=np.int64)]
            if isinstance(target, ops._OutputOp):
                self.blocked.append((roots, _RETURNED))
            elif isinstance(target, plain):
                if isinstance(target, ops._ElementWiseOp) and "Add" in str(item.dep.target.name):
                    self.added.append(roots)
            elif id(target) not in self.names:
                operation = str(item.dep.target.name).split("(")[0].strip("_ 0123456789")
                self.blocked.append((roots, f"passes through {operation}"))
            else:
                self._couple(self.names[id(target)], item, roots)

    def _couple(self, label: str, item: Any, roots: np.ndarray) -> None:
        target = self.modules[label]
        inwards = item.dep.handler.__name__ == "prune_in_channels"
        depthwise = isinstance(target, nn.Conv2d) and target.groups > 1 and target.groups == target.out_channels
        side = "in" if isinstance(target, _Layer) and inwards and not depthwise else "out"
        if max(item.idxs) >= self._size(label, side):
            self.blocked.append((roots, f"the tracer finds channels in {label} that do not exist"))
            return
        self._join(roots, self._nodes(label, side, item.idxs))
        if isinstance(target, nn.Parameter):
            if sum(size > 1 for size in target.shape) != 1:
                self.blocked.append((roots, f"added to or multiplied by the parameter {label}"))
        elif not isinstance(target, (*_Layer, *_Through)):
            what = type(target).__name__
            self.blocked.append((roots, f"normalised or mixed across components by {label} ({what})"))

    def _layers(self) -> None:
        """Adds what each layer couples within itself, and the reasons not to prune it."""
        for name in self.trace.order:
            layer = self.modules[name]
            outputs = self._nodes(name, "out", range(width_of(layer)))
            inputs = self._nodes(name, "in", range(self._size(name, "in")))
            everything = np.concatenate([outputs, inputs])
            if isinstance(layer, nn.Conv2d) and layer.groups > 1:
                # A convolution group can only be removed as a whole: its first input stands for it.
                heads = inputs[:: len(inputs) // layer.groups]
                self._join(inputs, np.repeat(heads, len(inputs) // layer.groups))
                self._join(outputs, np.repeat(heads, len(outputs) // layer.groups))
            if name in self.trace.odd:
                self.blocked.append((everything, f"{name} is a {type(layer).__name__} with a custom forward pass"))
            if name in self.trace.mixed:
                self.blocked.append((everything, f"{name} does not read its input sample by sample"))
            if self.trace.calls[name] != 1:
                self.blocked.append((everything, f"{name} runs more than once in a forward pass"))

    def _extras(self) -> None:
        for extra in self.extras:
            units = self._nodes(extra.inputs[0].layer, "in", extra.inputs[0].channels(extra.size)[:, 0])
            for kind, slices in (("out", extra.outputs), ("in", extra.inputs), ("out", extra.tables)):
                for part in slices:
                    nodes = self._nodes(part.layer, kind, part.channels(extra.size).reshape(-1))
                    self._join(nodes, np.repeat(units, part.width))

    # The groups ---------------------------------------------------------------------------------------------------------

    def structure(self) -> Structure:
        self._layers()
        self._extras()
        for name in self.trace.order:
            if self.modules[name] in self.graph.module2node:
                self._follow(name)
        pairs = np.concatenate([*self.edges, np.zeros((2, 0), dtype=np.int64)], 1)
        links = coo_array(
            (np.ones(pairs.shape[1], dtype=np.int8), (pairs[0], pairs[1])), shape=(self.count, self.count)
        )
        _, label = connected_components(links, directed=False)
        reasons: dict[int, str] = {}
        for nodes, reason in self.blocked:
            for one in np.unique(label[nodes]).tolist():
                reasons.setdefault(one, reason)
        streams = set(np.unique(label[np.concatenate([*self.added, np.zeros(0, dtype=np.int64)])]).tolist())

        members: dict[int, dict[Side, list[int]]] = defaultdict(dict)
        for side in self.sides:
            start = self.starts[side]
            for channel, one in enumerate(label[start : start + self._size(*side)].tolist()):
                members[one].setdefault(side, []).append(channel)
        alike: dict[tuple[Any, ...], list[int]] = defaultdict(list)
        for one, where in members.items():
            key = tuple((side, len(channels)) for side, channels in where.items())
            alike[(key, reasons.get(one), one in streams)].append(one)
        groups: list[Group] = []
        skipped: dict[str, str] = {}
        for (key, reason, stream), ones in alike.items():
            found = self._group([members[one] for one in ones], [side for side, _ in key], reason, stream)
            if isinstance(found, Group):
                groups.append(found)
            elif found is not None:
                skipped.setdefault(found.name, found.reason)
        groups = self._named(sorted(groups, key=lambda group: self.order[group.name]))
        for name, module in self.modules.items():
            if isinstance(module, _Layer) and name not in self.order:
                skipped.setdefault(name, "not run as a separate layer")
        layers = self._costs(groups)
        total = sum(value.numel() for value in self.modules.values() if isinstance(value, nn.Parameter))
        tied = Structure(groups=tuple(groups), skipped=(), layers=layers, other=Cost(params=0, flops=0)).cost()
        return Structure(
            groups=tuple(groups),
            skipped=tuple(Skipped(name=name, reason=reason) for name, reason in skipped.items()),
            layers=layers,
            other=Cost(params=total - tied.params, flops=self.trace.macs[""] - tied.flops),
        )

    def _group(
        self, ones: list[dict[Side, list[int]]], sides: list[Side], reason: str | None, stream: bool
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
        if reason is None and len(ones) < 2:
            reason = "a single component"
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

        heads = {part.layer for extra in self.extras if extra.core for part in extra.inputs}
        kind: Kind = "stream" if stream and len(writers) > 1 else "channels"
        if readers[0] in heads:
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
        module = self.modules[name]
        return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)

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
        node = self.graph.module2node[layer]
        for step in range(4):
            if len(node.outputs) != 1:
                return None
            (node,) = node.outputs
            if isinstance(node.module, _BatchNorm):
                return f"{self.names[id(node.module)]}.running_mean" if node.module.track_running_stats else None
            # A normalisation that includes its activation is found by its last operation; its first one precedes that.
            if step == 0 and "BatchNorm" not in str(node.name):
                return None
        return None

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
            module = self.modules[name]
            free = {side: self._size(name, side) - owned[name, side] for side in ("in", "out")}
            if isinstance(module, _Layer):
                split = module.groups if isinstance(module, nn.Conv2d) else 1
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
                entries = [module] if isinstance(module, nn.Parameter) else list(module.parameters())
                row = LayerCost(
                    name=name,
                    outputs=free["out"],
                    out_shares=tuple(writes[name]),
                    per_output=sum(entry.numel() for entry in entries) / self._size(name, "out"),
                )
            rows.append(row)
        heads = {part.layer: group for group in groups for part in group.consumers}
        for extra in self.extras:
            owner = heads.get(extra.inputs[0].layer)
            if extra.core is not None and owner is not None:
                inside = sum(
                    macs
                    for name, macs in self.trace.macs.items()
                    if name.startswith(f"{extra.core}.") and isinstance(self.modules.get(name), _Layer)
                )
                each = (self.trace.macs.get(extra.core, 0) - inside) / extra.size
                share = Share(group=owner.name, width=1)
                rows.append(LayerCost(name=extra.core, outputs=0, out_shares=(share,), macs=each))
        return tuple(rows)

    def _affected(self, names: set[str]) -> Iterator[str]:
        yield from (name for name in self.trace.order if name in names)
        yield from (name for name in self.modules if name in names and name not in self.order)


def _pixels(layer: nn.Module) -> int:
    """Kernel pixels of a convolution; 1 for a linear layer."""
    return layer.kernel_size[0] * layer.kernel_size[1] if isinstance(layer, nn.Conv2d) else 1
