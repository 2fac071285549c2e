"""Compensation layer by layer (theory, section 4, level 3): each layer is fitted to what the layers before it, already
changed, really give it, with the unchanged network's outputs as the target.

Both networks run once on all images in one batch. In the changed one every layer that reads components is fitted in the
moment it runs, so that the pass itself brings the next layer its input.

Where a layer's output goes into a ReLU and nowhere else, an output that was cut off there need not be met, only stay below
(Zhang et al. 2016, "Accelerating very deep convolutional networks", section 3.2): such targets follow the fit as far as the
threshold, and the layer is fitted again, a few times with the same factorisation.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from .._operators import Edit, Operator, flat_weight, get_operator, operate, outputs_at, patches, position_count
from ..progress import Progress, silent
from ..statistics import draw
from ..study import Study
from ..surgery import remaining_columns

__all__ = ["TAIL", "sequential"]

# The ridge is the eigenvalue below which so little of the energy of a layer's input lies, all smaller ones together: what the
# inputs hardly ever do, the weights are not changed for.
TAIL = 1e-4
# Rows that a layer is fitted on, for each of its inputs.
_ROWS_PER_INPUT = 64
# At most so many entries in the matrix of rows, 512 MiB.
_ENTRIES = 1 << 27
# How often a layer before a ReLU is fitted again.
_ROUNDS = 3
# All images run in one batch; more pixels than this would need too much memory.
_PIXELS = 1 << 24
# An output whose scale on its way to the stream is smaller than this, relative to the largest, takes up no drift.
_SMALLEST_SCALE = 1e-3

_RECTIFIERS = ("relu", "relu_")
_ADDITIONS = ("add", "__add__", "__radd__", "__iadd__", "add_")  # in place, += is the last one


@torch.inference_mode()
def sequential(
    study: Study,
    keep: Mapping[str, Sequence[int]],
    module: nn.Module,
    images: Tensor,
    *,
    centred: bool = True,
    tail: float = TAIL,
    drift: bool = True,
    rectified: bool = True,
    progress: Progress = silent,
) -> tuple[dict[str, Edit], dict[str, float]]:
    """New weights for every layer that reads components, in the coordinates of the unchanged network, and the ridge that each was
    fitted with.

    Args:
        study: of ``module``; its structure says which layers read what, and its moments answer for layers that are too wide.
        keep: the components that stay of each group.
        module: the unchanged network; it is left as it is.
        images: (N, 3, H, W). So many of them are used as fit into memory in one batch.
        centred: whether a lost mean is put back as a constant.
        tail: chooses the ridge that pulls the weights towards the old ones: the eigenvalue of the input's second moment below
            which this share of the energy lies.
        drift: whether a layer that is added to a residual stream (as it is, or by way of BatchNorm or a LayerScale module) also
            makes up for what the stream has lost so far.
        rectified: whether what a ReLU cuts off is only kept below its threshold.
        progress: see `modhifi.progress`.
    """
    device = next(module.parameters()).device
    used = images[: max(1, _PIXELS // (images.shape[2] * images.shape[3]))].to(device)
    pass_ = _Pass(study, keep, module, len(used), centred, tail, progress)
    pass_.observe(used, drift, rectified)
    pass_.fit(used)
    return pass_.edits, pass_.chosen


class _Pass:
    def __init__(
        self,
        study: Study,
        keep: Mapping[str, Sequence[int]],
        module: nn.Module,
        samples: int,
        centred: bool,
        tail: float,
        progress: Progress,
    ) -> None:
        self.study, self.keep, self.module, self.samples = study, keep, module, samples
        self.centred, self.tail, self.progress = centred, tail, progress
        self.layers = list(study.structure.readers)
        self.positions: dict[str, Tensor] = {}
        self.targets: dict[str, Tensor] = {}
        self.streams: dict[str, _Stream] = {}
        self.thresholds: dict[str, _Threshold] = {}
        self.edits: dict[str, Edit] = {}
        self.chosen: dict[str, float] = {}

    def observe(self, images: Tensor, drift: bool, rectified: bool) -> None:
        """The unchanged network: the outputs of every layer, the streams that they are added to, and what is cut off."""
        net = copy.deepcopy(self.module)
        numbers = torch.arange(self.samples)

        def see(name: str, layer: Operator, x: Tensor, y: Tensor) -> Tensor:
            count, inputs = position_count(layer, x, self.samples), flat_weight(layer).shape[1]
            rows = min(_ROWS_PER_INPUT * inputs, _ENTRIES // inputs)
            size = min(count, max(1, -(-rows // self.samples)))
            at = draw(count, size, name, numbers, 0) if size < count else torch.arange(count).expand(self.samples, -1)
            self.positions[name] = at.to(x.device)
            self.targets[name] = outputs_at(layer, y, self.positions[name])
            self.progress(len(self.targets), 2 * len(self.layers), "compensating in sequence")
            return y

        def added(path: _Path, own: Tensor, other: Tensor) -> Tensor | None:
            scale, constant = path.affine(own)
            at = self.positions[path.layer]
            expected = self.targets[path.layer] + _bias(get_operator(net, path.layer))
            # Something in between that is no affine map of each channel (an activation in place) rules it out.
            if not torch.allclose(_rows(own, at), expected * scale + constant, rtol=1e-3, atol=1e-4):
                return None
            self.streams[path.layer] = _Stream(_rows(other, at), scale)
            return own  # of two layers that are added to one another, the second is fitted as it runs

        def cut_off(path: _Path, x: Tensor) -> None:
            at = self.positions[path.layer]
            if path.added:
                if path.layer in self.streams:
                    self.thresholds[path.layer] = _Threshold(_rows(x, at) > 0, path)
                return
            scale, constant = path.affine(x)
            target = self.targets[path.layer] + _bias(get_operator(net, path.layer))
            if torch.allclose(_rows(x, at), target * scale + constant, rtol=1e-3, atol=1e-4):
                self.thresholds[path.layer] = _Threshold(_rows(x, at) > 0, path, scale, constant)

        with _followed(net, self.layers, see, added if drift else None, cut_off if rectified else None):
            net(images)
        # What is also used elsewhere must be met there.
        self.thresholds = {name: one for name, one in self.thresholds.items() if one.path.only_once}

    def fit(self, images: Tensor) -> None:
        """The changed network: every layer fitted as it runs; one that is added to a stream, at the addition."""
        net = copy.deepcopy(self.module)
        waiting: dict[str, Tensor] = {}

        def see(name: str, layer: Operator, x: Tensor, y: Tensor) -> Tensor:
            if name in self.streams:
                waiting[name] = x
                return y
            threshold = self.thresholds.get(name)
            limit = None if threshold is None else threshold.limit(_bias(layer))
            return self._fitted(name, layer, x, self.targets[name], limit)

        def added(path: _Path, own: Tensor, other: Tensor) -> Tensor | None:
            x = waiting.pop(path.layer, None)
            if x is None:
                return None
            stream = self.streams[path.layer]
            lost = stream.rows - _rows(other, self.positions[path.layer])
            able = stream.scale.abs() > _SMALLEST_SCALE * stream.scale.abs().max()
            lost = torch.where(able, lost / torch.where(able, stream.scale, 1.0), 0.0)
            layer = get_operator(net, path.layer)
            threshold, limit = self.thresholds.get(path.layer), None
            if threshold is not None:
                # The constant on the way, and what the stream is now.
                _, constant = path.affine(own)
                now = dataclasses.replace(threshold, scale=stream.scale, constant=constant)
                limit = now.limit(_bias(layer), _rows(other, self.positions[path.layer]))
            fitted = self._fitted(path.layer, layer, x, self.targets[path.layer] + lost, limit)
            return path.run(fitted).reshape(own.shape)

        with _followed(net, self.layers, see, added, None):
            net(images)
        assert not waiting, "an addition that was seen in the unchanged network did not come"

    def _fitted(self, name: str, layer: Operator, x: Tensor, target: Tensor, limit: _Limit | None) -> Tensor:
        """Fits a layer to the rows (r, O) of ``target``, keeps the edit, and gives the layer's new output for ``x``."""
        self.progress(len(self.layers) + len(self.edits), 2 * len(self.layers), "compensating in sequence")
        stats, own = self.study.layers[name], flat_weight(layer)
        if stats.wide:
            read = {g.name: torch.as_tensor(self.keep[g.name]) for g, _ in self.study.structure.readers[name]}
            edit = stats.edit(read, "full", self.centred, self.study.ridge)
            self.chosen[name] = stats.ridge(self.centred, self.study.ridge)
        else:
            stays = remaining_columns(self.study.structure, name, own, self.keep)
            rows = patches(layer, x, self.positions[name])[:, stays]
            weight, shift, self.chosen[name] = fit_rows(rows, target, own[:, stays], self.tail, self.centred, limit)
            new = torch.zeros(own.shape, dtype=weight.dtype, device=weight.device)
            new[:, stays] = weight
            edit = Edit(new, shift)
        self.edits[name] = Edit(edit.weight.cpu(), edit.shift.cpu())
        return operate(layer, x, edit.weight.to(own), edit.shift.to(own) + _bias(layer))


