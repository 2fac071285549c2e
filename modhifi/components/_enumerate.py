"""From a network to its coupled groups, by torch-pruning's dependency graph.

A group is taken when exactly one convolution or linear layer writes its channels, only BatchNorm and elementwise operations
lie in between, and every layer that reads it reads nothing else. Everything else (residual streams, concatenation, grouped
convolution, gates, attention) is left whole and listed with the reason.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from ._types import Consumer, Cost, Group, LayerCost, Skipped, Structure

__all__ = ["dependency_graph", "enumerate_components", "prune_out"]

# A consumer with more inputs than this would need a dense second moment of more than 512 MiB in float32.
MAX_INPUTS = 11_585

Producer = nn.Conv2d | nn.Linear


@torch.inference_mode(False)
def dependency_graph(module: nn.Module, example: Tensor) -> Any:
    """torch-pruning's graph of ``module`` as it stands. Tracing follows gradients, so they are switched on meanwhile."""
    # torch-pruning takes seconds to import (with timm and torchvision); only what cuts a network should wait for it.
    import torch_pruning as tp

    state = [parameter.requires_grad for parameter in module.parameters()]
    try:
        for parameter in module.parameters():
            parameter.requires_grad_(True)
        with torch.enable_grad():
            return tp.DependencyGraph().build_dependency(module, example_inputs=example, verbose=False)
    finally:
        for parameter, required in zip(module.parameters(), state, strict=True):
            parameter.requires_grad_(required)


def prune_out(layer: nn.Module) -> Any:
    """torch-pruning's function that removes output channels of ``layer``."""
    import torch_pruning as tp

    return tp.prune_linear_out_channels if isinstance(layer, nn.Linear) else tp.prune_conv_out_channels


@dataclass
class _Trace:
    """What one forward pass shows: the order in which layers run and how many positions each computes."""

    order: list[str] = field(default_factory=list)
    positions: dict[str, int] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    macs: int = 0


def _trace(module: nn.Module, example: Tensor) -> _Trace:
    trace = _Trace()

    def note(name: str, layer: nn.Module, output: Tensor) -> None:
        width = layer.out_channels if isinstance(layer, nn.Conv2d) else layer.out_features
        trace.order.append(name)
        trace.calls[name] = trace.calls.get(name, 0) + 1
        trace.positions[name] = output.numel() // (int(width) * example.shape[0])  # type: ignore[arg-type]

    hooks = [
        layer.register_forward_hook(lambda layer, _, output, name=name: note(name, layer, output))
        for name, layer in module.named_modules()
        if isinstance(layer, Producer)
    ]
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            module(example)
    finally:
        for hook in hooks:
            hook.remove()
    trace.macs = counter.get_total_flops() // (2 * example.shape[0])  # the counter counts a multiply-accumulate twice
    return trace


def enumerate_components(module: nn.Module, example: Tensor) -> Structure:
    """All coupled groups of ``module`` for inputs like ``example`` (1, 3, H, W). The module is not changed.

    Components follow theory, section 1; costs are exact for any choice of widths.
    """
    net = copy.deepcopy(module).cpu().eval()
    example = example.detach().cpu()
    trace = _trace(net, example)
    modules = dict(net.named_modules())
    names = {layer: name for name, layer in modules.items()}
    graph = dependency_graph(net, example)

    groups: list[Group] = []
    skipped: list[Skipped] = []
    seen: set[str] = set()
    for name in dict.fromkeys(trace.order):
        if name in seen:
            continue
        taken = _group(name, modules, names, graph, trace, seen)
        if isinstance(taken, Group):
            groups.append(taken)
        elif taken is not None:
            skipped.append(taken)
    layers = _layer_costs(groups, modules, trace)
    dense = Structure(groups=(), skipped=(), layers=layers, other=Cost(params=0, flops=0)).cost()
    total = sum(parameter.numel() for parameter in net.parameters())
    return Structure(
        groups=tuple(groups),
        skipped=tuple(skipped),
        layers=layers,
        other=Cost(params=total - dense.params, flops=trace.macs - dense.flops),
    )


def _width(layer: nn.Module) -> int:
    return int(layer.out_channels if isinstance(layer, nn.Conv2d) else layer.out_features)  # type: ignore[arg-type]


