"""What each of torch's operations does to the labels of `Labels`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from ._labels import FIXED, Arrays, Labels, aligned, axes_of, compact, is_free, labels_of, tensors_in
from ._rules import ELEMENTWISE, FREE, MOVES, PRODUCTS, REDUCTIONS, along

__all__ = ["Operations"]

# Entries of a new tensor (zeros, empty, …) that are labelled one by one, so that what is written into parts of it is known.
_SLOTS = 1 << 24


class Operations(Labels, TorchDispatchMode):
    """Labels that follow the operations inside ``with`` this object, unless it is ``paused``."""

    # Operations ---------------------------------------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.paused:
            return func(*args, **kwargs)
        self.used((args, kwargs))
        name = func.overloadpacket.__name__
        name = name[:-1] if name.endswith("_") and not name.endswith("__") else name
        rule: Callable[..., None] | None = None
        if name in MOVES:
            rule = self._move
        elif name in FREE:
            rule = self._new
        elif name in REDUCTIONS:
            rule = self._reduce
        elif name in PRODUCTS:
            rule = self._product
        elif "scaled_dot_product" in name:
            rule = self._attention
        elif re.search(r"pool\dd|upsample|grid_sampler", name):
            rule = self._resample
        elif name == "glu":
            rule = self._glu
        elif name == "copy":
            rule = self._copy
        elif torch.Tag.pointwise in func.tags or name in ELEMENTWISE:
            rule = self._elementwise
        else:
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
            rule = self._unknown
        out = func(*args, **kwargs)
        try:
            rule(func, args, kwargs, out)
        except (RuntimeError, ValueError, IndexError, TypeError, NotImplementedError):
            # An operation without an equivalent for labels: what it reads is left whole, and says so.
            self._unknown(func, args, kwargs, out)
        return out

    def used(self, value: Any) -> None:
        for tensor in tensors_in(value):
            owner, writer = getattr(tensor, "_owner", None), getattr(tensor, "_writer", None)
            if owner is not None:
                self.opaque.setdefault(owner, f"its weights are used outside of it, by {self.here()}")
            if writer is not None:
                self.uses[writer] = self.uses.get(writer, 0) + 1

    def _move(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        tensors = [tensor for tensor in tensors_in((args, kwargs)) if tensor.is_floating_point()]
        name = func.overloadpacket.__name__
        for tensor in tensors:
            if name in ("split", "split_with_sizes", "slice"):
                self._pair(tensor, func, args, kwargs, out)
        if name == "constant_pad_nd":
            args = args[:2]
        if name in ("view", "_unsafe_view"):  # labels may lie in memory in another way
            func = torch.reshape
        depth = max((len(labels_of(tensor)) for tensor in tensors), default=0)
        slots = [getattr(tensor, "_slots", None) for tensor in tensors]
        if len(tensors) == 1 and slots[0] is not None:
            _attach(out, func(slots[0], *args[1:], **kwargs), "_slots")
            return
        for number in range(depth):

            def full(value: Any, number: int = number) -> Any:
                if not isinstance(value, Tensor) or not value.is_floating_point():
                    return value
                arrays = labels_of(value)
                if number < len(arrays):
                    return arrays[number].expand(value.shape)
                fixed = 0.0 if is_free(value) else self.reason_number(f"{FIXED} in {self.here()}")
                return torch.full((), fixed if number == 0 else 0.0, dtype=torch.float64).expand(value.shape)

            moved = func(*tree_map(full, args), **kwargs)
            for one, array in zip(tensors_in(out), tensors_in(moved), strict=True):
                if bool(array.any()):
                    one._labels = (*labels_of(one), compact(array))  # type: ignore[attr-defined]

    def _pair(self, tensor: Tensor, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Equal parts of an axis must remain equal: entry i of all parts can only be removed together."""
        given = along(func, args, kwargs)
        axis = given["dim"] % tensor.ndim
        size = tensor.shape[axis]
        if isinstance(out, Tensor):  # a slice
            part, start = out.shape[axis], given.get("start") or 0
            start = start + size if start < 0 else start
            if given.get("step", 1) != 1 or part < 2 or start % part:
                return
        else:
            parts = {one.shape[axis] for one in out}
            if len(parts) != 1:
                return
            (part,) = parts
        if part < size and size % part == 0:
            for array in labels_of(tensor):
                if axis in axes_of(array):
                    divided = array.unflatten(axis, (size // part, part))
                    self.join(divided, divided.narrow(axis, 0, 1))

    def _new(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:  # noqa: ARG002
        if isinstance(out, Tensor) and out.is_floating_point() and out.numel() <= _SLOTS:
            out._slots = torch.zeros(out.shape, dtype=torch.float64)  # type: ignore[attr-defined]

    def _reduce(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        x = args[0]
        if not isinstance(x, Tensor) or not labels_of(x):
            return
        given = along(func, args, kwargs)
        name = func.overloadpacket.__name__.strip("_")
        if "normalized_shape" in given:
            dims = set(range(x.ndim - len(given["normalized_shape"]), x.ndim))
        else:
            dim = given.get("dim")
            dim = [dim] if isinstance(dim, int) else dim
            dims = {one % x.ndim for one in dim} if dim else set(range(x.ndim))
        what = "normalised or mixed" if "norm" in name else f"mixed by {name}"
        arrays = []
        for array in labels_of(x):
            if axes_of(array) & dims:
                self.note(array, f"{what} across components by {self.here()}")
            arrays.append(self.merge(array, axes_of(array) & dims))
        for one in tensors_in(out):
            same = one.shape == x.shape
            kept = [axis for axis in range(x.ndim) if one.ndim == x.ndim or axis not in dims]
            shapes = [[array.shape[axis] for axis in kept] for array in arrays]
            if same:
                one._labels = labels_of(x)  # type: ignore[attr-defined]
            elif one.ndim == len(kept):
                one._labels = tuple(a.reshape(shape) for a, shape in zip(arrays, shapes, strict=True))  # type: ignore[attr-defined]

    def _resample(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:  # noqa: ARG002
        x, name = args[0], func.overloadpacket.__name__
        digit = re.search(r"(\d)d", name)
        first = x.ndim - int(digit[1]) if digit else 2
        arrays = []
        for array in labels_of(x):
            spatial = {axis for axis in axes_of(array) if axis >= first}
            if spatial:
                self.note(array, f"mixed by {name.strip('_')} across components by {self.here()}")
            arrays.append(self.merge(array, spatial))
        for one in tensors_in(out):
            one._labels = tuple(arrays)  # type: ignore[attr-defined]

    def _elementwise(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        tensors = list(tensors_in((args, kwargs)))
        adds = func.overloadpacket.__name__ in ("add", "add_")
        for one in tensors_in(out):
            operands = []
            for tensor in tensors:
                shape = (1,) * (one.ndim - tensor.ndim) + tuple(tensor.shape)
                operands.append((tensor, shape, tuple(aligned(array, one.ndim) for array in labels_of(tensor))))
            arrays = operands[0][2] if len(operands) == 1 else self.combine(operands, adds) if operands else ()
            if tensors and one is tensors[0] and is_free(one) and arrays:
                one._slots.copy_(arrays[0].expand(one.shape))  # type: ignore[attr-defined]
                continue
            if arrays:
                one._labels = arrays  # type: ignore[attr-defined]
            elif tensors and all(map(is_free, tensors)) and one is not tensors[0]:
                self._new(func, args, kwargs, one)

    def _glu(self, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
        axis = along(func, args, kwargs)["dim"] % out.ndim
        found = []
        for array in labels_of(args[0]):
            if axis in axes_of(array):
                halves = array.unflatten(axis, (2, -1))
                self.join(halves, halves.narrow(axis, 0, 1))
                array = halves.select(axis, 0)
            found.append(array)
        out._labels = tuple(found)  # type: ignore[attr-defined]

    def _copy(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:  # noqa: ARG002
        target, source = args[:2]
        arrays = tuple(aligned(array, target.ndim) for array in labels_of(source))
        if is_free(target):
            if arrays:
                target._slots.copy_(arrays[0].expand(target.shape))
            elif not is_free(source):
                target._slots.fill_(self.reason_number(f"{FIXED} in {self.here()}"))
            for array in arrays[1:]:
                self.block(array, f"passes through copy in {self.here()}")
        else:
            self._elementwise(func, args, kwargs, target)

    def _product(self, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
        """Matrix products (…, m, k) · (…, k, n), with or without something added."""
        name = func.overloadpacket.__name__
        a, b = (args[1], args[2]) if name in ("addmm", "baddbmm") else (args[0], args[1])
        found = self._contracted(a, b)
        if name in ("addmm", "baddbmm"):
            extra = args[0]
            arrays = tuple(aligned(array, out.ndim) for array in labels_of(extra))
            shape = (1,) * (out.ndim - extra.ndim) + tuple(extra.shape)
            found = self.combine([(extra, shape, arrays), (None, out.shape, found)], adds=True)
        if found:
            out._labels = found  # type: ignore[attr-defined]
            self._working(func, args, kwargs, out)

    def _contracted(self, a: Tensor, b: Tensor) -> Arrays:
        k, ndim = a.shape[-1], a.ndim
        left, right = labels_of(a), labels_of(b)
        for one in left:
            for other in right:
                if one.shape[-1] == k > 1 and other.shape[-2] == k:
                    self.join(self.merge(one, [ndim - 2]).mT, self.merge(other, [ndim - 1]))
        parts: list[tuple[Tensor | None, Sequence[int], Arrays]] = []
        for tensor, arrays, axis in ((a, left, ndim - 1), (b, right, ndim - 2)):
            reduced = []
            for array in arrays:
                if axis in axes_of(array):
                    self.note(array, f"mixed by a matrix product across components by {self.here()}")
                reduced.append(self.merge(array, [axis]))
            shape = list(tensor.shape)
            shape[axis] = 1
            parts.append((tensor, shape, tuple(reduced)))
        return self.combine(parts)

    def _attention(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        query, key, value = args[:3]
        given = along(func, args, kwargs)
        parts: list[tuple[Tensor | None, Sequence[int], Arrays]] = []
        for tensor in (query, key):
            arrays = labels_of(tensor)
            for array in arrays:
                self.note(array, f"mixed by a matrix product across components by {self.here()}")
            reduced = tuple(self.merge(array, [tensor.ndim - 2, tensor.ndim - 1]) for array in arrays)
            parts.append((tensor, (*tensor.shape[:-2], 1, 1), reduced))
        mask = given.get("attn_mask")
        if isinstance(mask, Tensor) and labels_of(mask):
            arrays = tuple(aligned(self.merge(a, [a.ndim - 2, a.ndim - 1]), value.ndim) for a in labels_of(mask))
            shape = (1,) * (value.ndim - mask.ndim) + (*mask.shape[:-2], 1, 1)
            parts.append((mask, shape, arrays))
        own = tuple(self.merge(array, [value.ndim - 2]) for array in labels_of(value))
        result = next(tensors_in(out))
        shape = (*value.shape[:-2], 1, value.shape[-1])
        result._labels = self.combine([*parts, (value, shape, own)])  # type: ignore[attr-defined]
        self._working(func, args, kwargs, result)

    def _working(self, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter:
            func(*args, **kwargs)
        macs = counter.get_total_flops() // 2
        for array in labels_of(out):
            if axes_of(array):
                nodes = array[array > 0].long().unique().numpy() - 1
                self.work.append((nodes, self.stack[-1] if self.stack else "", macs))
                return

    def _unknown(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        labelled = [array for tensor in tensors_in((args, kwargs)) for array in labels_of(tensor)]
        if labelled:
            name = func.overloadpacket.__name__.strip("_")
            self.stop(labelled, f"passes through {name} in {self.here()}", out)

    def stop(self, arrays: Iterable[Tensor], reason: str, out: Any) -> None:
        for array in arrays:
            self.block(array, reason)
        for one in tensors_in(out):
            if one.is_floating_point():
                one._labels = (torch.full((1,) * one.ndim, self.reason_number(reason), dtype=torch.float64),)  # type: ignore[attr-defined]


def _attach(out: Any, arrays: Any, name: str) -> None:
    for one, array in zip(tensors_in(out), tensors_in(arrays), strict=True):
        setattr(one, name, array)
