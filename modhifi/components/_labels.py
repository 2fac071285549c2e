"""Follows every channel of every layer through one forward pass.

Beside its values each tensor carries *labels*: arrays that broadcast to its shape and say for every entry which channel it
belongs to. Operations that only move entries (reshape, concatenate, split, shift, shuffle) move the labels in the same way; an
operation on two tensors joins the labels that meet in it; a reduction, a normalisation or a matrix product joins all labels that
it mixes. An attention head thereby becomes one unit without any knowledge of the module that it is in.

A label is 1 + the number of a node (see `Labels.nodes`), 0 for an entry that belongs to no channel and may be missing (padding),
or negative for an entry whose place is fixed: what meets it cannot be removed, and -1 - label is the number of the reason. Two
arrays are needed where entries belong to two kinds of channels at once, as inside an MLP over tokens.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils._pytree import tree_leaves

from ..layers import LAYERS

__all__ = [
    "FIXED",
    "LEAVES",
    "OPAQUE",
    "THROUGH",
    "Arrays",
    "Labels",
    "aligned",
    "axes_of",
    "compact",
    "is_free",
    "labels_of",
    "tensors_in",
]

THROUGH = (_BatchNorm, _InstanceNorm, nn.GroupNorm, nn.PReLU)
"""Layers that treat channels, or groups of them, separately."""
OPAQUE: dict[type[nn.Module], str] = {
    nn.RNNBase: "a recurrent layer",
    nn.RNNCellBase: "a recurrent layer",
    nn.MultiheadAttention: "attention that does not run its layers",
}
"""Modules that are left whole by name, and what they are."""

LEAVES: tuple[type[nn.Module], ...] = (*LAYERS, *THROUGH, *OPAQUE)
"""Modules whose inside is not followed."""

FIXED = "meets a tensor of fixed size"
Arrays = tuple[Tensor, ...]


def axes_of(array: Tensor) -> set[int]:
    """The axes along which the labels may differ."""
    return {axis for axis, size in enumerate(array.shape) if size > 1}


def compact(array: Tensor) -> Tensor:
    """The same labels, with size 1 along every axis along which they are equal."""
    for axis in sorted(axes_of(array), key=lambda axis: array.stride(axis)):
        first = array.narrow(axis, 0, 1)
        if array.stride(axis) == 0 or bool((array == first).all()):
            array = first
    return array.contiguous()


def aligned(array: Tensor, ndim: int) -> Tensor:
    return array.reshape((1,) * (ndim - array.ndim) + array.shape)


class Labels:
    """Follows the channels of ``net`` in the forward passes that run inside ``with labels.watching():``, in inference mode and on
    tensors and parameters that were made in it.

    ``edges``: pairs of nodes (2, n) that can only be removed together; ``blocked``: nodes that cannot be removed, and why;
    ``mixed``: nodes that were joined by an operation, and which one; ``within``: nodes, and an axis of their array along which
    their classes must not differ; ``added``: nodes that an addition joined; ``work``: for matrix products between labelled
    tensors, the labels of the result, the module and the multiply-accumulates; ``behind``: for a layer the BatchNorm
    that reads its output, and ``uses`` how often that is read; ``shared``: layers with the same parameter; ``opaque``: layers
    and modules that are left whole, and why.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.starts: dict[tuple[str, str], int] = {}
        self.sizes: dict[tuple[str, str], int] = {}
        self.count = 0
        self.edges: list[np.ndarray] = []
        self.blocked: list[tuple[np.ndarray, str]] = []
        self.mixed: list[tuple[np.ndarray, str]] = []
        self.within: list[tuple[Tensor, tuple[int, ...], str]] = []
        self.added: list[np.ndarray] = []
        self.work: list[tuple[np.ndarray, str, int]] = []
        self.behind: dict[str, str] = {}
        self.uses: dict[str, int] = {}
        self.opaque: dict[str, str] = {}
        self.reasons: list[str] = []
        self.paused = False
        self.stack: list[str] = []
        self.parameters: dict[str, Tensor] = {}
        self.shared: set[tuple[str, str]] = set()
        self._own_parameters()
        self.own = self.count

    # Nodes --------------------------------------------------------------------------------------------------------------

    def nodes(self, name: str, side: str, size: int) -> np.ndarray:
        """(size,) int64: the nodes of one side ("in" or "out") of a layer, one per channel, or of a parameter's last axis."""
        key = (name, side)
        if key not in self.starts:
            self.starts[key], self.sizes[key] = self.count, size
            self.count += size
        return self.starts[key] + np.arange(size)

    def array(self, name: str, side: str, size: int) -> Tensor:
        return torch.from_numpy(self.nodes(name, side, size)).double() + 1

    def _own_parameters(self) -> None:
        """Labels parameters and buffers, except those of layers, which are named by their layer."""
        for name, module in self.net.named_modules():
            known = isinstance(module, LEAVES)
            for key, value in itertools.chain(
                module.named_parameters(recurse=False), module.named_buffers(recurse=False)
            ):
                full = f"{name}.{key}" if name else key
                if known:
                    owner = getattr(value, "_owner", name)
                    if owner != name:
                        self.shared.add((owner, name))
                    value._owner = owner
                elif value.is_floating_point() and value.numel() > 1 and not hasattr(value, "_labels"):
                    # It can only be cut along its last axis.
                    axis = max(axis for axis, size in enumerate(value.shape) if size > 1)
                    shape = [1] * value.ndim
                    shape[axis] = value.shape[axis]
                    value._labels = (self.array(full, "out", shape[axis]).reshape(shape),)
                    self.parameters[full] = value

    def returned(self, output: Any, reason: str) -> None:
        """Blocks what the network returns, in tensors within any containers, dataclasses and mappings."""
        for tensor in tensors_in(_plain(output)):
            for array in labels_of(tensor):
                self.block(array, reason)

    def block_layer(self, name: str, reason: str) -> None:
        """Blocks all nodes of a layer."""
        for side in ("in", "out"):
            if (name, side) in self.starts:
                self.blocked.append((self.nodes(name, side, self.sizes[name, side]), reason))

    # The relation -------------------------------------------------------------------------------------------------------

    def reason_number(self, text: str) -> float:
        if text not in self.reasons:
            self.reasons.append(text)
        return -1.0 - self.reasons.index(text)

    def here(self) -> str:
        """The innermost module that runs, and what it is."""
        name = self.stack[-1] if self.stack else ""
        kind = type(self.net.get_submodule(name)).__name__
        return f"{name} ({kind})" if name else kind

    def block(self, array: Tensor, reason: str) -> None:
        nodes = array[array > 0].long().unique().numpy() - 1
        if len(nodes):
            self.blocked.append((nodes, reason))

    def note(self, array: Tensor, reason: str) -> None:
        self.mixed.append((array[array > 0].long().unique().numpy() - 1, reason))

    def is_mixed(self, array: Tensor) -> bool:
        """Whether these labels are left of others that an operation joined."""
        nodes = array.long().numpy().reshape(-1) - 1
        return any(bool(np.isin(nodes, joined).any()) for joined, _ in self.mixed)

    def join(self, first: Tensor, second: Tensor) -> None:
        """Labels that meet at the same place can only be removed together."""
        a, b = (one.reshape(-1) for one in torch.broadcast_tensors(first, second))
        meet = (a != 0) & (b != 0) & (a != b)
        a, b = a[meet].long(), b[meet].long()
        if len(a) > 4096:
            key = torch.unique(a * (1 << 31) + b)  # labels are below 2³⁰
            b = (key + (1 << 30)) % (1 << 31) - (1 << 30)
            a = (key - b) // (1 << 31)
        both = (a > 0) & (b > 0)
        if bool(both.any()):
            self.edges.append(torch.stack([a[both], b[both]]).numpy() - 1)
        for one, other in ((a, b), (b, a)):
            for fixed in one[(one < 0) & (other > 0)].unique().tolist():
                self.block(other[one == fixed].double(), self.reasons[-1 - fixed])

    def merge(self, array: Tensor, axes: Iterable[int]) -> Tensor:
        """Joins all labels along ``axes``; one of them remains."""
        for axis in sorted(axes):
            if array.shape[axis] > 1:
                best = array.amax(axis, keepdim=True)
                best = torch.where(best > 0, best, array.amin(axis, keepdim=True))
                self.join(array, best)
                array = best
        return array

    def combine(self, operands: Sequence[tuple[Tensor | None, Sequence[int], Arrays]], adds: bool = False) -> Arrays:
        """The labels of a result in which the operands meet entry by entry: (tensor, its shape, its labels) each, with as many
        axes as the result.
        """
        operands = [(tensor, shape, self._cuttable(arrays, operands)) for tensor, shape, arrays in operands]
        found: list[Tensor] = []
        sizes = [max(shape[axis] for _, shape, _ in operands) for axis in range(len(operands[0][1]))]
        for tensor, shape, arrays in operands:
            spread = any(own < size for own, size in zip(shape, sizes, strict=True))
            for own in arrays:
                array = own
                if not axes_of(array) and spread:
                    if not self.is_mixed(array):
                        self.block(array, f"multiplied into all channels at once in {self.here()}")
                    continue
                for other in [
                    one for one in found if axes_of(one) & axes_of(array) or not (axes_of(one) or axes_of(array))
                ]:
                    self.join(other, array)
                    if adds:
                        a, b = torch.broadcast_tensors(other, array)
                        self.added.append(a[(a > 0) & (b > 0)].long().unique().numpy() - 1)
                    a, b = torch.broadcast_tensors(other, array)
                    array = torch.where(a > 0, a, torch.where((b > 0) | (a == 0), b, a))
                    found = [one for one in found if one is not other]
                found.append(array)
            if tensor is not None and not is_free(tensor):
                covered = set().union(*(axes_of(array) for array in arrays)) if arrays else set()
                fixed = next(
                    (int(array.min()) for array in arrays if not axes_of(array) and bool((array < 0).all())), 0
                )
                reason = self.reasons[-1 - fixed] if fixed else f"{FIXED} in {self.here()}"
                rigid = {axis for axis, size in enumerate(shape) if size > 1} - covered
                for other_tensor, _, others in operands:
                    for other in others if other_tensor is not tensor else ():
                        if axes := tuple(rigid & axes_of(other)):
                            self.within.append((other, axes, reason))
        return tuple(array for array in found if bool(array.any()))

    def _cuttable(self, arrays: Arrays, operands: Sequence[tuple[Tensor | None, Sequence[int], Arrays]]) -> Arrays:
        """Without those of a parameter that meets several channels in each of its entries (a table for every head): it stays
        as it is.
        """
        found = []
        for array in arrays:
            axes = axes_of(array)
            met = [axes_of(one) for _, _, others in operands for one in others if bool((one > self.own).any())]
            if bool((array <= self.own).all()) and any(axes & one and one - axes for one in met):
                self.block(array, f"{FIXED} in {self.here()}")
            else:
                found.append(array)
        return tuple(found)


def tensors_in(value: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor))


def labels_of(tensor: Tensor) -> Arrays:
    slots = getattr(tensor, "_slots", None)
    if slots is not None:
        return (compact(slots),) if bool(slots.any()) else ()
    found: Arrays = getattr(tensor, "_labels", ())
    return found


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = vars(value)
    if isinstance(value, Mapping):
        value = list(value.values())
    return [_plain(one) for one in value] if isinstance(value, (list, tuple)) else value


def is_free(tensor: Tensor) -> bool:
    """Whether the tensor was made to fit (zeros, empty, …) and nothing is known of it but what was written into it."""
    return hasattr(tensor, "_slots")
