"""The statistics of one consumer, and its new weights when some of the components it reads are removed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..fidelity import centre, full_compensation, ridged, scalar_compensation
from ..layers import Edit
from ..statistics import Moments, partition

__all__ = ["LayerStats", "Level"]

Level = Literal["none", "scalar", "full"]


@dataclass
class LayerStats:
    """A consumer's weight, flat (O, n) float32, the moments of its input, and per group it reads the columns (C, k) of the
    components.

    A layer too wide for a dense moment stores the Gram matrix of the components' contributions instead. It is then treated as a
    layer with one output whose inputs are the contributions and whose weights are all one, so its new weights are one scalar
    per component, shared by all outputs (see docs/theory.md, *Collecting the statistics*).
    """

    weight: Tensor
    moments: Moments
    groups: Mapping[str, Tensor]

    @property
    def wide(self) -> bool:
        """Whether contributions are stored instead of dense moments."""
        return self.moments.second.shape[0] != self.weight.shape[1]

    def check(self) -> None:
        """Raises `ValueError` if shapes or dtypes contradict each other, or a value is not finite: files are untrusted."""
        second, mean, weight = self.moments.second, self.moments.mean, self.weight
        if not all(value.is_floating_point() and value.isfinite().all() for value in (second, mean, weight)):
            raise ValueError("its moments or weights are not finite numbers")
        if (second.dtype, mean.dtype, weight.dtype) != (torch.float32, torch.float64, torch.float32):
            raise ValueError("its moments or weights are of another type")
        if weight.ndim != 2 or second.ndim != 2 or mean.shape != weight.shape[1:]:
            raise ValueError("its moments do not fit its weights")
        top = max((int(columns.max()) for columns in self.groups.values()), default=0)
        if top >= weight.shape[1]:
            raise ValueError(f"a group owns column {top} of a layer that has {weight.shape[1]}")
        wide = int(self.parts().max()) + 1
        if second.shape not in {(weight.shape[1],) * 2, (wide,) * 2}:
            raise ValueError("its moments do not fit its weights")

    def parts(self) -> Tensor:
        """(n,) int64: see `modhifi.statistics.partition`."""
        return partition(self.weight.shape[1], self.groups)

    def blocks(self, group: str) -> Tensor:
        """(C, k): the components' columns in the matrices of `moment_and_weight`."""
        return self.parts()[self.groups[group][:, :1]] if self.wide else self.groups[group]

    def moment_and_weight(self, centred: bool, ridge: float) -> tuple[Tensor, Tensor]:
        """The second moment (centred: the covariance) plus ridge, (m, m), and the weights (O, m) that go with it, float64."""
        raw, weight = self._moment(centred)
        return ridged(raw, ridge, self._rounding()), weight

    def ridge(self, centred: bool, ridge: float) -> float:
        """What `moment_and_weight` adds to the diagonal, relative to the mean eigenvalue: ``ridge`` or the rounding error of
        the moment, whichever is larger.
        """
        mean = float(self._moment(centred)[0].diagonal().mean())
        return max(ridge, self._rounding() / mean) if mean > 0 else ridge

    def _moment(self, centred: bool) -> tuple[Tensor, Tensor]:
        second, weight = self.moments.second.double(), self.weight.double()
        if not self.wide:
            return (centre(second, self.moments.mean) if centred else second), weight
        if centred:
            contributions = torch.zeros(len(second), weight.shape[0], dtype=torch.float64)
            contributions.index_add_(0, self.parts(), (weight * self.moments.mean).T)
            second = second - contributions @ contributions.T
        return second, torch.ones(1, len(second), dtype=torch.float64)

    def _rounding(self) -> float:
        # The moments are float32 sums, so their eigenvalues are only accurate to about this much.
        return 4 * torch.finfo(torch.float32).eps * float(self.moments.second.double().norm())

    def edit(self, keep: Mapping[str, Tensor], compensate: Level, centred: bool, ridge: float) -> Edit:
        """The new weights (O, n) if each group in ``keep`` keeps only those components: scalar (ModHiFi, Prop. 3.8) or full
        compensation (see docs/theory.md, *Compensation*), zero for removed components. Groups that are not named keep all.

        Centred, the mean output that is lost is restored by a shift; raw or without compensation the shift is zero.
        """
        own = self.weight.double()
        remain = torch.ones(own.shape[1], dtype=torch.bool)
        for group, kept in keep.items():
            remain[self.groups[group].reshape(-1)] = False
            remain[self.groups[group][kept].reshape(-1)] = True
        if compensate == "none":
            return Edit(own * remain, own.new_zeros(own.shape[0]))
        second, weight = self.moment_and_weight(centred, ridge)
        if self.wide:
            parts = self.parts()
            left = torch.zeros(len(second), dtype=torch.bool)
            left[parts[remain]] = True
            scale = full_compensation(second, weight, 1, torch.nonzero(left)[:, 0])[0]
            new = own * scale[parts] * remain
        elif compensate == "full":
            new = full_compensation(second, own, 1, torch.nonzero(remain)[:, 0])
        else:
            new = own.clone()
            for group, kept in keep.items():
                columns = self.groups[group].reshape(-1)
                fitted = scalar_compensation(second, own, self.groups[group], kept)
                new[:, columns] = fitted[:, columns]
        shift = (own - new) @ self.moments.mean if centred else own.new_zeros(own.shape[0])
        return Edit(new, shift)

    def error(self, edit: Edit) -> float:
        """``E‖Y − Ŷ‖²`` of one sample, summed over outputs and positions: tr(ΔW H ΔWᵀ), corrected for the shift. For a wide
        layer the edit must be one scalar per component, as `edit` returns it.
        """
        delta = edit.weight.double() - self.weight.double()
        second, mean = self.moments.second.double(), self.moments.mean
        if self.wide:
            own = self.weight.double().square().sum(0)
            parts = self.parts()
            above, below = (torch.zeros(len(second), dtype=torch.float64) for _ in range(2))
            above.index_add_(0, parts, (delta * self.weight.double()).sum(0))
            below.index_add_(0, parts, own)
            scale = above / below.clamp(min=1e-300)
            linear = scale @ second @ scale
        else:
            linear = ((delta @ second) * delta).sum()
        linear = linear + 2 * (edit.shift.double() @ (delta @ mean)) + edit.shift.double().square().sum()
        return max(0.0, float(linear)) * self.moments.positions
