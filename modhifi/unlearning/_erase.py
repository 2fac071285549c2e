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

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..evaluation import classifier_of, hiding_logit
from ..fidelity import TAIL, fit_rows
from ..layers import Edit, Operator, bias_of, copied, flat_weight, get_operator, rows_at
from ..plan import CurvePoint
from ..statistics import Affine, InSequence, Site, able
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
# Images run together, at most.
_BATCH = 256
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

    @classmethod
    def of(cls, batches: Sequence[_Sum]) -> _Sum:
        """Of all samples, from those of every batch."""
        first = batches[0]
        rows, pooled = torch.cat([one.rows for one in batches]), torch.cat([one.pooled for one in batches])
        return cls(first.scale, first.constant, first.stream, rows, pooled)


class _Run:
    """One network and one set of samples; `fit` edits the last layers, as many as asked for."""

    def __init__(self, task: Task) -> None:
        self.task = task
        module = task.model.module
        head = classifier_of(task.model)
        if head is None:
            raise UserError(f"{task.model.spec} has no linear classifier; use the method published or subspace")
        self.head = head
        classifier = module.get_submodule(head)
        assert isinstance(classifier, nn.Linear)
        self.classifier = classifier
        self.labels, self.chosen = task.labels, task.chosen
        self.concept = torch.stack([self.labels == index for index in task.forget], 1).double()
        # Forget and retain set count the same, whatever their sizes.
        count = self.chosen.double().mean()
        self.share = torch.where(self.chosen, 0.5 / count, 0.5 / (1 - count)).float()
        self.sums: dict[str, _Sum] = {}
        self.features, self.logits = torch.empty(0), torch.empty(0)
        self.readout: Readout | None = None
        layers = [name for name in task.study.structure.readers if name != head and not task.study.layers[name].wide]
        if not layers:
            raise UserError("no layer of this network reads what a block computed; use the method subspace or mask")
        with torch.inference_mode():
            self.engine = InSequence(copied(module), layers, lambda: task.images.split(_BATCH), len(task.images))
            self._observe()

    def _observe(self) -> None:
        """The original network: the sums that its layers' outputs become, and the features."""
        engine = self.engine
        candidates = engine.order[-4 * max(_DEPTHS) :]
        found: dict[str, list[_Sum]] = {}
        whole: dict[str, Tensor] = {}
        norms: list[nn.LayerNorm] = []
        features: list[Tensor] = []
        logits: list[Tensor] = []
        batch: dict[str, _Sum] = {}

        def note(name: str, total: Tensor, affine: Affine, stream: bool, at: Tensor) -> None:
            layer = get_operator(engine.net, name)
            every = total if isinstance(layer, nn.Linear) else total.flatten(2).transpose(1, 2)
            every = every.reshape(len(at), -1, every.shape[-1])
            batch[name] = _Sum(*affine, stream, rows_at(layer, total, at).clone(), every.mean(1))
            if not logits:  # the first batch; what follows may write into the tensor
                whole.clear()
                whole[name] = every.clone()

        def output(name: str, layer: Operator, y: Tensor, at: Tensor) -> None:
            note(name, y, (torch.ones_like(bias_of(layer)), torch.zeros_like(bias_of(layer))), False, at)

        def added(name: str, own: Tensor, other: Tensor, affine: Affine, at: Tensor) -> None:
            note(name, own + other, affine, True, at)

        def cut_off(name: str, x: Tensor, affine: Affine | None, at: Tensor) -> None:
            if affine is not None:
                note(name, x, affine, False, at)

        def normed(module: nn.Module, _: object, __: object) -> None:
            assert isinstance(module, nn.LayerNorm)
            norms.append(module)

        net = engine.net
        hooks = [m.register_forward_hook(normed) for m in net.modules() if isinstance(m, nn.LayerNorm)]
        hooks.append(
            net.get_submodule(self.head).register_forward_pre_hook(lambda _, args: features.append(args[0].flatten(1)))
        )
        try:
            for start, images in engine.batches():
                batch.clear()
                with engine.watching(candidates, start, len(images), output=output, added=added, rectified=cut_off):
                    logits.append(net(images))
                for name, total in batch.items():
                    found.setdefault(name, []).append(total)
                if start == 0:
                    seen = list(batch)
                    self.readout = find_readout(whole[seen[-1]], features[-1], norms[-1] if norms else None)
        finally:
            for hook in hooks:
                hook.remove()
        self.logits = torch.cat(logits).cpu().double()
        self.features = torch.cat(features).cpu().double()
        added_to = {name for name in seen if engine.fates[name].added}
        self.sums = {
            name: _Sum.of(found[name]) for name in seen if name in added_to or name == seen[-1] or not added_to
        }

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
        engine = self.engine
        layers = list(self.sums)[-depth:]
        ridges: dict[str, float] = {}

        def fitted(site: Site) -> Edit:
            name, layer, rows = site.name, site.layer, site.rows
            total, own = self.sums[name], flat_weight(layer)
            goal = self._goal(name, name == layers[-1]).to(own)
            if site.stream is not None:
                goal = goal - site.stream
            constant = total.constant if site.constant is None else site.constant
            usable = able(total.scale)
            wanted = (goal - constant) / torch.where(usable, total.scale, 1.0) - bias_of(layer)
            wanted = torch.where(usable, wanted, rows @ own.T)
            share = self.share.to(own)[site.sample]
            weight, shift, ridges[name] = fit_rows(rows, wanted, own, TAIL, True, share=share)
            return Edit(weight.cpu(), shift.cpu())

        what = f"erasing in the last {depth} layers"
        edits = engine.fit(fitted, layers, original=False, progress=self.task.progress, what=what)
        features: list[Tensor] = []
        hook = engine.net.get_submodule(self.head).register_forward_pre_hook(
            lambda _, args: features.append(args[0].flatten(1).cpu().double())
        )
        try:
            with engine.changed(edits):
                for _, images in engine.batches():
                    engine.net(images)
        finally:
            hook.remove()
        reached = torch.cat(features)
        curve = []
        taken: tuple[CurvePoint, Tensor, Tensor] | None = None
        for strength in _LAMBDAS:
            weight, bias = self._classifier(reached, strength)
            curve.append(self._point(strength, reached @ weight.T + bias))
            if curve[-1].forget_accuracy <= self.task.target:
                taken = curve[-1], weight, bias
                break
        if taken is None:
            return None
        point, weight, bias = taken
        # The classifier's row is knowledge of the class too.
        hidden = hiding_logit(reached @ weight.T + bias, self.task.forget)
        weight[self.task.forget], bias[self.task.forget] = 0.0, hidden
        point = self._point(point.strength, reached @ weight.T + bias)
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