@dataclasses.dataclass(frozen=True)
class _Limit:
    """For outputs that a ReLU cuts off: ``free`` (r, O) bool says which, and ``bound`` (O,) or (r, O) how far they may go:
    up to there, or where ``falling`` (O,) down to there.
    """

    free: Tensor
    bound: Tensor
    falling: Tensor

    def follow(self, target: Tensor, found: Tensor) -> Tensor:
        """``target`` where it must be met; elsewhere what was ``found``, as far as it may go."""
        within = torch.where(self.falling, torch.maximum(found, self.bound), torch.minimum(found, self.bound))
        return torch.where(self.free, within, target)


def fit_rows(
    rows: Tensor, target: Tensor, own: Tensor, tail: float, centred: bool, limit: _Limit | None = None
) -> tuple[Tensor, Tensor, float]:
    """``W' = argmin E‖y − W'x − b‖² + λ‖W' − W‖²`` from ``rows`` (r, n), ``target`` (r, O) and the weights as they are, ``own``
    (O, n): W' (O, n), b (O,), which is 0 unless ``centred``, both float64, and λ relative to the mean eigenvalue of E[x xᵀ]. λ is
    the largest eigenvalue for which the smaller ones and itself hold at most ``tail`` of the trace. With a ``limit`` the targets
    that are free follow the fit, in turns.
    """
    exact = torch.float32 if rows.device.type == "mps" else torch.float64
    mean_x = rows.to(exact).mean(0) if centred else rows.new_zeros(rows.shape[1], dtype=exact)
    x = rows - mean_x.to(rows)
    second = (x.T @ x).to(exact) / len(rows)
    pull = max(_tail_eigenvalue(second, tail), 1e-12)
    relative = pull / max(float(second.diagonal().mean()), 1e-12)
    second.diagonal().add_(pull)
    factor = torch.linalg.cholesky(second)

    def solved(target: Tensor) -> tuple[Tensor, Tensor]:
        mean_y = target.to(exact).mean(0) if centred else target.new_zeros(target.shape[1], dtype=exact)
        cross = ((target - mean_y.to(target)).T @ x).to(exact) / len(rows) + pull * own.to(exact)
        weight = torch.cholesky_solve(cross.T, factor).T
        return weight, mean_y - weight @ mean_x

    weight, constant = solved(target)
    for _ in range(0 if limit is None else _ROUNDS):
        assert limit is not None
        weight, constant = solved(limit.follow(target, rows @ weight.to(rows).T + constant.to(rows)))
    return weight, constant, relative


