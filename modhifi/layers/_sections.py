"""Running a network in sections: from the call of one of its modules to that of another, with what crosses over kept.

One pass over a few samples records the calls of all modules, and for each call's output when it is used for the last time.
Just before a call, the outputs that are still to be used are all that a later run needs in order to go on from there: calls
that have returned by then give what they gave before, and nothing inside them runs. What the network computes between its
modules runs again.
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import UserError
from ._replay import intercepted

__all__ = ["INPUT", "Reached", "Sections"]

INPUT = -1

# Reading these is no use of a tensor's values.
_SHAPES = frozenset({"__get__", "size", "dim", "numel", "__len__", "is_contiguous", "stride"})
# What a pass costs, to weigh running modules against storing what they gave: multiply-accumulates, and bytes computed and
# stored, per second on one core of a CPU. Only their ratios matter.
_MACS, _COMPUTED, _STORED = 2e10, 2e9, 1e9


class Reached(Exception):  # noqa: N818  (no error: it ends a run where nothing more is needed)
    """Raised inside a run to end it."""


@dataclass
class _Call:
    """One call of a module: the number of calls that had begun when it returned, and if it returned a single tensor, the
    shapes of it for one sample and for several.
    """

    module: nn.Module
    end: int = 0
    shapes: tuple[torch.Size, torch.Size] | None = None
    dtype: torch.dtype = torch.float32
    macs: float = 0.0

    def shape(self, samples: int) -> list[int]:
        """Of the output for a batch of ``samples``."""
        assert self.shapes is not None
        return [one if one == more else one * samples for one, more in zip(*self.shapes, strict=True)]

    def nbytes(self, samples: int) -> int:
        return 0 if self.shapes is None else math.prod(self.shape(samples)) * self.dtype.itemsize


class _Uses(TorchFunctionMode):
    """Notes for the output of every call, and for the network's input, the number of calls that have begun when it is used,
    itself or by what is computed from it between modules.
    """

    def __init__(self, calls: list[_Call]) -> None:
        super().__init__()
        self.calls = calls
        self.last: dict[int, int] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sources = _sources((args, kwargs))
        if sources and getattr(func, "__name__", "") not in _SHAPES:
            self.last |= dict.fromkeys(sources, len(self.calls))
            for tensor in _tensors(result):
                tensor._calls = sources  # type: ignore[attr-defined]
        return result


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _tensors(one)


def _sources(value: object) -> frozenset[int]:
    """The calls whose outputs the tensors in ``value`` are, or are computed from."""
    return frozenset[int]().union(*(getattr(tensor, "_calls", ()) for tensor in _tensors(value)))


def _alias(tensor: Tensor, source: int) -> Tensor:
    """The same values in an object of their own, marked as coming from ``source``."""
    with torch._C.DisableTorchFunction():
        alias = tensor.view_as(tensor)
    alias._calls = frozenset({source})  # type: ignore[attr-defined]
    return alias


def _dynamic() -> UserError:
    return UserError(
        "which modules of this network run depends on its input, so that it cannot be run in sections; prune with"
        " --compensate full, or unlearn with --method subspace"
    )


class Sections:
    """The calls of ``module`` for inputs like ``x`` (a few samples, at least two), and runs from one call to another.

    Calls are numbered in the order in which they begin; `end` is the number behind the last one, and `INPUT` stands for the
    network's input among the outputs of calls. Raises `UserError`, here or in `run`, for a network whose calls depend on its
    input. Use it from one thread only.
    """

    def __init__(self, module: nn.Module, x: Tensor) -> None:
        self.module, self.samples = module, len(x)
        (one, _), (self.calls, self._last) = self._recorded(x[:1]), self._recorded(x)
        if [call.module for call in one] != [call.module for call in self.calls]:
            raise _dynamic()
        for first, call in zip(one, self.calls, strict=True):
            if first.shapes and call.shapes:
                call.shapes = first.shapes[0], call.shapes[0]
        self.end = len(self.calls)
        self.position = 0
        """The number of the next call, during a run."""
        self._aside = False
        self._input = _Call(module, shapes=(x[:1].shape, x.shape), dtype=x.dtype)
        self._unused: dict[torch.dtype, Tensor] = {}
        self._live = [self._live_at(cut) for cut in range(self.end)]
        self._seconds = [0.0]
        for call in self.calls:
            seconds = call.macs / _MACS + call.nbytes(len(x)) / _COMPUTED
            self._seconds.append(self._seconds[-1] + seconds / len(x))

    def _recorded(self, x: Tensor) -> tuple[list[_Call], dict[int, int]]:
        calls: list[_Call] = []

        def run(module: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
            call, index = _Call(module), len(calls)
            calls.append(call)
            output = forward(*args, **kwargs)
            call.end = len(calls)
            if not isinstance(output, Tensor):
                return output
            call.shapes, call.dtype = (output.shape, output.shape), output.dtype
            weight = getattr(module, "weight", None)
            if isinstance(weight, Tensor) and weight.ndim > 1:
                call.macs = output.numel() * weight[0].numel()
            # A module that returns its input, or writes into it, uses it and has an output of its own all the same.
            uses.last |= dict.fromkeys(_sources(output), len(calls))
            return _alias(output, index)

        uses = _Uses(calls)
        with torch.no_grad(), uses, intercepted(self.module, run):
            answer = self.module(_alias(x.clone(), INPUT))
        return calls, uses.last | dict.fromkeys(_sources(answer), len(calls) + 1)

    def number(self, name: str) -> list[int]:
        """Of the calls of the named module."""
        module = self.module.get_submodule(name)
        return [index for index, call in enumerate(self.calls) if call.module is module]

    def _live_at(self, cut: int) -> frozenset[int] | None:
        given, index = {INPUT}, 0
        while index < cut:
            call = self.calls[index]
            over = call.end <= cut and call.shapes is not None
            if over:
                given.add(index)
            index = call.end if over else index + 1
        needed = {
            i for i, last in self._last.items() if last > cut and i < cut and (i == INPUT or self.calls[i].end <= cut)
        }
        # What is used later, but was returned inside a call that is over, could not be handed in again.
        return frozenset(needed) if needed <= given else None

    def live(self, cut: int) -> frozenset[int] | None:
        """The calls before call ``cut`` whose outputs a run from there needs; None if none can begin there."""
        return frozenset() if cut == self.end else self._live[cut]

    def nbytes(self, cut: int) -> float:
        """Bytes of `live` per sample."""
        calls = [self._input if index == INPUT else self.calls[index] for index in self.live(cut) or ()]
        return sum(call.nbytes(self.samples) for call in calls) / self.samples

    def seconds(self, start: int, stop: int) -> float:
        """A rough estimate for one sample: running the calls from ``start`` up to ``stop``."""
        return self._seconds[stop] - self._seconds[start]

    def storing(self, cut: int) -> float:
        """In the unit of `seconds`: storing or loading what is live at ``cut``."""
        return self.nbytes(cut) / _STORED

    def largest(self) -> float:
        """Bytes of the largest output of a call, per sample."""
        return max((call.nbytes(self.samples) for call in self.calls), default=0) / self.samples

    def works(self, cut: int, x: Tensor) -> bool:
        """Whether a run that begins at ``cut`` with nothing but what is live there gives what a whole one gives for ``x``."""
        self._fill, self._unused = math.nan, {}
        try:
            _, whole = self.run(len(x), 0, self.end, {INPUT: x.clone()})
            given, _ = self.run(len(x), 0, cut, {INPUT: x.clone()})
            _, rest = self.run(len(x), cut, self.end, given)
        except (UserError, RuntimeError, ValueError, IndexError, TypeError):
            return False
        finally:
            self._fill, self._unused = 0.0, {}
        pairs = list(zip(_tensors(whole), _tensors(rest), strict=True))
        return all(torch.allclose(a, b, rtol=1e-4, atol=1e-5 * float(a.abs().max())) for a, b in pairs)

    _fill = 0.0

    def _dead(self, call: _Call, samples: int) -> Tensor:
        """A tensor in the place of an output that is not needed any more."""
        shape = call.shape(samples)
        size, unused = math.prod(shape), self._unused.get(call.dtype)
        if unused is None or len(unused) < size:
            device = next(self.module.parameters()).device
            fill = self._fill if call.dtype.is_floating_point else 0
            unused = self._unused[call.dtype] = torch.full((size,), fill, dtype=call.dtype, device=device)
        return unused[:size].view(shape)

    def run(self, samples: int, start: int, stop: int, given: Mapping[int, Tensor]) -> tuple[dict[int, Tensor], Any]:
        """Runs the calls from ``start`` up to ``stop`` on a batch of ``samples``.

        ``given``: what is live at ``start``, as another run returned it (`INPUT` at 0); it may be written to. Returns what is
        live at ``stop``, and if ``stop`` is the end, the network's output. A `Reached` raised by a hook ends the run before.
        """
        wanted = self.live(stop) or frozenset()
        found = {index: given[index].clone() for index in wanted if index in given}
        self.position = 0

        def run(module: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
            if self._aside:
                return forward(*args, **kwargs)
            index = self.position
            if index == stop:
                raise Reached
            call = self.calls[index] if index < self.end else None
            if call is None or call.module is not module:
                raise _dynamic()
            if index < start and call.end <= start and call.shapes is not None:
                self.position = call.end
                return given[index] if index in given else self._dead(call, samples)
            self.position += 1
            output = forward(*args, **kwargs)
            if index in wanted:
                found[index] = output.clone()  # later operations may overwrite it
            return output

        x = given[INPUT] if INPUT in given else self._dead(self._input, samples)
        answer = None
        with contextlib.suppress(Reached), intercepted(self.module, run):
            answer = self.module(x)
        return found, answer

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Inside the context, a hook of a run may call modules, which are no part of it."""
        self._aside = True
        try:
            yield
        finally:
            self._aside = False

    def cheapest(self, barred: Sequence[int], stops: Sequence[tuple[int, int]], streams: int) -> list[int]:
        """Where to cut so that all runs together cost least: the start of every section, and the end.

        Each of ``stops`` (ascending) is the number of a call and the number up to which its section runs for it, once. Then the
        section runs as a whole, for each of ``streams``. No section begins at one of ``barred``.
        """
        avoided = set(barred)
        cuts = [0, *(c for c in range(1, self.end) if c not in avoided and self._live[c] is not None), self.end]
        storing = [self.storing(cut) for cut in cuts]
        # Of the stops before each cut: how many, and the seconds from the start of the network to them.
        before = [bisect.bisect_left(stops, (cut, 0)) for cut in cuts]
        sums = [0.0, *itertools.accumulate(self._seconds[at] for _, at in stops)]
        best: list[tuple[float, int]] = [(0.0, -1)]
        for stop in range(1, len(cuts)):
            choices = []
            for start in range(stop):
                from_start = self._seconds[cuts[start]]
                count = before[stop] - before[start]
                whole = storing[start] + self._seconds[cuts[stop]] - from_start + storing[stop]
                inside = count * (storing[start] - from_start) + sums[before[stop]] - sums[before[start]]
                choices.append((best[start][0] + streams * whole + inside, start))
            best.append(min(choices))
        found, position = [], len(cuts) - 1
        while position >= 0:
            found.append(cuts[position])
            position = best[position][1]
        return found[::-1]
