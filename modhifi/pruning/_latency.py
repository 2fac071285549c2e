"""How long each layer takes at several widths on this machine, and what follows for a whole network of any widths.

The network is really narrowed, all groups alike, to a handful of widths, once to multiples of eight channels and once to odd
numbers of them, and every layer is timed as it runs in it. A layer whose two sides are narrowed differently is read off at
the geometric mean of its sides. What is not a layer (activations, normalisation, dispatch) is the rest of the whole
network's time.
"""

from __future__ import annotations

import bisect
import copy
import functools
import math
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor, nn

from .._files import read_json, write_json
from ..components import LayerCost, Structure
from ..errors import UserError
from ..models import Model
from ..progress import Progress, silent
from ..surgery import remove

__all__ = ["ALIGNED", "LatencyLedger", "LatencyTable", "machine_name", "measure_table", "narrowed"]

# Matrix units and vectors take channels by the eight.
ALIGNED = 8
_SHARES = (0.0625, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
_ROUNDS = 7
_SECONDS = 0.03
_OTHER = ""


class LatencyTable(BaseModel):
    """Milliseconds by layer and width. ``counts``: the components that each group kept where it was measured, the narrowest
    first; ``times``: of each layer of the structure (``""``: everything else) there, for widths that are multiples of
    eight channels and for odd ones.
    """

    model_config = ConfigDict(extra="forbid")

    machine: str
    device: str
    threads: int
    batch: int
    fingerprint: str
    """Of the network's weights."""
    counts: dict[str, list[dict[str, int]]]
    times: dict[str, dict[str, list[float]]]

    @property
    def dense(self) -> float:
        """Milliseconds of the unchanged network."""
        return sum(times[-1] for times in self.times["aligned"].values())

    def milliseconds(self, structure: Structure, counts: Mapping[str, int]) -> float:
        """Of one forward pass when ``counts[group]`` components stay."""
        sizes = _sizes(structure)
        curves = {kind: self.curves(structure, kind) for kind in self.times}
        total = curves["aligned"][_OTHER].at(sum(counts.values()) / sum(sizes.values()))
        for layer in structure.layers:
            odd = any(
                now % ALIGNED and now != before
                for now, before in zip(_sides(layer, counts), _sides(layer, sizes), strict=True)
            )
            total += curves["odd" if odd else "aligned"][layer.name].at(_share(layer, counts, sizes))
        return total

    def curves(self, structure: Structure, kind: str) -> dict[str, Curve]:
        """Milliseconds of each layer against the share of it that is left, and of everything else against the share of all
        components that is.
        """
        sizes, counts, times = _sizes(structure), self.counts[kind], self.times[kind]
        everything = sum(sizes.values())
        other = Curve([sum(c.values()) / everything for c in counts], times[_OTHER])
        return {_OTHER: other} | {
            layer.name: Curve([_share(layer, c, sizes) for c in counts], times[layer.name])
            for layer in structure.layers
        }

    def fits(self, model: Model, batch: int) -> bool:
        """Whether the table was measured for this network, here, and on batches of this size."""
        return (self.fingerprint, self.machine, self.device, self.batch, self.threads) == (
            model.fingerprint,
            machine_name(),
            str(model.device),
            batch,
            torch.get_num_threads(),
        )

    def save(self, path: Path) -> None:
        write_json(path, self.model_dump(mode="json"))

    @classmethod
    def load(cls, path: Path) -> LatencyTable:
        """Raises `UserError` if it is missing or damaged."""
        try:
            return cls.model_validate(read_json(path, "a table of latencies"))
        except ValidationError as error:
            raise UserError(f"{path} is damaged or not a table of latencies; delete it") from error


class Curve:
    """Linear between the points, which rise."""

    def __init__(self, x: Sequence[float], y: Sequence[float]) -> None:
        order = np.argsort(x, kind="stable")
        self.x = np.asarray(x, dtype=np.float64)[order].tolist()
        self.y = np.maximum.accumulate(np.asarray(y, dtype=np.float64)[order]).tolist()

    def at(self, x: float) -> float:
        place = bisect.bisect_right(self.x, x)
        if place == 0:
            return float(self.y[0])
        if place == len(self.x):
            return float(self.y[-1])
        low, high = self.x[place - 1], self.x[place]
        part = (x - low) / (high - low)
        return float(self.y[place - 1] + part * (self.y[place] - self.y[place - 1]))


class LatencyLedger:
    """The running time while components leave. ``aligned``: whether only multiples of eight channels leave."""

    def __init__(self, table: LatencyTable, structure: Structure, counts: Mapping[str, int], *, aligned: bool) -> None:
        self.index = {name: position for position, name in enumerate(counts)}
        self._names, self._counts, self._sizes = list(counts), dict(counts), _sizes(structure)
        self._everything = sum(self._sizes.values())
        self._left = sum(counts.values())
        self._curves = table.curves(structure, "aligned" if aligned else "odd")
        self._layers: dict[str, list[LayerCost]] = {name: [] for name in counts}
        for layer in structure.layers:
            for group in _groups(layer):
                self._layers[group].append(layer)
        self._near = {name: {name}.union(*map(_groups, layers)) for name, layers in self._layers.items()}
        self._times = {layer.name: self._time(layer, self._counts) for layer in structure.layers}
        self._savings = np.array([self._saving(name) for name in self._names])

    @property
    def total(self) -> float:
        """Milliseconds."""
        return self._rest(self._left) + sum(self._times.values())

    def savings(self) -> np.ndarray:
        """(G,): what one component less of each group saves, milliseconds."""
        return self._savings

    def remove(self, group: int, count: int) -> None:
        name = self._names[group]
        self._counts[name] -= count
        self._left -= count
        for layer in self._layers[name]:
            self._times[layer.name] = self._time(layer, self._counts)
        for other in self._near[name]:
            self._savings[self.index[other]] = self._saving(other)

    def _rest(self, left: int) -> float:
        return self._curves[_OTHER].at(left / self._everything)

    def _time(self, layer: LayerCost, counts: Mapping[str, int]) -> float:
        return self._curves[layer.name].at(_share(layer, counts, self._sizes))

    def _saving(self, name: str) -> float:
        # On the average over the next eighth of the group: the curves have corners, and flat parts.
        step = max(1, min(self._counts[name] - 1, self._sizes[name] // 8))
        fewer = self._counts | {name: self._counts[name] - step}
        saved = sum(self._times[layer.name] - self._time(layer, fewer) for layer in self._layers[name])
        return max((saved + self._rest(self._left) - self._rest(self._left - step)) / step, 1e-12)


def _sizes(structure: Structure) -> dict[str, int]:
    return {group.name: group.size for group in structure.groups}


def _groups(layer: LayerCost) -> set[str]:
    return {share.group for share in (*layer.in_shares, *layer.out_shares)}


def _sides(layer: LayerCost, counts: Mapping[str, int]) -> tuple[int, int]:
    """Channels read and written."""
    return (
        layer.inputs + sum(counts[share.group] * share.width for share in layer.in_shares),
        layer.outputs + sum(counts[share.group] * share.width for share in layer.out_shares),
    )


def _share(layer: LayerCost, counts: Mapping[str, int], sizes: Mapping[str, int]) -> float:
    """The geometric mean of what is left of both sides."""
    (inputs, outputs), (all_inputs, all_outputs) = _sides(layer, counts), _sides(layer, sizes)
    return float(np.sqrt(inputs * outputs / (all_inputs * all_outputs)))


def machine_name() -> str:
    """What this machine calls itself."""
    return platform.node() or "this machine"


def _channels(structure: Structure, group: str) -> int:
    """Channels of one component, as its writers count them."""
    found = structure.group(group)
    return found.producers[0].width if found.producers else 1


def _counts_at(structure: Structure, share: float, *, aligned: bool) -> dict[str, int]:
    counts = {}
    for group in structure.groups:
        wanted = max(1, round(share * group.size))
        each = _channels(structure, group.name)
        if aligned:
            unit = ALIGNED // math.gcd(ALIGNED, each)
            wanted = group.size if share == 1 else max(1, round(wanted / unit) * unit)
        elif group.size > 1 and (wanted * each) % ALIGNED == 0:
            wanted = max(1, wanted - 1)
        counts[group.name] = min(wanted, group.size)
    return counts


@torch.inference_mode()
def measure_table(model: Model, structure: Structure, *, batch: int = 1, progress: Progress = silent) -> LatencyTable:
    """Times the layers of ``model`` on ``batch`` samples of noise; ``model`` stays as it is. A few seconds for small networks."""
    if model.tokens is not None:
        raise UserError("a language model has no budget of latency here; give --params or --flops")
    counts = {
        kind: [_counts_at(structure, share, aligned=kind == "aligned") for share in _SHARES]
        for kind in ("aligned", "odd")
    }
    nets = {
        (kind, place): narrowed(model, structure, {name: range(count) for name, count in kept.items()})
        for kind, several in counts.items()
        for place, kept in enumerate(several)
    }
    x = model.example(batch)
    names = [layer.name for layer in structure.layers]
    watched = {key: _Watch(net, names) for key, net in nets.items()}
    wholes: dict[tuple[str, int], list[float]] = {key: [] for key in nets}
    for done in range(-1, _ROUNDS):  # the first round warms up
        for step, (key, net) in enumerate(nets.items()):
            progress((done + 1) * len(nets) + step, (_ROUNDS + 1) * len(nets), "timing the layers on this machine")
            whole = _time_whole(net, x)
            with watched[key]:
                net(x)
            if done < 0:
                watched[key].forget()
            else:
                wholes[key].append(whole)
    progress(1, 1, "timing the layers on this machine")
    times: dict[str, dict[str, list[float]]] = {kind: {name: [] for name in (_OTHER, *names)} for kind in counts}
    for (kind, place), seen in watched.items():
        whole, layers = statistics.median(wholes[kind, place]), seen.medians()
        # Watching costs a little itself; where it costs more than all the rest, the layers take all the time there is.
        scale = min(1.0, whole / max(sum(layers.values()), 1e-9))
        for name in names:
            times[kind][name].append(layers[name] * scale)
        times[kind][_OTHER].append(max(0.0, whole - sum(layers.values()) * scale))
    return LatencyTable(
        machine=machine_name(),
        device=str(model.device),
        threads=torch.get_num_threads(),
        batch=batch,
        fingerprint=model.fingerprint,
        counts=counts,
        times=times,
    )


def narrowed(model: Model, structure: Structure, keep: Mapping[str, Sequence[int]]) -> nn.Module:
    """A copy of the network with only the components in ``keep``, weights as they are: for timing."""
    net = copy.deepcopy(model.module)
    remove(net, structure, keep)
    return net.eval()


def _time_whole(net: nn.Module, x: Tensor) -> float:
    """Milliseconds of one pass, the mean over as many as fit into a short while."""
    begin, passes = _now(x), 0
    while passes == 0 or _now(x) - begin < _SECONDS:
        net(x)
        passes += 1
    return 1000 * (_now(x) - begin) / passes


def _now(x: Tensor) -> float:
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)
    elif x.device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


class _Watch:
    """While open, times the named layers."""

    def __init__(self, net: nn.Module, names: Sequence[str]) -> None:
        modules = dict(net.named_modules())
        self.layers = {name: modules[name] for name in names if name in modules}
        self.times: dict[str, list[float]] = {name: [] for name in names}

    def forget(self) -> None:
        for times in self.times.values():
            times.clear()

    def medians(self) -> dict[str, float]:
        """Milliseconds; 0 for what did not run as a module."""
        return {name: 1000 * statistics.median(times) if times else 0.0 for name, times in self.times.items()}

    def __enter__(self) -> None:
        began: dict[str, float] = {}
        spent: dict[str, float] = dict.fromkeys(self.layers, 0.0)

        def before(_: nn.Module, args: tuple[Any, ...], *, name: str) -> None:
            began[name] = _now(args[0])

        def after(_: nn.Module, args: tuple[Any, ...], output: Any, *, name: str) -> None:  # noqa: ARG001
            spent[name] += _now(args[0]) - began[name]

        self.hooks = [
            hook
            for name, layer in self.layers.items()
            for hook in (
                layer.register_forward_pre_hook(functools.partial(before, name=name)),
                layer.register_forward_hook(functools.partial(after, name=name)),
            )
        ]
        self.spent = spent

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()
        for name, value in self.spent.items():
            self.times[name].append(value)
