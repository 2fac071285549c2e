"""Erasure: the project's own way to forget, in closed form and layer by layer.

Masking a logit leaves the class in the features. Here it is taken out of them, on the way to where they are made:

1. At each of the last layers that write to the residual stream (all layers, where nothing is added), the sum that its output
   becomes should be what it was, less the class: ``x → μ + P (x − μ)`` with P of `erasure` (LEACE, Belrose et al. 2023). A layer
   is fitted to that by least squares on what the layers before it, already edited, bring it (theory, section 4, level 3).
2. At the last of them also everything goes that the classifier does not need to tell the other classes apart: the target is
   projected on `retained_rows`. Otherwise the class would still be found as that which is none of the others.
3. The classifier is fitted to its old answers on the retained samples and to their mean on the forget samples, the latter weighed
   by λ (`forgetting_ridge` from the old features to the new ones). λ is the strength that is searched: every λ costs one
   solution of the size of the features. Then the rows of the forget classes, which are knowledge of them too, are emptied as a
   logit mask would: from here on accuracy says nothing more, which is why λ is searched before.
4. BatchNorm's statistics become those of the retained samples, and its scale and shift take up the difference: the network does
   not change, and re-estimating the statistics finds them as they are (that attack brings back what only the statistics hide).

How many layers: the most, of `_DEPTHS` and of half of those there are (the earlier ones compute what all classes share), that
cost the retained samples at most `_LOSS` of their accuracy.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .._operators import Edit, Operator, flat_weight, get_operator, operate, outputs_at, patches, position_count
from .._paths import Path, bias_of, followed, rows_at
from ..errors import UserError
from ..evaluation import classifier_of, hiding_logit
from ..fidelity import TAIL, fit_rows
from ..plan import CurvePoint, Plan, Settings
from ..statistics import draw
from ..surgery import apply
from ._algebra import erasure, retained_rows
from ._classes import Found, Task, curve_point

__all__ = ["erase"]

_DEPTHS = (6, 3, 1)
_LOSS = 0.01
# Rows that a layer is fitted on, for each of its inputs; entries of the matrix of rows; pixels of the one batch of all images.
_ROWS_PER_INPUT, _ENTRIES, _PIXELS = 64, 1 << 27, 1 << 24
# An output whose scale on its way to the sum is smaller than this, relative to the largest, is left as it is.
_SMALLEST_SCALE = 1e-3
# λ, from so little that only what nothing else holds back is moved.
_LAMBDAS = tuple(10 ** (step / 4) for step in range(-16, 13))
_RIDGE = 1e-3
# Values below this share of all would be cut off by the ReLU behind the last sum.
_CUT = 0.005
# Where smooth activations are as good as linear.
_SMOOTH = 4.0

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "relu": F.relu,
    "silu": F.silu,
    "gelu": F.gelu,
    "hardswish": F.hardswish,
    "relu6": F.relu6,
}


def erase(task: Task, depth: int | None) -> Found:
    """See the module's text."""
    run = _Run(task)
    half = max(1, len(run.sites) // 2)
    depths = [d for d in _DEPTHS if d <= half] if depth is None else [min(depth, len(run.sites))]
    before = run.dense()
    best: _Fit | None = None
    for number, deep in enumerate(depths):
        task.progress(number, len(depths), f"erasing in the last {deep} layers")
        found = run.fit(deep)
        if found is None:
            continue
        if best is None or found.point.retain_accuracy > best.point.retain_accuracy:
            best = found
        if found.point.retain_accuracy >= before.retain_accuracy - _LOSS:
            break
    if best is None:
        raise task.unreached(f"no λ up to {_LAMBDAS[-1]:g}")
    tensors = dict(best.tensors)
    task.progress(len(depths), len(depths), "erasing")
    anchored = _anchor(task, tensors)
    return Found(
        tensors=tensors | anchored,
        layers=[*best.layers, run.head],
        point=best.point,
        curve=[before, *best.curve],
        method="erase",
        compensate="full",
        anchored=bool(anchored),
        ridges=best.ridges,
    )


@dataclass(frozen=True)
class _Fit:
    tensors: dict[str, Tensor]
    layers: list[str]
    point: CurvePoint
    curve: list[CurvePoint]
    ridges: dict[str, float]


@dataclass(frozen=True)
class _Site:
    """Where a layer's output, times ``scale`` and plus ``constant`` (O,), is a sum of its own or added to a ``stream``: the
    unchanged network's sum at the layer's positions ``rows`` (r, O), and its average over the positions of every sample (N, O).
    """

    scale: Tensor
    constant: Tensor
    stream: bool
    rows: Tensor
    pooled: Tensor


@dataclass(frozen=True)
class _Readout:
    """How the features come from the last sum: an activation, a normalisation over the channels and an average over the positions
    (or the first of them), the last two in either order.
    """

    activation: str
    norm: nn.LayerNorm | None
    first: bool
    """Only the first position (a class token) is read."""

    def positions(self, rows: Tensor) -> Tensor:
        """(N, P, O) to (N, O)."""
        return rows[:, 0] if self.first else rows.mean(1)

    def __call__(self, rows: Tensor, late: bool) -> Tensor:
        rows = _ACTIVATIONS[self.activation](rows)
        return self._normed(self.positions(rows)) if late else self.positions(self._normed(rows))

    def _normed(self, x: Tensor) -> Tensor:
        if self.norm is None:
            return x
        return F.layer_norm(x, x.shape[-1:], self.norm.weight, self.norm.bias, self.norm.eps)


class _Run:
    """One network and one set of samples; `fit` edits as many of the last layers as it is told."""

    def __init__(self, task: Task) -> None:
        self.task = task
        module, device = task.model.module, task.model.device
        head = classifier_of(task.model)
        if head is None:
            raise UserError(f"{task.model.spec} has no linear classifier; use the method published or subspace")
        self.head = head
        classifier = module.get_submodule(head)
        assert isinstance(classifier, nn.Linear)
        self.classifier = classifier
        most = max(2, _PIXELS // (task.images.shape[2] * task.images.shape[3]))
        used = _spread(task.chosen, most)
        self.images = task.images[used].to(device)
        self.labels, self.chosen = task.labels[used], task.chosen[used]
        self.concept = torch.stack([self.labels == index for index in task.forget], 1).double()
        # Both kinds of sample count the same, however many there are of each.
        count = self.chosen.double().mean()
        self.share = torch.where(self.chosen, 0.5 / count, 0.5 / (1 - count)).float().to(device)
        self.positions: dict[str, Tensor] = {}
        self.sites: dict[str, _Site] = {}
        self.features, self.logits = torch.empty(0), torch.empty(0)
        self.readout: _Readout | None = None
        layers = [name for name in task.study.structure.readers if name != head and not task.study.layers[name].wide]
        if not layers:
            raise UserError("no layer of this network reads what a block computed; use the method subspace or mask")
        with torch.inference_mode():
            self._observe(copy.deepcopy(module), layers)

    def _observe(self, net: nn.Module, layers: Sequence[str]) -> None:
        """The unchanged network: what its layers' outputs become, and the features."""
        count, numbers = len(self.images), torch.arange(len(self.images))
        found: dict[str, _Site] = {}
        whole: dict[str, Tensor] = {}
        outputs: dict[str, Tensor] = {}
        norms: list[nn.LayerNorm] = []
        added_to: set[str] = set()
        candidates = set(layers[-4 * max(_DEPTHS) :])
        seen: list[str] = []

        def see(name: str, layer: Operator, x: Tensor, y: Tensor) -> Tensor:
            if name not in candidates:
                return y
            seen.append(name)
            total, inputs = position_count(layer, x, count), flat_weight(layer).shape[1]
            size = min(total, max(1, -(-min(_ROWS_PER_INPUT * inputs, _ENTRIES // inputs) // count)))
            at = draw(total, size, name, numbers, 0) if size < total else torch.arange(total).expand(count, -1)
            self.positions[name] = at.to(x.device)
            outputs[name] = outputs_at(layer, y, self.positions[name]) + bias_of(layer)
            note(name, y, torch.ones_like(bias_of(layer)), torch.zeros_like(bias_of(layer)), False)
            return y

        def note(name: str, total: Tensor, scale: Tensor, constant: Tensor, stream: bool) -> None:
            every = total.flatten(2).transpose(1, 2) if total.ndim == 4 else total
            every = every.reshape(count, -1, every.shape[-1])
            found[name] = _Site(scale, constant, stream, rows_at(total, self.positions[name]).clone(), every.mean(1))
            whole.clear()
            whole[name] = every.clone()

        def fits(path: Path, own: Tensor) -> tuple[Tensor, Tensor] | None:
            scale, constant = path.affine(own)
            expected = outputs[path.layer] * scale + constant
            if torch.allclose(rows_at(own, self.positions[path.layer]), expected, rtol=1e-3, atol=1e-4):
                return scale, constant
            return None

        def added(path: Path, own: Tensor, other: Tensor) -> Tensor | None:
            if path.layer not in candidates:
                return None
            affine = fits(path, own)
            if affine is None:
                return None
            added_to.add(path.layer)
            note(path.layer, own + other, *affine, True)
            return own

        def cut_off(path: Path, x: Tensor) -> None:
            if path.layer in candidates and not path.added:
                affine = fits(path, x)
                if affine is not None:
                    note(path.layer, x, *affine, False)

        def normed(module: nn.Module, _: object, __: object) -> None:
            assert isinstance(module, nn.LayerNorm)
            norms.append(module)

        features: list[Tensor] = []
        hooks = [m.register_forward_hook(normed) for m in net.modules() if isinstance(m, nn.LayerNorm)]
        hooks.append(
            net.get_submodule(self.head).register_forward_pre_hook(lambda _, args: features.append(args[0].flatten(1)))
        )
        try:
            with followed(net, layers, see, added, cut_off):
                self.logits = net(self.images).cpu().double()
        finally:
            for hook in hooks:
                hook.remove()
        self.features = features[-1].cpu().double()
        last = seen[-1]
        self.sites = {name: found[name] for name in seen if name in added_to or name == last or not added_to}
        self.readout = self._read_out(whole[last], features[-1], norms[-1] if norms else None)

    def _read_out(self, total: Tensor, features: Tensor, norm: nn.LayerNorm | None) -> _Readout | None:
        """Which of the usual ways leads from the last sum to the features; None if it is another one."""
        if total.shape[-1] != features.shape[1]:
            return None
        for activation in _ACTIVATIONS:
            for used in (None, norm) if norm is not None else (None,):
                for first in (False, True):
                    for late in (False, True) if used is not None else (False,):
                        readout = _Readout(activation, used, first)
                        if torch.allclose(readout(total, late), features, rtol=1e-3, atol=1e-3):
                            return readout
        return None

    def dense(self) -> CurvePoint:
        """The unchanged network on the samples that are used."""
        return self._point(0.0, self.logits)

    def _point(self, strength: float, logits: Tensor) -> CurvePoint:
        return curve_point(strength, logits.argmax(1), self.labels, self.chosen)

    def _goal(self, name: str, last: bool) -> Tensor:
        """(r, O): what the sum should be at the layer's positions."""
        site = self.sites[name]
        rows = site.rows.cpu().double()
        if not last or self.readout is None:
            center = site.pooled.cpu().double().mean(0)
            return center + (rows - center) @ erasure(site.pooled.cpu(), self.concept).T
        readout = self.readout
        weight = self.classifier.weight.detach().cpu().double()[self.task.retain]
        if readout.norm is not None:
            # Up to the scale of each sample, which varies little, the normalisation takes off the mean and multiplies.
            gamma = readout.norm.weight.detach().cpu().double()
            weight = weight * gamma
            weight = weight - weight.mean(1, keepdim=True)
        keep = retained_rows(weight)
        active = _ACTIVATIONS[readout.activation](rows)
        pooled = self.features if readout.norm is None else site.pooled.cpu().double()
        center = pooled.mean(0)
        goal = (active - center) @ erasure(pooled, self.concept).T @ keep.T @ keep
        if readout.activation == "identity":
            return goal + center
        low = -torch.quantile(goal[:: max(1, len(goal) // 50_000)], _CUT, dim=0).clamp(max=0)
        return goal + low + (0.0 if readout.activation in ("relu", "relu6") else _SMOOTH)

    @torch.inference_mode()
    def fit(self, depth: int) -> _Fit | None:
        """The edited network, every layer fitted as it runs; None if no λ reaches the target."""
        net = copy.deepcopy(self.task.model.module)
        layers = list(self.sites)[-depth:]
        edits: dict[str, Edit] = {}
        ridges: dict[str, float] = {}
        waiting: dict[str, Tensor] = {}

        def fitted(name: str, layer: Operator, x: Tensor, stream: Tensor | None, constant: Tensor) -> Tensor:
            """The layer's new output for ``x``."""
            site, own, at = self.sites[name], flat_weight(layer), self.positions[name]
            goal = self._goal(name, name == layers[-1]).to(own)
            if stream is not None:
                goal = goal - stream
            able = site.scale.abs() > _SMALLEST_SCALE * site.scale.abs().max()
            rows = patches(layer, x, at)
            wanted = (goal - constant) / torch.where(able, site.scale, 1.0) - bias_of(layer)
            wanted = torch.where(able, wanted, rows @ own.T)
            share = self.share.to(own).repeat_interleave(at.shape[1])
            weight, shift, ridges[name] = fit_rows(rows, wanted, own, TAIL, True, share=share)
            edits[name] = Edit(weight.cpu(), shift.cpu())
            self.task.progress(len(edits), len(layers), f"erasing in the last {depth} layers")
            return operate(layer, x, weight.to(own), shift.to(own) + bias_of(layer))

        def see(name: str, layer: Operator, x: Tensor, y: Tensor) -> Tensor:
            if name not in layers:
                return y
            if self.sites[name].stream:
                waiting[name] = x
                return y
            return fitted(name, layer, x, None, self.sites[name].constant)

        def added(path: Path, own: Tensor, other: Tensor) -> Tensor | None:
            x = waiting.pop(path.layer, None)
            if x is None:
                return None
            _, constant = path.affine(own)
            stream = rows_at(other, self.positions[path.layer])
            answer = fitted(path.layer, get_operator(net, path.layer), x, stream, constant)
            return path.run(answer).reshape(own.shape)

        features: list[Tensor] = []
        hook = net.get_submodule(self.head).register_forward_pre_hook(
            lambda _, args: features.append(args[0].flatten(1).cpu().double())
        )
        try:
            with followed(net, list(self.task.study.structure.readers), see, added, None):
                net(self.images)
        finally:
            hook.remove()
        assert not waiting, "an addition that was seen in the unchanged network did not come"
        curve = []
        taken: tuple[CurvePoint, Tensor, Tensor] | None = None
        for strength in _LAMBDAS:
            weight, bias = self._classifier(features[-1], strength)
            curve.append(self._point(strength, features[-1] @ weight.T + bias))
            if curve[-1].forget_accuracy <= self.task.target:
                taken = curve[-1], weight, bias
                break
        if taken is None:
            return None
        point, weight, bias = taken
        # Its row is knowledge of the class too.
        hidden = hiding_logit(features[-1] @ weight.T + bias, self.task.forget)
        weight[self.task.forget], bias[self.task.forget] = 0.0, hidden
        point = self._point(point.strength, features[-1] @ weight.T + bias)
        tensors = {f"{name}.weight": edit.weight.float() for name, edit in edits.items()}
        tensors |= {f"{name}.shift": edit.shift.float() for name, edit in edits.items()}
        old = self.classifier.bias
        tensors[f"{self.head}.weight"] = weight.float()
        tensors[f"{self.head}.shift"] = (bias if old is None else bias - old.detach().cpu().double()).float()
        return _Fit(tensors, layers, point, curve, ridges)

    def _classifier(self, features: Tensor, strength: float) -> tuple[Tensor, Tensor]:
        """(K, d) and (K,): from the new features to the old logits on the retained samples, to their mean on the others."""
        target = self.logits.clone()
        target[self.chosen] = self.logits[~self.chosen].mean(0)
        kinds = torch.where(self.chosen, strength / self.chosen.sum(), 1 / (~self.chosen).sum()).double()
        each = (kinds / kinds.sum())[:, None]
        mean_x, mean_y = (features * each).sum(0), (target * each).sum(0)
        x = features - mean_x
        second = x.T @ (x * each)
        second.diagonal().add_(_RIDGE * second.diagonal().mean())
        weight = torch.linalg.solve(second, x.T @ ((target - mean_y) * each)).T
        return weight, mean_y - weight @ mean_x


def _spread(chosen: Tensor, most: int) -> Tensor:
    """The numbers of at most so many samples, of either kind in its share (at least one), spread evenly over all."""
    if len(chosen) <= most:
        return torch.arange(len(chosen))
    parts = []
    for which in (chosen, ~chosen):
        numbers = torch.nonzero(which)[:, 0]
        count = max(1, round(most * len(numbers) / len(chosen)))
        parts.append(numbers[torch.linspace(0, len(numbers) - 1, count).round().long()])
    return torch.cat(parts).sort().values


@torch.inference_mode()
def _anchor(task: Task, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """New statistics, scale and shift of every BatchNorm of the edited network, which leave it as it is."""
    norms = [name for name, module in task.model.module.named_modules() if _anchorable(module)]
    if not norms:
        return {}
    plan = Plan(kind="unlearn", model=task.study.model, calibration=task.data, settings=Settings()).with_tensors(
        tensors
    )
    net = apply(plan, task.model, masked=True).module
    sums: dict[str, tuple[Tensor, Tensor, int]] = {}

    def note(name: str, x: Tensor) -> None:
        # MPS has no float64.
        x = (x.cpu() if x.device.type == "mps" else x).transpose(0, 1).flatten(1).double()
        first, second, count = sums.get(name, (torch.zeros_like(x[:, 0]), torch.zeros_like(x[:, 0]), 0))
        sums[name] = first + x.sum(1), second + x.square().sum(1), count + x.shape[1]

    hooks = [
        net.get_submodule(name).register_forward_pre_hook(lambda _, args, name=name: note(name, args[0]))
        for name in norms
    ]
    try:
        retained = task.images[~task.chosen].split(128)
        for number, batch in enumerate(retained):
            task.progress(number, len(retained), "anchoring BatchNorm")
            net(batch.to(task.model.device))
    finally:
        for hook in hooks:
            hook.remove()
    found: dict[str, Tensor] = {}
    for name in norms:
        norm = net.get_submodule(name)
        assert isinstance(norm, _BatchNorm)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        first, second, count = sums[name]
        first, second = first.cpu(), second.cpu()
        mean = first / count
        variance = (second / count - mean.square()).clamp(min=0) * (count / max(1, count - 1))
        gain = norm.weight.cpu().double() / (norm.running_var.cpu().double() + norm.eps).sqrt()
        new = {
            "running_mean": mean,
            "running_var": variance,
            "weight": gain * (variance + norm.eps).sqrt(),
            "bias": norm.bias.cpu().double() + gain * (mean - norm.running_mean.cpu().double()),
        }
        found |= {f"{name}.{what}": value.float() for what, value in new.items()}
    return found


def _anchorable(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) and module.track_running_stats and module.affine