def _tail_eigenvalue(second: Tensor, tail: float) -> float:
    # Single precision will do for a threshold, and takes a fraction of the time for wide layers.
    values = torch.linalg.eigvalsh(second.float()).clamp(min=0.0)
    few = values.cumsum(0) <= tail * values.sum()
    return float(values[few][-1]) if bool(few.any()) else 0.0


@dataclasses.dataclass
class _Stream:
    """What a layer's output is added to, at the layer's positions (r, O), and the ``scale`` (O,) of the output there."""

    rows: Tensor
    scale: Tensor


@dataclasses.dataclass(frozen=True)
class _Threshold:
    """A ReLU that a layer's output, times ``scale`` and plus ``constant`` (O,) each, goes into by ``path``: which rows were
    ``active`` (r, O).
    """

    active: Tensor
    path: _Path
    scale: Tensor | None = None
    constant: Tensor | None = None

    def limit(self, bias: Tensor, stream: Tensor | float = 0.0) -> _Limit:
        """In terms of the layer's output without its ``bias``, when ``stream`` (r, O) is added on the way."""
        assert self.scale is not None
        assert self.constant is not None
        able = self.scale.abs() > _SMALLEST_SCALE * self.scale.abs().max()
        scale = torch.where(able, self.scale, 1.0)
        return _Limit(~self.active & able, -(self.constant + stream) / scale - bias, scale < 0)


