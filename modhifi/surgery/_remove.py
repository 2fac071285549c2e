"""Physical removal of components, layer by layer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..components import Cut, Structure, enumerate_components, set_right
from ..errors import UserError
from ..layers import LAYERS, TRANSPOSED, Operator, fold, get_operator, width_of
from ..specs import Step

__all__ = ["add_bias", "remaining_columns", "remove", "restructure"]


def restructure(module: nn.Module, example: Tensor, step: Step) -> None:
    """Repeats a change of shape on ``module`` in place: removes the components that are not kept and adds zero biases to the
    layers that gained one.

    Raises `UserError` if the step does not fit the network.
    """
    fold(module)
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


def add_bias(layer: Operator) -> None:
    """Adds a bias of zeros."""
    layer.bias = nn.Parameter(layer.weight.new_zeros(width_of(layer)), requires_grad=False)


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
    parent, _, last = name.rpartition(".")
    owner = module.get_submodule(parent)
    target: Any = getattr(owner, last)
    if isinstance(target, Tensor):
        axis = max(axis for axis, size in enumerate(target.shape) if size > 1)
        keep = _others(target.shape[axis], gone)
        _narrow(owner, last, axis, keep)
        return Cut(len(keep) + len(gone), keep)
    layer = isinstance(target, LAYERS)
    total = width_of(target) if layer else int(next(getattr(target, key) for key in _SIZES if hasattr(target, key)))
    keep = _others(total, gone)
    if isinstance(target, nn.Linear):
        target.out_features = len(keep)
    elif layer:
        each_in, each_out = target.in_channels // target.groups, total // target.groups
        target.out_channels = len(keep)
        if target.groups > 1:  # whole convolution groups were removed
            target.groups = len(keep) // each_out
            target.in_channels = target.groups * each_in
            if isinstance(target, TRANSPOSED):
                firsts = torch.tensor(keep)[::each_out] // each_out
                inputs = (firsts[:, None] * each_in + torch.arange(each_in)).reshape(-1)
                _narrow(target, "weight", 0, inputs.tolist())
                _narrow(target, "bias", 0, keep)
                return Cut(total, keep)
    else:
        if isinstance(target, nn.GroupNorm):  # whole groups were removed
            target.num_groups = len(keep) * target.num_groups // total
        for key in _SIZES:
            if hasattr(target, key):
                setattr(target, key, len(keep))
    transposed = isinstance(target, TRANSPOSED)
    for key in ("weight", "bias", "running_mean", "running_var"):
        if isinstance(getattr(target, key, None), Tensor):
            _narrow(target, key, 1 if transposed and key == "weight" else 0, keep)
    return Cut(total, keep)


# Where layers that treat each channel separately keep the number of their channels.
_SIZES = ("num_features", "num_channels", "num_parameters")


def _cut_inputs(module: nn.Module, name: str, gone: list[int]) -> None:
    layer = get_operator(module, name)
    total = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels
    keep = _others(total, gone)
    if isinstance(layer, nn.Linear):
        layer.in_features = len(keep)
    else:
        layer.in_channels = len(keep)
    _narrow(layer, "weight", 0 if isinstance(layer, TRANSPOSED) else 1, keep)


def _others(total: int, gone: list[int]) -> list[int]:
    return sorted(set(range(total)) - set(gone))


def _narrow(owner: nn.Module, key: str, axis: int, keep: list[int]) -> None:
    """Keeps the entries ``keep`` of an axis of a parameter or buffer; one that is None stays so."""
    value = getattr(owner, key)
    if value is None:
        return
    kept = value.detach().index_select(axis, torch.tensor(keep, device=value.device))
    if isinstance(value, nn.Parameter):
        kept = nn.Parameter(kept, requires_grad=value.requires_grad)
    setattr(owner, key, kept)
