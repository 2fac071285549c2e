"""Fitting layers one after the other to the inputs that the layers before them, already modified, produce.

The network runs in sections, batch by batch. In each section the original network runs once and shows, at some positions of
every layer's output, what the layer computes, what its output is added to, and which ReLU cuts it off. Then the modified
network runs once up to each layer, for its inputs; the caller fits the layer; and once more as a whole, into the next section.
Only what crosses from one section to the next is kept of all samples, and the rows of one section's layers. Sequential
compensation and erasure differ only in what they fit to.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..layers import (
    INPUT,
    Edit,
    Operator,
    Reached,
    Route,
    Sections,
    bias_of,
    flat_weight,
    followed,
    get_operator,
    outputs_at,
    patches,
    position_count,
    reweighted,
    rows_at,
)
from ..progress import Progress, silent
from ._kept import Kept
from ._positions import draw

__all__ = ["Affine", "InSequence", "Seen", "Site", "able"]

# Rows that a layer is fitted on, for each of its inputs.
_ROWS_PER_INPUT = 64
# At most so many entries in the matrix of rows, 512 MiB, unless one row of every sample is more.
_ENTRIES = 1 << 27
# How many samples show what becomes of each layer's output.
_SAMPLES = 4
# The largest output of a call takes up to so many bytes in one batch.
_BATCH = 1 << 28
# A scale smaller than this, relative to the largest, would magnify noise: such outputs are not moved.
_SMALLEST_SCALE = 1e-3

Affine = tuple[Tensor, Tensor]
"""Scale and constant (O,): what happens to each output channel on its way."""


def able(scale: Tensor) -> Tensor:
    """(O,) bool: the output channels whose scale is large enough to be inverted."""
    return scale.abs() > _SMALLEST_SCALE * scale.abs().max()


@dataclass(frozen=True)
class Seen:
    """What the original network computed at a layer's positions: its ``outputs`` (r, O) without the bias; the ``stream`` (r, O)
    that these are added to; where a ReLU lets them, or the sum, through: ``active`` (r, O). ``affine`` is the way to the stream
    or, without one, to the ReLU. None is for what is not there, or not affine.
    """

    outputs: Tensor
    stream: Tensor | None = None
    active: Tensor | None = None
    affine: Affine | None = None


@dataclass(frozen=True)
class Site:
    """A layer of the modified network when it is fitted: ``rows`` (r, n) of its input, what was ``seen`` of the original, where
    its output is added to a stream the ``stream`` (r, O) and the ``constant`` (O,) added on the way there, and the number of
    the ``sample`` of each row, (r,).
    """

    name: str
    layer: Operator
    rows: Tensor
    sample: Tensor
    seen: Seen | None = None
    stream: Tensor | None = None
    constant: Tensor | None = None


@dataclass
class _Fate:
    """What becomes of a layer's output. ``call``: the number of its first call. ``known``: how many calls have begun when its
    input, and what it is added to, are known; ``until``: when all of this is over.
    """

    call: int
    known: int
    until: int
    added: bool = False
    cut: Route | None = None


@dataclass
class _Rows:
    """Batch by batch, on the device of the network."""

    outputs: list[Tensor] = field(default_factory=list)
    stream: list[Tensor] = field(default_factory=list)
    active: list[Tensor] = field(default_factory=list)
    affine: Affine | None = None

    def seen(self) -> Seen:
        stream, active = (torch.cat(each) if each else None for each in (self.stream, self.active))
        return Seen(torch.cat(self.outputs), stream, active, self.affine)


class InSequence:
    """Layers of ``net`` to be fitted, in the order `order` in which it is possible.

    Args:
        net: the original network; it may write in place and is run from one thread, pass a copy.
        layers: those that may be fitted or watched.
        batches: gives all samples, in batches; asked again for each pass from the beginning.
        samples: how many there are, at least one.
        drift: whether it matters what a layer's output is added to.
        rectified: whether it matters which ReLU cuts an output off.
    """

    def __init__(
        self,
        net: nn.Module,
        layers: Iterable[str],
        batches: Callable[[], Iterable[Tensor]],
        samples: int,
        *,
        drift: bool = True,
        rectified: bool = True,
    ) -> None:
        self.net, self.samples, self._given = net, samples, batches
        self.device = next(net.parameters()).device
        self.drift, self.rectified = drift, rectified
        first = next(iter(batches()))[:_SAMPLES].to(self.device)
        self.first = first if len(first) > 1 else first.repeat(2, *[1] * (first.ndim - 1))
        self.sections = Sections(net, self.first)
        self.size = max(1, int(_BATCH // max(self.sections.largest(), 1)))
        self.fates = self._fates([name for name in layers if self.sections.number(name)])
        self.order = sorted(self.fates, key=lambda name: (self.fates[name].known, self.fates[name].call))
        self.passes = 0.0
        """How many forward passes over all samples the last `fit` took, by the cost of the calls that ran."""

    def batches(self) -> Iterator[tuple[int, Tensor]]:
        """The number of the first sample and the samples, on the device, batch by batch."""
        start = 0
        for given in self._given():
            for batch in given.split(self.size):
                yield start, batch.to(self.device, copy=True)
                start += len(batch)

    def _fates(self, layers: list[str]) -> dict[str, _Fate]:
        """From a few samples: what each layer's output is added to, and which ReLU it goes into."""
        found: dict[str, _Fate] = {}
        positions: dict[str, Tensor] = {}
        outputs: dict[str, Tensor] = {}
        numbers = torch.arange(len(self.first))
        repeated = {name for name in layers if len(self.sections.number(name)) > 1}

        def see(name: str, layer: Operator, x: Tensor, y: Tensor) -> Tensor:
            calls = self.sections.number(name)
            if name not in found:
                found[name] = _Fate(calls[0], calls[0], calls[-1] + 1)
                positions[name] = self._positions(name, layer, x, numbers)
                outputs[name] = outputs_at(layer, y, positions[name])
            return y

        def affine(route: Route, value: Tensor) -> bool:
            """Whether nothing but an affine map of each channel lies on the way (no activation in place)."""
            scale, constant = self._affine(route, value)
            expected = (outputs[route.layer] + bias_of(route.operator)) * scale + constant
            found = rows_at(route.operator, value, positions[route.layer])
            return torch.allclose(found, expected, rtol=1e-3, atol=1e-4)

        def added(route: Route, own: Tensor, _: Tensor) -> Tensor | None:
            if route.layer in repeated or not affine(route, own):
                return None
            fate = found[route.layer]
            fate.added, fate.known = True, self.sections.position
            fate.until = max(fate.until, fate.known)
            return own  # of two layers that are added to one another, the second is fitted as it runs

        def cut_off(route: Route, x: Tensor) -> None:
            fate = found[route.layer]
            if route.layer not in repeated and (fate.added if route.added else affine(route, x)):
                fate.cut, fate.until = route, max(fate.until, self.sections.position)

        see_addition, see_rectifier = added if self.drift else None, cut_off if self.rectified else None
        with followed(self.net, layers, see, see_addition, see_rectifier):
            self.sections.run(len(self.first), 0, self.sections.end, {INPUT: self.first.clone()})
        for fate in found.values():
            if fate.cut is not None and not fate.cut.only_once:
                fate.cut = None  # what is also used elsewhere must be met there
        return found

    def _affine(self, route: Route, value: Tensor) -> Affine:
        with self.sections.aside():
            return route.affine(value)

    def _positions(self, name: str, layer: Operator, x: Tensor, numbers: Tensor) -> Tensor:
        """(B, p): those looked at in each of the samples ``numbers`` (B,), for the layer's input ``x`` (B, …)."""
        total, width = position_count(layer, x, len(numbers)), flat_weight(layer).shape[1]
        rows = min(_ROWS_PER_INPUT * width, _ENTRIES // width)
        size = min(total, max(1, -(-rows // self.samples)))
        at = draw(total, size, name, numbers, 0) if size < total else torch.arange(total).expand(len(numbers), -1)
        return at.to(x.device)

    @contextlib.contextmanager
    def watching(
        self,
        names: Collection[str],
        start: int,
        count: int,
        *,
        output: Callable[[str, Operator, Tensor, Tensor], None] | None = None,
        added: Callable[[str, Tensor, Tensor, Affine, Tensor], None] | None = None,
        rectified: Callable[[str, Tensor, Affine | None, Tensor], None] | None = None,
    ) -> Iterator[None]:
        """Inside the context, a run of the original network on the ``count`` samples from ``start`` on tells of each of the
        layers ``names``: its ``output``; where that, ``own``, is ``added`` to another tensor; and which ReLU cuts it, or the
        sum, off. Each receives the layer's name first and the positions (count, p) last; the affine map to the ReLU is None
        for a sum.
        """
        numbers = torch.arange(start, start + count)
        positions: dict[str, Tensor] = {}

        def see(name: str, layer: Operator, x: Tensor, y: Tensor) -> Tensor:
            if name not in positions:
                positions[name] = self._positions(name, layer, x, numbers)
                if output is not None:
                    output(name, layer, y, positions[name])
            return y

        def see_addition(route: Route, own: Tensor, other: Tensor) -> Tensor | None:
            if not self.fates[route.layer].added:
                return None
            if added is not None:
                added(route.layer, own, other, self._affine(route, own), positions[route.layer])
            return own

        def see_rectifier(route: Route, x: Tensor) -> None:
            if self.fates[route.layer].cut is not None and rectified is not None:
                rectified(route.layer, x, None if route.added else self._affine(route, x), positions[route.layer])

        drift, cut = see_addition if self.drift else None, see_rectifier if self.rectified else None
        with followed(self.net, list(names), see, drift, cut):
            yield

    def fit(
        self,
        fit: Callable[[Site], Edit],
        names: Collection[str],
        *,
        original: bool = True,
        edits: Mapping[str, Edit] | None = None,
        progress: Progress = silent,
        what: str = "fitting layers",
    ) -> dict[str, Edit]:
        """Fits the layers ``names`` and returns their edits, and those of ``edits`` which are known beforehand.

        Args:
            fit: from a site to the layer's edit.
            names: any of `order`.
            original: whether `Site.seen` is needed.
            edits: of those that are known and not fitted again.
            progress: see `modhifi.progress`; it is called for every batch.
            what: the name of the step.
        """
        run = _Run(self, fit, [name for name in self.order if name in names], dict(edits or {}), original)
        self.passes = run.passes()
        run.all(progress, what)
        return run.edits

    def changed(self, edits: Mapping[str, Edit]) -> contextlib.AbstractContextManager[None]:
        """Inside the context, the layers compute with their ``edits``."""
        layers = [(get_operator(self.net, name), edit) for name, edit in edits.items()]
        return reweighted(
            (layer, edit.weight, edit.shift.to(bias_of(layer)) + bias_of(layer)) for layer, edit in layers
        )


class _Run:
    def __init__(
        self,
        engine: InSequence,
        fit: Callable[[Site], Edit],
        names: list[str],
        edits: dict[str, Edit],
        original: bool,
    ) -> None:
        self.engine, self.sections = engine, engine.sections
        self.fitted, self.edits, self.original = fit, edits, original
        self.fates = {name: engine.fates[name] for name in names}
        self.waiting = [name for name in names if name not in edits]
        self.cuts = self._cuts()
        """Where the sections begin, and the end."""
        self.kept: dict[str, Kept] = {}
        self.counts: list[tuple[int, int]] = []
        """The first sample of every batch, and how many it has."""

    def _cuts(self) -> list[int]:
        barred = {cut for fate in self.fates.values() for cut in range(fate.call + 1, fate.until)}
        stops = sorted((self.fates[name].call, self.fates[name].known) for name in self.waiting)
        while True:
            cuts = self.sections.cheapest(sorted(barred), stops, 1 + self.original)
            broken = [cut for cut in cuts[1:-1] if not self.sections.works(cut, self.engine.first)]
            if not broken:
                return cuts
            barred |= set(broken)

    def _inside(self, number: int) -> list[str]:
        """The layers to be fitted in a section, in order."""
        start, stop = self.cuts[number], self.cuts[number + 1]
        return [name for name in self.waiting if start <= self.fates[name].call < stop]

    def _work(self) -> list[float]:
        """What every section up to the last one with a layer to fit costs, in seconds of `Sections` for one sample."""
        last = max((number for number in range(len(self.cuts) - 1) if self._inside(number)), default=-1)
        found = []
        for number in range(last + 1):
            start, stop = self.cuts[number], self.cuts[number + 1]
            found.append(self.sections.seconds(start, stop) * (self.original + (number < last)))
            found[-1] += sum(self.sections.seconds(start, self.fates[name].known) for name in self._inside(number))
        return found

    def passes(self) -> float:
        return sum(self._work()) / max(self.sections.seconds(0, self.sections.end), 1e-300)

    def all(self, progress: Progress, what: str) -> None:
        work = self._work()
        total, done = sum(work), 0.0

        def ran(seconds: float, count: int) -> None:
            nonlocal done
            done += seconds * count / self.engine.samples
            progress(min(999, round(1000 * done / max(total, 1e-300))), 1000, what)

        for number in range(len(work)):
            mine, last = self._inside(number), number == len(work) - 1
            seen = self._observe(number, mine, ran) if self.original else {}
            for name in mine:
                self.edits[name] = self.fitted(self._site(number, name, seen.get(name), ran))
            if not last:
                self._advance(number, "changed", ran)
        progress(1000, 1000, what)

    def _given(self, number: int, stream: str) -> Iterator[tuple[int, int, int, dict[int, Tensor]]]:
        """Batch by batch: its number, its first sample, how many, and what is live where the section begins."""
        if self.cuts[number] == 0:
            for batch, (start, x) in enumerate(self.engine.batches()):
                yield batch, start, len(x), {INPUT: x}
            return
        for batch, (start, count) in enumerate(self.counts):
            yield batch, start, count, self.kept[stream].get(batch, self.engine.device)

    def _keeping(self, number: int, stream: str, batches: Iterable[tuple[int, int, int, dict[int, Tensor]]]) -> None:
        """Stores, for each batch, what is live where the next section begins."""
        size = self.sections.nbytes(self.cuts[number + 1]) * self.engine.samples
        before, after = self.kept.get(stream), Kept(size)
        counts = []
        for batch, start, count, live in batches:
            after.put(batch, live)
            counts.append((start, count))
            if before is not None:
                before.drop(batch)
        self.kept[stream], self.counts = after, counts

    def _weights(self, number: int) -> contextlib.AbstractContextManager[None]:
        """The edits of the section's layers."""
        start, stop = self.cuts[number], self.cuts[number + 1]
        return self.engine.changed(
            {name: edit for name, edit in self.edits.items() if start <= self.fates[name].call < stop}
        )

    def _advance(
        self,
        number: int,
        stream: str,
        ran: Callable[[float, int], None],
        watching: Callable[[int, int], contextlib.AbstractContextManager[None]] = lambda *_: contextlib.nullcontext(),
    ) -> None:
        """Runs a network through the section; ``watching`` receives the first sample of a batch and how many there are."""
        start, stop = self.cuts[number], self.cuts[number + 1]

        def through() -> Iterator[tuple[int, int, int, dict[int, Tensor]]]:
            for batch, first, count, given in self._given(number, stream):
                with watching(first, count):
                    live, _ = self.sections.run(count, start, stop, given)
                ran(self.sections.seconds(start, stop), count)
                yield batch, first, count, live

        with self._weights(number) if stream == "changed" else contextlib.nullcontext():
            self._keeping(number, stream, through())

    def _observe(self, number: int, names: list[str], ran: Callable[[float, int], None]) -> dict[str, Seen]:
        """Runs the original network through the section."""
        rows = {name: _Rows() for name in names}

        def output(name: str, layer: Operator, y: Tensor, at: Tensor) -> None:
            rows[name].outputs.append(outputs_at(layer, y, at))

        def added(name: str, _: Tensor, other: Tensor, affine: Affine, at: Tensor) -> None:
            rows[name].stream.append(rows_at(get_operator(self.engine.net, name), other, at))
            rows[name].affine = affine

        def rectified(name: str, x: Tensor, affine: Affine | None, at: Tensor) -> None:
            rows[name].active.append(rows_at(get_operator(self.engine.net, name), x, at) > 0)
            if affine is not None:
                rows[name].affine = affine

        watching = functools.partial(self.engine.watching, names, output=output, added=added, rectified=rectified)
        self._advance(number, "original", ran, watching)
        return {name: one.seen() for name, one in rows.items()}

    def _site(self, number: int, name: str, seen: Seen | None, ran: Callable[[float, int], None]) -> Site:
        """Runs the modified network up to the layer, or to the addition of its output."""
        start, fate = self.cuts[number], self.fates[name]
        layer = get_operator(self.engine.net, name)
        rows: list[Tensor] = []
        samples: list[Tensor] = []
        streams: list[Tensor] = []
        constants: list[Tensor] = []
        positions = numbers = torch.empty(0)
        batch = 0

        def enters(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            nonlocal positions
            if len(rows) == batch:  # a later call of the same layer is not looked at
                positions = self.engine._positions(name, layer, args[0], numbers)
                rows.append(patches(layer, args[0], positions))
                samples.append(numbers.to(args[0].device).repeat_interleave(positions.shape[1]))

        def added(route: Route, own: Tensor, other: Tensor) -> Tensor | None:
            streams.append(rows_at(layer, other, positions))
            constants[:] = [self.engine._affine(route, own)[1]]
            raise Reached

        hook = layer.register_forward_pre_hook(enters)
        try:
            with self._weights(number):
                for batch, first, count, given in self._given(number, "changed"):  # noqa: B007  (`enters` reads it)
                    numbers = torch.arange(first, first + count)
                    if fate.added:
                        with followed(self.engine.net, [name], lambda _, __, ___, y: y, added, None):
                            self.sections.run(count, start, self.sections.end, given)
                    else:
                        self.sections.run(count, start, fate.call, given)
                    ran(self.sections.seconds(start, fate.known), count)
        finally:
            hook.remove()
        if fate.added:
            assert len(streams) == len(rows), "an addition that was seen in the original network did not come"
            return Site(name, layer, torch.cat(rows), torch.cat(samples), seen, torch.cat(streams), constants[0])
        return Site(name, layer, torch.cat(rows), torch.cat(samples), seen)
