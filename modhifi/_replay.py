"""Running a network again from one of its layers on: what lies before it is answered from memory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ._stand_in import replaced

__all__ = ["Replay", "batched"]

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
    """One forward pass of ``module`` over the batch ``x``, remembered call by call.

    Every module whose call had ended before a layer's began cannot depend on that layer. While `at` is open such calls, the
    outermost ones, give what they gave, as does the layer itself, and nothing inside them runs. What a network does between its
    modules runs again.
    Holds the outputs of all modules: `nbytes` of them. Use without inference mode (its tensors do not tell whether they were
    written to), and not from two threads.
    """

    def __init__(self, module: nn.Module, x: Tensor) -> None:
        self.module, self.x = module, x
        self.calls: list[_Call] = []
        self.output = self._record(frozenset())
        written = self._written()
        if any(isinstance(self.calls[index].module, (nn.Conv2d, nn.Linear)) for index in written):
            # What follows them writes over their output: take copies, they are what is dear to compute.
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
        """The output of the named module; None if it is not one tensor, or was written to since."""
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

        with torch.no_grad(), _calls_go_through(self.module, run):
            return self.module(self.x)  # type: ignore[no-any-return]

    def _written(self) -> frozenset[int]:
        """Calls whose output was written to after they returned."""
        kept = [(i, call) for i, call in enumerate(self.calls) if isinstance(call.output, Tensor)]
        return frozenset(index for index, call in kept if call.output._version != call.version)

    @contextlib.contextmanager
    def at(self, layer: str) -> Iterator[None]:
        """While open, a pass of the module over the same batch begins in effect behind ``layer``: its hooks run, and all that
        comes after it.
        """
        # A layer that did not run in the recorded pass changes nothing: everything is answered from memory.
        target = self._first.get(id(self.module.get_submodule(layer)), len(self.calls))
        position = 0

        def run(module: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
            nonlocal position
            if position > target:
                return forward(*args, **kwargs)
            call = self.calls[position]
            if call.module is not module:
                raise RuntimeError(f"the network did not run its modules in the order it did before, at {layer}")
            if (call.end <= target or position == target) and isinstance(call.output, Tensor):
                position = call.end
                return call.output
            position += 1
            return forward(*args, **kwargs)

        with _calls_go_through(self.module, run):
            yield


def _calls_go_through(
    net: nn.Module, run: Callable[[nn.Module, Callable[..., Any], Any, Any], Any]
) -> contextlib.AbstractContextManager[None]:
    """While open, ``run(module, forward, args, kwargs)`` stands in for the forward of every module of ``net`` but itself."""

    def through(module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: run(module, forward, args, kwargs)

    return replaced((one, "forward", through(one, one.forward)) for one in net.modules() if one is not net)


def batched(
    module: nn.Module, images: Tensor, size: int | None, at_least: int = 1, times: float = 1.0
) -> Iterator[Tensor]:
    """``images`` on the network's device, ``size`` at once; None for as many as have ``times`` their activations in a gigabyte.
    A last batch below ``at_least`` goes with the one before it.
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
