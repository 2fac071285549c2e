"""The labels of `Labels` in a forward pass: operations between layers, and what layers do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from ..layers import LAYERS, input_axis, substituted, width_of
from ._labels import LEAVES, OPAQUE, THROUGH, axes_of, labels_of, tensors_in
from ._operations import Operations

__all__ = ["Followed"]


class Followed(Operations):
    """The labels of the network ``net`` in the forward passes that `run` runs, in inference mode and on tensors and parameters
    that were made in it.
    """

    # Layers -------------------------------------------------------------------------------------------------------------

    def _leaf(self, module: nn.Module) -> Callable[..., None]:
        if isinstance(module, LAYERS):
            return self._layer
        if isinstance(module, nn.GroupNorm):
            return self._group_norm
        if isinstance(module, THROUGH):
            return self._channelwise
        return self._opaque

    def run(self, call: Callable[[], Any]) -> Any:
        """What ``call`` returns, with the channels followed through the modules that it runs."""
        hooks = []

        def standing_in(name: str, module: nn.Module, rule: Callable[..., None]) -> Callable[..., Any]:
            forward = module.forward

            def run(*args: Any, **kwargs: Any) -> Any:
                if self.paused:
                    return forward(*args, **kwargs)
                self.paused = True
                try:
                    out = forward(*args, **kwargs)
                finally:
                    self.paused = False
                rule(name, module, (args, kwargs), out)
                self.used((args, kwargs))
                return out

            return run

        leaves: list[tuple[nn.Module, str, Callable[..., Any]]] = []
        for name, module in self.net.named_modules():
            if isinstance(module, LEAVES):
                leaves.append((module, "forward", standing_in(name, module, self._leaf(module))))
            hooks.append(module.register_forward_pre_hook(lambda *_, name=name: self.stack.append(name)))
            hooks.append(module.register_forward_hook(lambda *_: self.stack.pop() and None, always_call=True))
        self.uses.clear()
        self.stack.clear()
        try:
            with substituted(leaves), self:
                return call()
        finally:
            for hook in hooks:
                hook.remove()

    def _layer(self, name: str, layer: nn.Module, given: Any, out: Tensor) -> None:
        x = next(tensors_in(given))
        axis, width = input_axis(layer, x), width_of(layer)
        across = [1] * x.ndim
        across[axis] = x.shape[axis]
        inputs = self.array(name, "in", x.shape[axis]).reshape(across)
        arrays: list[Tensor] = []
        read = 0
        for array in labels_of(x):
            if axis in axes_of(array) or (x.shape[axis] == 1 and not axes_of(array)):
                read += 1
                self.join(array, inputs)
            elif not axes_of(array):
                if not self.is_mixed(array):
                    self.block(array, f"spread over all that {name} reads")
            else:
                spatial = set(range(axis + 1, x.ndim))
                if axes_of(array) & spatial:
                    self.note(array, f"mixed across components by {name} ({type(layer).__name__})")
                array = self.merge(array, spatial)
                if axes_of(array):  # the cost of the layer would depend on how many there are
                    self.block(array, f"{name} ({type(layer).__name__}) runs on each of them by itself")
                    arrays.append(array)
        if read > 1:
            self.note(inputs, f"{name} reads products of its channels")
        if width > 1:
            across = [1] * out.ndim
            across[axis] = width
            arrays.insert(0, self.array(name, "out", width).reshape(across))
        else:
            self.nodes(name, "out", 1)
            out._slots = torch.zeros(out.shape, dtype=torch.float64)  # type: ignore[attr-defined]
            return
        out._labels = tuple(arrays)  # type: ignore[attr-defined]
        out._writer = name  # type: ignore[attr-defined]

    def _channelwise(self, name: str, module: nn.Module, given: Any, out: Tensor) -> None:
        x = next(tensors_in(given))
        axis = min(1, x.ndim - 1) if not isinstance(module, _InstanceNorm) or module._get_no_batch_dim() < x.ndim else 0
        out._labels = labels_of(x)  # type: ignore[attr-defined]
        size = x.shape[axis]
        if isinstance(module, nn.PReLU) and module.num_parameters == 1:
            return
        across = [1] * x.ndim
        across[axis] = size
        own = self.array(name, "out", size).reshape(across)
        for array in labels_of(x):
            if axis in axes_of(array):
                self.join(array, own)
        writer = getattr(x, "_writer", None)
        if isinstance(module, _BatchNorm) and writer is not None and module.track_running_stats:
            self.behind[writer] = name

    def _group_norm(self, name: str, module: nn.Module, given: Any, out: Tensor) -> None:
        assert isinstance(module, nn.GroupNorm)
        x = next(tensors_in(given))
        out._labels = labels_of(x)  # type: ignore[attr-defined]
        own = self.array(name, "out", x.shape[1])
        for array in labels_of(x):
            self.note(array, f"normalised or mixed across components by {name} ({type(module).__name__})")
            array = self.merge(array, set(range(x.ndim)) - {1})
            if axes_of(array):
                self.join(array, own.reshape(1, -1, *(1,) * (x.ndim - 2)))
        self.merge(own.reshape(module.num_groups, -1), [1])

    def _opaque(self, name: str, module: nn.Module, given: Any, out: Any) -> None:
        what = next(text for kind, text in OPAQUE.items() if isinstance(module, kind))
        self.opaque[name] = f"{what} ({type(module).__name__}), left whole"
        arrays = [array for tensor in tensors_in(given) for array in labels_of(tensor)]
        self.stop(arrays, f"read or written by {name}, {what} ({type(module).__name__})", out)
