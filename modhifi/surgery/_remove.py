"""Physical removal of components, layer by layer, with torch-pruning's functions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..components import Cut, Structure, enumerate_components, set_right
from ..errors import UserError
from ..layers import get_operator
from ..specs import Step

__all__ = ["add_bias", "remaining_columns", "remove", "restructure"]


def restructure(module: nn.Module, example: Tensor, step: Step) -> None:
    """Repeats a change of shape on ``module`` in place: removes the components that are not kept and adds zero biases to the
    layers that gained one.

    Raises `UserError` if the step does not fit the network.
    """
    structure = enumerate_components(module, example)
    sizes = {group.name: group.size for group in structure.groups}
    for name, keep in step.keep.items():
        if name not in sizes:
            raise UserError(f"group {name} cannot be pruned: this network has no such group; export it again")
        if not keep or len(set(keep)) != len(keep) or not all(0 <= index < sizes[name] for index in keep):
            raise UserError(
                f"group {name} has {sizes[name]} components; those to keep must be distinct indices below that"
            )
    for name in step.added_biases:
        add_bias(get_operator(module, name))
    remove(module, structure, step.keep)


def add_bias(layer: nn.Conv2d | nn.Linear) -> None:
    """Adds a bias of zeros."""
    layer.bias = nn.Parameter(layer.weight.new_zeros(layer.weight.shape[0]), requires_grad=False)


def remove(module: nn.Module, structure: Structure, keep: Mapping[str, Sequence[int]]) -> None:
    """Removes all components but those listed from each group in ``keep``, in place. ``structure`` is that of ``module``."""
    outputs: dict[str, list[np.ndarray]] = defaultdict(list)
    inputs: dict[str, list[np.ndarray]] = defaultdict(list)
    for name, kept in keep.items():
        group = structure.group(name)
        gone = _gone(group.size, kept)
        if not gone.any():
            continue
        for slices, found in (((*group.producers, *group.through), outputs), (group.consumers, inputs)):
            for part in slices:
                found[part.layer].append(part.channels(group.size)[gone].reshape(-1))
    cuts = {
        name: _cut_outputs(module, name, np.sort(np.concatenate(parts)).tolist()) for name, parts in outputs.items()
    }
    for name, parts in inputs.items():
        _cut_inputs(module, name, np.sort(np.concatenate(parts)).tolist())
    set_right(module, cuts)


def remaining_columns(structure: Structure, layer: str, weight: Tensor, keep: Mapping[str, Iterable[int]]) -> Tensor:
    """(n,) bool, on the device of ``weight``: which columns of the flat ``weight`` (O, n) of ``layer`` remain if each group in
    ``keep`` keeps only those components.
    """
    remain = np.ones(weight.shape[1], dtype=bool)
    for group, consumer in structure.readers[layer]:
        if group.name in keep:
            remain[consumer.columns(group.size)[_gone(group.size, keep[group.name])]] = False
    return torch.from_numpy(remain).to(weight.device)


def _gone(size: int, stays: Iterable[int]) -> np.ndarray:
    gone = np.ones(size, dtype=bool)
    gone[list(stays)] = False
    return gone


def _cut_outputs(module: nn.Module, name: str, gone: list[int]) -> Cut:
    import torch_pruning as tp

    parent, _, last = name.rpartition(".")
    target = getattr(module.get_submodule(parent), last)
    if isinstance(target, nn.Parameter):
        axis = max(axis for axis, size in enumerate(target.shape) if size > 1)
        keep = sorted(set(range(target.shape[axis])) - set(gone))
        value = target.detach().index_select(axis, torch.tensor(keep, device=target.device))
        setattr(module.get_submodule(parent), last, nn.Parameter(value, requires_grad=target.requires_grad))
        return Cut(len(keep) + len(gone), keep)
    total = int(target.num_features if isinstance(target, _BatchNorm) else target.weight.shape[0])
    if isinstance(target, _BatchNorm):
        tp.prune_batchnorm_out_channels(target, gone)
    elif isinstance(target, nn.PReLU):
        tp.prune_prelu_out_channels(target, gone)
    elif isinstance(target, nn.Linear):
        tp.prune_linear_out_channels(target, gone)
    else:
        each_in, each_out = target.in_channels // target.groups, target.out_channels // target.groups
        tp.prune_conv_out_channels(target, gone)
        if target.groups > 1:  # whole convolution groups were removed
            target.groups = target.out_channels // each_out
            target.in_channels = target.groups * each_in
    return Cut(total, sorted(set(range(total)) - set(gone)))


def _cut_inputs(module: nn.Module, name: str, gone: list[int]) -> None:
    import torch_pruning as tp

    layer = get_operator(module, name)
    (tp.prune_linear_in_channels if isinstance(layer, nn.Linear) else tp.prune_conv_in_channels)(layer, gone)
