"""Timing of the layers of a network at several widths on this machine, for a `LatencyTable`.

The network is physically pruned, all groups alike, to nine widths, once to multiples of 8 channels and once to odd numbers,
and every layer is timed while the network runs. Everything that is not a layer (activations, normalisation, dispatch) is the
remainder of the network's time.
"""

from __future__ import annotations

import copy
import functools
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..components import Structure
from ..errors import UserError
from ..models import Model
from ..progress import Progress, silent
from ..surgery import remove
from ._latency import ALIGNED, OTHER, LatencyKey, LatencyTable

__all__ = ["latency_table", "measure_table", "narrowed"]

_SHARES = (0.0625, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
_ROUNDS = 7
_SECONDS = 0.03


def latency_table(
    path: Path, model: Model, structure: Structure, *, batch: int = 1, progress: Progress = silent
) -> LatencyTable:
    """The table saved at ``path`` if it was measured for this network, device, thread count and batch size on this machine;
    otherwise measures it and saves it there.
    """
    key = LatencyKey.here(model.fingerprint, model.device, batch)
    known = LatencyTable.kept(path, key, structure)
    if known is not None:
        return known
    table = measure_table(model, structure, batch=batch, progress=progress)
    table.save(path)
    return table


def _channels(structure: Structure, group: str) -> int:
    """Channels per component, on the side of the layers that write it."""
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
    """Times the layers of ``model`` on ``batch`` random samples; ``model`` is not modified. Takes a few seconds for small
    networks.

    Raises `UserError` for language models.
    """
    if model.tokens is not None:
        raise UserError("language models have no latency budget; use --params or --flops")
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
            progress((done + 1) * len(nets) + step, (_ROUNDS + 1) * len(nets), "timing layers")
            whole = _time_whole(net, x)
            with watched[key]:
                net(x)
            if done < 0:
                watched[key].forget()
            else:
                wholes[key].append(whole)
    progress(1, 1, "timing layers")
    times: dict[str, dict[str, list[float]]] = {kind: {name: [] for name in (OTHER, *names)} for kind in counts}
    for (kind, place), seen in watched.items():
        whole, layers = statistics.median(wholes[kind, place]), seen.medians()
        # Hooks cost time too. If the layers seem slower than the whole network, scale them down to its time.
        scale = min(1.0, whole / max(sum(layers.values()), 1e-9))
        for name in names:
            times[kind][name].append(layers[name] * scale)
        times[kind][OTHER].append(max(0.0, whole - sum(layers.values()) * scale))
    return LatencyTable(
        key=LatencyKey.here(model.fingerprint, model.device, batch),
        counts=counts,
        times=times,
    )


def narrowed(model: Model, structure: Structure, keep: Mapping[str, Sequence[int]]) -> nn.Module:
    """A copy of the network with only the components in ``keep`` and unchanged weights, for timing."""
    net = copy.deepcopy(model.module)
    remove(net, structure, keep)
    return net.eval()


def _time_whole(net: nn.Module, x: Tensor) -> float:
    """Milliseconds of one forward pass, averaged over as many as fit into `_SECONDS`."""
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
    """Times the named layers inside the context."""

    def __init__(self, net: nn.Module, names: Sequence[str]) -> None:
        modules = dict(net.named_modules())
        self.layers = {name: modules[name] for name in names if name in modules}
        self.times: dict[str, list[float]] = {name: [] for name in names}

    def forget(self) -> None:
        for times in self.times.values():
            times.clear()

    def medians(self) -> dict[str, float]:
        """Median milliseconds per layer; 0 for layers that did not run as a module."""
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
