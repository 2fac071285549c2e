"""The statistics of one consumer, and its new weights when some of the components it reads are removed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..fidelity import (
    Fold,
    best_ridge,
    full_compensation,
    output_energy,
    ridged,
    scalar_compensation,
    singleton_from_moments,
)
from ..layers import Edit
from ..statistics import Moments, partition

__all__ = ["LayerStats", "Level"]

Level = Literal["none", "scalar", "full"]

_ALIKE = 1e12
# Ridges to choose from, relative to the mean eigenvalue.
_RIDGES = (1e-5, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)


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
        return self.moments.seconds.shape[1] != self.weight.shape[1]

    def check(self) -> None:
        """Raises `ValueError` if shapes or dtypes contradict each other, or a value is not finite: files are untrusted."""
        second, mean, weight = self.moments.seconds, self.moments.means, self.weight
        folds = len(self.moments.counts)
        if not all(value.is_floating_point() and value.isfinite().all() for value in (second, mean, weight)):
            raise ValueError("its moments or weights are not finite numbers")
        if (second.dtype, mean.dtype, weight.dtype) != (torch.float32, torch.float64, torch.float32):
            raise ValueError("its moments or weights are of another type")
        if (
            weight.ndim != 2
            or second.ndim != 3
            or not 0 < folds == len(second)
            or mean.shape != (folds, weight.shape[1])
        ):
            raise ValueError("its moments do not fit its weights")
        top = max((int(columns.max()) for columns in self.groups.values()), default=0)
        if top >= weight.shape[1]:
            raise ValueError(f"a group owns column {top} of a layer that has {weight.shape[1]}")
        wide = int(self.parts().max()) + 1
        if second.shape[1:] not in {(weight.shape[1],) * 2, (wide,) * 2}:
            raise ValueError("its moments do not fit its weights")

    def parts(self) -> Tensor:
        """(n,) int64: see `modhifi.statistics.partition`."""
        return partition(self.weight.shape[1], self.groups)

    def blocks(self, group: str) -> Tensor:
        """(C, k): the components' columns in the matrices of `moment_and_weight`."""
        return self.parts()[self.groups[group][:, :1]] if self.wide else self.groups[group]

    def moment_and_weight(self, centred: bool, ridge: float) -> tuple[Tensor, Tensor]:
        """The second moment (centred: the covariance) plus ridge, (m, m), and the weights (O, m) that go with it, float64."""
        mean = self.moments.mean if centred else None
        return ridged(self._about(self.moments, mean), ridge, self._rounding()), self._own_weight()

    def folds(self, centred: bool, ridge: float) -> list[Fold]:
        """For every fold the second moment of the others plus ridge, and its own, both (m, m) float64; centred, about the mean
        of the others. Raises `ValueError` if there is only one fold.
        """
        floor = self._rounding()
        return [Fold(ridged(train, ridge, floor), judge, share) for train, judge, share in self._split(centred)]

    def best_ridge(self, centred: bool, least: float) -> float:
        """The ridge relative to the mean eigenvalue, at least ``least``, with the smallest error on unseen samples if the
        components keep half of their number: those with the highest fidelity alone.
        """
        second, weight = self.moment_and_weight(centred, least)
        stays = torch.ones(len(second), dtype=torch.bool)
        energy = output_energy(second, weight)
        for group in self.groups:
            columns = self.blocks(group)
            alone = energy @ singleton_from_moments(second, weight, columns)
            stays[columns[alone.argsort()[: len(columns) // 2]].reshape(-1)] = False
        ridges = sorted({least, *(ridge for ridge in _RIDGES if ridge > least)})
        return best_ridge(self._split(centred), weight, torch.nonzero(stays)[:, 0], ridges, self._rounding())

    def independent(self) -> float:
        """The number of independent Gaussian samples whose covariance would differ as much between the folds. With ``n`` of
        them in two halves, ``E‖H_1 − H_2‖² = (tr² H + ‖H‖²)·4/n``; Frobenius norms, and ``‖H‖²`` is estimated by ⟨H_1, H_2⟩.
        At most 10¹², which stands for folds that agree; 0 if there is only one.
        """
        if len(self.moments.counts) < 2:
            return 0.0
        parts = [self._about(self.moments.only(f), self.moments.means[f]) for f in range(2)]
        spread = float((parts[0] - parts[1]).square().sum())
        pooled = float((parts[0].diagonal() + parts[1].diagonal()).sum()) / 2
        shares = self.moments.shares
        between = 1 / shares[0] + 1 / shares[1]
        above = (pooled**2 + max(0.0, float((parts[0] * parts[1]).sum()))) * between
        return min(_ALIKE, above / spread) if spread > 0 else _ALIKE

    def ridge(self, centred: bool, ridge: float) -> float:
        """What `moment_and_weight` adds to the diagonal, relative to the mean eigenvalue: ``ridge`` or the rounding error of
        the moment, whichever is larger.
        """
        about = self._about(self.moments, self.moments.mean if centred else None)
        mean = float(about.diagonal().mean())
        return max(ridge, self._rounding() / mean) if mean > 0 else ridge

    def _own_weight(self) -> Tensor:
        return torch.ones(1, self.moments.seconds.shape[1], dtype=torch.float64) if self.wide else self.weight.double()

    def _split(self, centred: bool) -> list[tuple[Tensor, Tensor, float]]:
        """For every fold the second moment of the others, its own, and its share; centred, about the mean of the others."""
        found = []
        for fold, share in enumerate(self.moments.shares):
            others = self.moments.without(fold)
            mean = others.mean if centred else None
            found.append((self._about(others, mean), self._about(self.moments.only(fold), mean), share))
        return found

    def _about(self, moments: Moments, origin: Tensor | None) -> Tensor:
        """(m, m) float64: ``E[(x − origin)(x − origin)ᵀ]``, of the input or, for a wide layer, of the contributions."""
        second, mean = moments.second.double(), moments.mean
        if origin is None:
            return second
        if self.wide:
            mean, origin = self._contributions(mean), self._contributions(origin)
        else:
            mean, origin = mean[:, None], origin[:, None]
        apart = mean - origin
        return second - mean @ mean.T + apart @ apart.T

    def _contributions(self, mean: Tensor) -> Tensor:
        """(C, O) float64: each part's contribution to the mean output."""
        found = torch.zeros(self.moments.seconds.shape[1], len(self.weight), dtype=torch.float64)
        return found.index_add_(0, self.parts(), (self.weight.double() * mean).T)

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