@dataclasses.dataclass(frozen=True)
class _Path:
    """Where a tensor comes from: a layer's output, passed on by ``modules`` that treat each channel by itself, and perhaps
    ``added`` to something. ``uses`` counts what it goes into, all the way.
    """

    layer: str
    modules: tuple[nn.Module, ...] = ()
    added: bool = False
    uses: list[int] = dataclasses.field(default_factory=lambda: [0])

    @property
    def only_once(self) -> bool:
        """Whether nothing but the way itself and one thing at its end uses the layer's output."""
        return self.uses[0] == len(self.modules) + self.added + 1

    def run(self, y: Tensor) -> Tensor:
        for module in self.modules:
            y = module(y)
        return y

    def affine(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and constant (O,) of each channel, for tensors of the shape of ``like``."""
        probe = torch.zeros_like(like[:1])
        constant = self.run(probe)
        scale = self.run(probe + 1) - constant
        first = torch.zeros(1, 1, dtype=torch.int64, device=like.device)
        return _rows(scale, first)[0], _rows(constant, first)[0]


class _Watching(TorchFunctionMode):
    """Tells of every addition of two tensors of one shape of which one comes from a known layer (what is answered takes that
    tensor's place), and of every ReLU of such a tensor or sum.
    """

    def __init__(
        self,
        added: Callable[[_Path, Tensor, Tensor], Tensor | None] | None,
        cut_off: Callable[[_Path, Tensor], None] | None,
    ) -> None:
        super().__init__()
        self.added, self.cut_off = added, cut_off
        self.passing = 0
        """How many of the modules that pass a tensor on are running."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        # Reading a shape uses nothing, and a module that passes a tensor on uses it once, whatever it does inside.
        if name != "__get__" and not self.passing:
            for used in _paths((*args, *(kwargs or {}).values())):
                used.uses[0] += 1
        if name in _RECTIFIERS:
            path = _path(args[0])
            if path is not None and self.cut_off is not None:
                self.cut_off(path, args[0])
            cut = func(*args, **(kwargs or {}))
            if path is not None and cut is args[0]:
                del cut._path  # in place: it is not that output any more
            return cut
        if name in _ADDITIONS and len(args) == 2 and not kwargs and self.added is not None:
            first, second = args
            if isinstance(first, Tensor) and isinstance(second, Tensor) and first.shape == second.shape:
                for own, other in ((first, second), (second, first)):
                    path = _path(own)
                    if path is None or path.added:
                        continue
                    instead = self.added(path, own, other)
                    if instead is None:
                        continue
                    if name != "add_":
                        total = torch.add(instead, other)
                    else:
                        total = first.copy_(instead).add_(second) if own is first else first.add_(instead)
                    total._path = dataclasses.replace(path, added=True)  # type: ignore[attr-defined]
                    return total
        return func(*args, **(kwargs or {}))


def _path(value: object) -> _Path | None:
    return getattr(value, "_path", None) if isinstance(value, Tensor) else None


def _paths(values: Sequence[object]) -> list[_Path]:
    """Those of the tensors among ``values`` and in the lists among them, each once."""
    flat = [one for value in values for one in (value if isinstance(value, (list, tuple)) else (value,))]
    return list({id(path): path for path in map(_path, flat) if path is not None}.values())


@contextlib.contextmanager
def _followed(
    net: nn.Module,
    layers: Sequence[str],
    see: Callable[[str, Operator, Tensor, Tensor], Tensor],
    added: Callable[[_Path, Tensor, Tensor], Tensor | None] | None,
    cut_off: Callable[[_Path, Tensor], None] | None,
) -> Iterator[None]:
    """While open, ``see`` may replace the output of each named layer, ``added`` is told where that output is added to something,
    and ``cut_off`` where it or such a sum goes into a ReLU.
    """
    hooks = []

    def ran(layer: nn.Module, args: tuple[Any, ...], output: Tensor, *, name: str) -> Tensor:
        answer = see(name, layer, args[0], output)  # type: ignore[arg-type]
        answer._path = _Path(name)  # type: ignore[attr-defined]
        return answer

    watching = _Watching(added, cut_off)

    def passes(_: nn.Module, args: tuple[Any, ...]) -> None:
        watching.passing += 1
        path = _path(args[0])
        if path is not None:
            path.uses[0] += 1

    def passed(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        watching.passing -= 1
        path = _path(args[0])
        if path is not None and not path.added and output is not args[0]:
            output._path = dataclasses.replace(path, modules=(*path.modules, module))  # type: ignore[attr-defined]

    try:
        for name in layers:
            layer = get_operator(net, name)
            hooks.append(
                layer.register_forward_hook(lambda layer, args, output, name=name: ran(layer, args, output, name=name))
            )
        for module in net.modules():
            if isinstance(module, _BatchNorm) or type(module).__name__.startswith("LayerScale"):
                hooks.append(module.register_forward_pre_hook(passes))
                hooks.append(module.register_forward_hook(passed))
        with watching:
            yield
    finally:
        for hook in hooks:
            hook.remove()


def _rows(y: Tensor, at: Tensor) -> Tensor:
    """(samples·p, O) of a map (B, O, H, W) or of tokens (B, …, O), at the positions (samples, p) of each sample."""
    tokens = y.flatten(2).transpose(1, 2) if y.ndim == 4 else y
    tokens = tokens.reshape(len(at), -1, tokens.shape[-1])
    return tokens[torch.arange(len(at), device=y.device)[:, None], at].reshape(-1, tokens.shape[-1])


def _bias(layer: Operator) -> Tensor:
    return layer.weight.new_zeros(layer.weight.shape[0]) if layer.bias is None else layer.bias.detach()
