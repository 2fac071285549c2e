"""Sequential compensation: each layer is fitted to the inputs that the pruned layers before it produce, with the original
network's outputs as the target (see docs/theory.md, *Compensation*).

Where a layer's output is added to a residual stream, the target also absorbs the drift that the stream has accumulated so
far. Where it goes into a ReLU and nowhere else, an output that was cut off need not be met, only stay below the threshold
(Zhang et al. 2016, "Accelerating very deep convolutional networks", section 3.2): such targets follow the fit as far as the
threshold, and the layer is fitted again, a few times with the same factorisation.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..fidelity import TAIL, Limit, fit_rows
from ..layers import Edit, Route, bias_of, flat_weight, operate, patches, rows_at
from ..progress import Progress, silent
from ..statistics import FOLDS, Affine, Observed, Site, able, at_most, fit_in_sequence, observe
from ..study import Study
from ..surgery import remaining_columns

__all__ = ["sequential"]

_STEP = "sequential compensation"


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
    """New weights for every layer that reads components, in the coordinates of the original network, and the ridge each was
    fitted with.

    Args:
        study: of ``module``; its structure says which layers read what, and its moments replace the fit of layers that are too
            wide.
        keep: the components kept in each group.
        module: the original network; it is not changed.
        images: (N, 3, H, W). As many of them are used as fit into memory in one batch.
        centred: whether the lost mean is restored by a constant.
        tail: the smallest ridge that pulls the weights towards the original ones is the eigenvalue of the input's second moment
            below which this share of the energy lies; larger ones are chosen where they are better on unseen samples.
        drift: whether a layer whose output is added to a residual stream (directly, or through BatchNorm or a LayerScale
            module) also corrects what the stream has lost so far.
        rectified: whether outputs that a ReLU cuts off need only stay below its threshold.
        progress: see `modhifi.progress`.
    """
    device = next(module.parameters()).device
    run = _Run(study, keep, module, images[: at_most(images)].to(device), centred, tail, progress)
    run.observe(drift, rectified)
    run.fit()
    return run.edits, run.ridges


@dataclass(frozen=True)
class _Stream:
    """What a layer's output is added to, at the layer's positions (r, O), and the ``scale`` (O,) of the output there."""

    rows: Tensor
    scale: Tensor


@dataclass(frozen=True)
class _Threshold:
    """A ReLU that a layer's output goes into by ``route``: which rows were ``active`` (r, O), and for an output that is not
    added to anything first, the affine map on the way.
    """

    active: Tensor
    route: Route
    affine: Affine | None

    def limit(self, scale: Tensor, constant: Tensor, bias: Tensor, stream: Tensor | float = 0.0) -> Limit:
        """In terms of the layer's output without its ``bias``, when ``stream`` (r, O) is added on the way."""
        usable = able(scale)
        scale = torch.where(usable, scale, 1.0)
        return Limit(~self.active & usable, -(constant + stream) / scale - bias, scale < 0)


class _Run:
    def __init__(
        self,
        study: Study,
        keep: Mapping[str, Sequence[int]],
        module: nn.Module,
        images: Tensor,
        centred: bool,
        tail: float,
        progress: Progress,
    ) -> None:
        self.study, self.keep, self.module, self.images = study, keep, module, images
        self.centred, self.tail, self.progress = centred, tail, progress
        self.layers = list(study.structure.readers)
        self.observed = Observed()
        self.streams: dict[str, _Stream] = {}
        self.thresholds: dict[str, _Threshold] = {}
        self.edits: dict[str, Edit] = {}
        self.ridges: dict[str, float] = {}

    def observe(self, drift: bool, rectified: bool) -> None:
        """The original network: the outputs of every layer, the streams that they are added to, and what is cut off."""

        def output(*_: object) -> None:
            self.progress(len(self.observed.outputs), 2 * len(self.layers), _STEP)

        def added(route: Route, _: Tensor, other: Tensor, affine: Affine) -> None:
            self.streams[route.layer] = _Stream(rows_at(other, self.observed.positions[route.layer]), affine[0])

        def cut_off(route: Route, x: Tensor, affine: Affine | None) -> None:
            if affine is not None or route.layer in self.streams:
                active = rows_at(x, self.observed.positions[route.layer]) > 0
                self.thresholds[route.layer] = _Threshold(active, route, affine)

        observe(
            copy.deepcopy(self.module),
            self.layers,
            self.images,
            output=output,
            added=added if drift else None,
            rectified=cut_off if rectified else None,
            observed=self.observed,
        )
        # What is also used elsewhere must be met there.
        self.thresholds = {name: one for name, one in self.thresholds.items() if one.route.only_once}

    def fit(self) -> None:
        """The pruned network: every layer fitted as it runs; one that is added to a stream, at the addition."""
        net = copy.deepcopy(self.module)
        fit_in_sequence(net, self.layers, self.images, self.observed, self._fitted, streams=self.streams)

    def _target(self, site: Site) -> tuple[Tensor, Limit | None]:
        """The rows (r, O) that the layer's output should give, and which of them are free."""
        target, threshold = self.observed.outputs[site.name], self.thresholds.get(site.name)
        bias = bias_of(site.layer)
        if site.stream is None or site.constant is None:
            if threshold is None or threshold.affine is None:
                return target, None
            return target, threshold.limit(*threshold.affine, bias)
        stream = self.streams[site.name]
        usable, lost = able(stream.scale), stream.rows - site.stream
        lost = torch.where(usable, lost / torch.where(usable, stream.scale, 1.0), 0.0)
        limit = None if threshold is None else threshold.limit(stream.scale, site.constant, bias, site.stream)
        return target + lost, limit

    def _fitted(self, site: Site) -> Tensor:
        """Fits a layer, keeps the edit, and returns the layer's new output."""
        self.progress(len(self.layers) + len(self.edits), 2 * len(self.layers), _STEP)
        name, layer = site.name, site.layer
        stats, own = self.study.layers[name], flat_weight(layer)
        if stats.wide:
            read = {g.name: torch.as_tensor(self.keep[g.name]) for g, _ in self.study.structure.readers[name]}
            edit = stats.edit(read, "full", self.centred, self.study.ridge)
            self.ridges[name] = stats.ridge(self.centred, self.study.ridge)
        else:
            target, limit = self._target(site)
            stays = remaining_columns(self.study.structure, name, own, self.keep)
            at = self.observed.positions[name]
            rows = patches(layer, site.x, at)[:, stays]
            fold = (torch.arange(len(at), device=rows.device) % FOLDS).repeat_interleave(at.shape[1])
            weight, shift, self.ridges[name] = fit_rows(
                rows, target, own[:, stays], self.tail, self.centred, limit, fold=fold
            )
            new = torch.zeros(own.shape, dtype=weight.dtype, device=weight.device)
            new[:, stays] = weight
            edit = Edit(new, shift)
        self.edits[name] = Edit(edit.weight.cpu(), edit.shift.cpu())
        return operate(layer, site.x, edit.weight.to(own), edit.shift.to(own) + bias_of(layer))
