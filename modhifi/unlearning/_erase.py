"""Erasure: this project's own unlearning method, in closed form and layer by layer.

Masking a logit leaves the class in the features. Erasure takes it out of them, where they are computed:

1. At each of the last layers that write to the residual stream (all layers, where nothing is added), the sum that the
   output becomes should be what it was, minus the class: ``x → μ + P (x − μ)`` with P of `erasure` (LEACE, Belrose et al.
   2023). A layer is fitted to that by least squares on the inputs that the layers before it, already edited, produce
   (`modhifi.statistics.fit_in_sequence`).
2. At the last of them everything goes that the classifier does not need to distinguish the other classes: the target is
   projected on `retained_rows`. Otherwise the class could still be recognised as "none of the others".
3. The classifier is fitted to its old outputs on the retain set and to their mean on the forget set, the latter weighted by
   λ (`forgetting_ridge` from the old features to the new ones). λ is the strength that is searched: each λ costs one
   solution of the size of the features. Then the rows of the forget classes, which are knowledge of the class too, are
   emptied as a logit mask would do. From here on accuracy says nothing more, which is why λ is searched before.
4. BatchNorm's statistics become those of the retain set, and its scale and shift absorb the difference: the network does
   not change, and re-estimating the statistics finds the same ones (that attack brings back what only the statistics hide).

The number of layers edited is the largest of `_DEPTHS`, at most half of the layers (earlier ones compute what all classes
share), that costs at most `_LOSS` of retain accuracy.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..evaluation import classifier_of, hiding_logit
from ..fidelity import TAIL, fit_rows
from ..layers import Edit, Operator, Route, bias_of, flat_weight, operate, patches, rows_at
from ..plan import CurvePoint
from ..statistics import Affine, Observed, Site, able, at_most, fit_in_sequence, observe
from ._algebra import erasure, retained_rows
from ._anchor import anchor
from ._classes import Found, Task, curve_point
from ._readout import Readout, find_readout

__all__ = ["erase"]

_DEPTHS = (6, 3, 1)
_LOSS = 0.01
# λ, from so small that only directions that nothing else holds back are moved.
_LAMBDAS = tuple(10 ** (step / 4) for step in range(-16, 13))
_RIDGE = 1e-3
# The share of values that the ReLU behind the last sum may cut off.
_CUT = 0.005
# From here on smooth activations are as good as linear.
_SMOOTH = 4.0


def erase(task: Task, depth: int | None) -> Found:
    """Erases the classes of ``task`` in the last ``depth`` layers, or in as many as cost little; see the module's docstring."""
    run = _Run(task)
    half = max(1, len(run.sums) // 2)
    depths = [d for d in _DEPTHS if d <= half] if depth is None else [min(depth, len(run.sums))]
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
    anchored = anchor(task, tensors)
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
class _Sum:
    """What a layer's output becomes after ``scale`` and ``constant`` (O,), by itself or added to a ``stream``: the original
    network's sum at the layer's positions, ``rows`` (r, O), and its average over all positions of each sample, ``pooled``
    (N, O).
    """

    scale: Tensor
    constant: Tensor
    stream: bool
    rows: Tensor
    pooled: Tensor


class _Run:
    """One network and one set of samples; `fit` edits the last layers, as many as asked for."""

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
        used = _spread(task.chosen, max(2, at_most(task.images)))
        self.images = task.images[used].to(device)
        self.labels, self.chosen = task.labels[used], task.chosen[used]
        self.concept = torch.stack([self.labels == index for index in task.forget], 1).double()
        # Forget and retain set count the same, whatever their sizes.
        count = self.chosen.double().mean()
        self.share = torch.where(self.chosen, 0.5 / count, 0.5 / (1 - count)).float().to(device)
        self.observed = Observed()
        self.sums: dict[str, _Sum] = {}
        self.features, self.logits = torch.empty(0), torch.empty(0)
        self.readout: Readout | None = None
        layers = [name for name in task.study.structure.readers if name != head and not task.study.layers[name].wide]
        if not layers:
            raise UserError("no layer of this network reads what a block computed; use the method subspace or mask")
        with torch.inference_mode():
            self._observe(copy.deepcopy(module), layers)

    def _observe(self, net: nn.Module, layers: Sequence[str]) -> None:
        """The original network: the sums that its layers' outputs become, and the features."""
        count = len(self.images)
        found: dict[str, _Sum] = {}
        whole: dict[str, Tensor] = {}
        norms: list[nn.LayerNorm] = []
        added_to: set[str] = set()
        candidates = layers[-4 * max(_DEPTHS) :]

        def note(name: str, total: Tensor, affine: Affine, stream: bool) -> None:
            every = total.flatten(2).transpose(1, 2) if total.ndim == 4 else total
            every = every.reshape(count, -1, every.shape[-1])
            rows = rows_at(total, self.observed.positions[name]).clone()
            found[name] = _Sum(*affine, stream, rows, every.mean(1))
            whole.clear()
            whole[name] = every.clone()

        def output(name: str, layer: Operator, y: Tensor) -> None:
            note(name, y, (torch.ones_like(bias_of(layer)), torch.zeros_like(bias_of(layer))), False)

        def added(route: Route, own: Tensor, other: Tensor, affine: Affine) -> None:
            added_to.add(route.layer)
            note(route.layer, own + other, affine, True)

        def cut_off(route: Route, x: Tensor, affine: Affine | None) -> None:
            if affine is not None:
                note(route.layer, x, affine, False)

        def normed(module: nn.Module, _: object, __: object) -> None:
            assert isinstance(module, nn.LayerNorm)
            norms.append(module)

        features: list[Tensor] = []
        hooks = [m.register_forward_hook(normed) for m in net.modules() if isinstance(m, nn.LayerNorm)]
        hooks.append(
            net.get_submodule(self.head).register_forward_pre_hook(lambda _, args: features.append(args[0].flatten(1)))
        )
        try:
            _, logits = observe(
                net,
                layers,
                self.images,
                only=candidates,
                output=output,
                added=added,
                rectified=cut_off,
                observed=self.observed,
            )
        finally:
            for hook in hooks:
                hook.remove()
        self.logits, self.features = logits.cpu().double(), features[-1].cpu().double()
        seen = list(self.observed.outputs)
        last = seen[-1]
        self.sums = {name: found[name] for name in seen if name in added_to or name == last or not added_to}
        self.readout = find_readout(whole[last], features[-1], norms[-1] if norms else None)

    def dense(self) -> CurvePoint:
        """The original network on the samples used."""
        return self._point(0.0, self.logits)

    def _point(self, strength: float, logits: Tensor) -> CurvePoint:
        return curve_point(strength, logits.argmax(1), self.labels, self.chosen)

    def _goal(self, name: str, last: bool) -> Tensor:
        """(r, O): the target for the sum at the layer's positions."""
        total = self.sums[name]
        rows = total.rows.cpu().double()
        if not last or self.readout is None:
            center = total.pooled.cpu().double().mean(0)
            return center + (rows - center) @ erasure(total.pooled.cpu(), self.concept).T
        readout = self.readout
        weight = self.classifier.weight.detach().cpu().double()[self.task.retain]
        if readout.norm is not None:
            # Up to each sample's scale, which varies little, the normalisation subtracts the mean and multiplies.
            gamma = readout.norm.weight.detach().cpu().double()
            weight = weight * gamma
            weight = weight - weight.mean(1, keepdim=True)
        keep = retained_rows(weight)
        active = readout.active(rows)
        pooled = self.features if readout.norm is None else total.pooled.cpu().double()
        center = pooled.mean(0)
        goal = (active - center) @ erasure(pooled, self.concept).T @ keep.T @ keep
        if readout.activation == "identity":
            return goal + center
        low = -torch.quantile(goal[:: max(1, len(goal) // 50_000)], _CUT, dim=0).clamp(max=0)
        return goal + low + (0.0 if readout.activation in ("relu", "relu6") else _SMOOTH)

    @torch.inference_mode()
    def fit(self, depth: int) -> _Fit | None:
        """Fits every layer as the edited network runs; None if no λ reaches the target."""
        net = copy.deepcopy(self.task.model.module)
        layers = list(self.sums)[-depth:]
        edits: dict[str, Edit] = {}
        ridges: dict[str, float] = {}

        def fitted(site: Site) -> Tensor:
            """The layer's new output."""
            name, layer = site.name, site.layer
            total, own, at = self.sums[name], flat_weight(layer), self.observed.positions[name]
            goal = self._goal(name, name == layers[-1]).to(own)
            if site.stream is not None:
                goal = goal - site.stream
            constant = total.constant if site.constant is None else site.constant
            usable = able(total.scale)
            rows = patches(layer, site.x, at)
            wanted = (goal - constant) / torch.where(usable, total.scale, 1.0) - bias_of(layer)
            wanted = torch.where(usable, wanted, rows @ own.T)
            share = self.share.to(own).repeat_interleave(at.shape[1])
            weight, shift, ridges[name] = fit_rows(rows, wanted, own, TAIL, True, share=share)
            edits[name] = Edit(weight.cpu(), shift.cpu())
            self.task.progress(len(edits), len(layers), f"erasing in the last {depth} layers")
            return operate(layer, site.x, weight.to(own), shift.to(own) + bias_of(layer))

        features: list[Tensor] = []
        hook = net.get_submodule(self.head).register_forward_pre_hook(
            lambda _, args: features.append(args[0].flatten(1).cpu().double())
        )
        try:
            fit_in_sequence(
                net,
                list(self.task.study.structure.readers),
                self.images,
                self.observed,
                fitted,
                only=layers,
                streams=[name for name in layers if self.sums[name].stream],
            )
        finally:
            hook.remove()
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
        # The classifier's row is knowledge of the class too.
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
        """(K, d) and (K,): from the new features to the old logits on the retain set, and to their mean on the forget set."""
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
    """Indices of at most ``most`` samples, forget and retain set in proportion (at least one each), spread evenly."""
    if len(chosen) <= most:
        return torch.arange(len(chosen))
    parts = []
    for which in (chosen, ~chosen):
        numbers = torch.nonzero(which)[:, 0]
        count = max(1, round(most * len(numbers) / len(chosen)))
        parts.append(numbers[torch.linspace(0, len(numbers) - 1, count).round().long()])
    return torch.cat(parts).sort().values
