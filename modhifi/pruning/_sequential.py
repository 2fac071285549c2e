"""Compensation layer by layer (theory, section 4, level 3): each layer is fitted to what the layers before it, already
changed, really give it, with the unchanged network's outputs as the target.

Both networks run once on all images in one batch. In the changed one every layer that reads components is fitted in the
moment it runs, so that the pass itself brings the next layer its input.

Where a layer's output goes into a ReLU and nowhere else, an output that was cut off there need not be met, only stay below
(Zhang et al. 2016, "Accelerating very deep convolutional networks", section 3.2): such targets follow the fit as far as the
threshold, and the layer is fitted again, a few times with the same factorisation.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from .._operators import Edit, Operator, flat_weight, get_operator, operate, outputs_at, patches, position_count
from .._paths import Path, bias_of, followed, rows_at
from ..fidelity import TAIL, Limit, fit_rows
from ..progress import Progress, silent
from ..statistics import draw
from ..study import Study
from ..surgery import remaining_columns

__all__ = ["sequential"]

# Rows that a layer is fitted on, for each of its inputs.
_ROWS_PER_INPUT = 64
# At most so many entries in the matrix of rows, 512 MiB.
_ENTRIES = 1 << 27
# All images run in one batch; more pixels than this would need too much memory.
_PIXELS = 1 << 24
# An output whose scale on its way to the stream is smaller than this, relative to the largest, takes up no drift.
_SMALLEST_SCALE = 1e-3


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

        def added(path: Path, own: Tensor, other: Tensor) -> Tensor | None:
            scale, constant = path.affine(own)
            at = self.positions[path.layer]
            expected = self.targets[path.layer] + bias_of(get_operator(net, path.layer))
            # Something in between that is no affine map of each channel (an activation in place) rules it out.
            if not torch.allclose(rows_at(own, at), expected * scale + constant, rtol=1e-3, atol=1e-4):
                return None
            self.streams[path.layer] = _Stream(rows_at(other, at), scale)
            return own  # of two layers that are added to one another, the second is fitted as it runs

        def cut_off(path: Path, x: Tensor) -> None:
            at = self.positions[path.layer]
            if path.added:
                if path.layer in self.streams:
                    self.thresholds[path.layer] = _Threshold(rows_at(x, at) > 0, path)
                return
            scale, constant = path.affine(x)
            target = self.targets[path.layer] + bias_of(get_operator(net, path.layer))
            if torch.allclose(rows_at(x, at), target * scale + constant, rtol=1e-3, atol=1e-4):
                self.thresholds[path.layer] = _Threshold(rows_at(x, at) > 0, path, scale, constant)

        with followed(net, self.layers, see, added if drift else None, cut_off if rectified else None):
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
            limit = None if threshold is None else threshold.limit(bias_of(layer))
            return self._fitted(name, layer, x, self.targets[name], limit)

        def added(path: Path, own: Tensor, other: Tensor) -> Tensor | None:
            x = waiting.pop(path.layer, None)
            if x is None:
                return None
            stream = self.streams[path.layer]
            lost = stream.rows - rows_at(other, self.positions[path.layer])
            able = stream.scale.abs() > _SMALLEST_SCALE * stream.scale.abs().max()
            lost = torch.where(able, lost / torch.where(able, stream.scale, 1.0), 0.0)
            layer = get_operator(net, path.layer)
            threshold, limit = self.thresholds.get(path.layer), None
            if threshold is not None:
                # The constant on the way, and what the stream is now.
                _, constant = path.affine(own)
                now = dataclasses.replace(threshold, scale=stream.scale, constant=constant)
                limit = now.limit(bias_of(layer), rows_at(other, self.positions[path.layer]))
            fitted = self._fitted(path.layer, layer, x, self.targets[path.layer] + lost, limit)
            return path.run(fitted).reshape(own.shape)

        with followed(net, self.layers, see, added, None):
            net(images)
        assert not waiting, "an addition that was seen in the unchanged network did not come"

    def _fitted(self, name: str, layer: Operator, x: Tensor, target: Tensor, limit: Limit | None) -> Tensor:
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
        return operate(layer, x, edit.weight.to(own), edit.shift.to(own) + bias_of(layer))


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
    path: Path
    scale: Tensor | None = None
    constant: Tensor | None = None

    def limit(self, bias: Tensor, stream: Tensor | float = 0.0) -> Limit:
        """In terms of the layer's output without its ``bias``, when ``stream`` (r, O) is added on the way."""
        assert self.scale is not None
        assert self.constant is not None
        able = self.scale.abs() > _SMALLEST_SCALE * self.scale.abs().max()
        scale = torch.where(able, self.scale, 1.0)
        return Limit(~self.active & able, -(self.constant + stream) / scale - bias, scale < 0)
