"""Running a network again from one of its layers on: everything before that layer is returned from memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ._substitute import substituted

__all__ = ["Replay", "batched", "intercepted"]

_MEMORY = 1 << 30
_LARGEST = 64


@dataclass
class _Call:
    """One call of a module in the recorded pass. ``end``: the number of calls that had begun when it returned."""

    module: nn.Module
    end: int = 0
    output: Any = None
    version: int = 0


class Replay:
    """One forward pass of ``module`` over the batch ``x``, recorded call by call.

    A module whose call ended before a layer's call began cannot depend on that layer. Inside the context `at`, the outermost
    such calls and the layer itself return what they returned before, and nothing inside them runs. What the network computes
    between its modules runs again.

    Holds the outputs of all modules, `nbytes` in total. Use it outside inference mode (whose tensors do not record whether they
    were written to) and from one thread only.
    """

    def __init__(self, module: nn.Module, x: Tensor) -> None:
        self.module, self.x = module, x
        self.calls: list[_Call] = []
        self.output = self._record(frozenset())
        written = self._written()
        if any(isinstance(self.calls[index].module, (nn.Conv2d, nn.Linear)) for index in written):
            # Later operations overwrite the outputs of these layers, which are expensive to compute: record copies.
            self.output = self._record(written)
            written = self._written()
        for index in written:
            self.calls[index].output = None
        self._first = {id(call.module): index for index, call in reversed(list(enumerate(self.calls)))}

    @property
    def nbytes(self) -> int:
        outputs = {call.output.data_ptr(): call.output for call in self.calls if isinstance(call.output, Tensor)}
        return sum(output.nbytes for output in outputs.values())

    def given(self, name: str) -> Tensor | None:
        """The output of the named module; None if it is not a single tensor, or has been overwritten since."""
        index = self._first.get(id(self.module.get_submodule(name)))
        output = None if index is None else self.calls[index].output
        return output if isinstance(output, Tensor) else None

    def _record(self, copied: frozenset[int]) -> Tensor:
        self.calls = []

        def run(module: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
            index = len(self.calls)
            call = _Call(module)
            self.calls.append(call)
            output = forward(*args, **kwargs)
            call.end = len(self.calls)
            if isinstance(output, Tensor):
                call.output = output.clone() if index in copied else output
                call.version = call.output._version
            return output

        with torch.no_grad(), intercepted(self.module, run):
            return self.module(self.x)  # type: ignore[no-any-return]

    def _written(self) -> frozenset[int]:
        """Calls whose output was overwritten after they returned."""
        kept = [(i, call) for i, call in enumerate(self.calls) if isinstance(call.output, Tensor)]
        return frozenset(index for index, call in kept if call.output._version != call.version)

    @contextlib.contextmanager
    def at(self, layer: str) -> Iterator[None]:
        """Inside the context, a pass of the module over the same batch effectively begins after ``layer``: the layer's hooks
        and everything after it run.
        """
        # A layer that did not run in the recorded pass changes nothing: everything is returned from memory.
        target = self._first.get(id(self.module.get_submodule(layer)), len(self.calls))
        position = 0

        def run(module: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
            nonlocal position
            if position > target:
                return forward(*args, **kwargs)
            call = self.calls[position]
            if call.module is not module:
                raise RuntimeError(f"the modules did not run in the recorded order when replaying from {layer}")
            if (call.end <= target or position == target) and isinstance(call.output, Tensor):
                position = call.end
                return call.output
            position += 1
            return forward(*args, **kwargs)

        with intercepted(self.module, run):
            yield


def intercepted(
    net: nn.Module, run: Callable[[nn.Module, Callable[..., Any], Any, Any], Any]
) -> contextlib.AbstractContextManager[None]:
    """Inside the context, ``run(module, forward, args, kwargs)`` replaces the forward of every module inside ``net``."""

    def through(module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: run(module, forward, args, kwargs)

    return substituted((one, "forward", through(one, one.forward)) for one in net.modules() if one is not net)


def batched(
    module: nn.Module, images: Tensor, size: int | None, at_least: int = 1, times: float = 1.0
) -> Iterator[Tensor]:
    """``images`` on the network's device in batches of ``size``; None for as many as fit ``times`` their activations into a
    gigabyte. A last batch smaller than ``at_least`` is merged with the one before it.
    """
    device = next(module.parameters()).device
    if size is None:
        with torch.no_grad():
            each = Replay(module, images[:1].to(device)).nbytes * times
        size = int(min(_LARGEST, max(1, _MEMORY // max(each, 1))))
    size = max(size, at_least)
    starts = list(range(0, len(images), size))
    if len(starts) > 1 and len(images) - starts[-1] < at_least:
        starts.pop()
    for start, stop in zip(starts, [*starts[1:], len(images)], strict=True):
        yield images[start:stop].to(device)