def _group(
    name: str,
    modules: dict[str, nn.Module],
    names: dict[nn.Module, str],
    graph: Any,
    trace: _Trace,
    seen: set[str],
) -> Group | Skipped | None:
    """The group that ``name`` writes; why there is none; or None if its outputs are the network's own."""
    from torch_pruning.ops import _ElementWiseOp, _ReshapeOp

    root = modules[name]
    seen.add(name)
    size = _width(root)
    if isinstance(root, nn.Conv2d) and root.groups > 1:
        return Skipped(name=name, reason="grouped or depthwise convolution")
    try:
        items = list(graph.get_pruning_group(root, prune_out(root), idxs=list(range(size))))
    except Exception as error:  # the tracer fails in many ways on what it does not know; none may stop the others
        return Skipped(name=name, reason=f"the tracer cannot follow it: {type(error).__name__}")

    producers: list[str] = []
    norms: list[str] = []
    readers: dict[str, list[int]] = {}
    reason: str | None = None
    for item in items:
        target = item.dep.target.module
        handler = item.dep.handler.__name__
        label = names.get(target)
        if isinstance(target, (_ElementWiseOp, _ReshapeOp)):
            continue
        if label is None:
            reason = reason or f"passes through {str(item.dep.target.name).split('(')[0].strip('_ 0123456789')}"
        elif handler == "prune_in_channels" and isinstance(target, Producer):
            if label in readers:
                reason = reason or f"read more than once by {label}"
            readers[label] = [int(index) for index in item.root_idxs]
        elif isinstance(target, Producer):
            producers.append(label)
        elif isinstance(target, _BatchNorm):
            norms.append(label)
        else:
            reason = reason or f"normalised or mixed across components by {label} ({type(target).__name__})"
    for label in [*producers, *readers]:
        plain = nn.Conv2d.forward if isinstance(modules[label], nn.Conv2d) else nn.Linear.forward
        if type(modules[label]).forward is not plain:
            reason = reason or f"{label} is a {type(modules[label]).__name__} with a forward pass of its own"
    seen.update(producers)
    if not readers and len(producers) == 1:
        return None  # the network's output
    shown = ", ".join(producers[:3]) + (", …" if len(producers) > 3 else "")
    if len(set(producers)) > 1:
        grouped = [p for p in producers if isinstance(modules[p], nn.Conv2d) and modules[p].groups != 1]
        reason = (
            f"shared with a grouped convolution: {grouped[0]}" if grouped else f"written by several layers: {shown}"
        )
    elif not readers:
        reason = "no layer reads it"
    if any(trace.calls[layer] != 1 for layer in [name, *readers]):
        reason = reason or "a layer runs more than once in a forward pass"
    consumers: list[Consumer] = []
    for label, roots in readers.items():
        layer = modules[label]
        assert isinstance(layer, Producer)
        inputs = layer.in_channels if isinstance(layer, nn.Conv2d) else layer.in_features
        flat = inputs // size
        if isinstance(layer, nn.Conv2d) and layer.groups != 1:
            reason = reason or f"read by a grouped convolution: {label}"
        elif roots != [component for component in range(size) for _ in range(flat)]:
            reason = reason or f"only a part of what {label} reads"
        pixels = layer.kernel_size[0] * layer.kernel_size[1] if isinstance(layer, nn.Conv2d) else 1
        if inputs * pixels > MAX_INPUTS:
            reason = reason or (
                f"{label} reads {inputs * pixels:,} inputs; a dense second moment is kept up to {MAX_INPUTS:,}"
            )
        consumers.append(
            Consumer(
                layer=label,
                block=max(1, flat * pixels),
                outputs=_width(layer),
                shift=_shift(label, layer, graph, names),
            )
        )
    if size < 2:
        reason = reason or "a single component"
    if reason is not None:
        return Skipped(name=name, reason=reason)
    consumers.sort(key=lambda consumer: trace.order.index(consumer.layer))
    return Group(name=name, size=size, producers=(name,), norms=tuple(norms), consumers=tuple(consumers))


def _shift(label: str, layer: nn.Conv2d | nn.Linear, graph: Any, names: dict[nn.Module, str]) -> str | None:
    if layer.bias is not None:
        return f"{label}.bias"
    after = list(graph.module2node[layer].outputs)
    if len(after) == 1 and isinstance(after[0].module, _BatchNorm) and after[0].module.track_running_stats:
        return f"{names[after[0].module]}.running_mean"
    return None


def _layer_costs(groups: list[Group], modules: dict[str, nn.Module], trace: _Trace) -> tuple[LayerCost, ...]:
    writes = {group.producers[0]: group for group in groups}
    reads = {consumer.layer: (group, consumer) for group in groups for consumer in group.consumers}
    costs = []
    for name in dict.fromkeys(trace.order):
        if name not in writes and name not in reads:
            continue
        layer = modules[name]
        assert isinstance(layer, Producer)
        split = 1 if isinstance(layer, nn.Linear) else layer.groups
        inputs = layer.in_channels if isinstance(layer, nn.Conv2d) else layer.in_features
        pixels = layer.kernel_size[0] * layer.kernel_size[1] if isinstance(layer, nn.Conv2d) else 1
        out, read = writes.get(name), reads.get(name)
        norms = [modules[norm] for norm in out.norms] if out else []
        affine = sum(parameter.numel() // out.size for norm in norms for parameter in norm.parameters()) if out else 0
        costs.append(
            LayerCost(
                name=name,
                inputs=inputs,
                outputs=_width(layer),
                in_group=read[0].name if read else None,
                in_block=inputs // read[0].size if read else 1,
                out_group=out.name if out else None,
                macs=pixels * trace.positions[name] / split,
                params=pixels / split,
                per_output=(layer.bias is not None) + affine,
            )
        )
    return tuple(costs)
